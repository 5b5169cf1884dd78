"""labelme's folders: beside each image a JSON with its shapes (github.com/wkentaro/labelme).

Polygons, rectangles, circles and masks are objects; shapes of one label that share a `group_id` are parts of one.
Points and lines have no area: they are counted and said, and are no objects. labels.txt (or classes.txt) orders the
classes; without it they are the labels that occur, sorted, of all files of the folder, so that every split has the
same. A JSON may hold the whole image as text; that is never parsed.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.annotations import BadAnnotation, Keypoints, Note, to_rle
from zoo.data.files import IMAGE_SUFFIXES
from zoo.data.pairs import shown
from zoo.errors import ZooError
from zoo.ops import masks as rle_ops
from zoo.structures import Class, Instances, Masks, Size, as_classes

NO_CLASSES = ("__ignore__", "_background_")
"""Lines of labels.txt that name no objects."""
FLAT = ("point", "points", "line", "linestrip")
_IMAGE_DATA = re.compile(rb'"imageData"\s*:\s*"[^"]*"')
Shape = dict[str, Any]


class LabelmeFolder:
    """The shapes of one split. Images are `names` under `folder`; see `zoo.data.annotated.Source`."""

    keypoints: Keypoints | None = None
    has_truth = True
    has_masks = True

    def __init__(self, root: Path, files: list[Path], folder: Path, images: Path | None = None) -> None:
        self.folder = folder
        self.classes = _classes(root)
        self._number = {c.name: k for k, c in enumerate(self.classes)}
        found = [_image_of(path, images) for path in files]
        missing = [path.name for path, image in zip(files, found, strict=True) if image is None]
        if missing:
            raise ZooError(f"{folder}: {len(missing)} files have no image beside them ({shown(missing)}); set images=")
        relative = [_relative(image, folder).encode() for image in found if image is not None]
        self.names = np.array(relative, dtype=bytes)
        self._files = np.array([_relative(path, folder).encode() for path in files], dtype=bytes)
        shapes = [(path, shape) for path in files for shape in _shapes(path)]
        flat = [path.name for path, shape in shapes if shape.get("shape_type") in FLAT]
        ignored = [path.name for path, shape in shapes if shape.get("label") in NO_CLASSES]
        self.notes = []
        for problem, hit in (("points and lines, which have no area,", flat), ("shapes to ignore", ignored)):
            if hit:
                self.notes.append(Note(folder, f"{problem} are no objects", len(hit), hit[0], "draw polygons to count"))
        self.facts = f"labelme {sum(path.stat().st_size for path in files)}"

    @classmethod
    def open(
        cls, root: Path, spellings: Sequence[str] | None, files: Path | None = None, images: Path | None = None
    ) -> LabelmeFolder | None:
        """The files of the split that has one of `spellings` (None: of all); None where there are none."""
        if files is not None or spellings is None:
            places = [files or root]
        else:
            places = [root.joinpath(*p) for s in spellings for p in ((s,), ("annotations", s), ("labels", s))]
        for place in places:
            listed = (
                sorted(path for path in place.rglob("*.json") if not path.name.startswith("."))
                if place.is_dir()
                else []
            )
            listed = [path for path in listed if b'"shapes"' in _text(path)]
            if listed:
                return cls(root, listed, place, images)
        return None

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) images with a shape that is an object."""
        files = (self.folder / name.decode() for name in self._files)
        return np.array([any(map(_is_object, _shapes(path))) for path in files], bool)

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of image i of `size` (H, W), in the order of their first shapes.

        Raises:
            BadAnnotation: an unknown label or shape, a file that says another size.
        """
        path = self.folder / self._files[i].decode()
        document = _document(path)
        said = document.get("imageHeight"), document.get("imageWidth")
        if all(said) and said != size:
            raise BadAnnotation(
                f"{path}: says {said[1]}x{said[0]}, the image is {size[1]}x{size[0]} (turned photographs: exif=apply)"
            )
        parts: dict[Any, list[rle_ops.Rle]] = {}
        for k, shape in enumerate(_shapes(path)):
            if _is_object(shape):
                where = f"{path}: shape {k + 1} ({shape.get('label')})"
                if shape.get("label") not in self._number:
                    raise BadAnnotation(f"{where}: the label is none of {', '.join(self._number)}")
                group = shape.get("group_id")
                key = (shape["label"], k if group is None else f"group {group}")
                parts.setdefault(key, []).append(_rle(shape, size, where))
        rles = [one[0] if len(one) == 1 else _union(one, size) for one in parts.values()]
        masks = Masks.from_rle(rles, size)
        labels = torch.tensor([self._number[label] for label, _ in parts], dtype=torch.int64)
        return Instances(masks, labels, boxes=masks.boxes(), areas=masks.area().double())


def _union(rles: list[rle_ops.Rle], size: Size) -> rle_ops.Rle:
    return rle_ops.encode(np.logical_or.reduce(rle_ops.decode(rles, size))[None])[0]


def _is_object(shape: Shape) -> bool:
    return shape.get("shape_type") not in FLAT and shape.get("label") not in NO_CLASSES


def _rle(shape: Shape, size: Size, where: str) -> rle_ops.Rle:
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points[0], points[-1]
            points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        elif kind == "circle":
            angle = np.arange(128) * (2 * np.pi / 128)
            points = points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angle), np.sin(angle)], 1)
        elif kind == "mask":
            return rle_ops.encode(_bitmap(shape["mask"], points[0], size)[None])[0]
        elif kind not in ("polygon", "oriented_rectangle"):
            raise BadAnnotation(f"{where}: shapes of type {kind} are not known")
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error, cv2.error) as error:
        if isinstance(error, BadAnnotation):
            raise
        raise BadAnnotation(f"{where}: a {kind} whose points or mask cannot be read ({error!r})") from error
    return to_rle([points.reshape(-1).tolist()], size, where)


def _bitmap(text: str, corner: NDArray[np.float64], size: Size) -> NDArray[np.bool_]:
    """A mask (H, W) from a PNG as text that covers the shape's box, whose first corner is `corner`."""
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(text, validate=True), np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError("the mask is no PNG")
    full = np.zeros(size, bool)
    x, y = (int(v) for v in corner)
    inside = pixels[max(-y, 0) : max(size[0] - y, 0), max(-x, 0) : max(size[1] - x, 0)] > 0
    full[max(y, 0) :, max(x, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return full


def _classes(root: Path) -> tuple[Class, ...]:
    """Of labels.txt, or the labels of all files below the root, sorted; all things."""
    listed = next((root / name for name in ("labels.txt", "classes.txt") if (root / name).is_file()), None)
    if listed is not None:
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    else:
        files = [path for path in root.rglob("*.json") if not path.name.startswith(".")]
        labels = Counter(shape.get("label") for path in files for shape in _shapes(path) if _is_object(shape))
        names = sorted(str(label) for label in labels)
    names = [name for name in names if name not in NO_CLASSES]
    if not names:
        raise ZooError(f"{root}: no shape has a label, and there is no labels.txt")
    return tuple(Class(c.name, c.color, thing=True) for c in as_classes(names))


def _text(path: Path) -> bytes:
    """A labelme file without the image in it."""
    return _IMAGE_DATA.sub(b'"imageData": null', path.read_bytes())


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except ValueError as error:
        raise BadAnnotation(f"{path}: is no JSON, or cut short ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("shapes", []), list):
        raise BadAnnotation(f"{path}: is none of labelme's files")
    return document


def _shapes(path: Path) -> list[Shape]:
    return [shape for shape in _document(path).get("shapes", []) if isinstance(shape, dict)]


def _image_of(path: Path, images: Path | None) -> Path | None:
    """The image of a file: in the folder `images`, as its imagePath says, or the one of its name beside it."""
    said = str(_document(path).get("imagePath") or "").replace("\\", "/")
    folders = [images] if images is not None else [path.parent, path.parent.parent / "images"]
    for folder in folders:
        names = [said, said.rpartition("/")[2], *(path.stem + suffix for suffix in IMAGE_SUFFIXES)]
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
    return None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
