"""Which detections find which objects, and the precision that follows: the COCO evaluation on bits.

In the COCO API (Lin et al., "Microsoft COCO", ECCV 2014; pycocotools/cocoeval.py) the detections of an image and class
choose in order of falling score. At every IoU threshold, and for every range of object areas, each takes the free
object it overlaps most, if it reaches the threshold; of two equals the later one; one that counts before one that is
ignored (a crowd, or an object outside the range). An object is taken once, a crowd any number of times. A detection is
then right (it took an object that counts), ignored (it took another, or it took none and lies itself outside the
range), or wrong.

Ten thresholds in four ranges are forty cases, and each is one bit of an integer: `match` settles all cases of a pair
with three operations, and visits only the pairs that reach the lowest threshold. What is kept of a detection is two
such integers, right and wrong; pixels are forgotten. Precision and recall are exact counts over the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.overlaps import Bools, Floats, Ints, Pairs

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e10), "S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, 1e10)}
"""Ranges of areas in pixels, both bounds inclusive: 1024 pixels are small and medium."""
T = len(IOU_THRESHOLDS)
CASES = T * len(AREAS)
ALL = (1 << CASES) - 1
_EVERY_RANGE = sum(1 << T * a for a in range(len(AREAS)))
SIZES = np.array(list(AREAS.values()))


class Curves(NamedTuple):
    """Over a data set: `precision` (K, A, T) averaged over recalls, `recall` (K, A, T); nan without objects."""

    precision: Floats
    recall: Floats


def in_ranges(areas: NDArray[Any]) -> Bools:
    """Whether each of N areas lies in each of the ranges `AREAS`, (N, A)."""
    return (areas[:, None] >= SIZES[:, 0]) & (areas[:, None] <= SIZES[:, 1])


def cases(ranges: Bools) -> Ints:
    """(N, A) whether a range applies -> (N,) the bits of all thresholds in those ranges."""
    return ranges @ (((1 << T) - 1) << T * np.arange(len(AREAS)))


def match(
    pairs: Pairs, place: Ints, counts: Ints, crowd: Bools, outside: Ints, thresholds: Floats
) -> tuple[Ints, Ints]:
    """Right and wrong (D,) of each detection, as bits: threshold t of range a is bit a * T + t.

    Args:
        pairs: IoUs of detections and truths of one class.
        place: (D,) the place of each detection in the order of falling scores, any numbers that sort so.
        counts: (G,) the cases in which a truth counts; in the others it is ignored.
        crowd: (G,) truths that any number of detections may take.
        outside: (D,) the cases in which a detection that takes nothing is ignored.
        thresholds: rising, at most T of them.
    """
    right = np.zeros(len(place), np.int64)
    ignored = outside.copy()
    reached = np.searchsorted(thresholds, pairs.values, side="right")
    some = reached > 0
    if some.any():
        near = pairs.where(some)
        order = np.lexsort((-near.truths, -near.values, place[near.detections]))
        rows = zip(
            near.detections[order].tolist(), near.truths[order].tolist(), reached[some][order].tolist(), strict=True
        )
        free = dict.fromkeys(near.truths.tolist(), ALL)
        counted, crowds = counts.tolist(), crowd.tolist()
        for d, candidates in groupby(rows, itemgetter(0)):
            best = [(g, ((1 << level) - 1) * _EVERY_RANGE) for _, g, level in candidates]
            found, passed = _choose(best, counted, crowds, free)
            right[d] = found
            ignored[d] = (ignored[d] | passed) & ~found
    return right, ALL & ~(right | ignored)


def _choose(
    best: Sequence[tuple[int, int]], counts: list[int], crowd: list[bool], free: dict[int, int]
) -> tuple[int, int]:
    """The cases in which a detection takes a truth that counts, and those in which it takes another.

    `best` are its candidates (truth, cases in which the IoU suffices), best first; `free` the cases in which each truth
    is still free, which this updates.
    """
    left, found, passed = ALL, 0, 0
    for g, enough in best:
        taken = left & enough & counts[g] & free[g]
        found |= taken
        left ^= taken
        free[g] ^= taken
    for g, enough in best:
        taken = left & enough & ~counts[g] & free[g]
        passed |= taken
        left ^= taken
        if not crowd[g]:
            free[g] ^= taken
    return found, passed


def curves(labels: Ints, right: Ints, wrong: Ints, objects: Ints) -> Curves:
    """Precision and recall of the detections of a data set.

    Args:
        labels: (D,) their classes; all four arrays in order of falling score, equal scores in the order of images.
        right, wrong: (D,) as `match` gives.
        objects: (K, A) the objects that count, by class and range.
    """
    shape = (*objects.shape, T)
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(objects) + 1))
    for k in np.flatnonzero(objects.any(1)).tolist():
        rows = order[bounds[k] : bounds[k + 1]]
        defined = objects[k] > 0
        both = _of_class(_unpacked(right[rows]), _unpacked(wrong[rows]), objects[k])
        precision[k, defined], recall[k, defined] = both.precision[defined], both.recall[defined]
    return Curves(precision, recall)


def _unpacked(bits: Ints) -> Bools:
    """(D,) -> (CASES, D)."""
    return (bits >> np.arange(CASES)[:, None] & 1).astype(bool)


def _of_class(hits: Bools, misses: Bools, objects: Ints) -> Curves:
    """Precision and recall (A, T) of one class: hits and misses (CASES, D), and the objects that count (A,)."""
    case, at = np.nonzero(hits)
    total = np.bincount(case, minlength=CASES)
    nth = np.arange(len(case)) - np.repeat(np.cumsum(total) - total, total)
    at_hit = np.zeros((CASES, int(total.max()) + 1))  # precision at the n-th hit, 0 where there are fewer
    at_hit[case, nth] = (nth + 1) / (nth + 1 + np.cumsum(misses, axis=1)[case, at])
    best = np.maximum.accumulate(at_hit[:, ::-1], axis=1)[:, ::-1].reshape(len(AREAS), T, -1)
    precision = np.zeros((len(AREAS), T))
    for a in np.flatnonzero(objects).tolist():
        # The hit at which each recall is reached, as the division of floats has it.
        needed = np.searchsorted(np.arange(1, objects[a] + 1) / objects[a], RECALLS)
        precision[a] = best[a][:, np.minimum(needed, best.shape[2] - 1)].sum(1) / len(RECALLS)
    return Curves(precision, total.reshape(len(AREAS), T) / np.maximum(objects, 1)[:, None])
