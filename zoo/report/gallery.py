"""The masks of several models side by side: what the page's viewer needs of the runs' maps (`zoo.report.maps`).

Every map goes into the page as bytes of segment ids, deflated; colours, opacity, errors and filters are the viewer's
work and cost nothing here. Truth stands once for each task, an image once for all runs.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError
from zoo.report import maps
from zoo.report.board import Board
from zoo.report.bootstrap import image_scores
from zoo.report.charts import mark
from zoo.report.markup import Html, tag
from zoo.report.visualize import NONE, WRONG, Segments, errors
from zoo.structures import Class

FINEST = ("panoptic", "semantic", "instance")  # whose truth is shown where several tasks meet
SURE = 0.5  # the score from which an object counts, to begin with


@dataclass
class Gallery:
    """The viewer of one comparison: `shared` facts and `images`, most disagreed upon first, all plain data."""

    board: Board
    shared: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def fit(self, room: int) -> int:
        """Leave out the images models agree upon most, until what is left takes at most `room` bytes; how many."""
        total = np.cumsum([_weight(image) for image in self.images])
        kept = int((total <= room).sum())
        left_out = len(self.images) - kept
        del self.images[kept:]
        if left_out and not kept:
            self.problems.append("the masks alone are larger than the page may be")
        return left_out

    @property
    def content(self) -> dict[str, Any]:
        return self.shared | {"images": self.images}


def gather(board: Board) -> Gallery:
    """The images that every run of the comparison with maps has kept, each run by its first good seed."""
    gallery = Gallery(board)
    found: dict[int, dict[int, maps.Seen]] = {}
    tables: dict[int, tuple[Class, ...]] = {}
    for place, row in enumerate(board.rows):
        for run in row.good[:1]:
            try:
                tables[place], found[place] = maps.read(run["folder"])
            except ZooError as error:
                gallery.problems.append(f"{board.names[place]}: {error}")
            if not found.get(place):
                found.pop(place, None)
    if not found:
        return gallery
    common = set.intersection(*({(i, seen.name) for i, seen in images.items()} for images in found.values()))
    classes = max((tables[place] for place in found), key=len)
    tasks = {place: str(board.rows[place].runs[0].get("task")) for place in found}
    scores = {place: image_scores(board.rows[place].good[0]) for place in found}
    one_score = len({name for name, _ in scores.values()}) == 1 and next(iter(scores.values()))[0]
    gallery.shared = {
        "classes": [[c.name, list(c.color), c.thing] for c in classes],
        "rows": [
            {"name": board.names[place], "task": tasks[place], "place": place} for place in found
        ],
        "finest": next(task for task in (*FINEST, *tasks.values()) if task in tasks.values()),
        "score": one_score or "the share of pixels that are right",
        "wrong": [[name, list(color)] for name, color in WRONG.items()],
        "sure": SURE,
    }  # fmt: skip
    for index, name in sorted(common):
        seen = {place: images[index] for place, images in found.items()}
        if len({image.prediction.ids.shape for image in seen.values()}) > 1:
            gallery.problems.append(f"image {name}: runs kept it in different sizes")
            continue
        own = {place: scores[place][1].get(index) if one_score else None for place in found}
        gallery.images.append({"index": index} | _image(seen, tables, classes, tasks, own))
    gallery.images.sort(key=lambda image: -image["disagreement"])
    return gallery


def viewer(gallery: Gallery) -> Html:
    """The viewer's place on the page; the script fills it."""
    board = gallery.board
    if not gallery.images:
        why = "; ".join(gallery.problems) or "these runs kept no maps of their images (evaluate.py makes them anew)"
        return tag("p", f"Nothing to show: {why}.", class_="note")
    note = [tag("p", text, class_="note") for text in gallery.problems]
    quiet = tag("noscript", tag("p", "The viewer needs JavaScript; pictures/ of each run has the same as files."))
    signs = tag("div", [mark(place) for place in board.places], class_="signs", hidden=True)
    return tag("div", note, quiet, signs, class_="viewer", id=f"{board.key}-viewer", data_key=board.key)


