"""Regions of interest: which level each is taken from, and how a grid of fixed size is made of it.

RoIAlign: He et al., "Mask R-CNN", ICCV 2017, section 3. RoIPool: Girshick, "Fast R-CNN", ICCV 2015. Levels: Lin et al.,
FPN, CVPR 2017, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from zoo.errors import unknown
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.conventions import Conventions

POOLINGS = ("align", "pool")


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
        numbered = [torch.cat([torch.full_like(own[:, :1], image), own], 1) for image, own in enumerate(boxes)]
        rois = torch.cat(numbered)
        if len(self.strides) == 1:
            return self._pool(maps[0], rois, self.strides[0])
        # Sorted by level, so that one wait for four numbers replaces one wait for each level.
        levels = self.levels(rois[:, 1:])
        order = levels.argsort(stable=True)
        counts = torch.bincount(levels, minlength=len(self.strides)).tolist()
        parts = zip(maps, rois[order].split(counts), self.strides, strict=False)
        return torch.cat([self._pool(*part) for part in parts])[order.argsort()]

    def levels(self, boxes: Tensor) -> Tensor:
        """Of boxes (R, 4) the index into `strides`: 224 pixels belong to stride 16, twice as much to twice that."""
        size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        inner, outer = self.conventions.inner_epsilon, self.conventions.outer_epsilon
        level = torch.floor(4 + torch.log2(size / 224 + inner) + outer)
        first, last = (round(math.log2(stride)) for stride in (self.strides[0], self.strides[-1]))
        return level.clamp(first, last).long() - first

    def _pool(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        wide = full(x)
        if self.pooling == "pool":
            return roi_pool(wide, rois.to(wide.dtype), self.size, 1 / stride).to(x.dtype)
        ratio, aligned = self.conventions.sampling_ratio, self.conventions.aligned
        return roi_align(wide, rois.to(wide.dtype), self.size, 1 / stride, ratio, aligned).to(x.dtype)
