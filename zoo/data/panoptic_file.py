"""COCO's panoptic format: a JSON that lists the segments of each image, beside a folder of PNGs with their ids.

https://cocodataset.org/#format-data, section 4. A PNG's pixel of colour (r, g, b) belongs to segment r + 256 g + 65536
b; 0 is void. The JSON has `images`, `categories` with `isthing`, and for each image the name of its PNG and its
`segments_info`: id, category_id, area, iscrowd. `PanopticFile` reads it, `PanopticWriter` writes it, with the score of
each segment beside what the format asks for, so that predictions can be submitted and also read back whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.checkpoint import replacing
from zoo.data.annotations import BadAnnotation
from zoo.data.files import decode
from zoo.errors import ZooError
from zoo.structures import VOID, Class, Panoptic, as_classes

NUMBERS = 1 << 24
"""Ids a PNG can hold."""


class PanopticFile:
    """A panoptic JSON, read once into columns; PNGs are read image by image.

    Attributes:
        classes: of the file's categories in the order of their ids; labels are 0..K-1 in that order.
        category_ids: of the classes, as the file has them.
        names: file names of the images (I,), UTF-8 bytes, in the order of the file's list of images.
        image_ids: of the images, as the file has them.

    Args:
        path: the JSON.
        folder: of the PNGs; by default that of the JSON's name.
        hidden: segments may be listed that have no pixel: others cover them.

    Raises:
        ZooError: no JSON, or not this format; two images, annotations, categories or segments of an image with one id;
            an annotation of an image that is not listed, an image without one, a category that is not there.
    """

    def __init__(self, path: Path, folder: Path | None = None, hidden: bool = False) -> None:
        self.path, self.folder, self.hidden = path, folder or path.with_suffix(""), hidden
        content = _parsed(path)
        self.facts = f"{path.name} {path.stat().st_size}"
        self.classes, self.category_ids = _classes(path, content["categories"])
        images = content["images"]
        self.image_ids = [image["id"] for image in images]
        self._once(self.image_ids, "images")
        self.names = np.array([str(image["file_name"]).encode() for image in images])
        self._set_segments({id: i for i, id in enumerate(self.image_ids)}, content["annotations"])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The file name of image i."""
        return cast(str, self.names[i].decode())

    def png(self, i: int) -> Path:
        """The PNG of image i."""
        return self.folder / self._pngs[i].decode()

    def panoptic(self, i: int) -> Panoptic:
        """The segments of image i in the order of the file; areas as the file says, pixels where it does not.

        Raises:
            ZooError: the PNG holds an id that the JSON does not list for it, or the reverse.
        """
        rows = slice(self.first[i], self.first[i + 1])
        listed, path = self.ids[rows], self.png(i)
        numbers = read_numbers(path)
        flat = numbers.ravel()
        starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1) if flat.size else np.zeros(0, np.int64)
        lengths, values = np.diff(starts, append=flat.size), flat[starts]
        order = np.argsort(listed)
        known = np.append(0, listed[order])
        place = np.minimum(np.searchsorted(known, values), len(known) - 1)
        if (strange := known[place] != values).any():
            id = int(values[strange][0])
            count = int(lengths[values == id].sum())
            raise BadAnnotation(f"{path}: segment {id} ({count} pixels) is not in {self.path}: export both anew")
        index = np.append(0, order + 1)[place]
        pixels = np.bincount(index, lengths, len(known))
        missing = pixels[1:] == 0
        if missing.any() and not self.hidden:
            k = int(missing.argmax())
            name = self.classes[self.labels[rows][k]].name
            raise BadAnnotation(f"{path}: segment {listed[k]} ({name}) of {self.path} has no pixel: export both anew")
        areas = np.append(0.0, self.areas[rows])
        return Panoptic(
            torch.from_numpy(np.repeat(index, lengths).astype(np.int32).reshape(numbers.shape)),
            torch.from_numpy(np.append(VOID, self.labels[rows])),
            torch.from_numpy(np.append(np.float32(1), self.scores[rows])),
            torch.from_numpy(np.append(False, self.crowd[rows])),
            torch.from_numpy(np.where(np.isnan(areas), pixels, areas)),
        )

    def _set_segments(self, place: dict[Any, int], annotations: list[Any]) -> None:
        owners = [annotation["image_id"] for annotation in annotations]
        self._once(owners, "annotations of the image")
        if strange := [id for id in owners if id not in place]:
            raise BadAnnotation(f"{self.path}: there is an annotation of image {strange[0]}, which is not listed")
        by_image = {place[id]: annotation for id, annotation in zip(owners, annotations, strict=True)}
        if len(by_image) < len(place):
            bare = next(id for id, i in place.items() if i not in by_image)
            raise BadAnnotation(
                f"{self.path}: image {bare} has no annotation ({len(place) - len(by_image)} such images)"
            )
        ordered = [by_image[i] for i in range(len(place))]
        self._pngs = np.array([str(annotation["file_name"]).encode() for annotation in ordered])
        segments = [annotation["segments_info"] for annotation in ordered]
        self.first = np.cumsum([0, *map(len, segments)])
        flat = [segment for each in segments for segment in each]
        self.ids = np.array([segment["id"] for segment in flat], np.int64)
        label = {id: k for k, id in enumerate(self.category_ids)}
        labels = [label.get(segment["category_id"], -1) for segment in flat]
        self.labels = np.array(labels, np.int64)
        self.crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in flat], bool)
        self.areas = np.array([segment.get("area", np.nan) for segment in flat], np.float64)
        self.scores = np.array([segment.get("score", 1) for segment in flat], np.float32)
        self._check(np.repeat(np.arange(len(ordered)), np.diff(self.first)), flat)

    def _check(self, of_image: NDArray[np.int64], segments: list[Any]) -> None:
        """Raises BadAnnotation for a segment that is there twice, of no category, or with an id no PNG can hold."""
        keys = of_image * NUMBERS + self.ids
        wrong = (self.ids <= 0) | (self.ids >= NUMBERS)
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        for faulty, problem in (
            (np.flatnonzero(wrong), f"which no PNG can hold: ids are 1 to {NUMBERS - 1}"),
            (first[counts > 1], "twice: segments that share a colour cannot be told apart"),
        ):
            if len(faulty):
                png = self.png(int(of_image[faulty[0]]))
                raise BadAnnotation(f"{self.path}: {png.name} has segment {self.ids[faulty[0]]} {problem}")
        if (self.labels < 0).any():
            k = int((self.labels < 0).argmax())
            where = f"segment {self.ids[k]} of {self.png(int(of_image[k])).name}"
            raise BadAnnotation(f"{self.path}: {where} has category {segments[k]['category_id']}, which is not listed")

    def _once(self, ids: Sequence[Any], what: str) -> None:
        if len(set(ids)) < len(ids):
            twice = next(id for id, times in Counter(ids).items() if times > 1)
            raise BadAnnotation(f"{self.path}: two {what} have the id {twice}")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ZooError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ZooError(f"{path}: no JSON, or cut short ({error})") from error
    keys = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "file_name", "segments_info"),
        "categories": ("id", "name"),
    }
    for key, wanted in keys.items():
        listed = content.get(key) if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed:
            raise ZooError(f"{path}: a panoptic file lists {key}, this one has none")
        for n, entry in enumerate(listed):
            if not isinstance(entry, dict) or not set(wanted) <= entry.keys():
                raise BadAnnotation(f"{path}: number {n + 1} of its {key} has not all of {', '.join(wanted)}")
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            if not isinstance(segment, dict) or not {"id", "category_id"} <= segment.keys():
                raise BadAnnotation(f"{path}: a segment of {annotation['file_name']} has no id or no category_id")
    return cast(dict[str, Any], content)


