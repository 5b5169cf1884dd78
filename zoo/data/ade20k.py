"""ADE20K as the scene parsing benchmark has it (SceneParse150): 22210 photographs of scenes, 150 classes.

Zhou et al., "Scene parsing through ADE20K dataset", 2017; train 20210, val 2000. A label file holds 1..150; 0 is
everything else, which is void.

The official score (CSAILVision/sceneparsing) is the mean IoU of the 150 classes from one count over all images, each at
its own size, and pixel accuracy over labelled pixels; the challenge ranks by the mean of the two. Whatever is predicted
where the truth is 0 counts nowhere. The official code counts a class that is in neither truth nor prediction 0: on a
part of val that lacks classes that is ``absent="zero"`` of `SemanticMetric`; on all of val every class occurs, and the
other rules give the same. The truth of test is hidden.

Panoptic and instance truth is the ade20k_panoptic files that Mask2Former's prepare_ade20k_pan_seg.py makes of the
benchmark's labels and annotations_instance: 100 of the classes are things, drawn over the stuff. A segment's area is
what it was before others were drawn over it, so some have fewer pixels, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from zoo.data.base import Dataset
from zoo.data.coco_panoptic import check_table
from zoo.data.files import files_in, read_image, read_labels
from zoo.data.pairs import Files, descend, id_table, paired, renumber, to_sample, to_semantic
from zoo.data.panoptic_file import PanopticFile
from zoo.structures import Class, Sample

# The first of the names in objectInfo150.txt ("television receiver" is the second), the colours of color150.mat.
CLASSES = (
    Class("wall", (120, 120, 120)),
    Class("building", (180, 120, 120)),
    Class("sky", (6, 230, 230)),
    Class("floor", (80, 50, 50)),
    Class("tree", (4, 200, 3)),
    Class("ceiling", (120, 120, 80)),
    Class("road", (140, 140, 140)),
    Class("bed", (204, 5, 255), thing=True),
    Class("windowpane", (230, 230, 230), thing=True),
    Class("grass", (4, 250, 7)),
    Class("cabinet", (224, 5, 255), thing=True),
    Class("sidewalk", (235, 255, 7)),
    Class("person", (150, 5, 61), thing=True),
    Class("earth", (120, 120, 70)),
    Class("door", (8, 255, 51), thing=True),
    Class("table", (255, 6, 82), thing=True),
    Class("mountain", (143, 255, 140)),
    Class("plant", (204, 255, 4)),
    Class("curtain", (255, 51, 7), thing=True),
    Class("chair", (204, 70, 3), thing=True),
    Class("car", (0, 102, 200), thing=True),
    Class("water", (61, 230, 250)),
    Class("painting", (255, 6, 51), thing=True),
    Class("sofa", (11, 102, 255), thing=True),
    Class("shelf", (255, 7, 71), thing=True),
    Class("house", (255, 9, 224)),
    Class("sea", (9, 7, 230)),
    Class("mirror", (220, 220, 220), thing=True),
    Class("rug", (255, 9, 92)),
    Class("field", (112, 9, 255)),
    Class("armchair", (8, 255, 214), thing=True),
    Class("seat", (7, 255, 224), thing=True),
    Class("fence", (255, 184, 6), thing=True),
    Class("desk", (10, 255, 71), thing=True),
    Class("rock", (255, 41, 10)),
    Class("wardrobe", (7, 255, 255), thing=True),
    Class("lamp", (224, 255, 8), thing=True),
    Class("bathtub", (102, 8, 255), thing=True),
    Class("railing", (255, 61, 6), thing=True),
    Class("cushion", (255, 194, 7), thing=True),
    Class("base", (255, 122, 8)),
    Class("box", (0, 255, 20), thing=True),
    Class("column", (255, 8, 41), thing=True),
    Class("signboard", (255, 5, 153), thing=True),
    Class("chest of drawers", (6, 51, 255), thing=True),
    Class("counter", (235, 12, 255), thing=True),
    Class("sand", (160, 150, 20)),
    Class("sink", (0, 163, 255), thing=True),
    Class("skyscraper", (140, 140, 140)),
    Class("fireplace", (250, 10, 15), thing=True),
    Class("refrigerator", (20, 255, 0), thing=True),
    Class("grandstand", (31, 255, 0)),
    Class("path", (255, 31, 0)),
    Class("stairs", (255, 224, 0), thing=True),
    Class("runway", (153, 255, 0)),
    Class("case", (0, 0, 255), thing=True),
    Class("pool table", (255, 71, 0), thing=True),
    Class("pillow", (0, 235, 255), thing=True),
    Class("screen door", (0, 173, 255), thing=True),
    Class("stairway", (31, 0, 255)),
    Class("river", (11, 200, 200)),
    Class("bridge", (255, 82, 0)),
    Class("bookcase", (0, 255, 245), thing=True),
    Class("blind", (0, 61, 255)),
    Class("coffee table", (0, 255, 112), thing=True),
    Class("toilet", (0, 255, 133), thing=True),
    Class("flower", (255, 0, 0), thing=True),
    Class("book", (255, 163, 0), thing=True),
    Class("hill", (255, 102, 0)),
    Class("bench", (194, 255, 0), thing=True),
    Class("countertop", (0, 143, 255), thing=True),
    Class("stove", (51, 255, 0), thing=True),
    Class("palm", (0, 82, 255), thing=True),
    Class("kitchen island", (0, 255, 41), thing=True),
    Class("computer", (0, 255, 173), thing=True),
    Class("swivel chair", (10, 0, 255), thing=True),
    Class("boat", (173, 255, 0), thing=True),
    Class("bar", (0, 255, 153)),
    Class("arcade machine", (255, 92, 0), thing=True),
    Class("hovel", (255, 0, 255)),
    Class("bus", (255, 0, 245), thing=True),
    Class("towel", (255, 0, 102), thing=True),
    Class("light", (255, 173, 0), thing=True),
    Class("truck", (255, 0, 20), thing=True),
    Class("tower", (255, 184, 184)),
    Class("chandelier", (0, 31, 255), thing=True),
    Class("awning", (0, 255, 61), thing=True),
    Class("streetlight", (0, 71, 255), thing=True),
    Class("booth", (255, 0, 204), thing=True),
    Class("television receiver", (0, 255, 194), thing=True),
    Class("airplane", (0, 255, 82), thing=True),
    Class("dirt track", (0, 10, 255)),
    Class("apparel", (0, 112, 255), thing=True),
    Class("pole", (51, 0, 255), thing=True),
    Class("land", (0, 194, 255)),
    Class("bannister", (0, 122, 255), thing=True),
    Class("escalator", (0, 255, 163)),
    Class("ottoman", (255, 153, 0), thing=True),
    Class("bottle", (0, 255, 10), thing=True),
    Class("buffet", (255, 112, 0)),
    Class("poster", (143, 255, 0)),
    Class("stage", (82, 0, 255)),
    Class("van", (163, 255, 0), thing=True),
    Class("ship", (255, 235, 0), thing=True),
    Class("fountain", (8, 184, 170), thing=True),
    Class("conveyer belt", (133, 0, 255)),
    Class("canopy", (0, 255, 92)),
    Class("washer", (184, 0, 255), thing=True),
    Class("plaything", (255, 0, 31), thing=True),
    Class("swimming pool", (0, 184, 255)),
    Class("stool", (0, 214, 255), thing=True),
    Class("barrel", (255, 0, 112), thing=True),
    Class("basket", (92, 255, 0), thing=True),
    Class("waterfall", (0, 224, 255)),
    Class("tent", (112, 224, 255)),
    Class("bag", (70, 184, 160), thing=True),
    Class("minibike", (163, 0, 255), thing=True),
    Class("cradle", (153, 0, 255)),
    Class("oven", (71, 255, 0), thing=True),
    Class("ball", (255, 0, 163), thing=True),
    Class("food", (255, 204, 0), thing=True),
    Class("step", (255, 0, 143), thing=True),
    Class("tank", (0, 255, 235)),
    Class("trade name", (133, 255, 0), thing=True),
    Class("microwave", (255, 0, 235), thing=True),
    Class("pot", (245, 0, 255), thing=True),
    Class("animal", (255, 0, 122), thing=True),
    Class("bicycle", (255, 245, 0), thing=True),
    Class("lake", (10, 190, 212)),
    Class("dishwasher", (214, 255, 0), thing=True),
    Class("screen", (0, 204, 255), thing=True),
    Class("blanket", (20, 0, 255)),
    Class("sculpture", (255, 255, 0), thing=True),
    Class("hood", (0, 153, 255), thing=True),
    Class("sconce", (0, 41, 255), thing=True),
    Class("vase", (0, 255, 204), thing=True),
    Class("traffic light", (41, 0, 255), thing=True),
    Class("tray", (41, 255, 0), thing=True),
    Class("ashcan", (173, 0, 255), thing=True),
    Class("fan", (0, 245, 255), thing=True),
    Class("pier", (71, 0, 255)),
    Class("crt screen", (122, 0, 255)),
    Class("plate", (0, 255, 184), thing=True),
    Class("monitor", (0, 92, 255), thing=True),
    Class("bulletin board", (184, 255, 0), thing=True),
    Class("shower", (0, 133, 255)),
    Class("radiator", (255, 214, 0), thing=True),
    Class("glass", (25, 194, 194), thing=True),
    Class("clock", (102, 255, 0), thing=True),
    Class("flag", (92, 0, 255), thing=True),
)
TABLE = id_table(range(1, 151), void=[0])
FOLDERS = {"train": "training", "val": "validation"}


class ADE20K(Dataset):
    """ADE20K with 150 classes. `root` is the folder ADEChallengeData2016 or the one above it."""

    layout = """
