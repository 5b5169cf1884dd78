"""Counting label pairs: the one pass over the pixels that region metrics need.

Label maps are coherent, so most pixels have the pair of their left neighbour. Runs of equal pairs are counted with
their lengths; where runs are too short to pay, OpenCV's two-dimensional histogram does. Nothing is masked: void is one
more row.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.structures import VOID

Labels = NDArray[np.uint8]
Counts = NDArray[np.int64]

LABELS = 256
_SHORT = 10  # pixels a run: below that the histogram is faster
_EXACT = 1 << 24  # OpenCV gives its integer histogram back as float32


def pair_counts(truth: Tensor, prediction: Tensor, classes: int) -> Counts:
    """Pixels by truth and prediction: two maps uint8 of one shape and device -> int64 (K + 2, K + 1).

    Rows are the K classes, void, and labels that are neither; columns are the K classes and everything else. On another
    device than the CPU this waits for the device.
    """
    if truth.device.type != "cpu":
        return _fold(_table(truth, prediction), classes)
    t, p = truth.detach().numpy().ravel(), prediction.detach().numpy().ravel()
    ends = run_ends(t, p)
    return _fold(_histogram(t, p), classes) if ends is None else _runs(t, p, ends, classes)


def run_ends(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.intp] | None:
    """The last pixel of each run of equal pairs of two flat maps (P,), or None where runs are too short to pay."""
    ends = np.zeros(-(-first.size // 8) * 8, np.bool_)  # where a run ends, padded to whole words
    inner = ends[: max(first.size - 1, 0)]
    np.not_equal(first[1:], first[:-1], out=inner)
    inner |= np.not_equal(second[1:], second[:-1])
    ends[first.size - 1 : first.size] = True
    return None if np.count_nonzero(ends) * _SHORT > first.size else _positions(ends)


def run_lengths(ends: NDArray[np.intp]) -> NDArray[np.float64]:
    """The pixels of each run from its last one; float64 as bincount wants it: exact up to 2^53 pixels."""
    lengths = np.empty(ends.size)
    lengths[:1] = ends[:1] + 1
    np.subtract(ends[1:], ends[:-1], out=lengths[1:])
    return lengths


def _positions(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`np.flatnonzero` of a multiple of 8 flags, few of them set: twice as fast by finding the words with any."""
    words = flags.view(np.uint64)
    some = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[some].view(np.bool_))
    positions = some[within >> 3]
    positions <<= 3
    positions += within & 7
    return positions


def _runs(truth: Labels, prediction: Labels, ends: NDArray[np.intp], classes: int) -> Counts:
    """Counts from the last pixel of each run."""
    lengths = run_lengths(ends)
    rows = truth.take(ends)
    rows += np.uint8(1)  # void, 255, becomes 0
    np.minimum(rows, min(classes + 1, VOID), out=rows)
    columns = prediction.take(ends)
    np.minimum(columns, classes, out=columns)
    codes = np.multiply(rows, classes + 1, dtype=np.intp)
    codes += columns
    counts = np.bincount(codes, weights=lengths, minlength=(classes + 2) * (classes + 1))
    counts = counts.reshape(classes + 2, classes + 1).astype(np.int64)
    return np.concatenate([counts[1:-1], counts[:1], counts[-1:]])


def _histogram(truth: Labels, prediction: Labels) -> NDArray[Any]:
    """Pixels by both labels, (256, 256), whole numbers in float32, or float64 for images too large for it."""
    both = truth[None], prediction[None]
    if truth.size <= _EXACT:
        return cv2.calcHist(both, [0, 1], None, [LABELS, LABELS], [0, LABELS, 0, LABELS])
    halves = truth.size // 2
    first = _histogram(truth[:halves], prediction[:halves]).astype(np.float64)
    return first + _histogram(truth[halves:], prediction[halves:])


def _table(truth: Tensor, prediction: Tensor) -> Counts:
    """The same in torch, for other devices."""
    codes = truth.flatten().int() * LABELS + prediction.flatten()
    return torch.bincount(codes, minlength=LABELS * LABELS).view(LABELS, LABELS).cpu().numpy()


def _fold(table: NDArray[Any], classes: int) -> Counts:
    """(256, 256) -> (K + 2, K + 1)."""
    void, strange = table[VOID:], table[classes:VOID].sum(0, dtype=np.float64, keepdims=True)
    counts = np.empty((classes + 2, classes + 1), np.int64)
    for rows, part in ((slice(classes), table[:classes]), (slice(classes, -1), void), (slice(-1, None), strange)):
        counts[rows, :classes] = part[:, :classes]
        counts[rows, classes] = part[:, classes:].sum(1, dtype=np.float64)
    return counts
