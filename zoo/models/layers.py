"""Blocks and functions that two or more models share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size); returns `x` itself where it already has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 3, dilation: int = 1, inplace: bool = True
) -> list[nn.Module]:
    """Convolution without bias that keeps the size, batch norm, ReLU: three layers to put into an nn.Sequential."""
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=inplace),
    ]


class BatchNormPooled(nn.BatchNorm2d):
    """Batch norm for globally pooled maps (B, C, 1, 1) that also trains with a batch of one.

    One value per channel has no variance: such a step normalises with the running statistics and leaves them as they
    are. Everything else, evaluation included, is nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class FCNHead(nn.Sequential):
    """conv3x3 to a quarter of the channels, BN, ReLU, dropout, conv1x1: (B, C, h, w) -> (B, K, h, w).

    The head of torchvision's FCN and the auxiliary head of its FCN and DeepLabV3, with its parameter names.
    """

    def __init__(self, in_channels: int, classes: int, dropout: float = 0.1) -> None:
        middle = in_channels // 4
        super().__init__(
            *conv_bn_relu(in_channels, middle), nn.Dropout(dropout), nn.Conv2d(middle, classes, kernel_size=1)
        )


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
