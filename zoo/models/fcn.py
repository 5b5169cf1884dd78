"""FCN: a classification network becomes a segmentation network by convolving its classifier.

Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, arXiv 1411.4038.
This is the form the name has today: torchvision's FCN, one small head on a dilated ResNet. (The paper's own
networks, with skips on VGG16, are another file.)

    images (B, 3, H, W)
      -> backbone at output stride 8: c4 (B, 1024, H/8, W/8), c5 (B, 2048, H/8, W/8)
      -> classifier(c5): conv3x3 2048->512, BN, ReLU, dropout 0.1, conv1x1 512->K
      -> logits (B, K, H/8, W/8) -> bilinear to (B, K, H, W)
      aux_classifier(c4): the same head, for the loss alone, weight 0.5

Differences from the paper: ResNet instead of VGG16; no pool3/pool4 skips: resolution is kept by dilation instead of
being recovered; bilinear resizing instead of learned deconvolution; an auxiliary head; the mean over pixels as loss.
Differences from torchvision: none in numbers (parameter names, dilation, resizing, auxiliary weight). The head takes
any backbone that can keep stride 8; with `output_stride=32` any backbone at all, at the price of coarse borders.
mmsegmentation's FCN has two convolutions, then a third on the features and what came of them side by side, and drops
whole channels: `convs=2, concat_input=True, dropout2d=True, aux_weight=0.4`; its "D6" forms have `head_dilation=6`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import FCNHead, check_shares, conv_bn_relu
from zoo.models.semantic import SemanticModel, auxiliary_channels
from zoo.structures import Class, Size


class ConcatHead(nn.Module):
    """3x3 convolutions, one more on their input beside their output, dropout, conv1x1: (B, C, h, w) -> (B, K, h, w)."""

    def __init__(self, in_channels: int, classes: int, channels: int | None, **head: Any) -> None:
        super().__init__()
        channels = channels or in_channels // 4
        *convs, dropout, classifier = FCNHead(in_channels, classes, channels=channels, **head)
        self.convs = nn.Sequential(*convs)
        self.fuse = nn.Sequential(*conv_bn_relu(in_channels + channels, channels))
        self.classifier = nn.Sequential(dropout, classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.fuse(torch.cat([x, self.convs(x)], dim=1)))


class FCN(SemanticModel):
    """One FCN head on the coarsest features, one on those before.

    Args:
        convs: 3x3 convolutions in the head; the auxiliary head has one.
        concat_input: another one, on the features and the output of the convolutions side by side.
        channels: in the head; None: a quarter of its input's.
        head_dilation: of the heads' 3x3 convolutions, but for the one of `concat_input`.
        dropout: before the last convolution of each head.
        dropout2d: of whole channels instead of single values.
        aux_weight: of the auxiliary head's loss; 0 builds none.
        aux_channels: in the auxiliary head; None: a quarter of its input's.
        **base: see `SemanticModel`.

    Raises ZooError for a head without convolutions, dropout beyond [0, 1], and for an auxiliary head on a backbone with
    one level.
    """

    natural_backbone = "resnet50"
    needs: ClassVar[dict[str, int]] = {"output_stride": 8, "levels": 2}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        convs: int = 1,
        concat_input: bool = False,
        channels: int | None = None,
        head_dilation: int = 1,
        dropout: float = 0.1,
        dropout2d: bool = False,
        aux_weight: float = 0.5,
        aux_channels: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        if convs < 1:
            raise ZooError(f"convs={convs}: the head of an FCN has at least 1 convolution before its classifier")
        check_shares(dropout=dropout)
        count = len(self.classes)
        shared: dict[str, Any] = {"dropout": dropout, "dropout2d": dropout2d, "dilation": head_dilation}
        self.aux_weight = aux_weight
        head = ConcatHead if concat_input else FCNHead
        self.classifier = head(backbone.channels[-1], count, channels=channels, convs=convs, **shared)
        self.aux_classifier: FCNHead | None = None
        if aux_weight:
            self.aux_classifier = FCNHead(auxiliary_channels(backbone), count, channels=aux_channels, **shared)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features (B, C, h, w) -> logits (B, K, h, w)."""
        return self.classifier(features[-1])

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """The head on the features before the coarsest."""
        return [(self.aux_weight, self.aux_classifier(features[-2]))] if self.aux_classifier is not None else []
