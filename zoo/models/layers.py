"""Blocks and functions that two or more models share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size); returns `x` itself where it already has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3, dilation: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the size, batch norm, ReLU: three layers to put into an nn.Sequential."""
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def conv3x3_bn_relu(
    in_channels: int, out_channels: int, dilation: int = 1, separable: str | None = None
) -> list[nn.Module]:
    """A plain 3x3 convolution with batch norm and ReLU, or the same in two steps: depthwise 3x3, then pointwise 1x1.

    Args:
        separable: None is plain; "tf" has batch norm and ReLU after each step, as the TensorFlow code of DeepLab and
            mmseg; "smp" has them after the second alone, as segmentation_models_pytorch.

    Raises ZooError for another value. Parameter names: plain 0, 1; "tf" 0, 1, 3, 4; "smp" 0.0, 0.1, 1.
    """
    if separable is None:
        return conv_bn_relu(in_channels, out_channels, dilation=dilation)
    if separable not in ("tf", "smp"):
        raise ZooError(f"unknown separable convolution {separable!r}: None, tf or smp")
    depthwise = nn.Conv2d(in_channels, in_channels, 3, 1, dilation, dilation, groups=in_channels, bias=False)
    pointwise = conv_bn_relu(in_channels, out_channels, kernel=1)
    if separable == "tf":
        return [depthwise, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), *pointwise]
    return [nn.Sequential(depthwise, pointwise[0]), *pointwise[1:]]


class BatchNormPooled(nn.BatchNorm2d):
    """Batch norm for globally pooled maps (B, C, 1, 1) that also trains with a batch of one.

    One value per channel has no variance: such a step normalises with the running statistics and leaves them as they
    are. Everything else, evaluation included, is nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, C, h, w) -> (B, channels, h, w). Parameter names are torchvision's.

    Branches conv1x1, one conv3x3 per rate, and the global mean through a conv1x1, spread out again; each with batch
    norm and ReLU; concatenated in this order; a convolution, batch norm, ReLU and dropout.

    Args:
        rates: dilations of the 3x3 branches.
        dropout: after the projection.
        project_kernel: of the projection (mmseg: 3), odd.
        separable: kind of the 3x3 branches, see `conv3x3_bn_relu`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        dropout: float,
        project_kernel: int = 1,
        separable: str | None = None,
    ) -> None:
        super().__init__()
        check_odd(project_kernel=project_kernel)
        pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, channels, kernel_size=1, bias=False),
            BatchNormPooled(channels),
            nn.ReLU(inplace=True),
        )
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*conv_bn_relu(in_channels, channels, kernel=1)),
                *(nn.Sequential(*conv3x3_bn_relu(in_channels, channels, rate, separable)) for rate in rates),
                pooled,
            ]
        )
        fused = conv_bn_relu(len(self.convs) * channels, channels, project_kernel)
        self.project = nn.Sequential(*fused, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat(self._branches(x), dim=1))

    def _branches(self, x: Tensor) -> list[Tensor]:
        """(B, channels, h, w) each; nobody holds them once they are concatenated."""
        first, *atrous, pooling = self.convs
        # Most of a kernel of a high rate lies beyond the map: in this format oneDNN leaves those products out.
        spread = x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
        branches = [first(x), *(branch(spread) for branch in atrous)]
        pooled = pooling(x).expand_as(branches[0])
        if branches[0].is_contiguous(memory_format=torch.channels_last):  # else they were concatenated as planes
            pooled = pooled.contiguous(memory_format=torch.channels_last)
        return [*branches, pooled]


def aspp_rates(rates: str | Sequence[int], stride: int) -> list[int]:
    """`rates` as they are, or for "auto" the papers': (6, 12, 18) at stride 16, doubled where the stride is halved.

    Raises ZooError for anything but these.
    """
    if rates == "auto":
        return [rate * 16 // stride for rate in (6, 12, 18)]
    if not are_positive(rates):
        raise ZooError(f"rates={rates!r}: give the dilations of one or more branches, such as [6, 12, 18], or 'auto'")
    return [int(rate) for rate in rates]


class PixelClassifier(nn.Conv2d):
    """conv1x1 with bias: (B, C, h, w) -> (B, K, h, w), after dropout of whole channels in training."""

    def __init__(self, in_channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(in_channels, classes, kernel_size=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout2d(x, self.dropout, self.training) if self.dropout else x)


class FCNHead(nn.Sequential):
    """conv3x3, BN, ReLU, dropout, conv1x1: (B, C, h, w) -> (B, K, h, w).

    The head of torchvision's FCN and the auxiliary head of its FCN and DeepLabV3, with its parameter names.

    Args:
        channels: between the convolutions; None: a quarter of the input's.
        convs: how many 3x3 convolutions, each with norm and ReLU.
        dropout2d: drop whole channels (semseg, mmsegmentation) instead of single values (torchvision).
        dilation: of the 3x3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        dropout: float = 0.1,
        channels: int | None = None,
        convs: int = 1,
        dropout2d: bool = False,
        dilation: int = 1,
    ) -> None:
        middle = channels or in_channels // 4
        widths = [in_channels] + convs * [middle]
        layers = [layer for pair in pairwise(widths) for layer in conv_bn_relu(*pair, dilation=dilation)]
        drop = nn.Dropout2d(dropout) if dropout2d else nn.Dropout(dropout)
        super().__init__(*layers, drop, nn.Conv2d(widths[-1], classes, kernel_size=1))


def check_odd(**kernels: int) -> None:
    """Refuses, by its option's name, the size of a kernel that is not odd: it has no middle."""
    for name, kernel in kernels.items():
        if kernel < 1 or kernel % 2 == 0:
            raise ZooError(f"{name}={kernel}: an even kernel shifts the map by half a pixel, use 1 or 3")


def check_shares(**shares: float) -> None:
    """Refuses, by its option's name, a share of values to drop that is none."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ZooError(f"{name}={share}: give the share of values to drop, from 0 to 1, such as 0.1")


def are_positive(values: object, count: int | None = None) -> bool:
    """Whether `values` is a sequence of one or more whole numbers (or `count` of them), each at least 1."""
    if not isinstance(values, Sequence) or not values or count not in (None, len(values)):
        return False
    return all(isinstance(value, int) and value >= 1 for value in values)


class _Join(torch.autograd.Function):
    """Identity on the first input; the others become part of its graph and receive no gradient from it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.others = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], *([None] * ctx.others)


def join(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """`loss` with every trainable one of `parameters` in its graph, as distributed training wants it.

    The same as adding 0 * parameter.sum() for each, without reading or writing a single weight.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return _Join.apply(loss, *trainable) if trainable and loss.requires_grad else loss
