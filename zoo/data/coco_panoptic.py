"""COCO 2017 panoptic: a segment for every pixel, 80 kinds of things and 53 of stuff; and files in its format.

Kirillov et al., "Panoptic Segmentation", 2019 (cocodataset.org/#panoptic-2018); train 118287 images, val 5000. Things
come first, labels 0..79 as in `zoo.data.coco`, then stuff 80..132, both in the order of their ids. Pixels of no segment
are void, groups of things are crowds. The official score is PQ as panopticapi computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from zoo.data.base import Dataset, Images, Transform
from zoo.data.coco import CLASSES as THINGS
from zoo.data.coco import IDS as THING_IDS
from zoo.data.coco_json import missing_files
from zoo.data.files import incomplete, read_image
from zoo.data.pairs import descend, shown, to_sample, without_suffix
from zoo.data.panoptic_file import PanopticFile
from zoo.errors import ZooError
from zoo.structures import Class, Sample

# Ids, names and colours of panoptic_coco_categories.json (github.com/cocodataset/panopticapi).
_STUFF = (
    (92, Class("banner", (255, 255, 128))),
    (93, Class("blanket", (147, 211, 203))),
    (95, Class("bridge", (150, 100, 100))),
    (100, Class("cardboard", (168, 171, 172))),
    (107, Class("counter", (146, 112, 198))),
    (109, Class("curtain", (210, 170, 100))),
    (112, Class("door-stuff", (92, 136, 89))),
    (118, Class("floor-wood", (218, 88, 184))),
    (119, Class("flower", (241, 129, 0))),
    (122, Class("fruit", (217, 17, 255))),
    (125, Class("gravel", (124, 74, 181))),
    (128, Class("house", (70, 70, 70))),
    (130, Class("light", (255, 228, 255))),
    (133, Class("mirror-stuff", (154, 208, 0))),
    (138, Class("net", (193, 0, 92))),
    (141, Class("pillow", (76, 91, 113))),
    (144, Class("platform", (255, 180, 195))),
    (145, Class("playingfield", (106, 154, 176))),
    (147, Class("railroad", (230, 150, 140))),
    (148, Class("river", (60, 143, 255))),
    (149, Class("road", (128, 64, 128))),
    (151, Class("roof", (92, 82, 55))),
    (154, Class("sand", (254, 212, 124))),
    (155, Class("sea", (73, 77, 174))),
    (156, Class("shelf", (255, 160, 98))),
    (159, Class("snow", (255, 255, 255))),
    (161, Class("stairs", (104, 84, 109))),
    (166, Class("tent", (169, 164, 131))),
    (168, Class("towel", (225, 199, 255))),
    (171, Class("wall-brick", (137, 54, 74))),
    (175, Class("wall-stone", (135, 158, 223))),
    (176, Class("wall-tile", (7, 246, 231))),
    (177, Class("wall-wood", (107, 255, 200))),
    (178, Class("water-other", (58, 41, 149))),
    (180, Class("window-blind", (183, 121, 142))),
    (181, Class("window-other", (255, 73, 97))),
    (184, Class("tree-merged", (107, 142, 35))),
    (185, Class("fence-merged", (190, 153, 153))),
    (186, Class("ceiling-merged", (146, 139, 141))),
    (187, Class("sky-other-merged", (70, 130, 180))),
    (188, Class("cabinet-merged", (134, 199, 156))),
    (189, Class("table-merged", (209, 226, 140))),
    (190, Class("floor-other-merged", (96, 36, 108))),
    (191, Class("pavement-merged", (96, 96, 96))),
    (192, Class("mountain-merged", (64, 170, 64))),
    (193, Class("grass-merged", (152, 251, 152))),
    (194, Class("dirt-merged", (208, 229, 228))),
    (195, Class("paper-merged", (206, 186, 171))),
    (196, Class("food-other-merged", (152, 161, 64))),
    (197, Class("building-other-merged", (116, 112, 0))),
    (198, Class("rock-merged", (0, 114, 143))),
    (199, Class("wall-other-merged", (102, 102, 156))),
    (200, Class("rug-merged", (250, 141, 255))),
)
IDS = (*THING_IDS, *(id for id, _ in _STUFF))
"""The category id of each class in COCO's files."""
CLASSES = (*THINGS, *(c for _, c in _STUFF))


