"""PASCAL VOC 2012 segmentation: 20 kinds of objects and background, and the annotations SBD added.

Everingham et al., "The PASCAL visual object classes challenge", 2015; train 1464, val 1449. Hariharan et al.,
"Semantic contours from inverse detectors", 2011, outlined 11355 images; ``split="trainaug"`` is VOC's train plus
those of SBD that are not in VOC's val: 10582 images. SBD's own train list overlaps VOC's val, so no split is taken
from it. The metric is mIoU over the 21 classes, background included, at full size and from one count over all images
(VOCevalseg of the devkit); the border (255) is void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.base import Dataset, Transform
from zoo.data.files import DAMAGE, incomplete, read_image, read_labels
from zoo.data.pairs import Files, complete, descend, read_names, shown, to_sample, to_semantic
from zoo.errors import ZooError
from zoo.structures import VOID, Class, Panoptic, Sample

CLASSES = (
    Class("background", (0, 0, 0)),
    Class("aeroplane", (128, 0, 0), thing=True),
    Class("bicycle", (0, 128, 0), thing=True),
    Class("bird", (128, 128, 0), thing=True),
    Class("boat", (0, 0, 128), thing=True),
    Class("bottle", (128, 0, 128), thing=True),
    Class("bus", (0, 128, 128), thing=True),
    Class("car", (128, 128, 128), thing=True),
    Class("cat", (64, 0, 0), thing=True),
    Class("chair", (192, 0, 0), thing=True),
    Class("cow", (64, 128, 0), thing=True),
    Class("diningtable", (192, 128, 0), thing=True),
    Class("dog", (64, 0, 128), thing=True),
    Class("horse", (192, 0, 128), thing=True),
    Class("motorbike", (64, 128, 128), thing=True),
    Class("person", (192, 128, 128), thing=True),
    Class("pottedplant", (0, 64, 0), thing=True),
    Class("sheep", (128, 64, 0), thing=True),
    Class("sofa", (0, 192, 0), thing=True),
    Class("train", (128, 192, 0), thing=True),
    Class("tvmonitor", (0, 64, 128), thing=True),
)


class VOC(Dataset):
    """VOC 2012. `root` is the folder VOC2012, VOCdevkit, or the one above it.

    Instance and panoptic truth comes from SegmentationObject (things are the 20 kinds of objects, background is the
    one stuff class, the border is void); on trainaug it needs SBD's .mat files.

    Args:
        sbd: folder of SBD (``benchmark_RELEASE``, its ``dataset``, or SegmentationClassAug); by default it is looked
            for inside `root`.
    """

    layout = """
VOCdevkit/VOC2012/
  JPEGImages/NAME.jpg
  SegmentationClass/NAME.png                          palette PNG: 0 background, 1..20, 255 = void
  SegmentationObject/NAME.png                         for task=instance and task=panoptic
  ImageSets/Segmentation/{train,val,trainval}.txt
  SegmentationClassAug/NAME.png                       for split=trainaug, or SBD as downloaded:
  benchmark_RELEASE/dataset/{cls,inst}/NAME.mat       (there, beside VOCdevkit, or at sbd=)
