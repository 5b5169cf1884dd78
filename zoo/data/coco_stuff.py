"""COCO-Stuff: the photographs of COCO 2017 with a class for every pixel, 80 kinds of things and 91 of stuff.

Caesar, Uijlings, Ferrari, "COCO-Stuff: thing and stuff classes in context", 2018 (github.com/nightrome/cocostuff);
train 118287, val 5000. The label files hold 0..181, COCO's category id less one, and 255 for unlabelled pixels, which
are void; eleven of the ids have no annotation anywhere, so 171 classes remain.

The official score (evaluate_performance.py there) is the mean IoU of the classes from one count over all images, each
at its own size, with pixel accuracy, mean accuracy and frequency-weighted IoU beside it. Void counts nowhere. A class
that is not in the truth is left out even where it is predicted: ``absent="truth"`` of `SemanticMetric`. Where every
class occurs in the truth the other rules give the same.

The older COCO-Stuff 10k has other splits and MATLAB label files, and is not read.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from zoo.data.base import Dataset
from zoo.data.files import files_in, read_image, read_labels
from zoo.data.pairs import Files, descend, id_table, paired, renumber, to_sample, to_semantic
from zoo.structures import Class, Sample

# Names of labels.txt. Colours: things as in COCO's panoptic categories, stuff as in the COCO-Stuff API (getCMap).
CLASSES = (
    Class("person", (220, 20, 60), thing=True),
    Class("bicycle", (119, 11, 32), thing=True),
    Class("car", (0, 0, 142), thing=True),
    Class("motorcycle", (0, 0, 230), thing=True),
    Class("airplane", (106, 0, 228), thing=True),
    Class("bus", (0, 60, 100), thing=True),
    Class("train", (0, 80, 100), thing=True),
    Class("truck", (0, 0, 70), thing=True),
    Class("boat", (0, 0, 192), thing=True),
    Class("traffic light", (250, 170, 30), thing=True),
    Class("fire hydrant", (100, 170, 30), thing=True),
    Class("stop sign", (220, 220, 0), thing=True),
    Class("parking meter", (175, 116, 175), thing=True),
    Class("bench", (250, 0, 30), thing=True),
    Class("bird", (165, 42, 42), thing=True),
    Class("cat", (255, 77, 255), thing=True),
    Class("dog", (0, 226, 252), thing=True),
    Class("horse", (182, 182, 255), thing=True),
    Class("sheep", (0, 82, 0), thing=True),
    Class("cow", (120, 166, 157), thing=True),
    Class("elephant", (110, 76, 0), thing=True),
    Class("bear", (174, 57, 255), thing=True),
    Class("zebra", (199, 100, 0), thing=True),
    Class("giraffe", (72, 0, 118), thing=True),
    Class("backpack", (255, 179, 240), thing=True),
    Class("umbrella", (0, 125, 92), thing=True),
    Class("handbag", (209, 0, 151), thing=True),
    Class("tie", (188, 208, 182), thing=True),
    Class("suitcase", (0, 220, 176), thing=True),
    Class("frisbee", (255, 99, 164), thing=True),
    Class("skis", (92, 0, 73), thing=True),
    Class("snowboard", (133, 129, 255), thing=True),
    Class("sports ball", (78, 180, 255), thing=True),
    Class("kite", (0, 228, 0), thing=True),
    Class("baseball bat", (174, 255, 243), thing=True),
    Class("baseball glove", (45, 89, 255), thing=True),
    Class("skateboard", (134, 134, 103), thing=True),
    Class("surfboard", (145, 148, 174), thing=True),
    Class("tennis racket", (255, 208, 186), thing=True),
    Class("bottle", (197, 226, 255), thing=True),
    Class("wine glass", (171, 134, 1), thing=True),
    Class("cup", (109, 63, 54), thing=True),
    Class("fork", (207, 138, 255), thing=True),
    Class("knife", (151, 0, 95), thing=True),
    Class("spoon", (9, 80, 61), thing=True),
    Class("bowl", (84, 105, 51), thing=True),
    Class("banana", (74, 65, 105), thing=True),
    Class("apple", (166, 196, 102), thing=True),
    Class("sandwich", (208, 195, 210), thing=True),
    Class("orange", (255, 109, 65), thing=True),
    Class("broccoli", (0, 143, 149), thing=True),
    Class("carrot", (179, 0, 194), thing=True),
    Class("hot dog", (209, 99, 106), thing=True),
    Class("pizza", (5, 121, 0), thing=True),
    Class("donut", (227, 255, 205), thing=True),
    Class("cake", (147, 186, 208), thing=True),
    Class("chair", (153, 69, 1), thing=True),
    Class("couch", (3, 95, 161), thing=True),
    Class("potted plant", (163, 255, 0), thing=True),
    Class("bed", (119, 0, 170), thing=True),
    Class("dining table", (0, 182, 199), thing=True),
    Class("toilet", (0, 165, 120), thing=True),
    Class("tv", (183, 130, 88), thing=True),
    Class("laptop", (95, 32, 0), thing=True),
    Class("mouse", (130, 114, 135), thing=True),
    Class("remote", (110, 129, 133), thing=True),
    Class("keyboard", (166, 74, 118), thing=True),
    Class("cell phone", (219, 142, 185), thing=True),
    Class("microwave", (79, 210, 114), thing=True),
    Class("oven", (178, 90, 62), thing=True),
    Class("toaster", (65, 70, 15), thing=True),
    Class("sink", (127, 167, 115), thing=True),
    Class("refrigerator", (59, 105, 106), thing=True),
    Class("book", (142, 108, 45), thing=True),
    Class("clock", (196, 172, 0), thing=True),
    Class("vase", (95, 54, 80), thing=True),
    Class("scissors", (128, 76, 255), thing=True),
    Class("teddy bear", (201, 57, 1), thing=True),
    Class("hair drier", (246, 0, 122), thing=True),
    Class("toothbrush", (191, 162, 208), thing=True),
    Class("banner", (54, 178, 118)),
    Class("blanket", (0, 85, 178)),
    Class("branch", (150, 178, 22)),
    Class("bridge", (107, 0, 0)),
    Class("building-other", (0, 0, 89)),
    Class("bush", (0, 117, 178)),
    Class("cabinet", (47, 178, 124)),
    Class("cage", (178, 116, 0)),
    Class("cardboard", (0, 0, 178)),
    Class("carpet", (79, 178, 92)),
    Class("ceiling-other", (134, 0, 0)),
    Class("ceiling-tile", (22, 178, 150)),
    Class("cloth", (178, 87, 0)),
    Class("clothes", (178, 146, 0)),
    Class("clouds", (0, 5, 178)),
    Class("counter", (0, 0, 125)),
    Class("cupboard", (0, 53, 178)),
    Class("curtain", (0, 132, 178)),
    Class("desk-stuff", (111, 178, 60)),
    Class("dirt", (178, 131, 0)),
    Class("door-stuff", (0, 29, 178)),
    Class("fence", (178, 109, 0)),
    Class("floor-marble", (178, 35, 0)),
    Class("floor-other", (0, 148, 178)),
    Class("floor-stone", (9, 172, 163)),
    Class("floor-tile", (0, 0, 178)),
    Class("floor-wood", (178, 124, 0)),
    Class("flower", (178, 102, 0)),
    Class("fog", (0, 156, 175)),
    Class("food-other", (178, 43, 0)),
    Class("fruit", (0, 0, 170)),
    Class("furniture-other", (178, 94, 0)),
    Class("grass", (0, 0, 134)),
    Class("gravel", (67, 178, 105)),
    Class("ground-other", (99, 178, 73)),
    Class("hill", (0, 37, 178)),
    Class("house", (86, 178, 86)),
    Class("leaves", (15, 178, 156)),
    Class("light", (0, 0, 152)),
    Class("mat", (178, 21, 0)),
    Class("metal", (0, 124, 178)),
    Class("mirror-stuff", (0, 61, 178)),
    Class("moss", (178, 50, 0)),
    Class("mountain", (0, 109, 178)),
    Class("mud", (137, 178, 35)),
    Class("napkin", (0, 13, 178)),
    Class("net", (0, 101, 178)),
    Class("paper", (0, 0, 116)),
    Class("pavement", (0, 45, 178)),
    Class("pillow", (41, 178, 131)),
    Class("plant-other", (0, 0, 161)),
    Class("plastic", (178, 72, 0)),
    Class("platform", (0, 0, 143)),
    Class("playingfield", (116, 0, 0)),
    Class("railing", (28, 178, 143)),
    Class("railroad", (170, 6, 0)),
    Class("river", (156, 178, 15)),
    Class("road", (89, 0, 0)),
    Class("rock", (143, 178, 28)),
    Class("roof", (73, 178, 99)),
    Class("rug", (118, 178, 54)),
    Class("salad", (92, 178, 79)),
    Class("sand", (152, 0, 0)),
    Class("sea", (178, 153, 0)),
    Class("shelf", (98, 0, 0)),
    Class("sky-other", (178, 65, 0)),
    Class("skyscraper", (60, 178, 111)),
    Class("snow", (169, 175, 3)),
    Class("solid-other", (105, 178, 67)),
    Class("stairs", (178, 13, 0)),
    Class("stone", (163, 178, 9)),
    Class("straw", (3, 164, 169)),
    Class("structural-other", (125, 0, 0)),
    Class("table", (175, 168, 0)),
    Class("tent", (178, 138, 0)),
    Class("textile-other", (178, 28, 0)),
    Class("towel", (35, 178, 137)),
    Class("tree", (0, 140, 178)),
    Class("vegetable", (0, 0, 98)),
    Class("wall-brick", (131, 178, 41)),
    Class("wall-concrete", (0, 77, 178)),
    Class("wall-other", (0, 0, 107)),
    Class("wall-panel", (0, 93, 178)),
    Class("wall-stone", (143, 0, 0)),
    Class("wall-tile", (178, 58, 0)),
    Class("wall-wood", (161, 0, 0)),
    Class("water-other", (0, 69, 178)),
    Class("waterdrops", (178, 160, 0)),
    Class("window-blind", (178, 80, 0)),
    Class("window-other", (0, 21, 178)),
    Class("wood", (124, 178, 47)),
)
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush: never annotated."""
IDS = tuple(i for i in range(182) if i not in UNUSED)
"""The value of each class in the label files."""
TABLE = id_table(IDS, void=[255])
OTHERS_LABELS = "_labelTrainIds"
"""Ending of the files that mmsegmentation's converter leaves beside the official ones."""


