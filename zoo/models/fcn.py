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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from zoo.models.backbone import Backbone
from zoo.models.layers import FCNHead
from zoo.models.semantic import SemanticModel
from zoo.structures import Class, Size


class FCN(SemanticModel):
    """One FCN head on the coarsest features, one on those before.

    Args:
        dropout: before the last convolution of each head.
        aux_weight: of the auxiliary head's loss; 0 builds none.
        **base: see `SemanticModel`.
    """

    natural_backbone = "resnet50"
    needs: ClassVar[dict[str, int]] = {"output_stride": 8, "levels": 2}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        dropout: float = 0.1,
        aux_weight: float = 0.5,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        self.aux_weight = aux_weight
        self.classifier = FCNHead(backbone.channels[-1], len(self.classes), dropout)
        self.aux_classifier = FCNHead(backbone.channels[-2], len(self.classes), dropout) if aux_weight else None

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features (B, C, h, w) -> logits (B, K, h, w)."""
        return self.classifier(features[-1])

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """The head on the features before the coarsest."""
        return [(self.aux_weight, self.aux_classifier(features[-2]))] if self.aux_classifier else []