class CocoPanoptic(Dataset):
    """COCO's panoptic truth. `root` is the folder that holds annotations, or the one above it.

    Semantic and instance truth come from the segments. With `annotations` any file in COCO's panoptic format is read,
    such as predictions that `zoo.data.panoptic_file` wrote; its classes are then those of the file, in the order of
    their ids.

    Args:
        annotations: a JSON under `root`, ``{split}`` in it stands for the split; PNGs are in the folder of its name.
        images: the folder of images under `root`, likewise.
    """

    layout = """
coco/
  annotations/panoptic_{train,val}2017.json     panoptic_annotations_trainval2017.zip
  annotations/panoptic_{train,val}2017/ID.png   panoptic_{train,val}2017.zip inside of it, unpacked here
  train2017/ID.jpg                              train2017.zip (or in images/)
  val2017/ID.jpg                                val2017.zip
"""
    tasks = ("semantic", "instance", "panoptic")
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    table = CLASSES

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "panoptic",
        transform: Transform | None = None,
        seed: int = 0,
        annotations: str | None = None,
        images: str | None = None,
    ) -> None:
        self.annotations, self.images = annotations, images
        super().__init__(root, split, task, transform, seed)

    def index(self) -> Images:
        year = f"{self.split}2017"
        if self.annotations is None:
            self.root = descend(self.path(), ["coco", "COCO"], ["annotations", "train2017", "val2017"])
            path = self.path("annotations", f"panoptic_{year}.json")
        else:
            path = self.path(self.annotations.replace("{split}", self.split))
        if not path.with_suffix("").is_dir():
            raise incomplete(self.root, f"the PNGs of {path.name}, in {path.stem}/ beside it, are missing", self.layout)
        self.file = PanopticFile(path)
        if self.annotations is None:
            check_table(self.file, IDS, CLASSES, "use annotations= for another table")
        self.table, self.facts = self.file.classes, self.file.facts
        folder = self._image_folder(year)
        if missing := missing_files(folder, [self.file.name(i) for i in range(len(self.file))]):
            raise ZooError(
                f"{path}: {len(missing)} of its {len(self.file)} images are not in {folder} ({shown(missing)})"
            )
        return Images(folder, self.file.names)

    def _image_folder(self, year: str) -> Path:
        if self.images is not None:
            return self.path(self.images.replace("{split}", self.split))
        return self.path("images", year) if (self.path() / "images" / year).is_dir() else self.path(year)

    def name(self, i: int) -> str:
        assert isinstance(self.records, Images)
        return without_suffix(self.records.names[self.records.rows[i]].decode())

    def read(self, record: tuple[Path, int]) -> Sample:
        image = read_image(record[0])
        return to_sample(image, self.file.panoptic(record[1]), self.file.png(record[1]))


def check_table(file: PanopticFile, ids: Sequence[int], classes: Sequence[Class], hint: str) -> None:
    """Raises ZooError where the categories of a file are not a dataset's."""
    wanted = dict(zip(ids, classes, strict=True))
    for id, found in zip(file.category_ids, file.classes, strict=True):
        if id not in wanted or wanted[id].thing != found.thing:
            what = "thing" if found.thing else "stuff"
            raise ZooError(f"{file.path}: category {id} ({found.name}, {what}) is none of the dataset's: {hint}")
    if missing := set(ids) - set(file.category_ids):
        raise ZooError(f"{file.path}: {len(missing)} of the dataset's {len(ids)} categories are missing: {hint}")
