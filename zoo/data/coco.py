"""COCO 2017: photographs with 80 kinds of things, each object outlined; and the keypoints of persons.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014 (cocodataset.org); train 118287 images with 860001
objects, val 5000 with 36781. Ids run from 1 to 90 with gaps; labels are 0..79 in their order. Groups of objects are
crowds, 1021 images of train have no object. The official score is AP over IoU 0.50 to 0.95 with at most 100 detections
an image (keypoints: 20), size classes by the `area` that the file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.data.annotated import AnnotatedImages
from zoo.data.base import Images, Transform
from zoo.data.coco_file import CocoFile
from zoo.data.coco_json import missing_files
from zoo.data.pairs import descend, shown
from zoo.errors import ZooError
from zoo.structures import Class

# Ids and names of the annotation files, colours of panoptic_coco_categories.json (github.com/cocodataset/panopticapi).
_ROWS = (
    (1, Class("person", (220, 20, 60), thing=True)),
    (2, Class("bicycle", (119, 11, 32), thing=True)),
    (3, Class("car", (0, 0, 142), thing=True)),
    (4, Class("motorcycle", (0, 0, 230), thing=True)),
    (5, Class("airplane", (106, 0, 228), thing=True)),
    (6, Class("bus", (0, 60, 100), thing=True)),
    (7, Class("train", (0, 80, 100), thing=True)),
    (8, Class("truck", (0, 0, 70), thing=True)),
    (9, Class("boat", (0, 0, 192), thing=True)),
    (10, Class("traffic light", (250, 170, 30), thing=True)),
    (11, Class("fire hydrant", (100, 170, 30), thing=True)),
    (13, Class("stop sign", (220, 220, 0), thing=True)),
    (14, Class("parking meter", (175, 116, 175), thing=True)),
    (15, Class("bench", (250, 0, 30), thing=True)),
    (16, Class("bird", (165, 42, 42), thing=True)),
    (17, Class("cat", (255, 77, 255), thing=True)),
    (18, Class("dog", (0, 226, 252), thing=True)),
    (19, Class("horse", (182, 182, 255), thing=True)),
    (20, Class("sheep", (0, 82, 0), thing=True)),
    (21, Class("cow", (120, 166, 157), thing=True)),
    (22, Class("elephant", (110, 76, 0), thing=True)),
    (23, Class("bear", (174, 57, 255), thing=True)),
    (24, Class("zebra", (199, 100, 0), thing=True)),
    (25, Class("giraffe", (72, 0, 118), thing=True)),
    (27, Class("backpack", (255, 179, 240), thing=True)),
    (28, Class("umbrella", (0, 125, 92), thing=True)),
    (31, Class("handbag", (209, 0, 151), thing=True)),
    (32, Class("tie", (188, 208, 182), thing=True)),
    (33, Class("suitcase", (0, 220, 176), thing=True)),
    (34, Class("frisbee", (255, 99, 164), thing=True)),
    (35, Class("skis", (92, 0, 73), thing=True)),
    (36, Class("snowboard", (133, 129, 255), thing=True)),
    (37, Class("sports ball", (78, 180, 255), thing=True)),
    (38, Class("kite", (0, 228, 0), thing=True)),
    (39, Class("baseball bat", (174, 255, 243), thing=True)),
    (40, Class("baseball glove", (45, 89, 255), thing=True)),
    (41, Class("skateboard", (134, 134, 103), thing=True)),
    (42, Class("surfboard", (145, 148, 174), thing=True)),
    (43, Class("tennis racket", (255, 208, 186), thing=True)),
    (44, Class("bottle", (197, 226, 255), thing=True)),
    (46, Class("wine glass", (171, 134, 1), thing=True)),
    (47, Class("cup", (109, 63, 54), thing=True)),
    (48, Class("fork", (207, 138, 255), thing=True)),
    (49, Class("knife", (151, 0, 95), thing=True)),
    (50, Class("spoon", (9, 80, 61), thing=True)),
    (51, Class("bowl", (84, 105, 51), thing=True)),
    (52, Class("banana", (74, 65, 105), thing=True)),
    (53, Class("apple", (166, 196, 102), thing=True)),
    (54, Class("sandwich", (208, 195, 210), thing=True)),
    (55, Class("orange", (255, 109, 65), thing=True)),
    (56, Class("broccoli", (0, 143, 149), thing=True)),
    (57, Class("carrot", (179, 0, 194), thing=True)),
    (58, Class("hot dog", (209, 99, 106), thing=True)),
    (59, Class("pizza", (5, 121, 0), thing=True)),
    (60, Class("donut", (227, 255, 205), thing=True)),
    (61, Class("cake", (147, 186, 208), thing=True)),
    (62, Class("chair", (153, 69, 1), thing=True)),
    (63, Class("couch", (3, 95, 161), thing=True)),
    (64, Class("potted plant", (163, 255, 0), thing=True)),
    (65, Class("bed", (119, 0, 170), thing=True)),
    (67, Class("dining table", (0, 182, 199), thing=True)),
    (70, Class("toilet", (0, 165, 120), thing=True)),
    (72, Class("tv", (183, 130, 88), thing=True)),
    (73, Class("laptop", (95, 32, 0), thing=True)),
    (74, Class("mouse", (130, 114, 135), thing=True)),
    (75, Class("remote", (110, 129, 133), thing=True)),
    (76, Class("keyboard", (166, 74, 118), thing=True)),
    (77, Class("cell phone", (219, 142, 185), thing=True)),
    (78, Class("microwave", (79, 210, 114), thing=True)),
    (79, Class("oven", (178, 90, 62), thing=True)),
    (80, Class("toaster", (65, 70, 15), thing=True)),
    (81, Class("sink", (127, 167, 115), thing=True)),
    (82, Class("refrigerator", (59, 105, 106), thing=True)),
    (84, Class("book", (142, 108, 45), thing=True)),
    (85, Class("clock", (196, 172, 0), thing=True)),
    (86, Class("vase", (95, 54, 80), thing=True)),
    (87, Class("scissors", (128, 76, 255), thing=True)),
    (88, Class("teddy bear", (201, 57, 1), thing=True)),
    (89, Class("hair drier", (246, 0, 122), thing=True)),
    (90, Class("toothbrush", (191, 162, 208), thing=True)),
)
IDS = tuple(id for id, _ in _ROWS)
"""The category id of each class in COCO's files."""
CLASSES = tuple(c for _, c in _ROWS)
PERSON = CLASSES[:1]
FILES = {
    ("train", False): "instances_train2017.json",
    ("val", False): "instances_val2017.json",
    ("test", False): "image_info_test2017.json",
    ("train", True): "person_keypoints_train2017.json",
    ("val", True): "person_keypoints_val2017.json",
    ("test", True): "image_info_test2017.json",
}


