"""How much detections and true objects of one class overlap, for the pairs that do.

Overlaps are sparse: `Pairs` lists the pairs (detection, truth) with a common pixel, which are few. Detections of
classes that the image's truth has not are never looked at, and from dense masks pixels are counted inside the true
object's box alone. RLEs are intersected by pycocotools, whose C needs no pixels.

IoU is as in the COCO API: intersection / union, and for a crowd intersection / detection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco

from zoo.masks import Masks
from zoo.ops.masks import Crop, crop_dense

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CHEAP = 100  # pairs that cost less than another call of pycocotools
FEW = 8  # true objects of a class: up to that many, a detection's own box costs more than it saves


class Pairs(NamedTuple):
    """P pairs: which detection, which truth, and a value (pixels in common, an IoU, a similarity), each (P,)."""

    detections: Ints
    truths: Ints
    values: NDArray[Any]

    def where(self, keep: Bools) -> Pairs:
        """The pairs that `keep` (P,) picks."""
        return Pairs(self.detections[keep], self.truths[keep], self.values[keep])


def nothing() -> Pairs:
    """No pairs."""
    return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


def above_zero(table: NDArray[Any]) -> Pairs:
    """The pairs with a value above 0 of a table (D, G)."""
    d, g = np.nonzero(table > 0)
    return Pairs(d, g, table[d, g])


def pixel_counts(masks: Masks) -> Ints:
    """Pixels of each mask (N,)."""
    if masks.is_dense:
        dense = masks.dense().cpu().numpy().view(np.uint8)
        return np.array([cv2.countNonZero(mask) if mask.size else 0 for mask in dense], np.int64)
    rles = masks.rle()
    # pycocotools' area counts its RLEs in a byte.
    parts = [coco.area(rles[k : k + 255]) for k in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def mask_intersections(predicted: Masks, true: Masks, sizes: Ints, wanted: Bools) -> Pairs:
    """Common pixels, int64, of the pairs `wanted` (D, G); `sizes` (D,) are the pixels of the detections."""
    if not wanted.any():
        return nothing()
    if predicted.is_dense:
        return _intersect_dense(predicted.dense().cpu().numpy(), true, wanted)
    mine, theirs = predicted.rle(), true.rle()
    table = np.zeros(wanted.shape)
    for rows, columns in _blocks(wanted):
        # As if all were crowds: the intersection over the detection, from which whole pixels come back exactly.
        crowds = [1] * len(columns)
        table[np.ix_(rows, columns)] = coco.iou(
            [mine[i] for i in rows.tolist()], [theirs[i] for i in columns.tolist()], crowds
        )
    table *= wanted
    return above_zero(np.rint(table * sizes[:, None]).astype(np.int64))


def _blocks(wanted: Bools) -> list[tuple[Ints, Ints]]:
    """Rows and columns that hold all pairs wanted: one block, or one for each class where that spares most pairs."""
    rows, columns = np.flatnonzero(wanted.any(1)), np.flatnonzero(wanted.any(0))
    if len(rows) * len(columns) <= 4 * np.count_nonzero(wanted) + _CHEAP:
        return [(rows, columns)]
    alike: dict[bytes, list[int]] = {}
    for column in columns.tolist():
        alike.setdefault(wanted[:, column].tobytes(), []).append(column)
    return [(np.flatnonzero(wanted[:, own[0]]), np.array(own)) for own in alike.values()]


def _intersect_dense(dense: Bools, true: Masks, wanted: Bools) -> Pairs:
    columns = np.flatnonzero(wanted.any(0)).tolist()
    truths = dict(zip(columns, true.crops(columns), strict=True))
    found: list[tuple[int, int, int]] = []
    for d in np.flatnonzero(wanted.any(1)).tolist():
        own = np.flatnonzero(wanted[d]).tolist()
        crop = crop_dense(dense[d]) if len(own) > FEW else (dense[d], 0, 0)
        for g in own:
            pixels = common_pixels(crop, truths[g])
            if pixels:
                found.append((d, g, pixels))
    table = np.array(found, np.int64).reshape(-1, 3)
    return Pairs(table[:, 0], table[:, 1], table[:, 2])


def common_pixels(first: Crop, second: Crop) -> int:
    """Pixels set in both of two crops of one image."""
    (a, ax, ay), (b, bx, by) = first, second
    left, top = max(ax, bx), max(ay, by)
    right, bottom = min(ax + a.shape[1], bx + b.shape[1]), min(ay + a.shape[0], by + b.shape[0])
    if left >= right or top >= bottom:
        return 0
    both = a[top - ay : bottom - ay, left - ax : right - ax] & b[top - by : bottom - by, left - bx : right - bx]
    return int(np.count_nonzero(both))


def intersection_over_union(common: Pairs, detected: NDArray[Any], true: NDArray[Any], crowd: Bools) -> Pairs:
    """IoU of pairs with an area in `common`, from the areas (D,) and (G,) of all; crowds (G,) as said above."""
    mine = detected[common.detections]
    whole = np.where(crowd[common.truths], mine, mine + true[common.truths] - common.values)
    return common._replace(values=common.values / whole)


def box_areas(boxes: Floats) -> Floats:
    """Width times height of boxes (N,4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(detected: Floats, true: Floats, crowd: Bools, wanted: Bools) -> Pairs:
    """IoU of the boxes (D,4) and (G,4) of the pairs `wanted` (D, G), in double precision."""
    mine, theirs = detected[:, None], true[None]
    sides = np.minimum(mine[..., 2:], theirs[..., 2:]) - np.maximum(mine[..., :2], theirs[..., :2])
    common = above_zero(sides[..., 0] * sides[..., 1] * ((sides[..., 0] > 0) & (sides[..., 1] > 0) & wanted))
    return intersection_over_union(common, box_areas(detected), box_areas(true), crowd)


def boxes_of(masks: Masks | None, boxes: torch.Tensor | None) -> Floats:
    """The boxes (N,4) an image's objects come with, or else those of their masks."""
    if boxes is not None:
        return boxes.detach().cpu().double().numpy()
    assert masks is not None
    if masks.is_dense:
        tight = [(x, y, x + crop.shape[1], y + crop.shape[0]) for crop, x, y in masks.crops(range(len(masks)))]
        return np.array(tight, np.float64).reshape(-1, 4)
    x, y, width, height = coco.toBbox(masks.rle()).T if len(masks) else np.zeros((4, 0))
    corners = np.stack([x, y, x + width, y + height], 1)
    corners[pixel_counts(masks) == 0] = 0  # pycocotools' box of runs without a pixel is arbitrary
    return corners
