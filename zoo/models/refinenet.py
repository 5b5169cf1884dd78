"""RefineNet: a cascade that takes coarse features back to a quarter of the image, one level of the backbone at a time.

Lin, Milan, Shen, Reid: "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation",
CVPR 2017, arXiv 1611.06612.

    images (B, 3, H, W)
      -> backbone, not dilated: c2 .. c5 (B, 256 .. 2048, H/4 .. H/32); dropout on the two coarsest
      -> RefineNet-4(c5) (B, 512, H/32) -> RefineNet-3(c4, .) (B, 256, H/16) -> RefineNet-2(c3, .) -> RefineNet-1(c2, .)
      -> dropout -> conv3x3 K -> logits (B, K, H/4, W/4) -> bilinear to (B, K, H, W)
    one block, x the backbone's level and y what the coarser block puts out:
      x -> conv3x3 to the block's width -> residual conv units (RCU: x + conv3x3(ReLU(conv3x3(ReLU(x)))))
      fusion: conv3x3(x) + conv3x3(y) resized to x; the coarsest block has no y and no fusion
      -> ReLU -> chained residual pooling: z = x; each stage z = conv3x3(max pooling 5x5(z)), x = x + z
      -> residual conv units

There is no batch norm outside the backbone, and only the first convolution of each RCU and the classifier have a bias.
The decoder loops over whatever levels the backbone gives, one or more.

Differences from the paper. The defaults are those of the authors' later models, as DrSleep/refinenet-pytorch has them
and its weights need them: four stages of chained residual pooling and three RCUs after it in every block. The paper
describes two stages, and one RCU after them but for the last block, which has two more before the classifier:
`crp_stages=2, output_units=1, final_units=3`.
Differences from DrSleep's code: none in what the network computes, up to the logits at a quarter of the size. Its
notebook enlarges those by bicubic interpolation, here it is bilinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import are_positive, check_shares, resize
from zoo.models.semantic import SemanticModel
from zoo.structures import Class, Size


class RefineNet(SemanticModel):
    """A RefineNet block per level of the backbone, coarse to fine.

    Args:
        channels: width of the coarsest block, and of the others.
        input_units: residual conv units of each block on the backbone's features.
        output_units: residual conv units at the end of each block.
        final_units: the same for the last block alone; None is `output_units`.
        crp_stages: poolings in a block's chain; 0 leaves the chain out.
        dropout: on the two coarsest levels of the backbone, and before the classifier.
        align_fusion: whether corners are aligned where a coarser block's output is resized; the logits go by
            `align_corners`.
        **base: see `SemanticModel`.

    Raises ZooError for numbers that make no network.
    """

    natural_backbone = "resnet101"
    needs: ClassVar[dict[str, int]] = {"levels": 4}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        channels: Sequence[int] = (512, 256),
        input_units: int = 2,
        output_units: int = 3,
        final_units: int | None = None,
        crp_stages: int = 4,
        dropout: float = 0.5,
        align_fusion: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        if not are_positive(channels, count=2):
            raise ZooError(
                f"channels={channels!r}: give two widths, of the coarsest block and of the others, such as [512, 256]"
            )
        check_shares(dropout=dropout)
        if min(input_units, output_units, crp_stages, final_units or 0) < 0:
            raise ZooError(
                f"a RefineNet block cannot have input_units={input_units}, output_units={output_units}, "
                f"final_units={final_units}, crp_stages={crp_stages}: none may be negative"
            )
        levels = list(reversed(backbone.channels))
        widths = [channels[0]] + [channels[1]] * (len(levels) - 1)
        units = [output_units] * len(levels)
        if final_units is not None:
            units[-1] = final_units
        coarser = [None, *widths[:-1]]
        self.blocks = nn.ModuleList(
            RefineBlock(level, width, before, input_units, count, crp_stages, align_fusion)
            for level, width, before, count in zip(levels, widths, coarser, units, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(widths[-1], len(self.classes), kernel_size=3, padding=1)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features, fine to coarse -> logits (B, K, h, w) at the size of the finest."""
        y: Tensor | None = None
        for index, (block, x) in enumerate(zip(self.blocks, reversed(features), strict=True)):
            y = block(self.dropout(x) if index < 2 else x, y)
        assert y is not None  # there is a level
        return self.classifier(self.dropout(y))


class RefineBlock(nn.Module):
    """One RefineNet block: (B, in_channels, h, w) and the coarser block's output -> (B, channels, h, w)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        coarser_channels: int | None,
        input_units: int,
        output_units: int,
        crp_stages: int,
        align_fusion: bool,
    ) -> None:
        super().__init__()
        self.reduce = conv3x3(in_channels, channels)
        self.input = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(input_units)))
        self.fusion = None if coarser_channels is None else Fusion(channels, coarser_channels, align_fusion)
        self.pooling = ChainedResidualPooling(channels, crp_stages)
        self.output = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(output_units)))

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        x = self.input(self.reduce(x))
        if self.fusion is not None:
            x = self.fusion(x, coarser)
        return self.output(self.pooling(F.relu(x)))


class ResidualConvUnit(nn.Module):
    """x + conv3x3(ReLU(conv3x3(ReLU(x)))); the shortcut carries x itself, so the first ReLU must not be in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, bias=True)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


class Fusion(nn.Module):
    """Multi-resolution fusion of a block's own path and the coarser one: a convolution each, resized, summed."""

    def __init__(self, channels: int, coarser_channels: int, align_corners: bool) -> None:
        super().__init__()
        self.fine = conv3x3(channels, channels)
        self.coarse = conv3x3(coarser_channels, channels)
        self.align_corners = align_corners

    def forward(self, x: Tensor, coarser: Tensor) -> Tensor:
        return self.fine(x) + resize(self.coarse(coarser), x.shape[-2:], self.align_corners)


class ChainedResidualPooling(nn.Module):
    """A chain of max pooling 5x5 and conv3x3, each link's output added to what came before; sizes stay."""

    def __init__(self, channels: int, stages: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        link = x
        for conv in self.convs:
            link = conv(F.max_pool2d(link, kernel_size=5, stride=1, padding=2))
            x = x + link
        return x


def conv3x3(in_channels: int, out_channels: int, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
