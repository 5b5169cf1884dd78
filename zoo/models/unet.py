"""U-Net: a contracting path, an expanding path, and the fine features handed across by concatenation.

Ronneberger, Fischer, Brox: "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
arXiv 1505.04597.

The paper's network (`backbone="unet"`), 64 to 1024 channels:
    images (B, C, H, W)
      -> encoder: five times [conv3x3, ReLU] x 2, max pooling 2x2 between: x0 (B, 64, H, W) .. x4 (B, 1024, H/16, W/16)
      -> decoder: four times: up-convolution 2x2 that halves the channels, [skip, up] concatenated, [conv3x3, ReLU] x 2
      -> head: conv1x1 64->K -> logits (B, K, H, W)
    padding="valid" (2015): convolutions without padding and without batch norm, skips cropped at their centre; an
    input of 188+16k pixels gives 184 fewer. `forward` extends the image by mirroring, as the paper's overlap-tile
    strategy does, so that the logits cover it.
    padding="same": padded convolutions with batch norm: the form in use today.
Any other backbone, features x1 .. x5 at strides 2 .. 32:
      -> decoder: per level: nearest resizing to the skip's size, [up, skip] concatenated, [conv3x3, BN, ReLU] x 2;
         the last block has no skip; channels 256, 128, 64, 32, 16
      -> head: conv3x3 16->K -> logits (B, K, H, W)
    This equals smp's Unet in numbers and in parameter names below `decoder`.

Differences from the paper: sizes that do not fit are made to fit (mirroring; for "same" pooling rounds up and the
up-convolved map is cropped); dropout, at the end of the contracting path in the paper, is 0 unless set and applies to
the coarsest features alone (the released network drops the level above, too); the border-weighted loss and the elastic
deformation are not part of the model. With windows (`window=`) each is mirrored at its own border; whole images need
none of that.
Differences from smp: levels that a backbone lacks are blocks without a skip instead of empty tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import conv_bn_relu
from zoo.models.semantic import SemanticModel
from zoo.structures import Class, Size

MARGIN = 92  # what the paper's valid convolutions take off each side, in pixels of the input


class UNet(SemanticModel):
    """The paper's expanding path on the paper's encoder, smp's on any other backbone.

    Args:
        padding: "same" or "valid"; "valid" needs `backbone="unet"`.
        dropout: on the coarsest features.
        decoder_channels: one per doubling of the resolution, coarse to fine. This and what follows is for timm
            backbones; the paper's encoder brings its own.
        interpolation: "nearest" or "bilinear" upsampling.
        center: two more convolutions on the coarsest features; None means for VGG only, as in smp.
        attention: squeeze and excitation in space and channels (scSE, arXiv 1808.08127) around each block.
        **base: see `SemanticModel`.

    Raises ZooError for a padding the encoder was not built with, and for a wrong number of decoder channels.
    """

    natural_backbone = "unet"
    needs: ClassVar[dict[str, int]] = {"levels": 5}
    encoder_options = ("padding",)

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        padding: str = "same",
        dropout: float = 0.0,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        interpolation: str = "nearest",
        center: bool | None = None,
        attention: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        own = isinstance(backbone.model, UNetEncoder)
        if padding != (backbone.model.padding if own else "same"):
            raise ZooError(
                f"padding={padding!r} does not go with the backbone {backbone.name}: "
                "it is a property of the paper's own encoder, backbone='unet' built with the same padding"
            )
        self.valid = padding == "valid"
        self.dropout = nn.Dropout(dropout)
        if own:
            self.decoder: nn.Module = PaperDecoder(backbone.channels, padding)
            self.head = nn.Conv2d(backbone.channels[0], len(self.classes), kernel_size=1)
            init_paper(self.decoder)
            init_paper(self.head)
        else:
            with_center = backbone.name.startswith("vgg") if center is None else center
            self.decoder = SkipDecoder(backbone, decoder_channels, interpolation, with_center, attention)
            self.head = nn.Conv2d(decoder_channels[-1], len(self.classes), kernel_size=3, padding=1)
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """Features of the image, mirrored at its borders where the convolutions are valid."""
        return super().extract(mirror_to_fit(normalized) if self.valid else normalized)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features, fine to coarse -> logits (B, K, *size)."""
        x = self.decoder([*features[:-1], self.dropout(features[-1])], size)
        return self.head(x)[..., : size[0], : size[1]]


# ---- the paper's own network


