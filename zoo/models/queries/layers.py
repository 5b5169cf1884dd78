"""Blocks of transformers over maps: positions, attention, perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.masks import Size


def sine_positions(size: Size, channels: int, like: Tensor) -> Tensor:
    """Sine and cosine of the rows, then of the columns, of a map: (h * w, channels), on the device and in the type of
    `like`. Carion et al., "DETR", ECCV 2020: places from 1/h to 1 times 2 pi, wavelengths to 10000 times that.
    """
    half, dtype = channels // 2, torch.promote_types(like.dtype, torch.float32)
    wavelengths = 10000 ** (2 * (torch.arange(half, device=like.device) // 2).to(dtype) / half)
    parts = []
    for length in size:
        places = torch.arange(1, length + 1, dtype=dtype, device=like.device)
        angles = (places / (length + 1e-6) * (2 * math.pi))[:, None] / wavelengths
        parts.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1))
    rows, columns = parts
    grid = torch.cat([rows[:, None].expand(*size, half), columns[None].expand(*size, half)], -1)
    return grid.flatten(0, 1).to(like.dtype)


class Attention(nn.Module):
    """Multi-head attention; its parameters are nn.MultiheadAttention's.

    Args:
        channels: of queries, keys and values.
        heads: how many.
        dropout: of the attention weights.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.out_proj.bias)
        xavier(self)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, Q, C) of queries (B, Q, C), keys and values (B, N, C); `allowed` (B, 1, Q, N) bool says who sees what."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, allowed, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.ModuleList):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__([nn.Linear(*pair) for pair in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self, 1):
            x = layer(x) if number == len(self) else F.relu(layer(x))
        return x


class ConvNorm(nn.Module):
    """Convolution that keeps the size, group norm of 32 groups, ReLU if asked for."""

    def __init__(self, inputs: int, channels: int, kernel: int = 1, bias: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


def xavier(module: nn.Module) -> None:
    """Xavier's uniform initialisation of every matrix, as DETR has it."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def caffe2_xavier(conv: nn.Conv2d) -> None:
    """Detectron's initialisation of a convolution, which it calls Xavier's: uniform by the inputs alone."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def check_width(channels: int, heads: int) -> None:
    """Refuses channels that heads, or the positions' sines and cosines of two axes, cannot share."""
    if channels % heads or channels % 4:
        raise ZooError(f"channels={channels} must be a multiple of heads={heads} and of 4, such as {4 * heads}")