def _image(
    seen: dict[int, maps.Seen],
    tables: dict[int, tuple[Class, ...]],
    classes: Sequence[Class],
    tasks: dict[int, str],
    scores: dict[int, float | None],
) -> dict[str, Any]:
    first = next(iter(seen.values()))
    truths = {tasks[place]: _map(image.truth, tables[place], classes) for place, image in seen.items()}
    right = {place: pixels_right(image) for place, image in seen.items()}
    values = [right[place] if scores[place] is None else scores[place] for place in seen]
    height, width = first.prediction.ids.shape
    return {
        "name": first.name,
        "size": [height, width],
        "jpeg": base64.b64encode(first.jpeg).decode(),
        "truths": truths,
        "maps": [_map(image.prediction, tables[place], classes) for place, image in seen.items()],
        "scores": [None if value is None or np.isnan(value) else round(float(value), 4) for value in values],
        "disagreement": round(_disagreement(seen, tables, classes, tasks), 4),
    }


def pixels_right(seen: maps.Seen) -> float:
    """The share of an image's pixels that are right, void and crowds aside, objects counting from a score of 1/2."""
    counted = ~seen.truth.striped_map
    wrong = errors(seen.truth, above(seen.prediction, SURE)) >= 0
    return 1 - float(wrong[counted].mean()) if counted.any() else float("nan")


def above(segments: Segments, score: float) -> Segments:
    """Without the things less sure than `score`; what they hid is lost, but the less sure hide nothing."""
    sure = (segments.scores >= score) | ~segments.things
    ids = np.where(sure, np.arange(len(sure)), 0)[segments.ids].astype(np.int32)
    return Segments(ids, segments.labels, segments.things, segments.striped, segments.scores)


def _disagreement(
    seen: dict[int, maps.Seen], tables: dict[int, tuple[Class, ...]], classes: Sequence[Class], tasks: dict[int, str]
) -> float:
    """The share of pixels to which not all models give one class; with one model, that it gets wrong.

    Beside maps of everything, those of objects have no say where there is none.
    """
    if len(seen) == 1:
        return 1 - float(np.nan_to_num(pixels_right(next(iter(seen.values()))), nan=1.0))
    named = [
        _renumbered(above(image.prediction, SURE).class_map, tables[place], classes) for place, image in seen.items()
    ]
    silent = [task == "instance" and len(set(tasks.values())) > 1 for task in tasks.values()]
    low = np.min([np.where((m == NONE) & quiet, len(classes), m) for m, quiet in zip(named, silent, strict=True)], 0)
    high = np.max([np.where((m == NONE) & quiet, NONE, m) for m, quiet in zip(named, silent, strict=True)], 0)
    return float((low < high).mean())


def _renumbered(labels: NDArray[Any], own: Sequence[Class], classes: Sequence[Class]) -> NDArray[np.int64]:
    """Class ids of the table `own` as those of `classes`, by name; -1 for what is none of them."""
    names = [c.name for c in classes]
    lookup = np.full(max(len(own), 256) + 1, NONE, np.int64)
    lookup[: len(own)] = [names.index(c.name) if c.name in names else NONE for c in own]
    return lookup[labels]  # -1 is the last


def _map(segments: Segments, own: Sequence[Class], classes: Sequence[Class]) -> dict[str, Any]:
    """A map of ids for the viewer, and the table of the segments that occur; 0 stays none."""
    present = np.unique(np.append(segments.ids, 0))
    lookup = np.zeros(len(segments.labels), np.uint16)
    lookup[present] = np.arange(len(present))
    ids = lookup[segments.ids]
    kind = np.uint8 if len(present) <= 256 else np.uint16
    packed = zlib.compress(ids.astype(np.dtype(kind).newbyteorder("<")).tobytes(), 9)
    return {
        "bytes": np.dtype(kind).itemsize,
        "ids": base64.b64encode(packed).decode(),
        "labels": _renumbered(segments.labels[present], own, classes).tolist(),
        "things": segments.things[present].astype(int).tolist(),
        "striped": segments.striped[present].astype(int).tolist(),
        "scores": [round(float(score), 3) for score in segments.scores[present]],
    }


def _weight(image: dict[str, Any]) -> int:
    """About the bytes of an image in the page."""
    parts = [*image["truths"].values(), *image["maps"]]
    return len(image["jpeg"]) + 400 + sum(len(part["ids"]) + 24 * len(part["labels"]) for part in parts)