class UNetEncoder(nn.Module):
    """The contracting path: (B, C, H, W) -> five maps of 64 to 1024 channels at strides 1 to 16, or the last `levels`.

    Sizes that two does not divide are rounded up by pooling. With padding="valid" both sides must be 188+16k,
    anything else raises a ZooError.
    """

    def __init__(self, in_channels: int = 3, levels: int = 5, padding: str = "same") -> None:
        super().__init__()
        if padding not in ("same", "valid"):
            raise ZooError(f"unknown padding {padding!r} of U-Net's convolutions: same or valid")
        self.padding = padding
        widths = [64, 128, 256, 512, 1024]
        self.channels, self.strides = widths[-levels:], [1, 2, 4, 8, 16][-levels:]
        self.blocks = nn.ModuleList(double_conv(*pair, padding) for pair in pairwise([in_channels, *widths]))
        init_paper(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.padding == "valid" and any(side < 188 or (side - 188) % 16 for side in x.shape[-2:]):
            raise ZooError(
                f"U-Net with valid convolutions takes sides of 188+16k pixels, not {tuple(x.shape[-2:])}; "
                "the model's forward mirrors any image to such a size"
            )
        features = [self.blocks[0](x)]
        for block in list(self.blocks)[1:]:
            features.append(block(F.max_pool2d(features[-1], kernel_size=2, ceil_mode=True)))
        return features[-len(self.strides) :]


class PaperDecoder(nn.Module):
    """The expanding path: up-convolve, concatenate [skip, up], convolve twice; four times."""

    def __init__(self, channels: Sequence[int], padding: str) -> None:
        super().__init__()
        steps = list(pairwise(reversed(channels)))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, kernel_size=2, stride=2) for coarse, fine in steps)
        self.blocks = nn.ModuleList(double_conv(2 * fine, fine, padding) for _, fine in steps)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        *skips, x = features
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = up(x)[..., : skip.shape[-2], : skip.shape[-1]]  # pooling rounded up
            x = block(torch.cat([center_crop(skip, x.shape[-2:]), x], dim=1))
        return x


def double_conv(in_channels: int, out_channels: int, padding: str) -> nn.Sequential:
    """[conv3x3, ReLU] x 2: valid with bias, or same size with batch norm instead of a bias."""
    if padding == "same":
        return nn.Sequential(*conv_bn_relu(in_channels, out_channels), *conv_bn_relu(out_channels, out_channels))
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=3),
        nn.ReLU(inplace=True),
    )


def init_paper(module: nn.Module) -> None:
    """Weights from N(0, sqrt(2/N)), N inputs per neuron (the paper's section 3); biases zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            # each output of a 2x2 up-convolution with stride 2 sees one tap of every input channel
            inputs = layer.in_channels * (9 if layer.kernel_size == (3, 3) else 1)
            nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def center_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (h, w) of (B, C, H, W)."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def mirror_to_fit(x: Tensor) -> Tensor:
    """Extends (B, C, H, W) by reflection so that valid convolutions put out at least H x W, aligned at the top left.

    The reflection repeats where the image is smaller than the margin.
    """
    for axis in (-2, -1):
        length = x.shape[axis]
        steps = max(0, -(-(length - 4) // 16))
        where = torch.arange(-MARGIN, 4 + 16 * steps + MARGIN, device=x.device)
        period = max(1, 2 * (length - 1))
        where = where.remainder(period)
        x = x.index_select(axis, torch.minimum(where, period - where))
    return x


# ---- smp's expanding path, for every other backbone


class SkipDecoder(nn.Module):
    """From the coarsest features to the input's size, one block per doubling, with a skip wherever there is a level."""

    def __init__(
        self, backbone: Backbone, channels: Sequence[int], interpolation: str, center: bool, attention: bool
    ) -> None:
        super().__init__()
        self.steps = plan(backbone.strides)
        if len(channels) != len(self.steps):
            raise ZooError(
                f"decoder_channels={list(channels)}: {backbone.name} with strides {backbone.strides} "
                f"needs {len(self.steps)} numbers"
            )
        coarsest = backbone.channels[-1]
        self.center = (
            nn.Sequential(ConvBNReLU(coarsest, coarsest), ConvBNReLU(coarsest, coarsest)) if center else nn.Identity()
        )
        befores = [coarsest, *channels[:-1]]
        skips = [0 if level is None else backbone.channels[level] for _, level in self.steps]
        self.blocks = nn.ModuleList(
            SkipBlock(before, skip, after, interpolation, attention)
            for before, skip, after in zip(befores, skips, channels, strict=True)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor], size: Size) -> Tensor:
        x = self.center(features[-1])
        for block, (stride, level) in zip(self.blocks, self.steps, strict=True):
            skip = None if level is None else features[level]
            # as smp: without a skip to follow, the size rounds down
            free = max(1, size[0] // stride), max(1, size[1] // stride)
            x = block(x, skip, free if skip is None else skip.shape[-2:])
        return x


def plan(strides: Sequence[int]) -> list[tuple[int, int | None]]:
    """The decoder's blocks for a backbone's strides: (stride to reach, level to take as skip or None), to stride 1."""
    steps: list[tuple[int, int | None]] = []
    stride, levels = strides[-1], list(range(len(strides) - 1))
    while levels or stride > 1:
        level = levels.pop() if levels and strides[levels[-1]] >= stride // 2 else None
        stride = stride // 2 if level is None else strides[level]
        steps.append((stride, level))
    return steps


class SkipBlock(nn.Module):
    """Resize, concatenate [up, skip], convolve twice."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, interpolation: str, attention: bool
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        joined = in_channels + skip_channels
        self.attention1 = SCSE(joined) if attention else nn.Identity()
        self.conv1 = ConvBNReLU(joined, out_channels)
        self.conv2 = ConvBNReLU(out_channels, out_channels)
        self.attention2 = SCSE(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor | None, size: Size) -> Tensor:
        x = F.interpolate(x, size=size, mode=self.interpolation)
        if skip is not None:
            x = self.attention1(torch.cat([x, skip], dim=1))
        return self.attention2(self.conv2(self.conv1(x)))


class ConvBNReLU(nn.Sequential):
    """conv3x3, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(*conv_bn_relu(in_channels, out_channels))


class SCSE(nn.Module):
    """Concurrent channel and spatial squeeze and excitation: x * channel gate + x * pixel gate."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, kernel_size=1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)
