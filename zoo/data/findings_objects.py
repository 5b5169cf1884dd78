"""What the doctor says of truth that is objects: notes of annotations, masks without a pixel, more than are scored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zoo.data.base import Dataset
from zoo.data.findings import Finding, Look
from zoo.structures import VOID, Instances


def count_objects(target: Instances, classes: int) -> tuple[NDArray[np.int64], int, list[int]]:
    """Pixels of each class (K,), pixels of crowds of label 255, which are void, and the labels that are neither."""
    inside = (target.labels >= 0) & (target.labels < classes)
    pixels = np.zeros(classes, np.int64)
    np.add.at(pixels, target.labels[inside].numpy(), _areas(target)[inside.numpy()])
    void = target.crowd & (target.labels == VOID)
    return pixels, int(_areas(target)[void.numpy()].sum()), sorted(set(target.labels[~inside & ~void].tolist()))


def objects_in(target: Instances) -> tuple[int, int]:
    """How many objects there are that are no crowds, and how many of all have no pixel."""
    return int((~target.crowd).sum()), int((_areas(target) == 0).sum())


def of_objects(split: str, looks: list[Look], dataset: Dataset) -> Iterator[Finding]:
    """What is odd about instances: what was noted of their annotations, masks without a pixel, more than are scored."""
    for note in dataset.notes:
        yield Finding("warning", split, note.problem, note.count, f"{note.path}: {note.example}", note.advice)
    if empty := [look for look in looks if look.empty]:
        advice = "training leaves them out; in an evaluation nothing can find them"
        count = sum(look.empty for look in empty)
        yield Finding("warning", split, "objects without a pixel", count, empty[0].path, advice)
    most = dataset.metric_options.get("max_detections")
    if most is not None and (crowded := [look for look in looks if look.objects > most]):
        advice = f"the metric looks at {most} detections an image: set max_detections={max(x.objects for x in crowded)}"
        yield Finding("warning", split, "more objects than are scored", len(crowded), crowded[0].path, advice)


def _areas(target: Instances) -> NDArray[np.int64]:
    """Pixels of each mask, or of its box where there are no masks."""
    if not len(target):
        return np.zeros(0, np.int64)
    if target.masks is not None:
        return target.masks.area().numpy()
    assert target.boxes is not None
    sides = (target.boxes[:, 2:] - target.boxes[:, :2]).clamp(min=0)
    return sides.prod(1).round().long().numpy()
