"""Feature pyramid network: the backbone's levels, each enriched from above. And the convolution that heads are made of.

Lin, Dollár, Girshick, He, Hariharan, Belongie: "Feature Pyramid Networks for Object Detection", CVPR 2017,
arXiv 1612.03144, section 3.

    c2..c5 -> lateral 1x1 -> 256 channels; from the top, the nearest upsampling of the level above is added
           -> output 3x3 -> p2..p5; p6 is p5 with every other cell left out
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError, unknown

NORMS = ("batch", "group")


class Conv(nn.Conv2d):
    """Convolution that keeps the size, an optional norm (instead of the bias) and an optional ReLU.

    Parameter names: `weight`, `bias` or `norm.*`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, norm: str | None = None, relu: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm is None)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.norm = create_norm(norm, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x, inplace=True) if self.relu else x


def create_norm(name: str | None, channels: int) -> nn.Module | None:
    """The norm of a neck or head by name: None, "batch", or "group" of up to 32 groups. ZooError for others."""
    if name is None:
        return None
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    return nn.BatchNorm2d(channels) if name == "batch" else nn.GroupNorm(math.gcd(32, channels), channels)


class FPN(nn.Module):
    """The backbone's maps -> as many maps of `channels` and one of twice the last stride.

    Attributes:
        channels: of each map given.
        strides: of each.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], channels: int, norm: str | None = None
    ) -> None:
        super().__init__()
        if any(after != 2 * before for before, after in pairwise(strides)):
            raise ZooError(f"a pyramid wants strides that double, not {list(strides)}: use another backbone")
        self.channels = [channels] * (len(strides) + 1)
        self.strides = [*strides, 2 * strides[-1]]
        self.lateral = nn.ModuleList([Conv(n, channels, kernel=1, norm=norm, relu=False) for n in in_channels])
        self.output = nn.ModuleList([Conv(channels, channels, norm=norm, relu=False) for _ in in_channels])
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for below in range(len(merged) - 2, -1, -1):
            above = F.interpolate(merged[below + 1], size=merged[below].shape[-2:], mode="nearest")
            merged[below] = above.add_(merged[below])
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        return [*pyramid, pyramid[-1][..., ::2, ::2]]


class LastLevel(nn.Module):
    """No pyramid: the coarsest of the maps alone (the C4 and DC5 variants). No parameters."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.strides = [channels], [stride]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [features[-1]]
