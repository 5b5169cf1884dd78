"""The pixel decoder of Mask2Former: maps that have seen each other by deformable attention.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022, section 3.2; the encoder
is that of "Deformable DETR" (arXiv 2010.04159).

    c2..c5, strides 4..32
      -> input: conv1x1 and GN of the 3 coarsest, (B, 256, h, w) each, coarse to fine
      -> 6 layers over the cells of all 3: each cell reads 4 places of each map; LayerNorm; MLP; LayerNorm
      -> memory (B, 256, h, w), strides 32, 16, 8
      -> for the finer maps: conv1x1 and GN of c2, plus what is coarser, resized; conv3x3, GN, ReLU
      -> mask: conv1x1, (B, 256, H / 4, W / 4): the pixels that masks are made of

All of it runs in float32 (the weights' own type, if that is another) whatever autocast says: offsets in pixels of a
large map have few digits to lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.masks import Size
from zoo.models.layers import resize
from zoo.models.queries.layers import ConvNorm, caffe2_xavier, check_width, sine_positions, xavier
from zoo.ops.deformable import cell_centres, deformable_attention


class DeformableAttention(nn.Module):
    """Each of N queries reads `points` places of each level: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in directions around the compass, their first point at 1 pixel, the next at 2, and so on."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None] * ring[:, None, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.output.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, query: Tensor, cells: Tensor, sizes: Sequence[Size], centres: Tensor) -> Tensor:
        """Queries (B, N, C) that look from `centres` (N, 2) at `cells` (B, S, C) of maps of these sizes."""
        value = self.value(cells).unflatten(-1, (self.heads, -1))
        offsets = self.offsets(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        return self.output(deformable_attention(value, sizes, centres, offsets, weights))


class EncoderLayer(nn.Module):
    """Deformable attention and a perceptron, each added to its input and normed: (B, S, C) -> (B, S, C)."""

    def __init__(self, channels: int, heads: int, levels: int, points: int, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, width), nn.Linear(width, channels)
        xavier(self)
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor, sizes: Sequence[Size], centres: Tensor) -> Tensor:
        """`positions` (S, C) are added to what asks, not to what is read."""
        x = self.norm1(x + self.attention(x + positions, x, sizes, centres))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DeformablePixelDecoder(nn.Module):
    """Features, fine to coarse -> (mask features (B, C, h, w) of the finest stride, memory, coarse to fine).

    Args:
        inputs: channels of the features.
        channels: of everything here.
        layers, heads, width: of the encoder; `width` of its perceptrons.
        levels: how many of the coarsest features the encoder works on; those finer are added afterwards.
        points: places that a head reads of each level.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int = 256,
        layers: int = 6,
        heads: int = 8,
        width: int = 1024,
        levels: int = 3,
        points: int = 4,
    ) -> None:
        super().__init__()
        check_width(channels, heads)
        if len(inputs) < levels:
            raise ZooError(f"the pixel decoder reads {levels} maps and the backbone gives {len(inputs)}: use another")
        self.levels, self.channels = levels, channels
        inner = [ConvNorm(n, channels, bias=True) for n in reversed(inputs[-levels:])]
        finer = list(reversed(inputs[:-levels]))
        lateral = [ConvNorm(n, channels) for n in finer]
        output = [ConvNorm(channels, channels, 3, relu=True) for _ in finer]
        self.input = nn.ModuleList(inner)
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList([EncoderLayer(channels, heads, levels, points, width) for _ in range(layers)])
        self.lateral, self.output = nn.ModuleList(lateral), nn.ModuleList(output)
        self.mask = nn.Conv2d(channels, channels, 1)
        for block in inner:
            xavier(block)
            nn.init.zeros_(block.conv.bias)  # type: ignore[arg-type]
        for conv in (*(block.conv for block in (*lateral, *output)), self.mask):
            caffe2_xavier(conv)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As the class says; features are (B, c, h, w)."""
        with torch.autocast(features[0].device.type, enabled=False):
            features = [feature.to(self.level_embed.dtype) for feature in features]
            return self._decode(features)

    def _decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        inputs = [block(x) for block, x in zip(self.input, features[: -self.levels - 1 : -1], strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in inputs]
        areas = [rows * columns for rows, columns in sizes]
        places = [sine_positions(size, self.channels, self.level_embed) for size in sizes]
        positions = torch.cat([place + own for place, own in zip(places, self.level_embed, strict=True)])
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], 1)
        centres = cell_centres(sizes, x)
        for layer in self.layers:
            x = layer(x, positions, sizes, centres)
        memory = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(x.split(areas, 1), sizes, strict=True)]
        finest = memory[-1]
        for lateral, output, feature in zip(self.lateral, self.output, features[: -self.levels][::-1], strict=True):
            own = lateral(feature)
            finest = output(own + resize(finest, own.shape[-2:]))
        return self.mask(finest), memory
