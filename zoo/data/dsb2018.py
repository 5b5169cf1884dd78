"""DSB 2018: nuclei in microscope images of many kinds, each nucleus outlined.

Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl", Nature Methods 2019
(BBBC038). 670 images of stage1_train (664 with the community's corrections, github.com/lopuhin/kaggle-dsbowl-2018-
dataset-fixes), 1 to 375 nuclei each, 256x256 to 1388x1040. Two forms are read: Kaggle's folders as downloaded, and
COCO's JSON with a file for each split.

There is no official validation split and stage 2 is hidden: Kaggle's folders are split 70/10/20 by the hash of the
image's name, the JSONs as they are; the two differ, and so do their fingerprints. Kaggle's score is the mean over the
IoU thresholds 0.50 to 0.95 of TP / (TP + FP + FN), averaged over images. COCO's limit of 100 detections is below the
375 nuclei of an image, so AP is measured with 1000.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.annotated import AnnotatedImages
from zoo.data.annotations import BadAnnotation, Keypoints, Note
from zoo.data.base import Images, Transform
from zoo.data.coco_file import CocoFile
from zoo.data.coco_json import missing_files
from zoo.data.files import images_in, read_image
from zoo.data.pairs import descend, shown
from zoo.errors import ZooError
from zoo.ops import masks as rle_ops
from zoo.structures import Class, Instances, Masks, Size

CLASSES = (Class("nucleus", (90, 170, 255), thing=True),)
TENTHS = {"train": range(7), "val": range(7, 8), "test": range(8, 10)}
"""Of the names of Kaggle's folders, by their hash."""


class DSB2018(AnnotatedImages):
    """DSB 2018. `root` is the folder that holds stage1_train or the JSONs, or stage1_train itself.

    Args:
        max_detections: of the metric, for each image.
    """

    layout = """
dsb2018/                             one of
  stage1_train/ID/images/ID.png        stage1_train.zip, unpacked into a folder of that name
  stage1_train/ID/masks/*.png          one nucleus each
  instances_{train,val,test}.json      COCO's form
  images/ID.jpg
"""
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    table = CLASSES

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "instance",
        transform: Transform | None = None,
        seed: int = 0,
        max_detections: int = 1000,
    ) -> None:
        self.metric_options = {"max_detections": max_detections}
        super().__init__(root, split, task, transform, seed)

    def index(self) -> Images:
        name = f"instances_{self.split}.json"
        self.root = descend(self.path(), ["dsb2018", "data-science-bowl-2018"], ["stage1_train", name])
        if (self.path() / name).is_file():
            file = CocoFile(self.path(name))
            if [c.name for c in file.classes] != [c.name for c in CLASSES]:
                raise ZooError(f"{file.path}: its classes are {shown(c.name for c in file.classes)}, not nucleus")
            file.classes = CLASSES
            folder = self.path("images")
            if missing := missing_files(folder, [file.name(i) for i in range(len(file))]):
                raise ZooError(f"{file.path}: {len(missing)} of its images are not in {folder} ({shown(missing)})")
            self.use(file)
            return Images(folder, file.names)
        folder = self.root if _is_image_folder(self.root) else self.path("stage1_train")
        kaggle = KaggleFolder(folder, self.split)
        self.use(kaggle)
        return Images(folder, kaggle.names)


class KaggleFolder:
    """The images of one split of stage1_train, a PNG for each nucleus; see `zoo.data.annotated.Source`."""

    classes: tuple[Class, ...] = CLASSES
    keypoints: Keypoints | None = None
    has_truth = True
    has_masks = True
    facts = "stage1_train"

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.notes = folder, list[Note]()
        ids = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        chosen = [id for id in ids if _tenth(id) in TENTHS[split]]
        self.names = np.array([_image(folder / id, id).encode() for id in chosen], dtype=bytes)

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) images with a mask."""
        return np.array([bool(self._masks(i)) for i in range(len(self.names))], bool)

    def instances(self, i: int, size: Size) -> Instances:
        """The nuclei of image i of `size` (H, W), in the order of the names of their files.

        Raises:
            ZooError: an unreadable mask, or one of another size.
        """
        paths = self._masks(i)
        rles = []
        for path in paths:
            mask = read_image(path, channels=1)[..., 0]
            if mask.shape != size:
                raise BadAnnotation(
                    f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, the image {size[1]}x{size[0]}"
                )
            rles += rle_ops.encode(mask[None] > 0)
        masks = Masks.from_rle(rles, size)
        labels = torch.zeros(len(rles), dtype=torch.int64)
        return Instances(masks, labels, boxes=masks.boxes(), areas=masks.area().double())

    def _masks(self, i: int) -> list[Path]:
        folder = self.folder / self.names[i].decode().split("/")[0] / "masks"
        if not folder.is_dir():
            raise BadAnnotation(f"{folder}: there is no such folder; stage1_test has no truth and is not read")
        return list(images_in(folder).values())


def _is_image_folder(folder: Path) -> bool:
    """Whether `folder` is stage1_train: its subfolders have images and masks."""
    return any((path / "images").is_dir() and (path / "masks").is_dir() for path in folder.iterdir())


def _tenth(id: str) -> int:
    return int(hashlib.sha256(id.encode()).hexdigest(), 16) % 10


def _image(folder: Path, id: str) -> str:
    """The path of the image below stage1_train: nearly always ID/images/ID.png."""
    if (folder / "images" / f"{id}.png").is_file():
        return f"{id}/images/{id}.png"
    found = list(images_in(folder / "images").values()) if (folder / "images").is_dir() else []
    if len(found) != 1:
        raise ZooError(f"{folder}: {len(found)} images in its folder images; an image of DSB 2018 has one")
    return f"{id}/images/{found[0].name}"