def _classes(path: Path, categories: list[Any]) -> tuple[tuple[Class, ...], list[Any]]:
    """The class table in the order of ids, and the ids."""
    ids = [category["id"] for category in categories]
    if len(set(ids)) < len(ids):
        raise BadAnnotation(f"{path}: two categories have the id {Counter(ids).most_common(1)[0][0]}")
    chosen = sorted(categories, key=lambda category: category["id"])
    if strange := [c["name"] for c in chosen if c.get("isthing") not in (0, 1)]:
        raise BadAnnotation(f"{path}: category {strange[0]} does not say isthing: 1 for things, 0 for stuff")
    palette = as_classes([str(category["name"]) for category in chosen])
    table = [
        Class(plain.name, tuple(category.get("color") or plain.color), bool(category["isthing"]))
        for plain, category in zip(palette, chosen, strict=True)
    ]
    return tuple(table), [category["id"] for category in chosen]


def read_numbers(path: Path) -> NDArray[np.int32]:
    """The ids (H,W) that the colours of a PNG stand for. ZooError for anything but 8-bit colours."""
    colors = decode(path)
    if colors.ndim != 3 or colors.shape[2] != 3 or colors.dtype != np.uint8:
        raise ZooError(f"{path}: a panoptic PNG has three channels of 8 bits, this file {colors.shape} {colors.dtype}")
    red, green, blue = (colors[..., k].astype(np.int32) for k in range(3))
    return red + (green << 8) + (blue << 16)


