"""Swin as dense prediction uses it: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, in the form that the
authors' releases for detection and segmentation, and Mask2Former's, have.

timm's network is the classifier's. Three things differ, and weights trained with one are wrong with the other:

- maps are padded to whole windows before they are shifted; timm shifts first and pads then, so that windows at the
  border see other neighbours (features of an 800x1088 image differ by 1 to 11 % of their spread);
- windows have their full size on small maps too, and are shifted there (`always_partition`);
- a LayerNorm of its own follows each stage whose map is given.

At sizes that are multiples of all windows the first two make no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F


class FusedWithoutGradient(WindowAttention):
    """timm's attention in windows, in one kernel where no gradient is recorded: with one the kernel is slower, as it
    has none for the position biases."""

    @property  # type: ignore[misc]  # a constant there
    def fused_attn(self) -> bool:
        """What timm asks when it runs."""
        return not torch.is_grad_enabled()


class PaddedFirst(SwinTransformerBlock):
    """timm's block, which pads its map (B, h, w, C) before it shifts it."""

    def _attn(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        rows, columns = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        to_height, to_width = padded.shape[1:3]
        shift_down, shift_right = self.shift_size
        shifted = any(self.shift_size)
        if shifted:
            padded = torch.roll(padded, (-shift_down, -shift_right), (1, 2))
        windows = window_partition(padded, self.window_size).flatten(1, 2)
        attended = self.attn(windows, mask=self.get_attn_mask(padded)).view(-1, rows, columns, channels)
        merged = window_reverse(attended, self.window_size, to_height, to_width)
        if shifted:
            merged = torch.roll(merged, (shift_down, shift_right), (1, 2))
        return merged[:, :height, :width]


def make_dense(model: Any) -> None:
    """Turn timm's classifier in place into the network above; the norms are `model.stage_norms`, in timm's order."""
    for block in model.modules():
        if type(block) is SwinTransformerBlock:
            block.__class__ = PaddedFirst
            block.attn.__class__ = FusedWithoutGradient
    channels = [info["num_chs"] for info in model.feature_info]
    model.stage_norms = nn.ModuleList([nn.LayerNorm(width) for width in channels])


def stage_features(model: Any, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Normed maps (B, C, h, w) of the stages `indices`."""
    maps = model.forward_intermediates(x, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True)
    normed = [model.stage_norms[i](feature.permute(0, 2, 3, 1)) for i, feature in zip(indices, maps, strict=True)]
    return [feature.permute(0, 3, 1, 2) for feature in normed]
