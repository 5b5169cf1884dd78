"""People's own objects: images and the annotations that a labelling tool exported, in the layouts they come in.

COCO's JSON of instances (CVAT, Label Studio, Roboflow, labelme2coco, detectron2's converters, ...), YOLO's folders of
text files with outlines, and labelme's folders with a JSON beside each image. Which one it is, and where the split's
files are, is seen from the folder.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.data.annotated import AnnotatedImages, Source
from zoo.data.annotations import Note
from zoo.data.base import Images, Transform
from zoo.data.coco_file import CocoFile
from zoo.data.files import Exif, incomplete
from zoo.data.folder import NoSplit
from zoo.data.labelme import LabelmeFolder
from zoo.data.pairs import check_fractions, drawn, shown
from zoo.data.yolo import YoloFolder
from zoo.errors import ZooError, unknown

FORMATS = ("coco", "yolo", "labelme")
SPELLINGS = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test", "testing")}
"""What folders and files of a split are called."""


class CocoJson(AnnotatedImages):
    """Images and exported annotations of objects.

    Args:
        format: "coco", "yolo" or "labelme"; None finds out.
        annotations: COCO's JSON, or labelme's or YOLO's folder of annotations, under `root`; ``{split}`` in it stands
            for the split. By default the file whose name or folder says the split.
        images: the folder of images under `root`, likewise.
        fractions: draws the splits from one file or folder, as ``{"train": 0.8, "val": 0.2}``: by the hash of
            (`split_seed`, name), so that few images change sides when some are added.
        crowd_as_object: take no annotation as a crowd (CVAT writes iscrowd=1 on every brush mask).
        keypoints: read them; the classes are then those that have them.
        drop_empty: leave images without objects out of the split "train".
        max_detections: of the metric, for each image.
        channels: of the images, see `read_image`; None takes them as they are.
        exif: "ignore" or "apply" the orientation of photographs.
        maximum: the value of 16-bit images that becomes 1.0.

    Masks may overlap. Boxes alone are fine: then there are no masks.
    """

    layout = """
ROOT/                            one of
  annotations/instances_train.json      train/_annotations.coco.json    annotations.json
  annotations/instances_val.json        train/a.jpg                     images/a.jpg
  train/a.jpg or images/a.jpg           valid/...                       with fractions={train: 0.8, val: 0.2}
or YOLO's outlines                      or labelme's files
  data.yaml                             train/a.jpg
  images/train/a.jpg                    train/a.json
  labels/train/a.txt                    val/...