"""
    tasks = ("semantic", "instance", "panoptic")
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "trainval", "trainaug")
    table = CLASSES

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "semantic",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Mapping[str, str | Sequence[str]] | None = None,
        sbd: str | Path | None = None,
    ) -> None:
        self.sbd = None if sbd is None else Path(sbd).expanduser()
        super().__init__(root, split, task, transform, seed, classes)

    def index(self) -> list[tuple[Path, Path]]:
        return complete(*self.files())

    def files(self) -> tuple[Files, Files]:
        """The images and label files of the split by name, whether they exist or not."""
        above = self.path()
        self.root = descend(above, ["VOC2012", "VOCdevkit/VOC2012"], ["JPEGImages"])
        images, labels = self.path("JPEGImages"), self.path("SegmentationClass")
        if self.task != "semantic":
            self.path("SegmentationObject")
        if self.split == "trainaug":
            of_names = self._augmented(labels, above)
        else:
            of_names = {name: labels / f"{name}.png" for name in self._names(self.split)}
        return {name: images / f"{name}.jpg" for name in of_names}, of_names

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        classes = _labels(path, "GTcls")
        if self.task == "semantic":
            return to_sample(read_image(image), to_semantic(classes, path), path)
        folder, field = ("inst", "GTinst") if path.suffix == ".mat" else ("SegmentationObject", "")
        objects = _labels(path.parent.parent / folder / path.name, field)
        if objects.shape != classes.shape:
            raise ZooError(f"{path}: has another size than the file of its objects in {folder}")
        for labels in (classes, objects):
            to_semantic(labels, path)  # refuses what is outside 0..255
        return to_sample(read_image(image), segments(classes, objects), path)

    def _names(self, split: str) -> list[str]:
        return read_names(self.path("ImageSets", "Segmentation", f"{split}.txt"))

    def _augmented(self, labels: Path, above: Path) -> Files:
        """Labels of trainaug: VOC's own for VOC's train, SBD's for the rest; none of them in val."""
        train, val = self._names("train"), set(self._names("val"))
        sbd = self._find_sbd(above)
        lists = [self.path("ImageSets", "Segmentation") / f"{name}.txt" for name in ("trainaug", "train_aug")]
        written = next((path for path in lists if path.is_file()), None)
        names = read_names(written) if written else sorted({*train, *sbd} - val)
        if common := val.intersection(names):
            where = written or "ImageSets/Segmentation/train.txt"
            raise ZooError(f"{where}: {len(common)} images are in val.txt too ({shown(common)}); take them out")
        own = set(train)
        return {
            name: labels / f"{name}.png" if name in own else sbd.get(name, labels / f"{name}.png") for name in names
        }

    def _find_sbd(self, above: Path) -> Files:
        """SBD's label files by name: ready PNGs, or .mat (which alone know objects)."""
        roots = [self.sbd] if self.sbd else [self.path(), above]
        places = ["SegmentationClassAug", "benchmark_RELEASE/dataset/cls", "dataset/cls", "cls", "SBD/cls"]
        if self.task != "semantic":
            places = [place for place in places if place.endswith("cls")]
        folders = [root / place for root in roots for place in places] + ([self.sbd] if self.sbd else [])
        for folder in folders:
            if folder.is_dir() and (found := _label_files(folder)):
                return found
        need = (
            "SegmentationClassAug or SBD's cls/*.mat" if self.task == "semantic" else "SBD's cls/*.mat and inst/*.mat"
        )
        raise incomplete(self.sbd or above, f"split=trainaug with task={self.task} needs {need}", self.layout)


def segments(classes: NDArray[Any], objects: NDArray[Any]) -> Panoptic:
    """Panoptic truth from a map of classes and one of objects, both (H, W), 0 background, 255 void.

    Segment 1 is the background, then come the objects in the order of their numbers. An object has the class of most
    of its pixels; a pixel where the two maps contradict each other is void, as is the border.
    """
    pixels = np.bincount(objects.astype(np.intp).ravel() * 256 + classes.ravel(), minlength=256 * 256).reshape(256, 256)
    pixels[:, VOID] = 0
    pixels[VOID] = 0
    number = np.zeros((256, 256), np.int32)
    labels = [VOID]
    for i in np.flatnonzero(pixels.any(1)):
        label = 0 if i == 0 else int(pixels[i].argmax())
        if (label > 0) == (i > 0) and pixels[i, label]:
            number[i, label] = len(labels)
            labels.append(label)
    return Panoptic(torch.from_numpy(number[objects, classes]), torch.tensor(labels))


def _label_files(folder: Path) -> Files:
    kept = (path for path in sorted(folder.iterdir()) if path.suffix in (".mat", ".png") and path.name[0] != ".")
    return {path.stem: path for path in kept}


def _labels(path: Path, field: str) -> NDArray[Any]:
    """Labels (H, W) of a palette PNG, or of the struct `field` in one of SBD's .mat files."""
    if path.suffix != ".mat":
        return read_labels(path)
    from scipy.io import loadmat  # here because only SBD needs it
    from scipy.io.matlab import MatReadError

    try:
        return np.asarray(loadmat(path, simplify_cells=True)[field]["Segmentation"])
    except FileNotFoundError as error:
        raise ZooError(f"{path}: no such file") from error
    except (*DAMAGE, MatReadError, KeyError, TypeError, IndexError) as error:
        raise ZooError(f"{path}: not one of SBD's .mat files, or damaged ({error})") from error