class PanopticWriter:
    """Writes panoptic maps, for submission or to read them back: PNGs at once, the JSON when the block ends well.

        with PanopticWriter(Path("panoptic.json"), classes, ids) as out:
            out.add(prediction, "000000000139.jpg", 139)

    Args:
        path: the JSON; PNGs are in the folder of its name.
        classes: of the labels.
        category_ids: of the classes, for the JSON; by default 1, 2, ...

    Raises:
        ZooError: a file cannot be written, an image is there twice, labels are no class.
    """

    def __init__(self, path: Path, classes: Sequence[Class], category_ids: Sequence[int] | None = None) -> None:
        self.path, self.folder, self.classes = path, path.with_suffix(""), classes
        self.category_ids = list(range(1, len(classes) + 1)) if category_ids is None else list(category_ids)
        if len(self.category_ids) != len(classes):
            raise ZooError(f"{len(classes)} classes need as many category ids, not {len(self.category_ids)}")
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._seen: set[Any] = set()

    def __enter__(self) -> PanopticWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def add(self, panoptic: Panoptic, image: str, image_id: int | str | None = None) -> None:
        """The segments of the image with this file name; its id is by default the name without suffix, a number if
        it is one. Segments without pixels are not written.
        """
        stem = Path(image).stem
        own = (int(stem) if stem.isdecimal() else stem) if image_id is None else image_id
        if own in self._seen:
            raise ZooError(f"{self.path}: two images have the id {own}: name the second otherwise")
        self._seen.add(own)
        panoptic = panoptic.to("cpu")
        ids, labels = panoptic.ids.numpy(), panoptic.labels.numpy()
        kept = np.where(labels == VOID, 0, np.arange(len(labels)))  # segments of label 255 are void
        numbers = kept[ids]
        info = [_info(numbers, i, panoptic, self._category) for i in np.unique(numbers).tolist() if i]
        png = f"{stem}.png"
        colors = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1).astype(np.uint8)  # blue comes first
        _, content = cv2.imencode(".png", colors)
        with replacing(self.folder / png) as temporary:
            temporary.write_bytes(content.tobytes())
        height, width = panoptic.size
        self._images.append({"id": own, "file_name": image, "height": height, "width": width})
        self._annotations.append({"image_id": own, "file_name": png, "segments_info": info})

    def _category(self, label: int) -> int:
        if not 0 <= label < len(self.classes):
            raise ZooError(f"{self.path}: label {label} is none of {len(self.classes)} classes")
        return self.category_ids[label]

    def close(self) -> None:
        """Write the JSON."""
        categories = [
            {"id": id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
            for id, c in zip(self.category_ids, self.classes, strict=True)
        ]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _info(numbers: NDArray[Any], i: int, panoptic: Panoptic, category: Callable[[int], int]) -> dict[str, Any]:
    """What the format says of a segment, and its score."""
    mask = numbers == i
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": i,
        "category_id": category(int(panoptic.labels[i])),
        "area": int(np.count_nonzero(mask)),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": int(panoptic.crowd[i]),
        "score": float(panoptic.scores[i]),
    }
