"""LR-ASPP: a segmentation head as light as its mobile backbone.

Howard et al.: "Searching for MobileNetV3", ICCV 2019, arXiv 1905.02244, section 6.4 (Lite R-ASPP).

    images (B, 3, H, W)
      -> backbone at output stride 16: c3 (B, 40, H/8, W/8), c5 (B, 960, H/16, W/16)
      -> cbr(c5): conv1x1 -> 128, BN, ReLU            (B, 128, H/16, W/16)
         scale(c5): global mean, conv1x1, sigmoid     (B, 128, 1, 1)
      -> their product, bilinear to c3's size         (B, 128, H/8, W/8)
      -> conv1x1 K on it, plus conv1x1 K on c3        (B, K, H/8, W/8) -> bilinear to (B, K, H, W)

c3 is the finest of the backbone's features at stride 8 or coarser.

Differences from the paper: the gate sees the mean over the whole map, as in torchvision, instead of means over large
windows (49x49, strides 16 and 20, for Cityscapes' images); the backbone's last block keeps its width.
Differences from torchvision: c3 is what the stage at stride 8 ends with, as the levels of any other backbone;
torchvision reads the output of that stage's first block, `low_module="blocks.2.0"`, and starts dilating a block
earlier than timm, `dilation="full"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import conv_bn_relu, resize
from zoo.models.semantic import SemanticModel
from zoo.models.taps import extract_with, measure_tap
from zoo.structures import Class, Size


class LRASPP(SemanticModel):
    """A gated 1x1 convolution on the coarsest features, a 1x1 convolution on finer ones, summed.

    Args:
        channels: of the gated convolution.
        low_module: the backbone's module whose output serves as fine features ("blocks.2.0" for torchvision's
            mobilenet_v3_large); None is its level at stride 8.
        **base: see `SemanticModel`.

    Raises ZooError for a backbone without features at stride 8 or coarser besides the coarsest, and for a `low_module`
    that is none or puts out no map.
    """

    natural_backbone = "mobilenetv3_large_100"
    needs: ClassVar[dict[str, Any]] = {"output_stride": 16, "levels": 3}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        channels: int = 128,
        low_module: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        self.tap = measure_tap(backbone, low_module) if low_module else None
        levels = [index for index, stride in enumerate(backbone.strides[:-1]) if stride >= 8]
        if not levels and not low_module:
            raise ZooError(
                f"lraspp needs features at stride 8 or coarser besides the coarsest; {backbone.name} gives strides "
                f"{backbone.strides}: build it with levels=3"
            )
        self.low_level = 0 if low_module else levels[0]
        low_channels = self.tap.channels if self.tap else backbone.channels[self.low_level]
        self.classifier = LRASPPHead(low_channels, backbone.channels[-1], channels, len(self.classes))

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """The backbone's features; before them the output of `low_module` where one is named."""
        if self.tap is None:
            return super().extract(normalized)
        return extract_with(self.backbone, self.tap, normalized)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features, fine to coarse -> logits (B, K, h, w) at the size of the fine ones."""
        return self.classifier(features[self.low_level], features[-1], self.align_corners)


class LRASPPHead(nn.Module):
    """(B, C_low, h, w) and (B, C_high, h', w') -> logits (B, K, h, w). Parameter names are torchvision's."""

    def __init__(self, low_channels: int, high_channels: int, channels: int, classes: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(*conv_bn_relu(high_channels, channels, kernel=1))
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high_channels, channels, kernel_size=1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low_channels, classes, kernel_size=1)
        self.high_classifier = nn.Conv2d(channels, classes, kernel_size=1)

    def forward(self, low: Tensor, high: Tensor, align_corners: bool) -> Tensor:
        gated = resize(self.cbr(high) * self.scale(high), low.shape[-2:], align_corners)
        return self.low_classifier(low) + self.high_classifier(gated)
