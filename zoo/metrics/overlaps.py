"""How much detections and true objects of one class overlap, for the pairs that do.

Overlaps are sparse: `Pairs` lists the pairs (detection, truth) with a common pixel, which are few. Detections of
classes that the image's truth has not are never looked at, and from dense masks pixels are counted inside the true
object's box alone. RLEs are intersected by pycocotools, whose C needs no pixels.

IoU is as in the COCO API: intersection / union, and for a crowd intersection / detection.
"""

from __future__ import annotations

from collections.abc import Sequence
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

FEW = 8  # true objects of a class: up to that many, a detection's own box costs more than it saves


class Pairs(NamedTuple):
    """P pairs: which detection, which truth, and a value (pixels in common, an IoU, a similarity), each (P,)."""

    detections: Ints
    truths: Ints
    values: NDArray[Any]

    def where(self, keep: Bools) -> Pairs:
        """The pairs that `keep` (P,) picks."""
        return Pairs(self.detections[keep], self.truths[keep], self.values[keep])


def groups(detected: Ints, true: Ints) -> list[tuple[Ints, Ints]]:
    """For each label that both have, the rows with it: labels (D,) and (G,)."""
    return [
        (np.flatnonzero(detected == label), np.flatnonzero(true == label))
        for label in sorted(set(detected.tolist()) & set(true.tolist()))
    ]


def join(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several lists."""
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    detections, truths, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Pairs(detections, truths, values)


def from_table(table: NDArray[Any], rows: Ints, columns: Ints) -> Pairs:
    """The pairs with a value above 0 of a table (d, g) between detections `rows` (d,) and truths `columns` (g,)."""
    d, g = np.nonzero(table > 0)
    return Pairs(rows[d], columns[g], table[d, g])


def pixel_counts(masks: Masks) -> Ints:
    """Pixels of each mask (N,)."""
    if masks.is_dense:
        dense = masks.dense().cpu().numpy().view(np.uint8)
        return np.array([cv2.countNonZero(mask) if mask.size else 0 for mask in dense], np.int64)
    return np.asarray(coco.area(masks.rle()), np.int64) if len(masks) else np.zeros(0, np.int64)


def mask_intersections(predicted: Masks, true: Masks, sizes: Ints, blocks: Sequence[tuple[Ints, Ints]]) -> Pairs:
    """Common pixels, int64, of the detections and truths of each block (rows of `predicted`, rows of `true`).

    `sizes` (D,) are the pixels of the detections.
    """
    if not blocks:
        return join([])
    if predicted.is_dense:
        dense = predicted.dense().cpu().numpy()
        return join([_intersect_dense(dense, true.crops(g.tolist()), d, g) for d, g in blocks])
    mine, theirs = predicted.rle(), true.rle()
    parts = []
    for d, g in blocks:
        # As if all were crowds: the intersection over the detection, from which whole pixels come back exactly.
        shares = coco.iou([mine[i] for i in d.tolist()], [theirs[i] for i in g.tolist()], [1] * len(g))
        parts.append(from_table(np.rint(shares * sizes[d][:, None]).astype(np.int64), d, g))
    return join(parts)


def _intersect_dense(dense: Bools, truths: Sequence[Crop], rows: Ints, columns: Ints) -> Pairs:
    found: list[tuple[int, int, int]] = []
    for d in rows.tolist():
        mask, x, y = dense[d], 0, 0
        if len(truths) > FEW:
            mask, x, y = crop_dense(mask)
        for g, truth in zip(columns.tolist(), truths, strict=True):
            pixels = common_pixels((mask, x, y), truth)
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


def mask_iou(common: Pairs, detected: Ints, true: Ints, crowd: Bools) -> Pairs:
    """IoU of pairs with `common` pixels, from the areas (D,) and (G,) of all masks."""
    mine = detected[common.detections]
    whole = np.where(crowd[common.truths], mine, mine + true[common.truths] - common.values)
    return common._replace(values=common.values / whole)


def box_areas(boxes: Floats) -> Floats:
    """Width times height of boxes (N,4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(detected: Floats, true: Floats, crowd: Bools, blocks: Sequence[tuple[Ints, Ints]]) -> Pairs:
    """IoU of boxes (D,4) and (G,4) of each block, in double precision."""
    parts = []
    for d, g in blocks:
        mine, theirs = detected[d][:, None], true[g][None]
        sides = np.minimum(mine[..., 2:], theirs[..., 2:]) - np.maximum(mine[..., :2], theirs[..., :2])
        common = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0.0)
        sizes = box_areas(detected[d])[:, None]
        whole = np.where(crowd[g], sizes, sizes + box_areas(true[g]) - common)
        parts.append(from_table(np.divide(common, whole, out=np.zeros_like(common), where=common > 0), d, g))
    return join(parts)


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