Other places: annotations=, images=; {split} in them stands for the split.
"""
    splits: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "instance",
        transform: Transform | None = None,
        seed: int = 0,
        format: str | None = None,
        annotations: str | None = None,
        images: str | None = None,
        fractions: Mapping[str, float] | None = None,
        split_seed: int = 0,
        crowd_as_object: bool = False,
        keypoints: bool = False,
        drop_empty: bool = False,
        max_detections: int = 100,
        channels: int | None = 3,
        exif: Exif = "ignore",
        maximum: int = 65535,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise unknown("format", format, FORMATS)
        if exif not in ("ignore", "apply"):
            raise unknown("exif", exif, ("ignore", "apply"))
        if fractions is not None:
            check_fractions(fractions, split)
        self.format, self.annotations, self.images, self.fractions = format, annotations, images, fractions
        self.split_seed, self.crowd_as_object, self.drop_empty = split_seed, crowd_as_object, drop_empty
        self.with_keypoints = keypoints
        self.channels, self.exif, self.maximum = channels, exif, maximum
        self.metric_options = {"max_detections": max_detections}
        self.facts = f"{channels} {exif} {maximum}"
        super().__init__(root, split, task, transform, seed)

    def index(self) -> Images:
        source, folder, names = self._open()
        self.use(source)
        rows = np.arange(len(names))
        if self.fractions is not None:
            chosen = set(drawn((name.decode() for name in names), self.fractions, self.split, self.split_seed))
            rows = np.array([i for i in rows if names[i].decode() in chosen], np.int64)
        if self.drop_empty and self.split == "train":
            rows = rows[source.has_objects()[rows]]
        return Images(folder, names, rows)

    def _open(self) -> tuple[Source, Path, Any]:
        """The annotations, the folder of the images, and their names in it."""
        kind = self.format or detect(self.path(), self.annotations)
        if kind == "coco":
            path = self._json()
            file = CocoFile(path, self.with_keypoints, self.crowd_as_object)
            return file, self._image_folder(path, file), file.names
        if self.with_keypoints:
            raise ZooError(f"keypoints=true needs COCO's JSON, {self.root} holds {kind} annotations")
        split = None if self.fractions is not None else self._spellings()
        if kind == "yolo":
            yolo = YoloFolder.open(self.path(), split, self._placed(self.images), self._placed(self.annotations))
            if yolo is None:
                raise self._no_split("no folder of images for it")
            return yolo, yolo.folder, yolo.names
        labelme = LabelmeFolder.open(self.path(), split, self._placed(self.annotations), self._placed(self.images))
        if labelme is None:
            raise self._no_split("no folder with labelme's files for it")
        return labelme, labelme.folder, labelme.names

    def _spellings(self) -> tuple[str, ...]:
        return SPELLINGS.get(self.split, (self.split,))

    def _placed(self, place: str | None) -> Path | None:
        return None if place is None else self.path(place.replace("{split}", self.split))

    def _json(self) -> Path:
        """The JSON of the split, or of all."""
        if self.annotations is not None:
            return self.path(self.annotations.replace("{split}", self.split))
        found = json_files(self.path(), self._spellings())
        here = found if self.fractions is not None else [path for path in found if self._says_split(path)]
        words = ("keypoints", "keypoint") if self.with_keypoints else ("instances", "instance")
        preferred = [path for path in here if any(word in _words(path.stem) for word in words)]
        here = preferred or here
        if len(here) == 1:
            return here[0]
        names = shown(path.relative_to(self.path()).as_posix() for path in (here or found))
        if here:
            raise ZooError(f"{self.root}: {len(here)} files may be the annotations ({names}): say which, annotations=")
        alone = f"; {names} is of no split: set fractions={{train: 0.8, val: 0.2}} or annotations=" if found else ""
        raise self._no_split(f"no JSON whose name or folder says it{alone}")

    def _says_split(self, path: Path) -> bool:
        parts = _words(path.relative_to(self.path()).as_posix())
        return any(
            re.fullmatch(rf"{re.escape(name.lower())}(\d{{4}})?", part) for name in self._spellings() for part in parts
        )

    def _no_split(self, missing: str) -> NoSplit:
        return NoSplit(str(incomplete(self.root, f"there is no split {self.split!r}: {missing}", self.layout)))

    def _image_folder(self, path: Path, file: CocoFile) -> Path:
        """The folder that the file names of a COCO JSON are relative to; all of them are there."""
        if not len(file):
            raise ZooError(f"{path}: the file lists no images")
        named = [file.name(i) for i in range(len(file))]
        root, folder = self.path(), None
        if self.images is not None:
            places = [self.path(self.images.replace("{split}", self.split))]
        else:
            of_split = [name + year for name in self._spellings() for year in ("", "2017", "2014")]
            places = [root / name for name in of_split] + [root / "images" / name for name in of_split]
            places += [root / "images", root, path.parent, path.parent / "images", path.parent.parent / "images"]
            places = [place for place in dict.fromkeys(places) if place.is_dir()]
        last = [name.rpartition("/")[2] for name in named]
        for names in (named, last if len(set(last)) == len(last) else []):
            folder = next((p for p in places for name in names[:3] if (p / name).is_file()), None)
            if folder is not None:
                break
        else:
            if self.images is None:
                looked = ", ".join(str(place.relative_to(root)) for place in places if root in (place, *place.parents))
                raise ZooError(f"{path}: its images, as {named[0]}, are in none of {looked} of {root}: set images=")
            folder, names = places[0], named
        if names is not named:  # C:/data/a.jpg, /home/me/a.jpg, ../upload/a.jpg: paths of the machine that wrote them
            file.names = np.array([name.encode() for name in names], dtype=bytes)
            advice = f"the files of the same names in {folder} are taken"
            file.notes.append(Note(path, "paths of images that are not there", len(names), named[0], advice))
        if missing := missing_files(folder, names):
            raise ZooError(
                f"{path}: {len(missing)} of its {len(file)} images are not in {folder} ({shown(missing)}); "
                "put them there or take them out of the file"
            )
        return folder


def detect(root: Path, annotations: str | None = None) -> str:
    """Which of `FORMATS` a folder holds.

    Raises:
        ZooError: none is seen.
    """
    if annotations is not None and annotations.lower().endswith(".json"):
        return "coco"
    if json_files(root, [name for names in SPELLINGS.values() for name in names]):
        return "coco"
    jsons = [path for path in root.rglob("*.json") if not path.name.startswith(".")]
    kinds = {_kind(path) for path in sorted(jsons, key=lambda path: (len(path.parts), path.name))[:64]}
    for kind in ("coco", "labelme"):
        if kind in kinds:
            return kind
    if YoloFolder.is_one(root):
        return "yolo"
    raise incomplete(root, "holds no COCO JSON, no YOLO labels and no labelme files", CocoJson.layout)


def _kind(path: Path) -> str:
    """What the keys at the beginning and the end of a JSON say it is."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - 4096))
        both = head + file.read()
    if b'"shapes"' in both or b'"imagePath"' in both:
        return "labelme"
    return "coco" if any(key in both for key in (b'"images"', b'"annotations"', b'"categories"')) else ""


def json_files(root: Path, spellings: Iterable[str]) -> list[Path]:
    """COCO's files where tools put them: in root, annotations/, and the folders of the split."""
    places = [root, root / "annotations"]
    places += [above / name for name in spellings for above in (root, root / "annotations")]
    found = [path for place in dict.fromkeys(places) if place.is_dir() for path in sorted(place.glob("*.json"))]
    return [path for path in found if not path.name.startswith(".") and _kind(path) == "coco"]


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` (paths under `folder`) that are no files; one listing for each folder, no question for each."""
    by_folder = defaultdict(list)
    for name in names:
        above, _, last = name.rpartition("/")
        by_folder[above].append((last, name))
    missing = []
    for above, listed in by_folder.items():
        try:
            with os.scandir(folder / above) as entries:
                there = {entry.name for entry in entries}
        except OSError:
            there = set()
        missing += [name for last, name in listed if last not in there]
    return missing


def _words(path: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", path.lower()) if word]
