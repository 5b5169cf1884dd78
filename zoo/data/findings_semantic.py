"""What the doctor says of truth that is maps of classes: void only, 0 and 255 only, classes that never occur."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zoo.data.findings import Finding, Look
from zoo.structures import VOID, Class, Panoptic, Semantic


def count_labels(target: Semantic | Panoptic, classes: int) -> tuple[NDArray[np.int64], int, list[int]]:
    """Pixels of each class (K,), void pixels, and the labels that are neither."""
    counts = np.bincount(target.semantic().labels.numpy().ravel(), minlength=256)
    outside = [int(value) for value in np.flatnonzero(counts) if classes <= value < VOID]
    return counts[:classes].astype(np.int64), int(counts[VOID]), outside


def of_labels(split: str, looks: list[Look], classes: tuple[Class, ...]) -> Iterator[Finding]:
    """What is odd about the truth: void only, 0 and 255 only, classes that never occur."""
    truths = [(look, look.pixels) for look in looks if look.pixels is not None]
    if not truths:
        return
    pixels = np.array([counts for _, counts in truths])
    void = np.array([look.void for look, _ in truths])
    total = pixels.sum(0)
    if len(classes) > 1 and void.any() and total[0] and not total[1:].any():
        first = truths[int(np.flatnonzero(void)[0])][0].path
        advice = "255 is void here; where it is the object, use dataset=folder with encoding=binary"
        yield Finding("error", split, "masks hold 0 and 255 only", int((void > 0).sum()), first, advice)
        return
    if empty := [look.path for (look, counts), v in zip(truths, void, strict=True) if v and not counts.any()]:
        severity = "error" if len(empty) == len(truths) else "warning"
        yield Finding(severity, split, "masks that are all void", len(empty), empty[0], "label them or leave them out")
    if total.any() and (absent := [c.name for c, count in zip(classes, total, strict=True) if not count]):
        names = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        severity, advice = "info", "the split does not measure them"
        if split.startswith("train"):
            severity, advice = (
                "warning",
                "a model cannot learn them: wrong numbers in classes=, or a split without them",
            )
        yield Finding(severity, split, "classes that never occur", len(absent), names, advice)
