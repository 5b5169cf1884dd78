"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021).

The boundary of a mask is the part of it within d pixels of its outside; everything beyond the image is outside.
The official code erodes the mask d times by 3x3 with a ring of zeros around it, so a pixel is on the boundary if the
nearest pixel of another class is at most d away in chessboard distance. The boundaries of all classes of a label map
therefore come out of one pass: mark the pixels that touch another label, then widen the marks by d - 1. (Eroding the
label map itself, as detectron2 does, mixes the classes.)

Masks of objects overlap, so each has its own pass inside its box: a pixel is not on the boundary if the square of
2 d + 1 pixels around it is full, which an integral image tells at a cost that does not depend on d. In boundary AP the
overlap of two objects is the lesser of mask IoU and boundary IoU; with a crowd it is the mask's.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.masks import Masks
from zoo.metrics.overlaps import Bools, Pairs, common_pixels
from zoo.ops.masks import Crop
from zoo.structures import VOID, Size


def boundary_distance(size: Size, ratio: float = 0.02) -> int:
    """The width d in pixels for an image of `size`: `ratio` of its diagonal, rounded half to even, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_labels(labels: Tensor, distance: int) -> Tensor:
    """`labels` uint8 (H,W) where the pixel lies on the boundary of its class, 255 elsewhere.

    On the boundary means: another label, or the outside of the image, within chessboard distance `distance` >= 1.
    """
    if distance < 1:
        raise ZooError(f"a boundary is at least 1 pixel wide, not {distance}")
    inside = _inside_cpu(labels, distance) if labels.device.type == "cpu" else _inside(labels, distance)
    return void_where(inside, labels)


def void_where(mask: Tensor, labels: Tensor) -> Tensor:
    """`labels` uint8 with 255 where `mask` bool; several times faster than `torch.where` on bytes."""
    return labels | mask.view(torch.uint8) * VOID


def interior(ids: Tensor, count: int, distance: int) -> Tensor:
    """Where the pixels of an id map (H,W), ids 0..count-1, are no boundary of their segment, bool (H,W)."""
    if ids.device.type != "cpu":
        return _inside(ids, distance)
    # OpenCV compares no 32-bit integers.
    kind = torch.uint8 if count <= 1 << 8 else torch.uint16 if count <= 1 << 16 else torch.float32
    return _inside_cpu(ids.to(kind), distance)


def _inside_cpu(labels: Tensor, distance: int) -> Tensor:
    marks = (cv2.morphologyEx(labels.numpy(), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) != 0).view(np.uint8)
    marks[[0, -1]] = 1
    marks[:, [0, -1]] = 1
    # A box sum costs the same for any width, a dilation does not. Sums saturate at 255, which is all that matters.
    size = (2 * distance - 1, 2 * distance - 1)
    sums = cv2.boxFilter(marks, cv2.CV_8U, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
    return torch.from_numpy(sums == 0)


def _inside(labels: Tensor, distance: int) -> Tensor:
    """The same in torch alone, for other devices. Labels are exact in float32."""
    x = labels[None, None].float()
    marks = (F.max_pool2d(x, 3, 1, 1) != -F.max_pool2d(-x, 3, 1, 1)).float()
    marks[:, :, [0, -1]] = 1
    marks[:, :, :, [0, -1]] = 1
    radius, width = distance - 1, 2 * distance - 1
    rows = F.max_pool2d(marks, (width, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, width), 1, (0, radius))[0, 0] == 0


def boundary_crop(crop: Crop, distance: int) -> Crop:
    """The boundary of one mask: the part of the crop within `distance` of its outside, and the crop's place."""
    mask, left, top = crop
    height, width = mask.shape
    if min(height, width) <= 2 * distance:  # nowhere is so deep inside
        return crop
    edge = np.zeros((height, width + 1), bool)
    edge[:, :width] = mask
    deep = _full_squares(mask, 2 * distance + 1)
    inside = edge.reshape(-1)[distance * (width + 2) :][: len(deep)]
    np.greater(inside, deep, out=inside)
    return edge[:, :width], left, top


def _full_squares(mask: Bools, side: int) -> Bools:
    """Where squares of `side` pixels lie in a mask (H,W), by their first pixel, in rows of W + 1 behind each other.

    Counts of pixels in squares are differences of an integral image, which has W + 1 columns; taken as one long row it
    needs two subtractions. A difference from the end of one row to the start of the next is less than `side`.
    """
    sums = cv2.integral(mask.view(np.uint8)).reshape(-1)
    below = side * (mask.shape[1] + 1)
    bands = sums[below:] - sums[:-below]
    np.subtract(bands[side:], bands[:-side], out=bands[:-side])
    return bands[:-side] == side * side


def boundary_overlaps(predicted: Masks, true: Masks, iou: Pairs, crowd: Bools, distance: int) -> Pairs:
    """The lesser of mask IoU and boundary IoU for the pairs `iou`, of mask IoU; crowds (G,) keep theirs."""
    values = iou.values.copy()
    plain = np.flatnonzero(~crowd[iou.truths])
    mine = _boundaries(predicted, iou.detections[plain].tolist(), distance)
    theirs = _boundaries(true, iou.truths[plain].tolist(), distance)
    for pair in plain.tolist():
        (first, size), (second, other) = mine[int(iou.detections[pair])], theirs[int(iou.truths[pair])]
        common = common_pixels(first, second)
        values[pair] = min(values[pair], common / (size + other - common) if common else 0.0)
    return iou._replace(values=values)


def _boundaries(masks: Masks, rows: list[int], distance: int) -> dict[int, tuple[Crop, int]]:
    """The boundary and its pixels of each mask that `rows` names."""
    wanted = sorted(set(rows))
    crops = [boundary_crop(crop, distance) for crop in masks.crops(wanted)]
    return {row: (crop, int(np.count_nonzero(crop[0]))) for row, crop in zip(wanted, crops, strict=True)}
