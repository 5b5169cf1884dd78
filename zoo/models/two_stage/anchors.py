"""Anchors: the boxes of a few sizes and shapes around every cell of every level, from which proposals start.

Ren, He, Girshick, Sun: "Faster R-CNN", NeurIPS 2015, section 3.1. Anchors are neither clipped nor left out at borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.models.two_stage.conventions import Conventions
from zoo.structures import Size


class Anchors(nn.Module):
    """The anchors of a pyramid; no parameters.

    Args:
        sizes: of each level, the square roots of its anchors' areas, in pixels.
        ratios: heights over widths.
        strides: of each level.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int],
        conventions: Conventions,
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.inferred = conventions.inferred_strides
        self.per_cell = len(sizes[0]) * len(ratios)
        for level, own in enumerate(sizes):
            pairs = [(size, ratio) for size in own for ratio in ratios]
            if conventions.ratio_major:
                pairs = [(size, ratio) for ratio in ratios for size in own]
            half = torch.tensor([(size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for size, ratio in pairs])
            cell = torch.cat([-half, half], 1)
            self.register_buffer(
                f"cell{level}", cell.round() if conventions.rounded_anchors else cell, persistent=False
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of coordinates: single precision at least, also in a model of half precision."""
        return torch.promote_types(self.get_buffer("cell0").dtype, torch.float32)

    def forward(self, maps: Sequence[Tensor], padded: Size) -> list[Tensor]:
        """Per level the anchors (h * w * A, 4), by rows, columns, then shapes, for images padded to (H, W).

        Maps beyond those of `strides` are for other parts of the model.
        """
        found = []
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=False)):
            cell = self.get_buffer(f"cell{level}").to(self.dtype)
            height, width = x.shape[-2:]
            steps = (padded[0] // height, padded[1] // width) if self.inferred else (stride, stride)
            ys = torch.arange(height, device=cell.device, dtype=cell.dtype) * steps[0]
            xs = torch.arange(width, device=cell.device, dtype=cell.dtype) * steps[1]
            corners = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1).view(-1, 1, 2)
            found.append((corners.repeat(1, 1, 2) + cell).view(-1, 4))
        return found
