"""How sure a score is, given these test images: the bootstrap over images.

Each replicate draws as many images as there are, with replacement, and scores the data set they form (Efron &
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). That is a number of times for each image, nothing
more: sums over images become products with these numbers, and the average precision of a class, whose detections are
sorted once, cumulative sums of them.

The draws depend on the number of images and the seed alone. So replicate r is of the same images for every model that
was evaluated on a dataset, and differences of two models' replicates are paired.

    weights (r, N) -> each detection's weight (D, r) -> right and seen so far (right ones, r) -> precision (r, K, T)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.matching import RECALLS, T
from zoo.metrics.overlaps import Bools, Floats, Ints

_AT_ONCE = 1 << 22  # weights held at a time
Weights = NDArray[np.int32]


def weights(images: int, replicates: int, seed: int) -> Iterator[Ints]:
    """How often each replicate has each image: parts (r, N) of (replicates, N), none if N is 0."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(images, 1))
    for start in range(0, replicates if images else 0, step):
        count = min(step, replicates - start)
        draws = rng.integers(images, size=(count, images))
        draws += np.arange(count)[:, None] * images
        yield np.bincount(draws.ravel(), minlength=count * images).reshape(count, images)


def resamples(statistics: Floats, replicates: int, seed: int) -> Iterator[Floats]:
    """Sums over the images of each replicate: statistics (N, ...) -> parts (r, ...), none if N is 0."""
    flat = statistics.reshape(len(statistics), -1) if len(statistics) else statistics
    for part in weights(len(statistics), replicates, seed):
        yield (part.astype(np.float64) @ flat).reshape(len(part), *statistics.shape[1:])


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """The interval that holds the share `level` of the defined values in the middle; (nan, nan) without any."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Detections(NamedTuple):
    """Those of a data set by falling score, ties in the order of images: `images` as indices and `labels` (D,), and
    whether they are `right` or `wrong` (D, thresholds); those that are neither are ignored."""

    images: Ints
    labels: Ints
    right: Bools
    wrong: Bools


class Objects(NamedTuple):
    """Those of a data set that count: `images` as indices and `labels` (G,)."""

    images: Ints
    labels: Ints


def average_precision(found: Detections, objects: Objects, part: Ints, classes: int) -> Floats:
    """Average precision (r, K, thresholds) of the replicates with the weights `part` (r, N); nan without objects.

    Copies of a detection stand together, also where its image has another one of the same class and score.
    """
    columns = np.ascontiguousarray(part.T, np.int32)  # one image's weights side by side
    result = np.full((len(part), classes, found.right.shape[1]), np.nan)
    for k in np.unique(objects.labels).tolist():
        rows = np.flatnonzero((found.labels == k) & (found.right | found.wrong).any(1))
        total = columns[objects.images[objects.labels == k]].sum(0)
        step = max(1, _AT_ONCE // max(len(rows), 1))
        for start in range(0, len(part), step):
            own = slice(start, start + step)
            values = _of_class(found.right[rows], found.wrong[rows], columns[found.images[rows], own], total[own])
            result[own, k] = np.where(total[own] > 0, values, np.nan).T
    return result


def _of_class(right: Bools, wrong: Bools, often: Weights, objects: Ints) -> Floats:
    """Average precision (thresholds, r) of one class: detections (D, thresholds) drawn `often` (D, r), objects (r,)."""
    result = np.zeros((right.shape[1], often.shape[1]))
    seen = np.cumsum(often, axis=0, dtype=np.int32)
    replicates = np.arange(often.shape[1], dtype=np.int32)
    most = int(often[right.any(1)].sum(0).max(initial=0))
    # How many of the recalls n right detections reach, as the division of floats has it.
    recall = np.arange(most + 1)[:, None] / np.maximum(objects, 1)
    reached = np.searchsorted(RECALLS, recall, side="right").astype(np.int8).ravel()
    for t, (hit, miss) in enumerate(zip(right.T, wrong.T, strict=True)):
        at, ignored = np.flatnonzero(hit), np.flatnonzero(~(hit | miss))
        if not len(at):
            continue
        hits = np.cumsum(often[at], axis=0, dtype=np.int32)
        counted = seen[at]
        if len(ignored):
            passed = np.cumsum(np.insert(often[ignored], 0, 0, axis=0), axis=0, dtype=np.int32)
            counted -= passed[np.searchsorted(ignored, at)]
        # A detection that was not drawn adds no recall, so its precision is not asked for.
        precision = hits / np.maximum(counted, 1)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        steps = np.diff(reached[hits * len(replicates) + replicates], axis=0, prepend=np.int8(0))
        result[t] = np.einsum("nr,nr->r", best, steps) / len(RECALLS)
    return result


def in_range(bits: Ints, area: int, thresholds: Ints) -> Bools:
    """The cases (D, thresholds) of one range of areas from the bits of `zoo.metrics.matching.match`."""
    return (bits[:, None] >> (area * T + thresholds) & 1).astype(bool)
