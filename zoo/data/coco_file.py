"""COCO's JSON of instances, read once into columns; outlines stay in the file and are read image by image.

https://cocodataset.org/#format-data. The file of COCO's training set holds 860,000 annotations in 450 MB, nearly all
of it outlines. As lists and dicts that is gigabytes, copied into every worker. Here the file is looked through once:
each `segmentation` is noted as a place in the file, what is left is parsed object by object into NumPy columns (about
80 bytes an annotation, which forked workers share and spawned ones get in one copy), and an image's outlines are
parsed when the image is read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.annotations import BadAnnotation, Keypoints, Note, checked_runs, to_rle
from zoo.data.coco_document import Document, Table
from zoo.data.pairs import shown
from zoo.errors import ZooError
from zoo.structures import Class, Instances, Masks, Size, as_classes

CROWDED = 0.9
"""The share of crowds above which they are no crowds: an annotation tool wrote iscrowd=1 on every brush mask."""


class CocoFile:
    """A COCO JSON of instances.

    Attributes:
        classes: of the file's categories in the order of their ids; labels are 0..K-1 in that order.
        names: file names of the images (I,), UTF-8 bytes, in the order of the images' ids.
        sizes: (I, 2) height and width as the file says, 0 where it does not.
        ids: of the annotations (A,), annotations in the order of their images, then of the file.
        first: (I + 1,): image i has the annotations ``first[i]`` to ``first[i + 1] - 1``.
        keypoints: names and so on, where `with_keypoints` asked for them.
        has_truth: False for a list of images alone.
        notes: what is odd, counted.
        category_ids: of the classes, as the file has them.

    Args:
        path: the JSON.
        with_keypoints: read them; the classes are then those that have them.
        crowd_as_object: take no annotation as a crowd.

    Raises:
        ZooError: no JSON, or cut short; an id that is there twice; an annotation of an image or category that is not in
            the file, or without box and mask.
    """

    def __init__(self, path: Path, with_keypoints: bool = False, crowd_as_object: bool = False) -> None:
        self.path, self.notes = path, list[Note]()
        document = Document(path)
        self.bytes = document.size
        self.has_truth = document.annotations is not None
        self.classes, number, self.keypoints = _categories(document, with_keypoints)
        self.category_ids = [id for id, label in sorted(number.items(), key=lambda item: item[1]) if label >= 0]
        self.facts = f"{path.name} {document.size} crowd_as_object={crowd_as_object} keypoints={with_keypoints}"
        table = document.annotations or Table()
        image_ids = self._set_images(document.images)
        self._place(table, image_ids, number, with_keypoints)
        self._warn(crowd_as_object)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The file name of image i."""
        return self.names[i].decode()

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) images with an object that is no crowd (where keypoints are read: with a visible one)."""
        counts = ~self.crowd if self._points is None else (self._points[..., 2] > 0).any(1) & ~self.crowd
        return np.bincount(np.repeat(np.arange(len(self)), np.diff(self.first))[counts], minlength=len(self)) > 0

    def instances(self, i: int, size: Size) -> Instances:
        """The truth of image i, of `size` (H, W): every annotation of the file in its order, nothing dropped.

        Masks are None where the whole file has none. Boxes and areas are those of the file; where it has none, those of
        the mask. Keypoints are as in the file: the centre of the first pixel is (0, 0).

        Raises:
            ZooError: the file says another size, or an annotation is broken; it names file and id.
        """
        said = tuple(self.sizes[i].tolist())
        if all(said) and said != size:
            raise BadAnnotation(
                f"{self.path}: {self.name(i)} is {said[1]}x{said[0]} there, the image {size[1]}x{size[0]} "
                "(for turned photographs try exif=apply)"
            )
        rows = slice(self.first[i], self.first[i + 1])
        boxes, areas = self.boxes[rows].copy(), self.areas[rows].copy()
        masks = self._masks(rows, size) if self.has_masks else None
        if masks is not None:
            missing = np.isnan(boxes[:, 0])
            if missing.any():
                boxes[missing] = masks.boxes().numpy()[missing]
            if np.isnan(areas).any():
                areas = np.where(np.isnan(areas), masks.area().numpy(), areas)
        extent = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
        return Instances(
            masks,
            torch.from_numpy(self.labels[rows].astype(np.int64)),
            crowd=torch.from_numpy(self.crowd[rows].copy()),
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            areas=torch.from_numpy(np.where(np.isnan(areas), extent, areas)),
            keypoints=None if self._points is None else torch.from_numpy(self._points[rows].copy()),
            size=size,
        )

    def _masks(self, rows: slice, size: Size) -> Masks:
        segmentations = self._segmentations(rows)
        rles = []
        for row, segmentation in enumerate(segmentations, rows.start):
            if not segmentation and not np.isnan(self.boxes[row, 0]):  # counted when the file was opened
                x0, y0, x1, y1 = self.boxes[row].tolist()
                segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            rles.append(to_rle(segmentation, size, self._where(row)))
        runs = checked_runs(rles, size, lambda k: self._where(rows.start + k))
        return Masks.from_rle(rles, size, runs)

    def _segmentations(self, rows: slice) -> list[Any]:
        """Parsed anew from their places in the file."""
        found = []
        with self.path.open("rb") as file:
            for row, (start, length) in enumerate(self._places[rows].tolist(), rows.start):
                if start < 0:
                    found.append(self._others[-1 - start])
                    continue
                file.seek(start)
                try:
                    found.append(json.loads(file.read(length)) if length else None)
                except ValueError as error:
                    changed = "it changed since it was opened, start again"
                    if self.path.stat().st_size == self.bytes:
                        changed = "its segmentation is no JSON"
                    raise BadAnnotation(f"{self._where(row)}: {changed} ({error})") from error
        return found

    def _where(self, row: int) -> str:
        return f"{self.path}: annotation {self.ids[row]}"

    def _set_images(self, images: list[Any]) -> dict[Any, int]:
        """Fills `names` and `sizes`; returns the place of each image id."""
        for k, image in enumerate(images):
            if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
                raise ZooError(f"{self.path}: image {k + 1} of the file has no id or no file_name")
        ids = [image["id"] for image in images]
        self._check_ids("image", "id", ids)
        if len(set(ids)) < len(ids):
            raise ZooError(f"{self.path}: two images have the id {_twice(ids)}; number them anew")
        if all(isinstance(id, int) for id in ids):  # the official evaluation goes by ids
            images = sorted(images, key=lambda image: image["id"])
        try:
            names = [str(image["file_name"]).replace("\\", "/").encode() for image in images]
        except UnicodeEncodeError as error:
            raise ZooError(f"{self.path}: the file name {error.object!r} is no text") from error
        if len(set(names)) < len(names):
            raise ZooError(f"{self.path}: {_twice(names).decode()} is listed as two images; merge them")
        self.names = np.array(names, dtype=bytes) if names else np.zeros(0, "S1")
        sides = [[image.get("height") or 0, image.get("width") or 0] for image in images]
        try:
            self.sizes = np.array(sides, np.int32).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            wrong = next((k for k, pair in enumerate(sides) if not all(isinstance(v, int | float) for v in pair)), 0)
            said = f"image {images[wrong]['id']} has height and width {sides[wrong]}"
            raise ZooError(f"{self.path}: {said}, not two numbers of pixels") from error
        return {image["id"]: i for i, image in enumerate(images)}

    def _place(self, table: Table, image_ids: dict[Any, int], number: dict[Any, int], with_keypoints: bool) -> None:
        """Fills the columns of annotations, sorted by image."""
        columns = {"id": table.ids, "image_id": table.images, "category_id": table.categories}
        for name, ids in columns.items():
            self._check_ids("annotation", name, ids)
        if len(set(table.ids)) < len(table.ids):
            twice = _twice(table.ids)
            raise ZooError(f"{self.path}: two annotations have the id {twice}; number them 1, 2, 3, ... anew")
        self._check_known("image", table.images, image_ids, table.ids)
        self._check_known("category", table.categories, number, table.ids)
        rows = np.array([image_ids[id] for id in table.images], np.int64)
        labels = np.array([number[id] for id in table.categories], np.int32)
        order = np.argsort(rows, kind="stable")
        if with_keypoints:
            order = order[labels[order] >= 0]  # categories without keypoints
        self.first = np.searchsorted(rows[order], np.arange(len(image_ids) + 1))
        self.labels, self.ids = labels[order], np.array(table.ids or np.zeros(0, np.int64))[order]
        self.crowd = np.frombuffer(table.crowd, np.int8)[order] > 0
        self.areas = np.frombuffer(table.areas, np.float64)[order]
        self.boxes = np.frombuffer(table.boxes, np.float64).reshape(-1, 4)[order]
        self.boxes[:, 2:] += self.boxes[:, :2]
        wrong = ~np.isfinite(self.boxes).all(1) & ~np.isnan(self.boxes).all(1)
        if wrong.any():
            raise BadAnnotation(f"{self._where(int(wrong.argmax()))} has numbers in its bbox that are none")
        self._places = np.frombuffer(table.places, np.int64).reshape(-1, 2)[order]
        self._others = table.others
        self.has_masks = bool(self._places[:, 1].any()) or not len(order)
        self._points = None if self.keypoints is None else self._keypoints(table, order)

    def _keypoints(self, table: Table, order: NDArray[np.int64]) -> NDArray[np.float32]:
        """(A, P, 3), all 0 for annotations without."""
        assert self.keypoints is not None
        wanted = 3 * len(self.keypoints.names)
        lengths = np.frombuffer(table.point_counts, np.int32)
        wrong = np.flatnonzero((lengths != wanted) & (lengths > 0))
        if len(wrong):
            where = f"{self.path}: annotation {table.ids[wrong[0]]}"
            raise BadAnnotation(f"{where} has {lengths[wrong[0]]} numbers as keypoints, its category {wanted}")
        points = np.zeros((len(lengths), wanted), np.float32)
        points[lengths > 0] = np.frombuffer(table.points, np.float32).reshape(-1, wanted)
        if not np.isfinite(points).all():
            first = int((~np.isfinite(points)).any(1).argmax())
            raise BadAnnotation(f"{self.path}: annotation {table.ids[first]} has keypoints that are no numbers")
        return points.reshape(len(lengths), -1, 3)[order]

    def _check_known(self, what: str, used: list[Any], known: dict[Any, int], ids: list[Any]) -> None:
        strange = set(used) - known.keys()
        if strange:
            first = next(k for k, id in enumerate(used) if id in strange)
            count = sum(id in strange for id in used)
            listed = ", ".join(map(repr, sorted(known, key=str)[:8])) + (", ..." if len(known) > 8 else "")
            raise BadAnnotation(
                f"{self.path}: annotation {ids[first]} has {what}_id {used[first]!r}, which is not in the file "
                f"({count} such annotation(s)); it has {what}s {listed or 'none'}"
            )

    def _check_ids(self, what: str, name: str, ids: list[Any]) -> None:
        if not set(map(type, ids)) <= {int, float, str}:
            k = next(k for k, id in enumerate(ids) if type(id) not in (int, float, str))
            raise ZooError(f"{self.path}: {what} {k + 1} of the file has {ids[k]!r} as {name}, not a number or a text")

    def _warn(self, crowd_as_object: bool) -> None:
        """Notes what is odd but no mistake for certain."""
        boxes, has_box = self.boxes, ~np.isnan(self.boxes[:, 0])
        neither = ~has_box & (self._places[:, 1] == 0)
        if neither.any():
            raise BadAnnotation(f"{self._where(int(neither.argmax()))} has neither bbox nor segmentation")
        of_image = self.sizes[np.repeat(np.arange(len(self)), np.diff(self.first))]
        flat = has_box & ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        kept = "the evaluation keeps them; "
        kept += "training takes the boxes of the masks" if self.has_masks else "training leaves them out"
        self._note("boxes without area", flat, kept)
        outside = has_box & of_image.all(1) & ((boxes[:, :2] >= of_image[:, ::-1]) | (boxes[:, 2:] <= 0)).any(1) & ~flat
        self._note("boxes outside of their image", outside, kept)
        if self.has_masks:
            bare = self._places[:, 1] == 0
            self._note("annotations with a box and no mask", bare, "the box is taken as their mask")
        if crowd_as_object:
            self.crowd = np.zeros_like(self.crowd)
        elif self.crowd.mean() > CROWDED if len(self.crowd) else False:
            advice = "crowds do not train and count for nothing. CVAT writes brush masks so: set crowd_as_object=true"
            self._note(f"of {len(self.crowd)} annotations nearly all are crowds (iscrowd=1)", self.crowd, advice)

    def _note(self, problem: str, where: NDArray[np.bool_], advice: str) -> None:
        if where.any():
            example = f"annotation {self.ids[int(where.argmax())]}"
            self.notes.append(Note(self.path, problem, int(where.sum()), example, advice))


def _categories(document: Document, with_keypoints: bool) -> tuple[tuple[Class, ...], dict[Any, int], Keypoints | None]:
    """The class table, the label of each category id (-1: no class), the keypoints."""
    path, listed = document.path, document.categories
    for k, category in enumerate(listed):
        if not isinstance(category, dict) or not {"id", "name"} <= category.keys():
            raise ZooError(f"{path}: category {k + 1} of the file has no id or no name")
    ids = [category["id"] for category in listed]
    if not set(map(type, ids)) <= {int, float, str}:
        raise ZooError(f"{path}: ids of categories are numbers or texts, not {shown(map(repr, ids))}")
    if len(set(ids)) < len(ids):
        raise ZooError(f"{path}: two categories have the id {_twice(ids)}")
    number = dict.fromkeys(ids, -1)
    chosen = sorted(listed, key=lambda c: (not isinstance(c["id"], int), c["id"] if isinstance(c["id"], int) else 0))
    keypoints = None
    if with_keypoints:
        chosen = [category for category in chosen if category.get("keypoints")]
        if len({tuple(category["keypoints"]) for category in chosen}) != 1:
            raise ZooError(f"{path}: keypoints=true needs categories that share one list of keypoints")
        keypoints = Keypoints.of(chosen[0]["keypoints"], chosen[0].get("skeleton") or (), chosen[0].get("sigmas"))
    if not chosen:
        raise ZooError(f"{path}: the file has no categories")
    try:
        palette = as_classes([str(category["name"]) for category in chosen])
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error
    number |= {category["id"]: k for k, category in enumerate(chosen)}
    colors = [_color(category.get("color")) or plain.color for category, plain in zip(chosen, palette, strict=True)]
    classes = [Class(plain.name, color, thing=True) for plain, color in zip(palette, colors, strict=True)]
    return tuple(classes), number, keypoints


def _color(value: Any) -> tuple[int, int, int] | None:
    """A colour of a category as tools write it: [r, g, b] or "#rrggbb"; None where it is neither."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v < 256 for v in value):
        return value[0], value[1], value[2]
    return None


def _twice(values: Sequence[Any]) -> Any:
    return next(value for value, times in Counter(values).items() if times > 1)
