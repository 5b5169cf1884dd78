"""Images beside label files: how the names of the two are matched, and how two files become one sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.files import IMAGE_SUFFIXES
from zoo.errors import ZooError, unknown
from zoo.structures import VOID, Sample, Semantic, Target

Files = dict[str, Path]
"""Files by the name that an image and its labels share."""

UNKNOWN = 254
"""In a table from ids to labels: what is no id."""


class Unpaired(ZooError):
    """Images without labels, labels without an image, or names of a list without either.

    `images` and `labels` are all files by name, for those who want to go on with the rest; `hint` is the way out.
    """

    def __init__(self, problem: str, images: Files, labels: Files, hint: str) -> None:
        super().__init__(f"{problem}; {hint}")
        self.images, self.labels, self.hint = images, labels, hint


def complete(images: Files, labels: Files, hint: str = "add what is missing") -> list[tuple[Path, Path]]:
    """(image, labels) of every name, in the order of `images`.

    Raises:
        Unpaired: a name lacks one of the two, or a path does not exist.
    """
    problems = [f"{len(names)} {fault} ({shown(names)})" for fault, names in faults(images, labels).items() if names]
    if problems:
        folder = next(iter((images or labels).values())).parent
        raise Unpaired(f"{folder}: {'; '.join(problems)}", images, labels, hint)
    return [(image, labels[name]) for name, image in images.items()]


def paired(images: Files, labels: Files, hint: str = "add what is missing") -> list[tuple[Path, Path]]:
    """`complete` for files that listings of their folders gave: nothing is asked of the disk where the names agree.

    Raises:
        Unpaired: a name lacks one of the two.
    """
    if images.keys() != labels.keys():
        return complete(images, labels, hint)
    return [(image, labels[name]) for name, image in images.items()]


def faults(images: Files, labels: Files) -> dict[str, list[str]]:
    """The names that `complete` refuses, by what is wrong with them."""
    with_image = {name for name, path in images.items() if path.is_file()}
    with_labels = {name for name, path in labels.items() if path.is_file()}
    return {
        "images without labels": sorted(with_image - with_labels),
        "label files without an image": sorted(with_labels - with_image),
        "listed names with neither": sorted((images.keys() | labels.keys()) - with_image - with_labels),
    }


def shown(names: Iterable[str], most: int = 3) -> str:
    """The first few of `names`, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (", ..." if len(ordered) > most else "")


def read_names(path: Path) -> list[str]:
    """The names a list file gives: the first column of each line, without folders and image suffix.

    Raises:
        ZooError: a name stands there twice.
    """
    names = [without_suffix(line.split()[0].rsplit("/", 1)[-1]) for line in read_lines(path)]
    if len(set(names)) < len(names):
        twice = {name for name in names if names.count(name) > 1}
        raise ZooError(f"{path}: {len(twice)} name(s) listed twice (for instance {shown(twice)})")
    return names


def drawn(names: Iterable[str], fractions: Mapping[str, float], split: str, seed: int = 0) -> list[str]:
    """The share of `names`, sorted, that `split` gets of ``{"train": 0.8, "val": 0.2}``, by the hash of (seed, name).

    Raises:
        ZooError: there is no such split, or the shares are no shares.
    """
    check_fractions(fractions, split)
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    ends = [round(share * len(order)) for share in accumulate(fractions.values(), initial=0.0)]
    i = list(fractions).index(split)
    return sorted(order[ends[i] : ends[i + 1]])


def check_fractions(fractions: Mapping[str, float], split: str) -> None:
    """Raises ZooError where `fractions` are no shares of splits, `split` among them."""
    if split not in fractions:
        raise unknown("split", split, fractions)
    if not all(share > 0 for share in fractions.values()) or sum(fractions.values()) > 1 + 1e-9:
        raise ZooError(f"fractions={dict(fractions)}: each is above 0 and together they are at most 1")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped."""
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def without_suffix(name: str) -> str:
    """`name` without the suffix of an image file; other dots belong to the name."""
    return str(Path(name).with_suffix("").as_posix()) if name.lower().endswith(IMAGE_SUFFIXES) else name


def descend(root: Path, levels: Sequence[str], marks: Sequence[str]) -> Path:
    """The first of `root` and its subfolders `levels` that holds one of the entries `marks`; else `root`."""
    for level in ("", *levels):
        if any((root / level / mark).exists() for mark in marks):
            return root / level
    return root


def renumber(ids: NDArray[Any], table: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Ids of any shape as the file `path` stores them -> labels, by `table` (256,), `UNKNOWN` where it knows no id.

    Raises:
        ZooError: ids that are none of the dataset's.
    """
    if ids.dtype != np.uint8:
        inside = (ids >= 0) & (ids < 256)
        labels = np.where(inside, table[np.where(inside, ids, 0)], np.uint8(UNKNOWN)).astype(np.uint8)
    else:  # OpenCV takes a tenth of the time that indexing takes
        labels = np.asarray(cv2.LUT(np.ascontiguousarray(ids), table), np.uint8)
    unknown = labels == UNKNOWN
    if unknown.any():
        raise ZooError(f"{path}: id {ids[unknown][0]} is none of the dataset's")
    return labels


def id_table(ids: Sequence[int], void: Sequence[int] = ()) -> NDArray[np.uint8]:
    """The table of `renumber` (256,): ``ids[label]`` becomes `label`, the ids `void` become 255."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(void)] = VOID
    table[list(ids)] = np.arange(len(ids))
    return table


def to_semantic(labels: NDArray[Any], path: Path) -> Semantic:
    """Integer labels (H, W) of the file `path`, values 0..255.

    Raises:
        ZooError: other values.
    """
    if labels.dtype != np.uint8 and labels.size and not (labels.min() >= 0 and labels.max() <= VOID):
        wrong = labels[(labels < 0) | (labels > VOID)]
        raise ZooError(f"{path}: label {wrong[0]} ({wrong.size} pixels) is outside 0..255")
    return Semantic(torch.from_numpy(labels.astype(np.uint8, copy=False)))


def to_sample(image: NDArray[Any], target: Target, path: Path) -> Sample:
    """The sample of an image (H, W, C) and the truth in the file `path`; the base class fills in its id.

    Raises:
        ZooError: the two differ in size.
    """
    height, width = image.shape[:2]
    if target.size != (height, width):
        raise ZooError(f"{path}: the labels are {target.size[1]}x{target.size[0]}, the image {width}x{height}")
    return Sample(image, target, id=0, size=(height, width))
