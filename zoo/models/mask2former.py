"""Mask2Former: queries look at an image, each only where its own mask is, and become masks with classes.

Cheng, Misra, Schwing, Kirillov, Girdhar: "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022, arXiv 2112.01527.

    images (B, 3, H, W), normalised, padded with zeros to a multiple of 32
      -> backbone: c2..c5, strides 4..32 (a Swin as in `zoo.models.swin`)
      -> pixel_decoder, see `zoo.models.queries.pixel_decoder`: pixels (B, 256, H/4, W/4), memory at strides 32, 16, 8
      -> decoder: Q learned queries (B, Q, 256) through 9 layers, which read the memory at strides 32, 16, 8, 32, ...
           each: masked attention to the memory, attention among queries, MLP; each added and normed
           a query attends where its mask, as the layer before predicts it, has a probability of a half or more;
           where it has none, everywhere
      -> of each layer, and of the queries before the first: norm -> class logits (B, Q, K + 1)
                                                              norm -> MLP -> embeddings (B, Q, 256)
      -> masks: products of embeddings and pixels (B, Q, H/4, W/4)
      -> `zoo.models.queries.readings`: labels, objects or segments, by `task`

    training: `zoo.models.queries.criterion`, for all ten predictions

Differences from the paper: those of the authors' code, which is followed to the last rounding (the added bilinear
resize in the pixel decoder, dropout 0). Differences from that code: where a query may attend is computed from pixels
that are resized once instead of from each layer's resized masks (the same, as both are linear); in prediction masks are
made of the last layer alone; empty segments are left out of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.backbone import Backbone
from zoo.models.layers import resize
from zoo.models.queries.criterion import Answers, PointCriterion
from zoo.models.queries.layers import MLP, Attention, sine_positions, xavier
from zoo.models.queries.model import QueryModel
from zoo.models.queries.pixel_decoder import DeformablePixelDecoder
from zoo.structures import Class


class DecoderLayer(nn.Module):
    """Queries (B, Q, C) read a memory where they may, then each other, then think: (B, Q, C)."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.cross, self.norm1 = Attention(channels, heads), nn.LayerNorm(channels)
        self.own, self.norm2 = Attention(channels, heads), nn.LayerNorm(channels)
        self.linear1, self.linear2 = nn.Linear(channels, width), nn.Linear(width, channels)
        self.norm3 = nn.LayerNorm(channels)
        xavier(self.linear1)
        xavier(self.linear2)

    def forward(self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """`places` (Q, C) of the queries; `keys` are the values (B, N, C) with their positions."""
        x = self.norm1(x + self.cross(x + places, keys, values, allowed))
        asking = x + places
        x = self.norm2(x + self.own(asking, asking, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class MaskedDecoder(nn.Module):
    """Pixels (B, C, h, w), memory [(B, C, h, w)], coarse to fine -> logits and embeddings of every layer or the last.

    Args:
        classes: without that for no object.
        channels: of everything.
        queries, layers, heads: how many.
        width: of the layers' perceptrons.
        levels: how many maps the memory has.
    """

    def __init__(
        self, classes: int, channels: int, queries: int, layers: int, heads: int, width: int, levels: int
    ) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.randn(queries, channels))
        self.places = nn.Parameter(torch.randn(queries, channels))
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList([DecoderLayer(channels, heads, width) for _ in range(layers)])
        self.norm = nn.LayerNorm(channels)
        self.classify = nn.Linear(channels, classes + 1)
        self.embed = MLP([channels] * 4)

    def no_weight_decay(self) -> set[str]:
        """Learned vectors, which the authors do not decay."""
        return {"features", "places", "level_embed"}

    def forward(self, pixels: Tensor, memory: Sequence[Tensor], every: bool = False) -> tuple[Tensor, Tensor]:
        """(L, B, Q, K + 1) and (L, B, Q, C); L is layers + 1 if `every`, else 1."""
        values = [x.flatten(2).transpose(1, 2) + own for x, own in zip(memory, self.level_embed, strict=True)]
        keys = [
            value + sine_positions((x.shape[-2], x.shape[-1]), x.shape[1], x)
            for value, x in zip(values, memory, strict=True)
        ]
        small = [resize(pixels.detach(), x.shape[-2:]).flatten(2) for x in memory[: len(self.layers)]]
        x = self.features.expand(len(pixels), -1, -1)
        normed = [self.norm(x)]
        embeddings = [self.embed(normed[-1])]
        for number, layer in enumerate(self.layers):
            level = number % len(memory)
            allowed = embeddings[-1].detach() @ small[level] >= 0  # sigmoid of a half
            allowed = allowed | ~allowed.any(-1, keepdim=True)
            x = layer(x, self.places, keys[level], values[level], allowed[:, None])
            normed.append(self.norm(x))
            embeddings.append(self.embed(normed[-1]))
        if not every:
            normed, embeddings = normed[-1:], embeddings[-1:]
        return self.classify(torch.stack(normed)), torch.stack(embeddings)


class Mask2Former(QueryModel):
    """Masked attention; one architecture for three tasks.

    Args:
        queries: the most masks of an image; 200 with Swin-L.
        channels, heads: of both decoders.
        layers, width: of the transformer decoder; `width` of its perceptrons.
        encoder_layers, encoder_width: the same of the pixel decoder.
        no_object_weight, class_weight, mask_weight, dice_weight: of the loss, see `zoo.models.queries.criterion`.
        points: that masks are compared at in training.
        options: of `QueryModel`.
    """

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        queries: int = 100,
        channels: int = 256,
        heads: int = 8,
        layers: int = 9,
        width: int = 2048,
        encoder_layers: int = 6,
        encoder_width: int = 1024,
        no_object_weight: float = 0.1,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        points: int = 12544,
        **options: Any,
    ) -> None:
        super().__init__(classes, backbone, **options)
        self.pixel_decoder = DeformablePixelDecoder(backbone.channels, channels, encoder_layers, heads, encoder_width)
        self.decoder = MaskedDecoder(
            len(self.classes), channels, queries, layers, heads, width, self.pixel_decoder.levels
        )
        self.criterion = PointCriterion(no_object_weight, class_weight, mask_weight, dice_weight, points)

    def answer(self, normalized: Tensor, every: bool = False) -> Answers:
        pixels, memory = self.pixel_decoder(self.backbone.extract(normalized))
        logits, embeddings = self.decoder(pixels, memory, every)
        return Answers(logits, embeddings, pixels)