class COCOStuff(Dataset):
    """COCO-Stuff with 171 classes. `root` is the folder that holds the two of images and of label maps."""

    layout = """
coco_stuff/
  images/{train2017,val2017}/ID.jpg                  train2017.zip, val2017.zip (or without images/)
  annotations/{train2017,val2017}/ID.png             stuffthingmaps_trainval2017.zip: value = class, 255 = void
                                                     (or stuffthingmaps_trainval2017/ or stuffthingmaps/)
"""
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    table = CLASSES
    metric_options = MappingProxyType({"absent": "truth"})

    def index(self) -> list[tuple[Path, Path]]:
        return paired(*self.files())

    def files(self) -> tuple[Files, Files]:
        """All images and all label files of the split by name, partners or not."""
        self.root = descend(self.path(), ["coco_stuff", "coco", "dataset"], ["images", "annotations", "train2017"])
        images = self._folder("images", ".")
        labels = self._folder("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
        of_names = files_in(labels, ".png")
        official = {name: path for name, path in of_names.items() if not name.endswith(OTHERS_LABELS)}
        return files_in(images, ".jpg"), official

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        return to_sample(read_image(image), to_semantic(renumber(read_labels(path), TABLE, path), path), path)

    def _folder(self, *places: str) -> Path:
        """The split's folder in the first of `places` that has one."""
        name = f"{self.split}2017"
        here = [place for place in places if (self.path() / place / name).is_dir()]
        return self.path(*here[:1], name) if here else self.path(places[0], name)
