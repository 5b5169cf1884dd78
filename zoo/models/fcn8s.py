"""FCN-32s, FCN-16s, FCN-8s: VGG16 made fully convolutional, and its coarse scores refined by those of finer maps.

Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, arXiv 1411.4038;
Shelhamer, Long, Darrell: the same title, PAMI 2017, arXiv 1605.06211.

    images (B, 3, H, W)
      -> VGG16: pool3 (B, 256, H/8, W/8), pool4 (B, 512, H/16, W/16), pool5 (B, 512, H/32, W/32)
      -> fc6: conv7x7 4096, ReLU, dropout 0.5 -> fc7: conv1x1 4096, ReLU, dropout 0.5 -> score_fr: conv1x1 K
    32s: x32 -> logits (B, K, H, W)
    16s: x2, + score_pool4(pool4), x16
    8s:  x2, + score_pool4(pool4), x2, + score_pool3(pool3), x8

Two geometries, with the same weights but not the same outputs:
  padding="caffe", the released networks': conv1_1 pads 100 pixels and fc6 none, pools round up, scores are upsampled by
      deconvolutions that begin bilinear, and maps are cropped at fixed offsets. The output equals the input in size.
  padding="same": every convolution keeps the size, scores are resized to the finer map and at last to the image. For
      any backbone, and less work: the frame of padding more than doubles the pixels of a 500x375 image.

Training goes in stages, each beginning with the weights of the one before (`zoo.load_weights`, `train.py weights=`):
VGG16's classifier -> 32s -> 16s -> 8s. New score layers begin at zero, so a stage begins as good as the last one ended.
With `at_once` 8s trains in one go (PAMI 2017): pool4 is scaled by 0.01 and pool3 by 0.0001 before they are scored.

Differences from the paper: deconvolutions between scores are learned there and frozen in the released code, as here
(`learn_upsampling=True` learns them; the last one is fixed in both). Loss, learning rates and batch are the trainer's:
the paper's is the sum over an image's pixels, `loss={"cross_entropy": {"reduction": "sum"}}`.
Differences from the release: none in numbers; dropout falls on elements, as in Caffe, not on whole channels.
On a backbone without VGG's hidden layers there is no fc6 and fc7: its last map is scored, as in the paper's
FCN-GoogLeNet, and finer ones are taken as they come; score_fr then begins as convolutions do instead of at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import check_shares, resize
from zoo.models.semantic import SemanticModel
from zoo.structures import Class, Size

# conv1_1 of the release pads 100 pixels: VGG's own one, and these before it.
FRAME = 99


class FCN32s(SemanticModel):
    """VGG16's classifier, convolved: one score map at stride 32, upsampled.

    Args:
        padding: "caffe", the release's geometry, for a VGG at stride 32; "same", for anything; None is "caffe" where
            it can be.
        dropout: after fc6 and after fc7.
        **base: see `SemanticModel`.

    Raises ZooError for an unknown padding, for "caffe" on a backbone other than VGG, and for too few levels.
    """

    natural_backbone = "vgg16"
    needs: ClassVar[dict[str, int]] = {"levels": 1, "classifier": True}
    predecessor: ClassVar[str | None] = None
    # Score layers of finer maps, coarse to fine, and where in those maps the scores so far begin.
    skips: ClassVar[dict[str, int]] = {}
    # Deconvolutions by name, and by how much they upsample: one for each skip, and the last one.
    upsampling: ClassVar[dict[str, int]] = {"upscore": 32}
    offset: ClassVar[int] = 19

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        padding: str | None = None,
        dropout: float = 0.5,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        hidden = backbone.hidden
        released = hidden is not None and backbone.strides[-1] == 32
        if padding not in (None, "caffe", "same"):
            raise ZooError(f"unknown padding {padding!r} of an FCN: caffe or same")
        if padding == "caffe" and not released:
            raise ZooError(
                f"padding='caffe' is the geometry of a VGG at stride 32 with its hidden layers, which {backbone.name} "
                "is not: take backbone=vgg16 or padding='same'"
            )
        self.caffe = released if padding is None else padding == "caffe"
        needed = -self.level(len(self.skips) - 1) if self.skips else 1
        if len(backbone.strides) < needed:
            raise ZooError(f"this FCN reads {needed} levels, backbone {backbone.name} has {len(backbone.strides)}")
        self.skip_weights = (1.0,) * len(self.skips)
        check_shares(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        channels = backbone.channels[-1]
        if hidden is not None:
            channels = hidden.fc2.out_channels
        self.score_fr = nn.Conv2d(channels, len(self.classes), kernel_size=1)
        if hidden is not None:
            zero(self.score_fr)
        for index, name in enumerate(self.skips):
            score = nn.Conv2d(backbone.channels[self.level(index)], len(self.classes), kernel_size=1)
            setattr(self, name, zero(score))
        for name, factor in self.upsampling.items() if self.caffe else ():
            setattr(self, name, bilinear_deconvolution(len(self.classes), factor))

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """The backbone's features; in the release's geometry of the image in a frame of zeros."""
        if not self.caffe:
            return super().extract(normalized)
        with rounding_up(self.backbone):
            return super().extract(F.pad(normalized, (FRAME,) * 4))

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Features, fine to coarse -> logits (B, K, h, w); (B, K, *size) in the release's geometry."""
        scores = self.score_fr(self.convolve_classifier(features[-1]))
        for index, (name, upsampling) in enumerate(zip(self.skips, self.upsampling, strict=False)):
            x = self.finer(features, index)
            if self.skip_weights[index] != 1:
                x = x * self.skip_weights[index]
            skip = getattr(self, name)(x)
            if self.caffe:
                scores = getattr(self, upsampling)(scores)
                skip = crop(skip, self.skips[name], scores.shape[-2:])
            else:
                scores = resize(scores, skip.shape[-2:], self.align_corners)
            scores = scores + skip
        if self.caffe:
            scores = crop(getattr(self, list(self.upsampling)[-1])(scores), self.offset, size)
        return scores

    def convolve_classifier(self, x: Tensor) -> Tensor:
        """fc6 and fc7: (B, 512, h, w) -> (B, 4096, h, w), or h-6 and w-6 in the release's geometry; else `x` itself."""
        hidden = self.backbone.hidden
        if hidden is None:
            return x
        if not self.caffe:
            x = F.pad(x, (3,) * 4)  # for fc6, which is 7x7 and does not pad
        for layer in (hidden.fc1, hidden.fc2):  # not hidden(x), which pools maps smaller than 7x7
            x = self.dropout(F.relu(layer(x), inplace=True))
        return x

    def level(self, index: int) -> int:
        """Which of the backbone's maps the `index`-th skip reads; VGG's are those before its pools."""
        return -2 - index if self.backbone.hidden is None else -3 - index

    def finer(self, features: list[Tensor], index: int) -> Tensor:
        """The map that the `index`-th skip scores: pool4 or pool3 of a VGG, else the next finer level."""
        x = features[self.level(index)]
        if self.backbone.hidden is None:
            return x
        pool = pools(self.backbone)[-2 - index]
        # A map trimmed to a single cell has nothing to round down to.
        ceil = self.caffe or min(x.shape[-2:]) < 2
        return F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, ceil_mode=ceil)


