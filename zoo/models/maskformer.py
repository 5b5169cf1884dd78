"""MaskFormer: a set of masks with classes instead of a class for each pixel, for semantic and panoptic segmentation.

Cheng, Schwing, Kirillov: "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021, arXiv
2107.06278.

    images (B, 3, H, W), normalised, padded with zeros to a multiple of 32
      -> backbone: c2..c5, strides 4..32 (a Swin as in `zoo.models.swin`)
      -> pixel_decoder: conv3x3 of c5; three times: nearest x2, plus conv1x1 of the next finer map, conv3x3 (each with
           GN and ReLU); conv3x3: pixels (B, 256, H/4, W/4)
      -> decoder, DETR's: Q queries, zero at first, (B, Q, 256) through 6 layers
           each: attention among queries, attention to c5 (conv1x1 to 256), MLP; each added and normed
      -> of each layer: norm -> class logits (B, Q, K + 1); norm -> MLP -> embeddings (B, Q, 256)
      -> masks: products of embeddings and pixels (B, Q, H/4, W/4)
      -> `zoo.models.queries.readings`: labels, objects or segments, by `task`

    training: each layer's queries are matched with the segments at a quarter of the size; classification as in
    Mask2Former, times 1; focal loss of the pairs' masks at full size, times 20; dice, times 1

Differences from the paper: instance segmentation, which it leaves out, is read as Mask2Former does. Differences from
the authors' code: the variants for COCO on ResNets have a transformer encoder before the decoder, which is not here;
empty segments are left out of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.masks import Size
from zoo.models.backbone import Backbone
from zoo.models.queries.criterion import Answers, Criterion, dice_loss
from zoo.models.queries.layers import MLP, Attention, ConvNorm, caffe2_xavier, check_width, sine_positions, xavier
from zoo.models.queries.model import QueryModel
from zoo.structures import Class

ALPHA, GAMMA = 0.25, 2  # of the focal loss: Lin et al., ICCV 2017


class PixelDecoder(nn.Module):
    """Features, fine to coarse -> pixels (B, C, h, w) at the finest stride."""

    def __init__(self, inputs: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        finer = list(reversed(inputs[:-1]))
        stem = ConvNorm(inputs[-1], channels, 3, relu=True)
        lateral = [ConvNorm(n, channels) for n in finer]
        output = [ConvNorm(channels, channels, 3, relu=True) for _ in finer]
        self.stem, self.lateral, self.output = stem, nn.ModuleList(lateral), nn.ModuleList(output)
        self.mask = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (*(block.conv for block in (stem, *lateral, *output)), self.mask):
            caffe2_xavier(conv)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.stem(features[-1])
        for lateral, output, feature in zip(self.lateral, self.output, features[-2::-1], strict=True):
            own = lateral(feature)
            x = output(own + F.interpolate(x, own.shape[-2:], mode="nearest"))
        return self.mask(x)


class DecoderLayer(nn.Module):
    """DETR's: queries (B, Q, C) read each other, then a memory (B, N, C), then think: (B, Q, C)."""

    def __init__(self, channels: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.own, self.norm1 = Attention(channels, heads, dropout), nn.LayerNorm(channels)
        self.cross, self.norm2 = Attention(channels, heads, dropout), nn.LayerNorm(channels)
        self.linear1, self.linear2 = nn.Linear(channels, width), nn.Linear(width, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        xavier(self.linear1)
        xavier(self.linear2)

    def forward(self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`places` (Q, C) of the queries; `keys` are the values with their positions."""
        asking = x + places
        x = self.norm1(x + self.dropout(self.own(asking, asking, x)))
        x = self.norm2(x + self.dropout(self.cross(x + places, keys, values)))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Decoder(nn.Module):
    """The coarsest feature (B, c, h, w) -> logits (L, B, Q, K + 1) and embeddings (L, B, Q, C) of L layers."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        channels: int,
        queries: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_width(channels, heads)
        self.project = nn.Conv2d(inputs, channels, 1)
        caffe2_xavier(self.project)
        self.places = nn.Parameter(torch.randn(queries, channels))
        self.layers = nn.ModuleList([DecoderLayer(channels, heads, width, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(channels)
        self.classify = nn.Linear(channels, classes + 1)
        self.embed = MLP([channels] * 4)

    def no_weight_decay(self) -> set[str]:
        """Learned vectors, which the authors do not decay."""
        return {"places"}

    def forward(self, feature: Tensor, every: bool = False) -> tuple[Tensor, Tensor]:
        """L is all layers if `every`, else the last alone."""
        memory = self.project(feature)
        values = memory.flatten(2).transpose(1, 2)
        keys = values + sine_positions((memory.shape[-2], memory.shape[-1]), memory.shape[1], memory)
        x = torch.zeros_like(self.places).expand(len(values), -1, -1)
        normed = []
        for layer in self.layers:
            x = layer(x, self.places, keys, values)
            normed.append(self.norm(x))
        found = torch.stack(normed if every else normed[-1:])
        return self.classify(found), self.embed(found)


@dataclass(frozen=True)
class DenseCriterion(Criterion):
    """MaskFormer's: masks are compared at every pixel."""

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0

    def places(self, pixels: Tensor, masks: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """At every one of `pixels`."""
        small = F.interpolate(_padded(masks, size)[None], pixels.shape[-2:], mode="nearest")[0]
        return pixels.flatten(1), small.flatten(1).to(pixels.dtype)

    def mask_cost(self, logits: Tensor, truth: Tensor) -> Tensor:
        return _focal_cost(logits, truth)

    def pair_losses(self, embeddings: Tensor, pixels: Tensor, segments: Tensor, masks: Tensor, size: Size) -> Tensor:
        drawn = torch.einsum("lmc,chw->lmhw", embeddings, pixels)
        logits = F.interpolate(drawn, size, mode="bilinear", align_corners=False).flatten(2)
        wanted = _padded(masks, size).flatten(1)[segments].to(logits.dtype)
        return torch.stack([_focal_loss(logits, wanted), dice_loss(logits, wanted)]).sum(-1)


def _focal_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """The focal loss, mean over pixels, of each mask with each segment: (..., Q, P), (n, P) -> (..., Q, n)."""
    share = logits.sigmoid()
    inside = ALPHA * (1 - share) ** GAMMA * F.softplus(-logits)
    outside = (1 - ALPHA) * share**GAMMA * F.softplus(logits)
    return ((inside - outside) @ truth.T + outside.sum(-1, keepdim=True)) / truth.shape[-1]


def _focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """-a (1 - p)^2 log p, p the probability of what is true, mean over the pixels: (..., P) -> (...)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    share = logits.sigmoid()
    right = share * truth + (1 - share) * (1 - truth)
    weight = ALPHA * truth + (1 - ALPHA) * (1 - truth)
    return (weight * (1 - right) ** GAMMA * cross_entropy).mean(-1)


def _padded(masks: Tensor, size: Size) -> Tensor:
    """Masks (n, h, w) as uint8, with zeros up to (n, *size)."""
    return F.pad(masks.view(torch.uint8), (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


class MaskFormer(QueryModel):
    """Mask classification.

    Args:
        queries: the most masks of an image.
        channels: of both decoders.
        heads, layers, width, dropout: of the transformer decoder; `width` of its perceptrons.
        no_object_weight, class_weight, mask_weight, dice_weight: of the loss.
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
        layers: int = 6,
        width: int = 2048,
        dropout: float = 0.1,
        no_object_weight: float = 0.1,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(classes, backbone, **options)
        self.pixel_decoder = PixelDecoder(backbone.channels, channels)
        self.decoder = Decoder(
            backbone.channels[-1], len(self.classes), channels, queries, layers, heads, width, dropout
        )
        self.criterion = DenseCriterion(no_object_weight, class_weight, mask_weight, dice_weight)

    def answer(self, normalized: Tensor, every: bool = False) -> Answers:
        features = self.backbone.extract(normalized)
        logits, embeddings = self.decoder(features[-1], every)
        return Answers(logits, embeddings, self.pixel_decoder(features))