ADEChallengeData2016/                      ADEChallengeData2016.zip
  images/{training,validation}/ADE_*.jpg
  annotations/{training,validation}/ADE_*.png     value = class 1..150, 0 = void
  ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/ADE_*.png     for task=panoptic and task=instance
"""
    tasks = ("semantic", "instance", "panoptic")
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    table = CLASSES
    metric_options: Mapping[str, Any] = MappingProxyType({"absent": "zero"})

    def index(self) -> list[tuple[Path, Path]]:
        if self.task == "semantic":
            return paired(*self.files())
        if self.task == "instance":
            self.metric_options = {}
        self.root = descend(self.path(), ["ADEChallengeData2016"], ["images", "annotations"])
        images, name = files_in(self.path("images", FOLDERS[self.split]), ".jpg"), f"ade20k_panoptic_{self.split}"
        self.path(name)
        self.file = PanopticFile(self.path(f"{name}.json"), hidden=True)
        check_table(self.file, range(len(CLASSES)), CLASSES, "make it by Mask2Former's prepare_ade20k_pan_seg.py")
        self.facts = self.file.facts
        self.rows = {Path(self.file.name(i)).stem: i for i in range(len(self.file))}
        return paired(images, {stem: self.file.png(i) for stem, i in self.rows.items()})

    def files(self) -> tuple[Files, Files]:
        """All images and all label files of the split by name, partners or not."""
        self.root = descend(self.path(), ["ADEChallengeData2016"], ["images", "annotations"])
        folder = FOLDERS[self.split]
        images, labels = self.path("images", folder), self.path("annotations", folder)
        return files_in(images, ".jpg"), files_in(labels, ".png")

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        if self.task != "semantic":
            return to_sample(read_image(image), self.file.panoptic(self.rows[image.stem]), path)
        return to_sample(read_image(image), to_semantic(renumber(read_labels(path), TABLE, path), path), path)
