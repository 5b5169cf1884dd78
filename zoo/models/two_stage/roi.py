"""Regions of interest: which level each is taken from, and how a grid of fixed size is made of it.

RoIAlign: He et al., "Mask R-CNN", ICCV 2017, section 3. RoIPool: Girshick, "Fast R-CNN", ICCV 2015. Levels: Lin et al.,
FPN, CVPR 2017, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.ops import roi_align, roi_pool

from zoo.errors import unknown
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.conventions import Conventions

POOLINGS = ("align", "pool")
CHUNK = 2**17  # cells with their weights that are listed at once, of all bins


class RoIPooler(nn.Module):
    """Maps and boxes -> (R, C, size, size), the boxes in order; no parameters.

    Args:
        strides: of the maps that boxes are taken from, doubling; maps beyond these are ignored.
        size: of the grid.
        pooling: "align" (bilinear, nothing rounded) or "pool" (the largest value of each rounded bin).
    """

    def __init__(self, strides: Sequence[int], size: int, conventions: Conventions, pooling: str = "align") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        self.strides, self.size, self.pooling = list(strides), size, pooling
        self.conventions = conventions

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois = numbered(boxes)
        if len(self.strides) == 1:
            return self.crop(maps[0], rois, self.strides[0])
        # Sorted by level, so that one wait for four numbers replaces one wait for each level.
        levels = self.levels(rois[:, 1:])
        order = levels.argsort(stable=True)
        counts = torch.bincount(levels, minlength=len(self.strides)).tolist()
        parts = zip(maps, rois[order].split(counts), self.strides, strict=False)
        return torch.cat([self.crop(*part) for part in parts])[order.argsort()]

    def levels(self, boxes: Tensor) -> Tensor:
        """Of boxes (R, 4) the index into `strides`: 224 pixels belong to stride 16, twice as much to twice that."""
        size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        inner, outer = self.conventions.inner_epsilon, self.conventions.outer_epsilon
        level = torch.floor(4 + torch.log2(size / 224 + inner) + outer)
        first, last = (round(math.log2(stride)) for stride in (self.strides[0], self.strides[-1]))
        return level.clamp(first, last).long() - first

    def crop(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Of one map (B, C, h, w) and regions (R, 5), image and box -> (R, C, size, size)."""
        wide = full(x)
        rois = rois.to(wide.dtype)
        if self.pooling == "pool":
            return roi_pool(wide, rois, self.size, 1 / stride).to(x.dtype)
        ratio, aligned = self.conventions.sampling_ratio, self.conventions.aligned
        align = align_by_rows if x.device.type == "cpu" else roi_align
        return align(wide, rois, self.size, 1 / stride, ratio, aligned).to(x.dtype)


def numbered(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (n, 4) of each image as regions (R, 5): the image's number, then the box."""
    return torch.cat([torch.cat([torch.full_like(own[:, :1], image), own], 1) for image, own in enumerate(boxes)])


def align_by_rows(x: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    """`torchvision.ops.roi_align` and its gradient, for maps (B, C, H, W) on the CPU: the same to rounding.

    A bin is a weighted sum of cells, and a cell's gradient a weighted sum of bins'. A cell's channels lie together, and
    a bin's: `embedding_bag` adds such rows with vector instructions and all threads, where torchvision's kernels for
    the CPU have one, go channel by channel and first copy the map into planes. What comes out is in channels_last.
    """
    out: Tensor = _AlignByRows.apply(x, rois, size, scale, ratio, aligned)
    return out


class _AlignByRows(torch.autograd.Function):
    """The product of a sparse matrix (bins x cells) with the map's rows, and of its transpose with the gradient's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.geometry = x.shape, (size, scale, ratio, aligned)
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        pooled = x.new_zeros(len(rois), size, size, x.shape[1])
        for own, cells, weights in _bins(rois, x.shape, *ctx.geometry):
            bags = F.embedding_bag(cells, rows, mode="sum", per_sample_weights=weights)
            pooled[own] = bags.view(-1, *pooled.shape[1:])
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        batch, channels, height, width = ctx.shape
        of_bins = gradient.permute(0, 2, 3, 1)
        rows = gradient.new_zeros(batch * height * width, channels)
        (rois,) = ctx.saved_tensors
        for own, cells, weights in _bins(rois, ctx.shape, *ctx.geometry):
            cells, order = cells.flatten().sort()
            reached, counts = cells.unique_consecutive(return_counts=True)
            bins = order // weights.shape[1]
            given = of_bins[own].reshape(-1, channels)
            starts = counts.cumsum(0) - counts
            sums = F.embedding_bag(bins, given, starts, mode="sum", per_sample_weights=weights.flatten()[order])
            rows.index_add_(0, reached, sums)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None, None, None, None


def _bins(
    rois: Tensor, shape: Sequence[int], size: int, scale: float, ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices (r,) of some regions at a time, and of their bins' cells (r * size^2, n) the rows and the weights."""
    height, width = shape[2:]
    start = rois[:, 1:3] * scale - 0.5 * aligned  # (R, 2) of x, y
    extent = rois[:, 3:] * scale - 0.5 * aligned - start
    if not aligned:
        extent = extent.clamp(min=1)
    points = torch.full_like(extent, ratio) if ratio else (extent / size).ceil()
    for across, down in points.long().unique(dim=0).tolist():  # few, and one where the ratio is fixed
        if across <= 0 or down <= 0:
            continue
        count = 4 * down * across
        alike = (points == points.new_tensor([across, down])).all(1).nonzero()[:, 0]
        for own in alike.split(max(1, CHUNK // (count * size**2))):
            image = rois[own, 0].long()[:, None, None, None, None] * (height * width)
            xs, of_x = neighbours(start[own, 0], extent[own, 0], size, across, width)
            ys, of_y = neighbours(start[own, 1], extent[own, 1], size, down, height)
            cells = image + ys[:, :, None, :, None] * width + xs[:, None, :, None, :]
            weights = of_y[:, :, None, :, None] * of_x[:, None, :, None, :]  # (r, size, size, 2 down, 2 across)
            yield own, cells.view(-1, count), weights.view(-1, count)


def neighbours(start: Tensor, extent: Tensor, size: int, points: int, length: int) -> tuple[Tensor, Tensor]:
    """Along one axis the two cells beside each point of each bin, and their weights: (R, size, 2 * points) each."""
    steps = (torch.arange(size * points, device=start.device, dtype=start.dtype) + 0.5) / points
    place = start[:, None] + steps * (extent[:, None] / size)
    inside = (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)
    low = place.floor()
    far = place - low
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], -1).long()
    weights = torch.stack([1 - far, far], -1) * (inside.to(place.dtype) / points)[..., None]
    return cells.view(len(start), size, 2 * points), weights.view(len(start), size, 2 * points)
