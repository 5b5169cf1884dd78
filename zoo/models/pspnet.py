"""PSPNet: context from the whole image, pooled over a pyramid of regions and laid beside the features.

Zhao, Shi, Qi, Wang, Jia: "Pyramid Scene Parsing Network", CVPR 2017, arXiv 1612.01105.

    images (B, 3, H, W)
      -> backbone at output stride 8: c4 (B, 1024, h, w), c5 (B, 2048, h, w), h = H/8, w = W/8
      -> ppm(c5): for each of the bins 1, 2, 3, 6: means over a bin x bin grid, conv1x1 2048->512, BN, ReLU, bilinear to
                  (B, 512, h, w); concatenated after c5 -> (B, 4096, h, w)
      -> cls: conv3x3 4096->512, BN, ReLU, dropout 0.1, conv1x1 512->K
      -> logits (B, K, h, w) -> bilinear to (B, K, H, W)
      aux(c4): conv3x3 1024->256, BN, ReLU, dropout 0.1, conv1x1 256->K, for the loss alone, weight 0.4

Differences from the paper: none in the network; its Caffe release normalises other statistics. The defaults are those
of its first author's PyTorch code (hszhao/semseg), which says what the paper leaves open: a ResNet with three 3x3
convolutions for a stem (timm's resnet50s, resnet101s), every block of a dilated stage dilated (`dilation="full"`,
wherever the backbone knows it), aligned corners in every resize, dropout of whole channels. torchvision's and timm's
habits instead: backbone resnet50, `dilation="previous"`, `align_corners=False`.
Differences from semseg: any image size, where it asserts H = W = 1 modulo 8 (there the two are equal); the branch of
bin 1 trains with a batch of one (see BatchNormPooled).
segmentation_models_pytorch's PSPNet is another network: features of stride 8 without dilation, no norm on the branch of
bin 1, 1x1 fusion, 3x3 classifier; `global_norm`, `fuse_kernel` and `classifier_kernel` are for its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import BatchNormPooled, FCNHead, are_positive, check_odd, check_shares, conv_bn_relu, resize
from zoo.models.semantic import SemanticModel, auxiliary_channels
from zoo.structures import Class, Size


class PyramidPooling(nn.Module):
    """x (B, C, h, w) -> x and one map per bin: (B, C + len(bins) * channels, h, w). Names are semseg's.

    Pool, convolve, then resize: in another order the same weights give another result.
    """

    def __init__(
        self, in_channels: int, channels: int, bins: Sequence[int], global_norm: bool, align_corners: bool
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.features = nn.ModuleList(_branch(in_channels, channels, size, global_norm) for size in bins)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [resize(branch(x), x.shape[-2:], self.align_corners) for branch in self.features]
        return torch.cat([x, *pooled], dim=1)


def _branch(in_channels: int, channels: int, size: int, global_norm: bool) -> nn.Sequential:
    """Means over a size x size grid, then a 1x1 convolution with norm and ReLU."""
    pool = nn.AdaptiveAvgPool2d(size)
    if size > 1:
        return nn.Sequential(pool, *conv_bn_relu(in_channels, channels, kernel=1))
    convolution = nn.Conv2d(in_channels, channels, kernel_size=1, bias=not global_norm)
    norm = [BatchNormPooled(channels)] if global_norm else []
    return nn.Sequential(pool, convolution, *norm, nn.ReLU(inplace=True))


class PSPNet(SemanticModel):
    """Pyramid pooling on dilated features.

    Args:
        bins: sides of the grids of means.
        pool_channels: of every branch; None: the backbone's channels divided by the number of bins.
        global_norm: batch norm on the branch of bin 1; without it that convolution has a bias.
        channels: after fusing the branches with the features.
        fuse_kernel: of the convolution that fuses them, odd.
        classifier_kernel: of the last convolution, odd.
        dropout: of whole channels, before the last convolution of either head.
        aux_weight: of the auxiliary head's loss; 0 builds none.
        aux_channels: in the auxiliary head.
        align_corners: in the branches' and the logits' resize.
        **base: see `SemanticModel`.

    Raises ZooError for bins or kernels that make no grid or would shift the map, dropout beyond [0, 1], and for an
    auxiliary head on a backbone with one level.
    """

    natural_backbone = "resnet50s"
    needs: ClassVar[dict[str, Any]] = {"output_stride": 8, "levels": 2, "dilation": "full"}

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        pool_channels: int | None = None,
        global_norm: bool = True,
        channels: int = 512,
        fuse_kernel: int = 3,
        classifier_kernel: int = 1,
        dropout: float = 0.1,
        aux_weight: float = 0.4,
        aux_channels: int = 256,
        align_corners: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, align_corners=align_corners, **base)
        if not are_positive(bins):
            raise ZooError(f"bins={bins!r}: give the sides of one or more grids, such as [1, 2, 3, 6]")
        check_odd(fuse_kernel=fuse_kernel, classifier_kernel=classifier_kernel)
        check_shares(dropout=dropout)
        in_channels, count = backbone.channels[-1], len(self.classes)
        width = pool_channels or max(1, in_channels // len(bins))
        self.aux_weight = aux_weight
        self.ppm = PyramidPooling(in_channels, width, bins, global_norm, align_corners)
        self.cls = nn.Sequential(
            *conv_bn_relu(in_channels + len(bins) * width, channels, kernel=fuse_kernel),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, count, classifier_kernel, padding=classifier_kernel // 2),
        )
        self.aux: FCNHead | None = None
        if aux_weight:
            self.aux = FCNHead(auxiliary_channels(backbone), count, dropout, aux_channels, dropout2d=True)

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features (B, C, h, w) -> logits (B, K, h, w)."""
        return self.cls(self.ppm(features[-1]))

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """The head on the features before the coarsest."""
        return [(self.aux_weight, self.aux(features[-2]))] if self.aux is not None else []