class FCN16s(FCN32s):
    """FCN-32s whose scores are refined by those of pool4.

    Args:
        learn_upsampling: learn the deconvolutions between scores, but not the last one, which stays bilinear. For the
            release's geometry; without it all are frozen.
        **base: see `FCN32s`.
    """

    needs: ClassVar[dict[str, int]] = {"levels": 3, "classifier": True}
    predecessor = "fcn32s"
    skips: ClassVar[dict[str, int]] = {"score_pool4": 5}
    upsampling: ClassVar[dict[str, int]] = {"upscore2": 2, "upscore16": 16}
    offset = 27

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        learn_upsampling: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        if learn_upsampling and not self.caffe:
            raise ZooError("learn_upsampling=True is for padding='caffe': the other geometry has no deconvolutions")
        for name in list(self.upsampling)[:-1] if learn_upsampling else ():
            getattr(self, name).weight.requires_grad_(True)


class FCN8s(FCN16s):
    """FCN-16s whose scores are refined by those of pool3.

    Args:
        at_once: for training without the stages before: pool4 scaled by 0.01 and pool3 by 0.0001 before their scores.
        **base: see `FCN16s`.
    """

    needs: ClassVar[dict[str, int]] = {"levels": 4, "classifier": True}
    predecessor = "fcn16s"
    skips: ClassVar[dict[str, int]] = {"score_pool4": 5, "score_pool3": 9}
    upsampling: ClassVar[dict[str, int]] = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}
    offset = 31

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        at_once: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(classes, backbone, **base)
        if at_once:
            self.skip_weights = (0.01, 0.0001)


@contextmanager
def rounding_up(backbone: Backbone) -> Iterator[None]:
    """Inside, the backbone's pools round up as the release's; others may hold the same backbone and want VGG's own."""
    for pool in pools(backbone):
        pool.ceil_mode = True
    try:
        yield
    finally:
        for pool in pools(backbone):
            pool.ceil_mode = False


def pools(backbone: Backbone) -> list[Any]:
    """The five pools of a VGG."""
    return [layer for layer in backbone.model.features if isinstance(layer, nn.MaxPool2d)]  # type: ignore[union-attr]


def bilinear_deconvolution(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Bilinear upsampling by `factor` of each channel by itself, as a frozen deconvolution without bias.

    (B, C, h, w) -> (B, C, factor * (h + 1), factor * (w + 1)); beyond the map it sees zeros.
    """
    deconvolution = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, bias=False)
    ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    with torch.no_grad():
        deconvolution.weight.zero_()
        for channel in range(channels):
            deconvolution.weight[channel, channel] = torch.outer(ramp, ramp)
    deconvolution.weight.requires_grad_(False)
    return deconvolution


def zero(convolution: nn.Conv2d) -> nn.Conv2d:
    """`convolution` with weights and bias of zero."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


def crop(x: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """The (H, W) = `size` of (B, C, h, w) that begin at `offset` in both axes."""
    return x[..., offset : offset + size[0], offset : offset + size[1]]
