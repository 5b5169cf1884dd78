"""Two maps of segments laid over each other: the pixels of each pair, and who matches whom.

One pass over the pixels counts the pairs (true segment, predicted segment) that occur; there are few, and all the rest
is arithmetic on them. Neighbouring pixels mostly have the same pair, so runs of equal pairs are counted, not pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.metrics.boundary import interior
from zoo.metrics.counts import run_ends, run_lengths
from zoo.structures import VOID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Numbers = NDArray[Any]
Bools = NDArray[np.bool_]

THRESHOLD = 0.5
"""A pair matches above this IoU: it then is the only one of both segments (Kirillov et al. 2019, section 4.1)."""
_TABLE = 1 << 22  # pairs that may be counted in a table


class Common(NamedTuple):
    """Pairs of segments that share pixels: the true one, the predicted one, how many pixels, each (P,)."""

    true: Ints
    predicted: Ints
    pixels: Floats


class Tables(NamedTuple):
    """What is known of the segments: labels (S,) and (Q,), 255 for void; which true ones are crowds (S,)."""

    true: Ints
    predicted: Ints
    crowd: Bools


def common_pixels(truth: Tensor, prediction: Tensor, true: int, predicted: int) -> Common:
    """Two id maps (H,W) int32 of `true` and `predicted` segments -> their pairs, sorted by the true segment."""
    if truth.device.type != "cpu":
        return _common_in_torch(truth, prediction, predicted)
    t, p = truth.numpy().ravel(), prediction.numpy().ravel()
    ends = run_ends(t, p)
    if ends is None:
        weights = None
    else:
        t, p, weights = t.take(ends), p.take(ends), run_lengths(ends)
    codes = np.multiply(t, predicted, dtype=np.int64)
    codes += p
    if true * predicted <= _TABLE:
        table = np.bincount(codes, weights, true * predicted)
        found = np.flatnonzero(table)
        pixels = table[found]
    else:
        found, place = np.unique(codes, return_inverse=True)
        pixels = np.bincount(place, weights)
    return Common(found // predicted, found % predicted, pixels.astype(np.float64))


def _common_in_torch(truth: Tensor, prediction: Tensor, predicted: int) -> Common:
    """The same for other devices; waits for the device once."""
    codes, pixels = torch.unique(truth.long() * predicted + prediction.to(truth.device), return_counts=True)
    found, counts = torch.stack([codes, pixels]).cpu().numpy()
    return Common(found // predicted, found % predicted, counts.astype(np.float64))


def boundaries(ids: Tensor, count: int, distance: int) -> Tensor:
    """`ids` (H,W) of `count` segments where the pixel lies on the boundary of its segment; `count` inside; void as is.

    As in `zoo.metrics.boundary`, a pixel is on the boundary if another segment, void or the outside of the image is
    within `distance`.
    """
    inside = interior(ids, count, distance) & (ids != 0)
    return torch.where(inside, torch.tensor(count, dtype=ids.dtype, device=ids.device), ids)


def same_class(common: Common, tables: Tables) -> Common:
    """The pairs of one class, void and crowds left out: those that may match."""
    labels = tables.true[common.true]
    keep = (labels == tables.predicted[common.predicted]) & (labels != VOID) & ~tables.crowd[common.true]
    return Common(common.true[keep], common.predicted[keep], common.pixels[keep])


def iou(pairs: Common, areas: Numbers, predicted_areas: Numbers, void: Numbers) -> Floats:
    """IoU of pairs (P,): the pixels of the prediction on true void, `void` (Q,), are in no union."""
    predicted = predicted_areas[pairs.predicted]
    return pairs.pixels / (predicted + areas[pairs.true] - pairs.pixels - void[pairs.predicted])


def on_void(common: Common, tables: Tables) -> Numbers:
    """Pixels of each predicted segment where the truth is void (Q,)."""
    there = tables.true[common.true] == VOID
    return np.bincount(common.predicted[there], common.pixels[there], len(tables.predicted))


def excused(common: Common, tables: Tables) -> Numbers:
    """Pixels of each predicted segment on true void or on the crowd of its class, of several the last (Q,)."""
    last = np.full(VOID + 1, -1)
    crowds = np.flatnonzero(tables.crowd)
    last[tables.true[crowds]] = crowds
    there = (tables.true[common.true] == VOID) | (common.true == last[tables.predicted[common.predicted]])
    return np.bincount(common.predicted[there], common.pixels[there], len(tables.predicted))


def matches(
    pairs: Common, values: Floats, tables: Tables, excused: Numbers, predicted_areas: Numbers, classes: int
) -> Floats:
    """Sum of IoU, true positives, false positives, false negatives of each class (4, K).

    `values` (P,) are the IoU of `pairs`. What matches nothing is no false positive if more than half of it is `excused`
    (Q,), and no false negative if it is a crowd. Predicted segments without pixels are none; true ones are missed.
    """
    right = values > THRESHOLD
    found, hit = pairs.true[right], pairs.predicted[right]
    missed = (tables.true != VOID) & ~tables.crowd
    missed[found] = False
    wrong = (tables.predicted != VOID) & (predicted_areas > 0) & (excused <= THRESHOLD * predicted_areas)
    wrong[hit] = False
    labels = tables.true[found]
    return np.stack(
        [
            np.bincount(labels, values[right], classes),
            np.bincount(labels, minlength=classes),
            np.bincount(tables.predicted[wrong], minlength=classes),
            np.bincount(tables.true[missed], minlength=classes),
        ]
    )
