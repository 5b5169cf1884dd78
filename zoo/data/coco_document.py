"""A COCO file looked through once: its images and categories as lists, its annotations as columns.

Nearly all of such a file is outlines. Each `segmentation` is noted as a place in the file; what is left is parsed
object by object, so that no more than one annotation is there as a dict. `zoo.data.coco_file` makes sense of it.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.data.annotations import BadAnnotation
from zoo.errors import ZooError

_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(\[\s*\{|\[|\{)')
_COLON = re.compile(r"\s*:\s*")
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"\s*([,\]}])\s*")
_NAN = float("nan")
_NO_BOX, _NO_PLACE = (_NAN,) * 4, (0, 0)
_CROWD = (0, 1, None)


class Table:
    """The annotations of a file in its order, as columns."""

    def __init__(self) -> None:
        self.ids: list[Any] = []
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.crowd, self.areas, self.boxes = array("b"), array("d"), array("d")
        self.places = array("q")  # start and length of the segmentation, 0 and 0 without; -1 - k for the k-th other
        self.others: list[Any] = []  # lists of RLEs, and what will not be understood
        self.points, self.point_counts = array("f"), array("i")

    def add(self, annotation: dict[str, Any]) -> None:
        """One annotation; KeyError, TypeError or ValueError where it cannot be one."""
        get = annotation.get
        box = get("bbox") or _NO_BOX
        if len(box) != 4:
            raise ValueError(f"its bbox is {box}, not [x, y, width, height]")
        self.ids.append(annotation["id"])
        self.images.append(annotation["image_id"])
        self.categories.append(annotation["category_id"])
        crowd = get("iscrowd")
        if crowd not in _CROWD:
            raise ValueError(f"its iscrowd is {crowd!r}, not 0 or 1")  # and "0" would count as true
        self.crowd.append(1 if crowd else 0)
        area = get("area")
        self.areas.append(_NAN if area is None else area)
        self.boxes.extend(box)
        segmentation = get("segmentation") or _NO_PLACE
        if len(segmentation) != 2 or not isinstance(segmentation[0], int):
            self.others.append(segmentation)
            segmentation = (-len(self.others), 1 - len(self.others))
        self.places.extend((segmentation[0], segmentation[1] - segmentation[0]))
        points = get("keypoints")
        if points:
            self.points.extend(points)
        self.point_counts.append(len(points) if points else 0)


class Document:
    """The parts of a COCO file. `annotations` is None where it has no such list."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.annotations: Table | None = None
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if not self.size:
                    raise ZooError(f"{path}: the file is empty")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    text = _without_outlines(data)
            self._parse(text)
        except OSError as error:
            raise ZooError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ZooError(f"{path}: is no JSON in UTF-8 ({error})") from error
        except json.JSONDecodeError as error:
            raise self._broken(error) from error

    def _parse(self, text: str) -> None:
        reader = _Reader(text)
        if text.startswith("[", reader.at):
            raise ZooError(f"{self.path}: is a list (of results?), not COCO's images, annotations and categories")
        for key in reader.members():
            if key == "annotations":
                self.annotations = Table()
                for annotation in reader.elements():
                    self._add(annotation)
            elif key in ("images", "categories"):
                setattr(self, key, list(reader.elements()))
            else:
                reader.value()

    def _add(self, annotation: Any) -> None:
        assert self.annotations is not None
        try:
            self.annotations.add(annotation)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            known = isinstance(annotation, dict) and "id" in annotation
            which = f"annotation {annotation['id']}" if known else f"annotation number {len(self.annotations.ids) + 1}"
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise BadAnnotation(f"{self.path}: {which} is broken: {said}") from error

    def _broken(self, error: json.JSONDecodeError) -> ZooError:
        count = 0 if self.annotations is None else len(self.annotations.ids)
        last = f" (the last has id {self.annotations.ids[-1]})" if self.annotations is not None and count else ""
        if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated"):
            return ZooError(f"{self.path}: cut short after {count} annotations{last}; copy or export it again")
        return ZooError(f"{self.path}: is no JSON after {count} annotations{last}: {error.msg}")


class _Reader:
    """Walks through a JSON text: one value at a time, so that what was looked at can go."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, _SPACE.match(text, 0).end()  # type: ignore[union-attr]
        self._decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode

    def value(self) -> Any:
        value, self.at = self._decode(self.text, self.at)
        return value

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller takes each value."""
        for _ in self._items("{", "}"):
            key = self.value()
            colon = _COLON.match(self.text, self.at)
            if colon is None or not isinstance(key, str):
                raise json.JSONDecodeError("Expecting ':' delimiter", self.text, self.at)
            self.at = colon.end()
            yield key

    def elements(self) -> Iterator[Any]:
        """The values of a list; none where null stands."""
        if self.text.startswith("null", self.at):
            self.at += 4
            return
        for _ in self._items("[", "]"):
            value, self.at = self._decode(self.text, self.at)
            yield value

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        if not self.text.startswith(opening, self.at):
            raise json.JSONDecodeError(f"Expecting {opening}", self.text, self.at)
        self.at = _SPACE.match(self.text, self.at + 1).end()  # type: ignore[union-attr]
        if self.text.startswith(closing, self.at):
            self.at += 1
            return
        while True:
            yield
            found = _BETWEEN.match(self.text, self.at)
            if found is None or found[1] not in (",", closing):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            if found[1] == closing:
                self.at = found.start(1) + 1
                return
            self.at = found.end()


def _without_outlines(data: mmap.mmap) -> str:
    """The text of a COCO file, each segmentation replaced by its place, [start, end]; empty ones by []."""
    pieces, copied = [], 0
    while found := _SEGMENTATION.search(data, copied):
        start, end = found.start(1), found.end()
        if found[1] == b"[":
            # A list holds numbers and brackets alone, so the last bracket before a quote or a brace closes it.
            brace = data.find(b"}", end)
            quote = data.find(b'"', end, brace) if brace >= 0 else data.find(b'"', end)
            end = data.rfind(b"]", start, quote if quote >= 0 else brace if brace >= 0 else len(data)) + 1
        elif found[1] == b"{":
            end = data.find(b"}", end) + 1
        if end <= start:  # cut short
            break
        pieces.append(data[copied:start])
        if found[1] not in (b"[", b"{"):  # nothing inside, or a list of RLEs
            pieces.append(found[1])
        elif end - start < 8 and not data[start:end].strip(b"[]{} \t\r\n"):
            pieces.append(b"[]")
        else:
            pieces.append(b"[%d,%d]" % (start, end))
        copied = end
    pieces.append(data[copied:])
    return b"".join(pieces).decode("utf-8-sig")
