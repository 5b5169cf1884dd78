"""Boxes (x0, y0, x1, y1) in continuous pixels: offsets between them, clipping, scaling.

Girshick et al., "Rich feature hierarchies", CVPR 2014, appendix C, for the offsets. `torchvision.ops` has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.structures import Size

# exp() of a larger offset would make a box of more than 1000 pixels of one of 16.
LARGEST_OFFSET = math.log(1000 / 16)
Weights = tuple[float, float, float, float]


def encode(boxes: Tensor, references: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Offsets (..., 4) that turn `references` (..., 4) into `boxes`: of the centre by the size, and log of the size."""
    size = references[..., 2:] - references[..., :2]
    wanted = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * wanted - references[..., :2] - 0.5 * size) / size
    return torch.cat([shift, torch.log(wanted / size)], -1) * boxes.new_tensor(weights)


def decode(offsets: Tensor, references: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (..., 4) that `offsets` (..., 4) make of `references` (..., 4), in at least single precision."""
    offsets = full(offsets)
    offsets = offsets / offsets.new_tensor(weights)
    size = references[..., 2:] - references[..., :2]
    centre = references[..., :2] + 0.5 * size + offsets[..., :2] * size
    half = 0.5 * offsets[..., 2:].clamp(max=LARGEST_OFFSET).exp() * size
    return torch.cat([centre - half, centre + half], -1)


def full(x: Tensor) -> Tensor:
    """`x` in single precision at least: half-precision coordinates are pixels off."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clip(boxes: Tensor, sizes: Sequence[Size]) -> Tensor:
    """Boxes (B, ..., 4) cut at the borders of their images, whose (H, W) are `sizes`."""
    limits = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    limits = limits.view(len(sizes), *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) and others (M, 4), (N, M).

    The values of `torchvision.ops.box_iou`, with half of its memory: there are 200,000 anchors on an image.
    """
    a, b = boxes[:, None], others[None]
    inner = (torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0]))).clamp_(min=0)
    inner *= (torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1]))).clamp_(min=0)
    areas = [(own[..., 2] - own[..., 0]) * (own[..., 3] - own[..., 1]) for own in (a, b)]
    return inner.div_((areas[0] + areas[1]).sub_(inner))


def scale(boxes: Tensor, size: Size, to: Size) -> Tensor:
    """Boxes (N, 4) of an image of (H, W) `size` in one of (H, W) `to`."""
    y, x = to[0] / size[0], to[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def sides(boxes: Tensor) -> Tensor:
    """The shorter side of each box, (...,)."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(-1)


def smooth_l1(offsets: Tensor, targets: Tensor, counted: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 distances of the `counted` (N,) rows of (N, 4); the others may hold anything."""
    targets = torch.where(counted[:, None], targets, 0)
    distances = F.smooth_l1_loss(full(offsets), targets, reduction="none", beta=beta)
    return torch.where(counted[:, None], distances, 0).sum()
