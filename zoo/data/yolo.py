"""YOLO's outlines: a text file for each image, a line for each object, `class x y x y ...` in fractions of the sides.

https://docs.ultralytics.com/datasets/segment/. data.yaml names the classes and the folders; an image's labels are where
its path has "labels" for "images" and .txt. An object is one ring without holes. An image without a text file has no
objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from zoo.data.annotations import BadAnnotation, Keypoints, Note, to_rle
from zoo.data.files import IMAGE_SUFFIXES
from zoo.errors import ZooError
from zoo.ops.masks import Rle
from zoo.structures import Class, Instances, Masks, Size, as_classes

CARDS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SLACK = 0.01
"""How far beyond the image rounding may put a point, in sides."""


class YoloFolder:
    """The labels of one split. Images are `names` under `folder`; see `zoo.data.annotated.Source`."""

    keypoints: Keypoints | None = None
    has_truth = True
    has_masks = True

    def __init__(self, root: Path, folder: Path, labels: Path | None = None) -> None:
        self.folder = folder
        self.classes = _classes(root)
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        kept = [path for path in images if not path.name.startswith(".")]
        self.names = np.array([path.relative_to(folder).as_posix().encode() for path in kept], dtype=bytes)
        self._labels = labels or _labels_beside(root, folder)
        bare = [path for i, path in enumerate(kept) if not self._path(i).is_file()]
        advice = f"they have no objects then; labels are looked for in {self._labels}"
        note = Note(folder, "images without a text file", len(bare), bare[0].name if bare else "", advice)
        self.notes = [note] if bare else []
        if kept and len(bare) == len(kept):
            raise ZooError(
                f"{folder}: none of its {len(kept)} images has a text file in {self._labels}; set annotations="
            )
        self.facts = f"yolo {sum(self._path(i).stat().st_size for i in range(len(kept)) if self._path(i).is_file())}"

    @staticmethod
    def is_one(root: Path) -> bool:
        """Whether the folder looks like one of YOLO's."""
        if any((root / card).is_file() for card in CARDS):
            return True
        return any(True for folder in (root / "labels", root / "train" / "labels") for _ in folder.rglob("*.txt"))

    @classmethod
    def open(
        cls, root: Path, spellings: Sequence[str] | None, images: Path | None = None, labels: Path | None = None
    ) -> YoloFolder | None:
        """The folder of the split that has one of `spellings` (None: of all images); None where there is none."""
        places = [images] if images else [root / "images"] if spellings is None else _places(root, spellings)
        folder = next((place for place in places if place.is_dir()), None)
        return None if folder is None else cls(root, folder, labels)

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) images whose text file is not empty."""
        paths = [self._path(i) for i in range(len(self.names))]
        return np.array([path.is_file() and path.read_text(encoding="utf-8").strip() != "" for path in paths], bool)

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of image i of `size` (H, W), in the order of the lines.

        Raises:
            BadAnnotation: a line that is no outline, a class that is none, points outside the image.
        """
        path = self._path(i)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        labels: list[int] = []
        rles: list[Rle] = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                label, points = self._parse(line, f"{path}: line {number}")
                labels.append(label)
                polygon = (points * (size[1], size[0])).reshape(-1).tolist()
                rles.append(to_rle([polygon], size, f"{path}: line {number}"))
        masks = Masks.from_rle(rles, size)
        return Instances(
            masks, torch.tensor(labels, dtype=torch.int64), boxes=masks.boxes(), areas=masks.area().double()
        )

    def _parse(self, line: str, where: str) -> tuple[int, NDArray[np.float64]]:
        """The label and the points (n, 2) of a line."""
        try:
            label, values = int(line.split()[0]), np.array(line.split()[1:], np.float64)
        except ValueError as error:
            raise BadAnnotation(f"{where}: is not `class x y x y ...`: {line[:40]!r}") from error
        if not 0 <= label < len(self.classes):
            raise BadAnnotation(
                f"{where}: class {label} is none of the {len(self.classes)}: 0..{len(self.classes) - 1}"
            )
        if len(values) == 4:
            raise BadAnnotation(f"{where}: a box, not an outline; export the data for segmentation, with polygons")
        if len(values) < 6 or len(values) % 2:
            raise BadAnnotation(f"{where}: an outline is 3 or more x, y pairs, this line has {len(values)} numbers")
        if not (values.min() >= -SLACK and values.max() <= 1 + SLACK):
            raise BadAnnotation(
                f"{where}: coordinates are fractions of the sides, these reach {np.abs(values).max():g}"
            )
        return label, values.reshape(-1, 2)

    def _path(self, i: int) -> Path:
        return (self._labels / self.names[i].decode()).with_suffix(".txt")


def _classes(root: Path) -> tuple[Class, ...]:
    """Named by data.yaml or classes.txt, all things."""
    names: Any = _card(root).get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ZooError(f"{root}: the names of its data.yaml are numbered {sorted(names)}, not 0, 1, 2, ...")
        names = [names[k] for k in sorted(names)]
    listed = root / "classes.txt"
    if names is None and listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not isinstance(names, list) or not names:
        raise ZooError(f"{root}: nothing names the classes: write data.yaml with `names: [cell, ...]`, or classes.txt")
    return tuple(Class(c.name, c.color, thing=True) for c in as_classes([str(name) for name in names]))


def _card(root: Path) -> dict[str, Any]:
    path = next((root / name for name in CARDS if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ZooError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    return card if isinstance(card, dict) else {}


def _places(root: Path, spellings: Sequence[str]) -> list[Path]:
    """Where the images of a split may be: where data.yaml says (in spite of a wrong folder above), and by custom."""
    card = _card(root)
    said = next((card[name] for name in spellings if card.get(name)), None)
    places = []
    if isinstance(said, str):
        inside = said.lstrip("./")
        places = [root / str(card.get("path", ".")) / said, root / said, root / inside]
    return places + [root.joinpath(*p) for s in spellings for p in (("images", s), (s, "images"))]


def _labels_beside(root: Path, folder: Path) -> Path:
    """The folder of labels: the last "images" of the path is "labels"; without one, the images' own folder."""
    parts = (
        list(folder.resolve().relative_to(root.resolve()).parts) if root.resolve() in folder.resolve().parents else []
    )
    if "images" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels"
    return root.joinpath(*parts)
