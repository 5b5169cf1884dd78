"""Counting label pairs: the one pass over the pixels that region metrics need.

Label maps are coherent, so most pixels have the pair of their left neighbour. Lengths of runs are counted instead of
pixels; where runs are too short to pay, OpenCV's two-dimensional histogram does. Nothing is masked: void is one more
label.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = NDArray[np.uint8]
Counts = NDArray[np.int64]

LABELS = 256
_EXACT = 1 << 24  # OpenCV returns its integer histogram as float32
_SHORT = 5  # pixels a run: below that the histogram is faster (measured: they cross between 4 and 6)


class Pairs(NamedTuple):
    """How many pixels have which (truth, prediction): three arrays int64 (n,). A pair may occur more than once."""

    truth: Counts
    prediction: Counts
    pixels: Counts


def count_pairs(truth: Tensor, prediction: Tensor) -> Pairs:
    """Pairs of labels of two maps uint8 of one shape and device, each pixel once.

    On another device than the CPU this waits for it: the table of counts comes back.
    """
    if truth.device.type != "cpu":
        return _nonzero(_table(truth, prediction))
    t, p = truth.detach().numpy().ravel(), prediction.detach().numpy().ravel()
    if not t.size:
        return Pairs(*np.zeros((3, 0), np.int64))
    changes = np.not_equal(t[1:], t[:-1])
    changes |= np.not_equal(p[1:], p[:-1])
    if np.count_nonzero(changes) * _SHORT > t.size:
        return _nonzero(_histogram(t, p))
    return _runs(t, p, changes)


def _runs(truth: Labels, prediction: Labels, changes: NDArray[np.bool_]) -> Pairs:
    """`changes` (n - 1,) says where a pixel's right neighbour has another pair."""
    last = np.append(np.flatnonzero(changes), truth.size - 1)
    return Pairs(truth[last].astype(np.int64), prediction[last].astype(np.int64), np.diff(last, prepend=-1))


def _table(truth: Tensor, prediction: Tensor) -> Counts:
    codes = truth.flatten().int() * LABELS + prediction.flatten()
    return torch.bincount(codes, minlength=LABELS * LABELS).view(LABELS, LABELS).cpu().numpy()


def _histogram(truth: Labels, prediction: Labels) -> Counts:
    table = np.zeros((LABELS, LABELS), np.int64)
    for start in range(0, truth.size, _EXACT):
        both = [truth[None, start : start + _EXACT], prediction[None, start : start + _EXACT]]
        part = cv2.calcHist(both, [0, 1], None, [LABELS, LABELS], [0, LABELS, 0, LABELS])
        table += part.astype(np.int64)
    return table


def _nonzero(table: Counts) -> Pairs:
    truth, prediction = np.nonzero(table)
    return Pairs(truth, prediction, table[truth, prediction])


def bincount(labels: Counts, pixels: Counts, size: int) -> Counts:
    """int64 (size,): the pixels of each label below `size`. Exact below 2^53 pixels an image."""
    return np.bincount(labels, weights=pixels, minlength=size)[:size].astype(np.int64)