class Coco(AnnotatedImages):
    """COCO 2017 with 80 classes. `root` is the folder that holds annotations, or the one above it.

    Args:
        keypoints: read the persons with their 17 keypoints; person is the only class then.
        drop_empty: leave images out of train that have no object but crowds (with keypoints: none with a visible one).
    """

    layout = """
coco/
  annotations/instances_{train,val}2017.json           annotations_trainval2017.zip
  annotations/person_keypoints_{train,val}2017.json    for keypoints=true
  train2017/ID.jpg                                     train2017.zip (or in images/)
  val2017/ID.jpg                                       val2017.zip
  test2017/ID.jpg, annotations/image_info_test2017.json  test2017.zip, image_info_test2017.zip: no truth
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
        keypoints: bool = False,
        drop_empty: bool = False,
    ) -> None:
        self.with_keypoints, self.drop_empty = keypoints, drop_empty
        super().__init__(root, split, task, transform, seed)

    def index(self) -> Images:
        self.root = descend(self.path(), ["coco", "COCO"], ["annotations", "train2017", "val2017"])
        file = self._file()
        name = f"{self.split}2017"
        place = ("images", name) if (self.path() / "images" / name).is_dir() else (name,)
        folder = self.path(*place)
        if missing := missing_files(folder, [file.name(i) for i in range(len(file))]):
            raise ZooError(
                f"{file.path}: {len(missing)} of its {len(file)} images are not in {folder} ({shown(missing)})"
            )
        rows = np.arange(len(file))
        if self.drop_empty and self.split == "train":
            rows = rows[file.has_objects()]
        return Images(folder, file.names, rows)

    def _file(self) -> CocoFile:
        """The split's annotations, labels in the order of the official table."""
        path = self.path("annotations", FILES[self.split, self.with_keypoints])
        file = CocoFile(path, self.with_keypoints and self.split != "test")
        wanted = dict(zip(IDS, CLASSES, strict=True))
        for id, found in zip(file.category_ids, file.classes, strict=True):
            if id not in wanted or wanted[id].name != found.name:
                official = wanted[id].name if id in wanted else "none"
                raise ZooError(
                    f"{path}: category {id} is {found.name}, in COCO it is {official}: use dataset=coco_json"
                )
        table = PERSON if self.with_keypoints else CLASSES
        place: dict[Any, int] = {id: k for k, id in enumerate(IDS)}
        file.labels = np.array([place[id] for id in file.category_ids], np.int32)[file.labels]
        file.classes = table
        self.use(file)
        return file
