"""The instance metric against pycocotools on small odd inputs: what annotation tools and failing models give.

Images down to one pixel, without truth or without detections; masks of noise, of no pixel, and with runs of length 0;
boxes without area that are not the masks'; scores of 0, 1 and equal ones within and between images; crowds; areas of
0, on the bounds of the sizes, and beyond them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coco_reference import evaluate
from numpy.typing import NDArray

from zoo.metrics import InstanceMetric
from zoo.structures import Instances, Masks

AREAS = [0, 1, 50, 1024, 1024.5, 9216, 9217, 1e10, 2e10]
LIMITS = [(1, 10, 100), (1, 2, 3), (1, 10, 300), (5,), (1,)]
FORMS = ["dense", "RLE", "counts"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools against NumPy 2


def drawn(rng: np.random.Generator, count: int, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Rectangles, some of noise and some without width or height, and their boxes."""
    masks, boxes = np.zeros((count, *size), bool), np.zeros((count, 4), np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        y0, x0 = rng.integers(0, size[0]), rng.integers(0, size[1])
        y1, x1 = rng.integers(y0, size[0] + 1), rng.integers(x0, size[1] + 1)
        mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.choice([1, 1, 0.7])
        box[:] = x0, y0, x1, y1
    return masks, boxes


def moved(
    rng: np.random.Generator, masks: NDArray[np.bool_], boxes: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Half of the masks rolled by up to two pixels, half of the boxes changed by up to one."""
    masks, boxes = masks.copy(), boxes.copy()
    for mask, box in zip(masks, boxes, strict=True):
        if rng.random() < 0.5:
            mask[:] = np.roll(mask, rng.integers(-2, 3), rng.integers(0, 2))
        if rng.random() < 0.5:
            box += rng.integers(-1, 2, 4) * np.array([0.5, 0.5, 1, 1])
            box[2:] = np.maximum(box[2:], box[:2])
    return masks, boxes


def held(rng: np.random.Generator, masks: NDArray[np.bool_], form: str) -> Masks:
    dense = Masks.from_dense(masks)
    if form == "dense":
        return dense
    size = dense.size
    return Masks.from_rle([split(rng, mask) for mask in masks] if form == "counts" else dense.rle(), size)


def split(rng: np.random.Generator, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts as a list, some of them in two with 0 in between, or 0 behind."""
    edges = np.flatnonzero(np.diff(mask.T.reshape(-1).astype(int), prepend=0))
    counts: list[int] = []
    for count in np.diff(edges, prepend=0, append=mask.size).tolist():
        first = int(rng.integers(0, count + 1))
        counts += [first, 0, count - first] if rng.random() < 0.2 else [count]
    return {"size": list(mask.shape), "counts": counts + [0] * int(rng.integers(0, 3))}


def pair(rng: np.random.Generator, classes: int, forms: tuple[str, str]) -> tuple[Instances, Instances]:
    most = 14 if rng.random() < 0.8 else 130
    size = int(rng.integers(1, most)), int(rng.integers(1, most))
    objects, total = (int(rng.integers(0, n)) * (rng.random() < 0.75) for n in (6, 14))
    masks, boxes = drawn(rng, objects, size)
    labels = rng.integers(0, classes, objects)
    extra: dict[str, Any] = {} if rng.random() < 0.3 else {"areas": rng.choice(AREAS, objects)}
    extra |= {} if rng.random() < 0.3 else {"boxes": boxes}
    truth = Instances(held(rng, masks, forms[0]), labels, crowd=rng.random(objects) < 0.25, **extra)
    found, edges = drawn(rng, total, size)
    own = rng.integers(0, classes, total)
    if objects:
        rows, near = rng.integers(0, objects, total), rng.random(total) < 0.7
        shifted = moved(rng, masks[rows], boxes[rows])
        found[near], edges[near], own[near] = shifted[0][near], shifted[1][near], labels[rows][near]
    scores = rng.choice([0, 0.25, 0.5, 0.5, 1, rng.random()], total)
    given = {} if rng.random() < 0.3 else {"boxes": edges}
    return Instances(held(rng, found, forms[1]), own, torch.from_numpy(scores).float(), **given), truth


@pytest.mark.parametrize("seed", range(18))
def test_equals_pycocotools_on_odd_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, limits = int(rng.integers(1, 4)), LIMITS[seed % 5]
    forms = FORMS[seed % 3], FORMS[seed // 3 % 3]
    predictions, targets = zip(*(pair(rng, classes, forms) for _ in range(int(rng.integers(1, 7)))), strict=True)
    ids = rng.permutation(len(targets)).tolist()
    metric = InstanceMetric(classes, max_detections=limits)
    metric.update(predictions, targets, ids)
    theirs = {}
    for kind in ("segm", "bbox"):
        theirs |= evaluate(predictions, targets, classes, kind, limits, order=ids)
    assert metric.compute() == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)
