"""DeepLabV3+: DeepLabV3's context, brought to fine features by a small decoder.

Chen, Zhu, Papandreou, Schroff, Adam: "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018, arXiv 1802.02611.

    images (B, 3, H, W)
      -> backbone at output stride 16: c2 (B, 256, H/4, W/4), ..., c5 (B, 2048, H/16, W/16)
      -> ASPP(c5), rates 6, 12, 18 -> (B, 256, H/16, W/16) -> bilinear to c2's size
      -> conv1x1 on c2, BN, ReLU -> (B, 48, H/4, W/4)
      -> concatenated [ASPP, c2] (B, 304, H/4, W/4) -> twice conv3x3, BN, ReLU -> (B, 256, H/4, W/4)
      -> conv1x1 K -> logits (B, K, H/4, W/4) -> bilinear to (B, K, H, W)
      aux_classifier(c4): an FCN head for the loss alone, if asked for

c2 is the finest of the backbone's features at stride 4 or coarser. With `separable` the 3x3 convolutions of ASPP and
decoder are depthwise and pointwise, as in the paper's Xception models; ResNets have plain ones (section 4).

Differences from the paper: none in the decoder. Dropout 0.1 after ASPP is the released TensorFlow code's. The paper's
ResNet-101 has multi-grid in its last stage and dilates that stage's first block, too: build the backbone with
`multi_grid=(1, 2, 4), dilation="full"`. Rates follow the stride: (12, 24, 36) at 8. The pooled branch trains with a
batch of one (see BatchNormPooled).
Differences of others' code, by option: VainF's has one convolution in the decoder (`decoder_convs=1`) and
concatenates [c2, ASPP]. smp's: `separable="smp", post_conv=True, decoder_convs=1, dropout=0.5, align_corners=True`,
`dilation="full"` and rates (12, 24, 36) at stride 16, where the largest reaches beyond a 33x33 map. mmseg's:
`channels=512, separable="tf", project_kernel=3, dropout=0, classifier_dropout=0.1, aux_weight=0.4, aux_channels=256`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import (
    ASPP,
    FCNHead,
    PixelClassifier,
    aspp_rates,
    check_shares,
    conv3x3_bn_relu,
    conv_bn_relu,
    resize,
)
from zoo.models.semantic import SemanticModel, auxiliary_channels
from zoo.structures import Class, Size


class DeepLabV3Plus(SemanticModel):
    """ASPP on the coarsest features, a decoder on those at stride 4.

    Args:
        rates: dilations of the 3x3 branches of ASPP, or "auto": (6, 12, 18) * 16 / output stride.
        channels: of ASPP's branches, of its projection and of the decoder's convolutions.
        low_channels: to which the fine features are reduced, lest they outweigh the coarse ones.
        dropout: after ASPP's projection.
        project_kernel: of that projection: 1, in mmseg 3.
        separable: the 3x3 convolutions of decoder and ASPP in two steps: None, "tf" (batch norm and ReLU after both)
            or "smp" (after the second alone).
        aspp_separable: False leaves ASPP's 3x3 convolutions plain all the same.
        post_conv: a 3x3 convolution between ASPP and the resizing, as in smp.
        decoder_convs: 3x3 convolutions after the concatenation.
        classifier_dropout: of whole channels before the last convolution of either head, as in mmseg; 0: none, and 0.1
            of single values in the auxiliary head.
        aux_weight: of the auxiliary head's loss; 0 builds none.
        aux_channels: inside the auxiliary head; None is a quarter of its input's.
        **base: see `SemanticModel`. `align_corners` holds for both resizings.

    Raises ZooError for a backbone without features finer than its coarsest, rates that are none, an even kernel, and
    dropout beyond [0, 1].
    """

    natural_backbone = "resnet50"
    needs: ClassVar[dict[str, Any]] = {"output_stride": 16, "levels": 4}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        rates: str | Sequence[int] = "auto",
        channels: int = 256,
        low_channels: int = 48,
        dropout: float = 0.1,
        project_kernel: int = 1,
        separable: str | None = None,
        aspp_separable: bool = True,
        post_conv: bool = False,
        decoder_convs: int = 2,
        classifier_dropout: float = 0.0,
        aux_weight: float = 0.0,
        aux_channels: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        check_shares(dropout=dropout, classifier_dropout=classifier_dropout)
        self.aux_weight = aux_weight
        self.low_level = fine_level(backbone)
        self.project = nn.Sequential(*conv_bn_relu(backbone.channels[self.low_level], low_channels, kernel=1))
        self.aspp = ASPP(
            backbone.channels[-1],
            channels,
            aspp_rates(rates, backbone.strides[-1]),
            dropout,
            project_kernel,
            separable if aspp_separable else None,
        )
        post = conv3x3_bn_relu(channels, channels, separable=separable) if post_conv else []
        self.post = nn.Sequential(*post)
        widths = [channels + low_channels] + decoder_convs * [channels]
        self.decoder = nn.Sequential(
            *(nn.Sequential(*conv3x3_bn_relu(*pair, separable=separable)) for pair in pairwise(widths))
        )
        self.classifier = PixelClassifier(widths[-1], len(self.classes), classifier_dropout)
        self.aux_classifier: FCNHead | None = None
        if aux_weight:
            self.aux_classifier = FCNHead(
                auxiliary_channels(backbone),
                len(self.classes),
                classifier_dropout or 0.1,
                aux_channels,
                dropout2d=classifier_dropout > 0,
            )

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features, fine to coarse -> logits (B, K, h, w) at the size of the fine ones."""
        low = self.project(features[self.low_level])
        context = resize(self.post(self.aspp(features[-1])), low.shape[-2:], self.align_corners)
        return self.classifier(self.decoder(torch.cat([context, low], dim=1)))

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """The FCN head on the level before the coarsest."""
        return [(self.aux_weight, self.aux_classifier(features[-2]))] if self.aux_classifier else []


def fine_level(backbone: Backbone) -> int:
    """Index of the finest features at stride 4 or coarser; ZooError where only the coarsest are left."""
    levels = [index for index, stride in enumerate(backbone.strides[:-1]) if stride >= 4]
    if not levels:
        raise ZooError(
            f"a decoder needs features at stride 4 or coarser besides the coarsest; {backbone.name} gives strides "
            f"{backbone.strides}: build it with levels=4"
        )
    return levels[0]
