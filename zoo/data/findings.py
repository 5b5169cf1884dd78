"""What the doctor says of a dataset's files, whatever their truth: unreadable, of unequal size, twice the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from zoo.structures import Size

FAULTS = {
    "cannot be read": "restore the file from its source, or take it out of the split",
    "image and mask differ in size": "export the mask at the size of its image; for turned photographs try exif=apply",
    "broken annotations": "mend or delete them: the message names the file and the annotation",
    "labels that are no class": "give them a class, make them void, or choose the encoding the masks have",
}
TWICE = (
    ("same picture more than once", "digest", "keep one of each: repeats weigh more in training and in the metric"),
    ("same file name in several folders", "stem", "check that each has its own mask"),
)
IN_BOTH = (
    ("error", "same picture in both splits", "digest", "take it out of one: the score would be of pictures seen"),
    ("warning", "same file name in both splits", "stem", "the pictures differ; fine where numbering starts again"),
)
"""Problem, the field of `Look` that repeats, advice."""


@dataclass(frozen=True)
class Finding:
    """Something about `count` files of a split, shown at one of them, and what to do about it."""

    severity: str
    split: str
    problem: str
    count: int
    example: str
    advice: str


@dataclass(frozen=True)
class Look:
    """One image and its truth: pixels of each class (K,) and of void, or why they cannot be used.

    Of instances also how many `objects` there are, crowds aside, and how many of all have no pixel (`empty`).
    """

    path: str
    stem: str
    size: Size = (0, 0)
    digest: str = ""
    pixels: NDArray[np.int64] | None = None
    void: int = 0
    turned: bool = False
    objects: int = 0
    empty: int = 0
    fault: str = ""
    message: str = ""


def of_files(split: str, looks: list[Look], exif: str) -> Iterator[Finding]:
    """What is wrong with files: unreadable, of unequal size, turned, twice the same."""
    for fault, advice in FAULTS.items():
        if hit := [look for look in looks if look.fault == fault]:
            yield Finding("error", split, fault, len(hit), hit[0].message, advice)
    if exif == "ignore" and (turned := [look for look in looks if look.turned]):
        advice = "pixels are read as stored; where masks were drawn on the upright picture, set exif=apply"
        yield Finding("warning", split, "EXIF turns the picture", len(turned), turned[0].path, advice)
    for problem, key, advice in TWICE:
        if repeats := _repeats(looks, key):
            yield Finding("warning", split, problem, len(repeats), " = ".join(repeats[0][:2]), advice)
    sizes = sorted({look.size for look in looks if look.digest}, key=lambda size: (size[0] * size[1], size))
    if len(sizes) > 1:
        spread = " to ".join(f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
        yield Finding(
            "info", split, "sizes of images", len(sizes), spread, "crops in training, batches of one in evaluation"
        )


def _repeats(looks: Iterable[Look], key: str) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for seen in looks:
        if getattr(seen, key):
            groups[getattr(seen, key)].append(seen.path)
    return [paths for paths in groups.values() if len(paths) > 1]


def of_overlap(looks: dict[str, list[Look]]) -> Iterator[Finding]:
    """Pictures, or just file names, in two splits; one that contains the other by name (trainval) is no finding."""
    for (a, in_a), (b, in_b) in combinations(looks.items(), 2):
        if a in b or b in a:
            continue
        for severity, problem, key, advice in IN_BOTH:
            first = {getattr(seen, key): seen for seen in in_a if getattr(seen, key)}
            both = [(first[getattr(seen, key)], seen) for seen in in_b if getattr(seen, key) in first]
            if key == "stem":
                both = [(one, other) for one, other in both if one.digest != other.digest]
            if both:
                example = f"{both[0][0].path} = {both[0][1].path}"
                yield Finding(severity, f"{a}, {b}", problem, len(both), example, advice)
