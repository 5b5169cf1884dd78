"""Cityscapes: 5000 street scenes from 50 cities, 2048x1024, 19 classes, and 20000 more with coarse polygons.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", 2016; train 2975, val 500, test 1525,
train_extra 19998 (coarse truth). Of the 34 ids in the label files 19 are classes, the others are void.

The official score (cityscapesScripts, evalPixelLevelSemanticLabeling) is the mean IoU of the 19 classes from one
count over all images at full size. Pixels whose truth is void count nowhere, a void prediction on others is a miss, and
a class that occurs in neither truth nor prediction is left out: `SemanticMetric` with ``absent="union"``, its default.
The instance-weighted iIoU and the scores of categories are not computed. The truth of test is hidden (the label files
of gtFine/test are dummies, and are not read); the server takes ids, so write ``IDS[label]``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.base import Dataset
from zoo.data.files import files_in, read_image, read_labels
from zoo.data.pairs import Files, descend, id_table, paired, renumber, to_sample, to_semantic
from zoo.errors import ZooError
from zoo.structures import VOID, Class, Instances, Masks, Panoptic, Sample

CLASSES = (
    Class("road", (128, 64, 128)),
    Class("sidewalk", (244, 35, 232)),
    Class("building", (70, 70, 70)),
    Class("wall", (102, 102, 156)),
    Class("fence", (190, 153, 153)),
    Class("pole", (153, 153, 153)),
    Class("traffic light", (250, 170, 30)),
    Class("traffic sign", (220, 220, 0)),
    Class("vegetation", (107, 142, 35)),
    Class("terrain", (152, 251, 152)),
    Class("sky", (70, 130, 180)),
    Class("person", (220, 20, 60), thing=True),
    Class("rider", (255, 0, 0), thing=True),
    Class("car", (0, 0, 142), thing=True),
    Class("truck", (0, 0, 70), thing=True),
    Class("bus", (0, 60, 100), thing=True),
    Class("train", (0, 80, 100), thing=True),
    Class("motorcycle", (0, 0, 230), thing=True),
    Class("bicycle", (119, 11, 32), thing=True),
)
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The id of each class in the label files and on the evaluation server (the labels are the "trainIds")."""
VOID_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)
"""Ids that are not evaluated. 255 is the -1 of licence plates in a byte; the official files do without it."""
TABLE = id_table(IDS, VOID_IDS)
LARGEST_ID = max(IDS)


class Cityscapes(Dataset):
    """Cityscapes. `root` is the folder that holds leftImg8bit, or the one above it.

    Instance and panoptic truth comes from the instanceIds files, as cityscapesScripts' createPanopticImgs reads them:
    ``id // 1000`` is the class of object ``id % 1000``; a region of a thing class with an id below 1000 is a group
    whose objects were not told apart, a crowd. In instance truth all that is void is a crowd of class 255.
    """

    layout = """
cityscapes/
  leftImg8bit/{train,val,test}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png     leftImg8bit_trainvaltest.zip
  gtFine/{train,val}/CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png           gtFine_trainvaltest.zip
  gtFine/{train,val}/CITY/CITY_SEQUENCE_FRAME_gtFine_instanceIds.png        for task=instance and task=panoptic
  leftImg8bit/train_extra/CITY/...                                          leftImg8bit_trainextra.zip
  gtCoarse/train_extra/CITY/CITY_SEQUENCE_FRAME_gtCoarse_labelIds.png       gtCoarse.zip
"""
    tasks = ("semantic", "instance", "panoptic")
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "trainval", "train_extra")
    table = CLASSES

    def index(self) -> list[tuple[Path, ...]]:
        if self.task == "instance":
            self.metric_options = {"cityscapes": True}  # its own AP beside COCO's
        images, labels = self.files()
        if self.split == "test":
            return [(image,) for image in images.values()]
        kind = "gtCoarse" if self.split == "train_extra" else "gtFine"
        return [*paired(images, labels, hint=f"unpack {kind} and leftImg8bit into the same folder, all cities")]

    def files(self) -> tuple[Files, Files]:
        """The images and label files of the split by CITY_SEQUENCE_FRAME, partners or not; test has no label files."""
        self.root = descend(self.path(), ["cityscapes", "Cityscapes"], ["leftImg8bit", "gtFine", "gtCoarse"])
        kind = "gtCoarse" if self.split == "train_extra" else "gtFine"
        ids = "labelIds" if self.task == "semantic" else "instanceIds"
        images: Files = {}
        labels: Files = {}
        for part in ("train", "val") if self.split == "trainval" else (self.split,):
            images |= _in_cities(self.path("leftImg8bit", part), "_leftImg8bit.png")
            if part != "test":
                labels |= _in_cities(self.path(kind, part), f"_{kind}_{ids}.png")
        return images, labels

    def read(self, record: tuple[Path, ...]) -> Sample:
        image = read_image(record[0])
        if len(record) == 1:
            return Sample(image, None, id=0, size=(image.shape[0], image.shape[1]))
        path = record[1]
        ids = read_labels(path)
        if self.task == "semantic":
            return to_sample(image, to_semantic(renumber(ids, TABLE, path), path), path)
        panoptic = segments(ids, path)
        if self.task == "panoptic":
            return to_sample(image, panoptic, path)
        return to_sample(image, objects(panoptic, np.isin(ids, VOID_IDS)), path)


def segments(ids: NDArray[Any], path: Path) -> Panoptic:
    """Panoptic truth from the instance ids (H, W) of the file `path`: one segment for each id that is evaluated.

    Raises:
        ZooError: an id of no class.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 1000 * (LARGEST_ID + 1)):
        raise ZooError(f"{path}: instance ids {ids.min()}..{ids.max()} are not Cityscapes'")
    present = np.flatnonzero(np.bincount(ids.ravel()))
    alone = present < 1000  # no objects told apart
    classes = renumber(np.where(alone, present, present // 1000), TABLE, path)
    kept = classes != VOID
    number = np.zeros(1000 * (LARGEST_ID + 1), np.int32)
    number[present[kept]] = np.arange(1, kept.sum() + 1)
    things = np.array([c.thing for c in CLASSES])[classes[kept]]
    return Panoptic(
        torch.from_numpy(number[ids]),
        torch.tensor([VOID, *classes[kept].tolist()]),
        crowd=torch.tensor([False, *(things & alone[kept]).tolist()]),
    )


def objects(panoptic: Panoptic, void: NDArray[np.bool_]) -> Instances:
    """Instance truth. Where the image is `void` (H, W) lies a crowd of class 255: Cityscapes' AP takes notice of it.

    Its evaluation counts no detection that lies mostly on void or on groups.
    """
    found = panoptic.instances(CLASSES)
    if found.masks is None or not void.any():
        return found
    nothing = Masks.from_dense(void[None])
    return Instances(
        Masks.from_rle([*found.masks.rle(), *nothing.rle()], found.size),
        torch.cat([found.labels, torch.tensor([VOID])]),
        crowd=torch.cat([found.crowd, torch.tensor([True])]),
    )


def _in_cities(folder: Path, suffix: str) -> Files:
    """The files of all cities that end in `suffix`, by their name without it."""
    with os.scandir(folder) as entries:
        cities = sorted(entry.name for entry in entries if entry.is_dir())
    found: Files = {}
    for city in cities:
        found |= files_in(folder / city, suffix)
    return found
