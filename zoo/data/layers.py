"""Instances as a few maps of integers, so that moving 300 of them costs what moving 3 costs.

Masks that do not touch share a map: where it says k + 1 is mask k. How many maps there are follows the depth of the
overlap. Everything here works on runs of pixels and on maps, for all masks at once; nothing loops over masks but the
rare ones that overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError
from zoo.ops import masks as rle_ops
from zoo.structures import Masks, Size

Array = NDArray[Any]
MOST_PAIRS = 2_000_000
"""Pairs of overlapping runs that are looked at; where there are more, masks whose boxes overlap are kept apart."""


def disjoint_layers(masks: Masks, window: tuple[int, int, int, int] | None = None) -> list[Array]:
    """N masks as few maps (H, W) float32: mask k is where one of them equals k + 1; masks of one map do not touch.

    Each mask goes into the first map that is free where it lies. Outside of `window`, x0, y0, x1, y1, masks may be
    missing: it need not be looked at what a crop does not show.

    Raises:
        ZooError: runs that do not fill the image.
    """
    starts, ends, owners = _runs(masks)
    if window is not None:
        starts, ends, owners = _seen(starts, ends, owners, window, masks.size[0])
    # NumPy sorts numbers several times as fast as it finds their order: the places go along in the lower bits.
    order = np.sort(starts << 32 | np.arange(len(starts))) & 0xFFFFFFFF
    starts, ends, owners = starts[order], ends[order], owners[order]
    layer = _first_free(masks, starts, ends, owners)
    count = int(layer.max()) + 1 if len(owners) else 0
    if count == 1:
        return [_painted(starts, ends, owners, masks.size)]
    of_run = layer[owners]
    return [_painted(starts[of_run == k], ends[of_run == k], owners[of_run == k], masks.size) for k in range(count)]


def masks_of_layers(layers: list[Array], size: Size) -> tuple[Masks, Array, Array]:
    """The inverse, for maps of integers: masks that have pixels, their boxes (N, 4) float32, their k, rising."""
    parts = [rle_ops.runs_of_ids(layer) for layer in layers] or [(np.zeros(0, np.int64),) * 3]
    starts, ends, owners = (np.concatenate(part) for part in zip(*parts, strict=True))
    inside = np.flatnonzero(owners)
    narrow = np.uint16 if len(owners) and owners.max() < 2**16 else owners.dtype  # NumPy sorts 16 bits by counting
    order = inside[np.argsort(owners[inside].astype(narrow), kind="stable")]
    starts, ends, owners = starts[order], ends[order], owners[order]
    first = np.flatnonzero(np.diff(owners, prepend=0))
    counts = np.diff(first, append=len(owners))
    runs = rle_ops.lengths_of_runs(starts, ends, counts, size)
    return Masks.from_run_lengths(*runs, size), _boxes(starts, ends, first, size[0]), owners[first] - 1


def _boxes(starts: Array, ends: Array, first: Array, height: int) -> Array:
    """Tight boxes (N, 4) of masks from their runs, mask n beginning at run ``first[n]``."""
    if not len(first):
        return np.zeros((0, 4), np.float32)
    x0, top = np.divmod(starts, height)
    x1, bottom = np.divmod(ends - 1, height)
    wraps = x0 < x1  # goes on in the next column: touches the bottom and the top
    top, bottom = np.where(wraps, 0, top), np.where(wraps, height - 1, bottom)
    low, high = np.minimum.reduceat, np.maximum.reduceat
    sides = low(x0, first), low(top, first), high(x1, first) + 1, high(bottom, first) + 1
    return np.stack(sides, 1).astype(np.float32)


def _runs(masks: Masks) -> tuple[Array, Array, Array]:
    """Places of the first pixel of each run of ones and after its last, down the columns, and its mask."""
    pixels = masks.size[0] * masks.size[1]
    flat, lengths = masks.run_lengths()
    if not len(lengths):
        return (np.zeros(0, np.int64),) * 3
    stops = np.cumsum(lengths)
    edges = np.cumsum(flat)
    covered = np.diff(edges[stops - 1], prepend=0)
    if flat.min() < 0 or (covered != pixels).any():
        raise ZooError(
            f"the runs of an RLE cover {covered[covered != pixels][:1].sum()} pixels, its image has {pixels}"
        )
    count = lengths // 2
    owners = np.repeat(np.arange(len(count)), count)
    # The ones: of the runs of each mask the second, the fourth, ...; between them are zeros.
    odd = 2 * np.arange(len(owners)) + (stops - lengths + 1 - 2 * (np.cumsum(count) - count))[owners]
    if not flat[odd].all():
        some = flat[odd] > 0
        odd, owners = odd[some], owners[some]
    before = owners * pixels
    return edges[odd - 1] - before, edges[odd] - before, owners


def _seen(
    starts: Array, ends: Array, owners: Array, window: tuple[int, int, int, int], height: int
) -> tuple[Array, Array, Array]:
    """The runs that reach into a window."""
    x0, y0, x1, y1 = window
    rows = np.flatnonzero((ends > x0 * height) & (starts < x1 * height))
    top = starts[rows] % height
    bottom = top + ends[rows] - starts[rows]
    rows = rows[(top < y1) & (bottom > y0) | (bottom > height)]  # or it goes on in the next column
    return starts[rows], ends[rows], owners[rows]


def _first_free(masks: Masks, starts: Array, ends: Array, owners: Array) -> Array:
    """(N,) the number of the first map that is free for each mask; `starts` rise."""
    layer = np.zeros(len(masks), np.int64)
    if not (np.maximum.accumulate(ends)[:-1] > starts[1:]).any():
        return layer
    behind = np.searchsorted(starts, ends, "left") - np.arange(1, len(starts) + 1)
    if behind.sum() <= MOST_PAIRS:
        first = np.repeat(np.arange(len(starts)), behind)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(behind) - behind, behind)
        pairs = np.stack([owners[first], owners[second]])
    else:
        boxes = masks.boxes().cpu().numpy()
        meet = (boxes[:, None, :2] < boxes[None, :, 2:]).all(2)
        pairs = np.stack(np.nonzero(np.triu(meet & meet.T, 1)))
    before: dict[int, set[int]] = {}
    for code in np.unique(pairs.max(0) * len(masks) + pairs.min(0)).tolist():
        later, earlier = divmod(code, len(masks))
        before.setdefault(later, set()).add(earlier)
    for k in sorted(before):
        taken = {int(layer[other]) for other in before[k]}
        layer[k] = next(number for number in range(len(masks)) if number not in taken)
    return layer


def _painted(starts: Array, ends: Array, owners: Array, size: Size) -> Array:
    """(H, W) float32 with owner + 1 on each run, 0 elsewhere; float32 holds integers up to 2^24."""
    edges = np.stack([starts, ends], 1).reshape(-1)
    values = np.zeros(2 * len(owners) + 1, np.float32)
    values[1::2] = owners + 1
    flat = np.repeat(values, np.diff(edges, prepend=0, append=size[0] * size[1]))
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)
