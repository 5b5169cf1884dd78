"""DeepLabV3: context at several scales from parallel dilated convolutions on dilated features.

Chen, Papandreou, Schroff, Adam: "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
arXiv 1706.05587.

    images (B, 3, H, W)
      -> backbone at output stride 8: c4 (B, 1024, h, w), c5 (B, 2048, h, w), h = H/8, w = W/8
      -> ASPP(c5): conv1x1 | conv3x3 rate 12 | rate 24 | rate 36 | global mean, conv1x1, spread out
                   each (B, 256, h, w), batch norm, ReLU; concatenated (B, 1280, h, w); conv1x1 -> (B, 256, h, w)
      -> conv3x3 256 -> conv1x1 K -> logits (B, K, h, w) -> bilinear to (B, K, H, W)
      aux_classifier(c4): an FCN head, for the loss alone
    cascaded form: c5 -> block5 -> block6 -> block7, copies of block4 with doubling rates -> conv1x1 K; no ASPP

Differences from the paper. The defaults are torchvision's and equal it in numbers, which differs from the paper in the
3x3 convolution after ASPP (`post_conv=False` drops it), the auxiliary head (`aux_weight=0`), dropout 0.5 after the
projection (the released TensorFlow code: 0.1), output stride 8 in training too (`output_stride=16`), and rate 1 for
every unit of block4's multi-grid: build the backbone with `multi_grid=(1, 2, 4), dilation="full"` for the paper's.
Rates are (6, 12, 18) at stride 16 and follow the stride, as in the paper; torchvision's mobilenet_v3_large and smp
keep (12, 24, 36) at stride 16, where the largest reaches beyond a 33x33 map: `rates=(12, 24, 36)` for their weights.
smp: `align_corners=True, aux_weight=0` and `dilation="full"`. mmseg: `channels=512, project_kernel=3, post_conv=False,
dropout=0, classifier_dropout=0.1, aux_weight=0.4, aux_channels=256`.
Differences from torchvision: the pooled branch trains with a batch of one (see BatchNormPooled).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import ASPP, FCNHead, PixelClassifier, aspp_rates, check_shares, conv_bn_relu
from zoo.models.semantic import SemanticModel, auxiliary_channels
from zoo.models.taps import extract_with, measure_tap
from zoo.structures import Class, Size


class DeepLabV3(SemanticModel):
    """ASPP, or the cascade of blocks, on dilated features.

    Args:
        head: "aspp", or "cascaded" (the paper's section 3.2) for timm's ResNets and kin (those with a `layer4`). What
            belongs to ASPP and the convolution after it has no meaning for a cascade, which ignores it: rates,
            channels, dropout, project_kernel, separable, post_conv.
        rates: dilations of the 3x3 branches of ASPP, or "auto": (6, 12, 18) * 16 / output stride.
        channels: of every branch, of the projection and of the convolution after it.
        dropout: after ASPP's projection.
        project_kernel: of that projection: 1, in mmseg 3.
        separable: ASPP's 3x3 branches as depthwise and pointwise convolutions: None, "tf" (batch norm and ReLU after
            both) or "smp" (after the second alone).
        post_conv: a 3x3 convolution between ASPP and the classifier, as in torchvision and smp.
        classifier_dropout: of whole channels before the last convolution of either head, as in mmseg; 0: none, and 0.1
            of single values in the auxiliary head.
        aux_weight: of the auxiliary head's loss; 0 builds none.
        aux_channels: inside the auxiliary head; None is a quarter of its input's.
        aux_module: the backbone's module whose output the auxiliary head reads ("blocks.2.0" for torchvision's
            mobilenet_v3_large); None is the level before the coarsest.
        **base: see `SemanticModel`.

    Raises ZooError for an unknown head, a cascade on a backbone without residual blocks to copy, rates that are none,
    an even kernel, dropout beyond [0, 1], an `aux_module` that is none or puts out no map, and for an auxiliary head on
    a backbone with one level.
    """

    natural_backbone = "resnet50"
    needs: ClassVar[dict[str, int]] = {"output_stride": 8, "levels": 2}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        head: str = "aspp",
        rates: str | Sequence[int] = "auto",
        channels: int = 256,
        dropout: float = 0.5,
        project_kernel: int = 1,
        separable: str | None = None,
        post_conv: bool = True,
        classifier_dropout: float = 0.0,
        aux_weight: float = 0.5,
        aux_channels: int | None = None,
        aux_module: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        if head not in ("aspp", "cascaded"):
            raise ZooError(f"unknown DeepLabV3 head {head!r}: aspp or cascaded")
        self.aux_weight = aux_weight
        check_shares(dropout=dropout, classifier_dropout=classifier_dropout)
        self.tap = measure_tap(backbone, aux_module) if aux_module else None
        in_channels, count = backbone.channels[-1], len(self.classes)
        if head == "cascaded":
            self.classifier = nn.Sequential(*cascade(backbone), PixelClassifier(in_channels, count, classifier_dropout))
        else:
            resolved = aspp_rates(rates, backbone.strides[-1])
            self.classifier = nn.Sequential(
                ASPP(in_channels, channels, resolved, dropout, project_kernel, separable),
                *(conv_bn_relu(channels, channels) if post_conv else ()),
                PixelClassifier(channels, count, classifier_dropout),
            )
        self.aux_classifier: FCNHead | None = None
        if aux_weight:
            width = self.tap.channels if self.tap else auxiliary_channels(backbone)
            self.aux_classifier = FCNHead(
                width, count, classifier_dropout or 0.1, aux_channels, dropout2d=classifier_dropout > 0
            )

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """The backbone's features; before them the output of `aux_module` where one is named."""
        if self.aux_classifier is None or self.tap is None:
            return super().extract(normalized)
        return extract_with(self.backbone, self.tap, normalized)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features (B, C, h, w) -> logits (B, K, h, w)."""
        return self.classifier(features[-1])

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """The FCN head on the level before the coarsest, or on `aux_module`."""
        if self.aux_classifier is None:
            return []
        return [(self.aux_weight, self.aux_classifier(features[0 if self.tap else -2]))]


def cascade(backbone: Backbone) -> list[nn.Module]:
    """Blocks 5, 6, 7 of the cascaded form: copies of the backbone's block4, its weights included.

    Each has the units of block4 with identity shortcuts and dilates them twice as much as the block before; the
    backbone's multi-grid holds in each (section 3.2: rates 4, 8, 16 after block4's 2 at stride 16).
    """
    stage = getattr(backbone.model, "layer4", None)
    if stage is None or len(stage) < 2:
        raise ZooError(
            f"head='cascaded' copies the residual units of a ResNet's layer4, which {backbone.name} does not have: "
            "take resnet50, resnet101 or their kin, or head='aspp'"
        )
    grid = backbone.config.get("multi_grid") or [1] * len(stage)
    rate = 32 // backbone.strides[-1]
    blocks: list[nn.Module] = []
    for _ in range(3):
        rate *= 2
        units = [deepcopy(stage[max(index, 1)]) for index in range(len(stage))]
        for unit, factor in zip(units, grid, strict=True):
            dilate(unit, rate * factor)
        blocks.append(nn.Sequential(*units))
    return blocks


def dilate(unit: nn.Module, rate: int) -> None:
    """Sets the dilation of a unit's 3x3 convolutions; sizes stay."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (rate, rate)
