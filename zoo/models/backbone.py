"""Backbones: any timm model that gives a pyramid of features, behind one small interface.

A `Backbone` eats raw pixels (uint8, or float in [0, 1]) and gives a list of NCHW feature maps, fine to coarse. It owns
what differs between architectures: normalisation (a property of the weights, applied here and nowhere else), fixed
image sizes, sizes that must be multiples of something, NHWC features, output stride and its dilation conventions.

Strides and the padding an architecture needs are measured once, at construction, by running a small image through it:
timm's own record is stale after a conversion, and no table of 1,300 models stays right. What cannot serve is refused
there and then, with a sentence that names what can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.dilation import CONVERTERS, dilate_first_blocks, dilate_first_convolutions, stride_first_convolutions
from zoo.models.families import OWN_BACKBONES, SWIN_FAMILY, VALID_FAMILIES, family_of
from zoo.models.measure import check_strides, measure
from zoo.models.padding import pad_early, pad_valid_layers
from zoo.models.pretrained import build, check_complete, fill, read_caffe2
from zoo.models.swin import make_dense, stage_features
from zoo.models.truncation import truncate
from zoo.structures import Size

Dilation = Literal["previous", "full", "conv1"]


class Backbone(nn.Module):
    """A pyramid of features: images (B, C, H, W) -> [(B, c_i, h_i, w_i)], fine to coarse, NCHW.

    `channels[i]` and `strides[i]` describe the i-th map; `h_i` is `H / strides[i]` rounded down or up, as the
    architecture does it (up, where the image had to be padded). Parameter names are `model.` + timm's own.

    Attributes:
        name: what `create_backbone` was given.
        mean, std: (1, C, 1, 1) buffers, for pixels in [0, 1]; not in the state dict, they live in `config`.
        config: plain values; `create_backbone(**config)` builds the same architecture, without weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        model: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        config: Mapping[str, Any],
        taps: Literal["getter", "own", "transition", "normed"] = "own",
        indices: Sequence[int] = (),
        multiple: int = 1,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.channels, self.strides = list(channels), list(strides)
        self.config = dict(config)
        self.taps, self.indices = taps, list(indices)
        self.multiple, self.smallest = multiple, smallest
        self._extract: Callable[[Backbone, Tensor], list[Tensor]] = _extract
        self.set_statistics(mean, std)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise with these per-channel `mean` and `std` (of pixels in [0, 1]); imported weights bring their own."""
        self.config |= {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        for key, values in (("mean", mean), ("std", std)):
            like = next(self.model.parameters())
            buffer = torch.tensor(list(values), dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
            self.register_buffer(key, buffer, persistent=False)

    @property
    def hidden(self) -> Any:
        """The hidden layers of a VGG's classifier, if it was built with `classifier=True`; else None.

        A module with `fc1` (convolution 7x7, 512 -> 4096) and `fc2` (1x1, 4096 -> 4096), with `act1` and `act2`: the
        paper's fc6 and fc7. `extract` does not run it.
        """
        layers = getattr(self.model, "pre_logits", None)
        return layers if self.config.get("classifier") and hasattr(layers, "fc1") else None

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """Features of images (B, C, H, W), uint8 or float in [0, 1]; pixels beyond `sizes` count as padding."""
        return self.extract(self.normalize(images, sizes))

    def normalize(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Tensor:
        """(images - mean) / std as a float tensor of the same shape, zero beyond each image's (H, W) in `sizes`.

        Zero after normalising is what every reference pads with; zero before it would be a dark frame.
        """
        if images.shape[1] != self.mean.shape[1]:
            raise ZooError(
                f"backbone {self.name} was built for {self.mean.shape[1]} channels, the images have {images.shape[1]}: "
                f"build it with in_channels={images.shape[1]}"
            )
        white = 1.0 if images.is_floating_point() else 255.0
        # One converted copy, then in place: a quarter of the time of the textbook expression, memory format kept.
        x = images.to(self.mean.dtype, copy=True).mul_(1 / (white * self.std)).sub_(self.mean / self.std)
        for image, (height, width) in zip(x, sizes or (), strict=sizes is not None):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return x

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """Features of a normalised tensor (B, C, H, W), padded as the architecture needs and trimmed again."""
        return self._extract(self, normalized)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile `extract` in place. (Of a module torch compiles `forward`, which models here go past.)"""
        # A function of the backbone, not a method bound to this one: a copy of the model uses its own weights.
        self._extract = torch.compile(_extract, *args, **options)

    @property
    def compiled(self) -> bool:
        """Whether `extract` is compiled."""
        return self._extract is not _extract

    def _missing(self, length: int) -> int:
        """Pixels to add to `length` so that the architecture takes it."""
        return max(-length % self.multiple, self.smallest - length)

    def _features(self, x: Tensor) -> list[Tensor]:
        if self.taps == "getter":
            return self.model.forward_intermediates(  # type: ignore[operator]
                x, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        if self.taps == "normed":
            return stage_features(self.model, x, self.indices)
        if self.taps == "transition":
            return _densenet_transitions(self.model.features, x)  # type: ignore[arg-type]
        return self.model(x)


def _extract(backbone: Backbone, normalized: Tensor) -> list[Tensor]:
    """What `Backbone.extract` does."""
    height, width = normalized.shape[-2:]
    x = normalized
    if backbone.multiple > 1 or backbone.smallest > 1:  # padding by nothing would be a copy
        x = F.pad(x, (0, backbone._missing(width), 0, backbone._missing(height)))
    features = backbone._features(x)[-len(backbone.strides) :]
    return [
        feature[..., : -(-height // stride), : -(-width // stride)]
        for feature, stride in zip(features, backbone.strides, strict=True)
    ]


def create_backbone(
    name: str,
    pretrained: bool | str | Path = False,
    in_channels: int = 3,
    output_stride: int = 32,
    levels: int = 4,
    dilation: Dilation = "previous",
    multi_grid: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classifier: bool = False,
    coarsest: int | None = None,
    stride_in_1x1: bool = False,
    **options: Any,
) -> Backbone:
    """A backbone by name: any timm model with features ("resnet50", "resnet50.tv_in1k", ...), or "unet".

    Args:
        pretrained: load timm's weights (over the network, or from its cache), or those in this file: timm's, or for a
            ResNet a pickle of detectron2's ("R-50.pkl", MSRA's weights), which brings its `mean`, `std` and
            `stride_in_1x1`. Its batch norms are a scale and a bias alone: to be trained with `frozen_norm`.
        in_channels: any number; timm adapts a pretrained first convolution (1: the sum of the RGB filters;
            N: the filters repeated, scaled by 3/N).
        output_stride: 8 or 16 trade stride for dilation in the last stages; 32 leaves the network as it is.
        levels: how many of the coarsest feature maps to give (4: strides 4..32 of most; 5 adds 2, 6 of a VGG adds 1);
            a network with fewer gives those it has.
        dilation: rate of the first block of a dilated stage: that of the stage before it ("previous": torchvision,
            timm) or its own ("full": semseg, smp; also torchvision's MobileNetV3). "conv1" is "previous" but that in
            basic blocks (ResNet-18, -34) the second convolution stays undilated: mmsegmentation.
        multi_grid: factors of the dilation in the blocks of a ResNet's last stage, (1, 2, 4) in DeepLab v3.
        mean, std: one value per channel, of pixels in [0, 1]. By default those of timm's weights; with one channel
            their average over RGB, with other numbers of channels RGB's repeated, as timm repeats the filters.
            Multispectral data wants its own.
        classifier: keep the two hidden layers of a VGG's classifier as convolutions, pretrained like the rest, in
            `Backbone.hidden`; other networks have none and ignore this.
        coarsest: leave out the stages with a stride above this one, with their parameters (8: a ResNet's layer3 and
            layer4, unless dilated). None keeps all. Which maps are given is for `levels` to say.
        stride_in_1x1: the blocks of a ResNet that halve the size do so in their first convolution (He et al.'s own
            weights, "MSRA", and most of detectron2's) instead of the 3x3 one (torchvision, timm).
        options: handed to timm (`drop_path_rate`, `bn_eps`, ...). DenseNets also take `taps="transition"`: features
            after each transition's norm and ReLU, and without the last ReLU, as smp's encoder gives them; MobileNetV2s
            `early_padding=True`, see `zoo.models.padding`; Swins (not v2) `dense=True`, the network of the authors'
            detectors and segmenters instead of their classifier, see `zoo.models.swin`.

    Raises:
        ZooError: a misspelt name, weights that cannot be reached, a network that cannot serve.
    """
    if output_stride not in (8, 16, 32):
        raise ZooError(f"output_stride must be 8, 16 or 32, not {output_stride!r}")
    if dilation not in ("previous", "full", "conv1"):
        raise ZooError(f"dilation must be 'previous', 'full' or 'conv1', not {dilation!r}")
    if coarsest is not None and coarsest not in (1, 2, 4, 8, 16, 32, 64):
        raise ZooError(f"coarsest must be a stride such as 8, 16 or 32, or None for all stages, not {coarsest!r}")
    config = {
        "name": name, "in_channels": in_channels, "output_stride": output_stride, "levels": levels,
        "dilation": dilation, "multi_grid": None if multi_grid is None else list(multi_grid),
        "classifier": classifier, "coarsest": coarsest, "stride_in_1x1": stride_in_1x1, **options,
    }  # fmt: skip
    if name in OWN_BACKBONES:
        if pretrained or output_stride != 32 or multi_grid is not None or coarsest is not None or stride_in_1x1:
            raise ZooError(
                f"backbone {name} has no pretrained weights and no output_stride, multi_grid, coarsest or stride_in_1x1"
            )
        module, _, function = OWN_BACKBONES[name].partition(":")
        model = getattr(import_module(module), function)(in_channels=in_channels, levels=levels, **options)
        mean, std = _statistics(name, in_channels, mean, std, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        return Backbone(name, model, model.channels, model.strides, mean=mean, std=std, config=config)

    family = family_of(name)
    taps, early_padding = options.pop("taps", None), options.pop("early_padding", False)
    if taps is not None and (taps != "transition" or family != "densenet"):
        raise ZooError(f"taps={taps!r}: only 'transition', and only densenets, have it")
    dense = options.pop("dense", False)
    if dense and family != SWIN_FAMILY:
        raise ZooError(f"backbone {name} has no dense=True: only swin_* have it")
    if dense:
        options["always_partition"] = True
    hidden = classifier and family == "vgg"
    caffe2 = read_caffe2(name, pretrained)
    model = build(name, family, pretrained if caffe2 is None else False, in_channels, output_stride, options, hidden)
    statistics = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if caffe2 is not None:
        statistics = caffe2[1]["mean"], caffe2[1]["std"]
        config["stride_in_1x1"] = stride_in_1x1 = caffe2[1]["stride_in_1x1"]
    mean, std = _statistics(name, in_channels, mean, std, *statistics)
    indices: Sequence[int] = ()
    if isinstance(model, FeatureGetterNet):
        model, indices = model.model, tuple(cast(Any, model.out_indices))
        taps = taps or "getter"
    elif hidden:
        taps, indices = "getter", range(len(model.feature_info))
    if caffe2 is not None:
        fill(name, model, caffe2[0], str(pretrained))
    elif isinstance(pretrained, (str, Path)):
        check_complete(name, model, pretrained)
    if output_stride < 32 and family in CONVERTERS:
        CONVERTERS[family](model, output_stride)
    if multi_grid is not None or (dilation == "full" and output_stride < 32):
        dilate_first_blocks(name, model, output_stride, full=dilation == "full", multi_grid=multi_grid)
    if dilation == "conv1" and output_stride < 32:
        dilate_first_convolutions(name, model)
    if stride_in_1x1:
        stride_first_convolutions(name, model)
    if family in VALID_FAMILIES:
        pad_valid_layers(model)
    if early_padding:
        pad_early(name, model, levels, coarsest)
    if dense:
        make_dense(model)
        taps = "normed"
    if taps == "transition":
        model.features.norm5.act = nn.Identity()
    plan = partial(Backbone, name, model, (), (), mean=mean, std=std, config=config, taps=taps or "own")
    if coarsest is not None:
        strides = check_strides(measure(plan(indices=indices))).strides
        count = sum(stride <= coarsest for stride in strides)
        if count == 0:
            raise ZooError(f"backbone {name} has strides {strides}, none of them {coarsest} or less")
        if count < len(strides):
            indices = truncate(name, model, taps or "own", indices, count)
        return measure(plan(indices=indices[-levels:]), levels)
    return check_strides(measure(plan(indices=indices[-levels:]), levels))


def _statistics(
    name: str,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default_mean: Sequence[float],
    default_std: Sequence[float],
) -> tuple[list[float], list[float]]:
    """What was given, checked, or RGB's adapted to the number of channels."""
    adapted = []
    for key, given, default in (("mean", mean, default_mean), ("std", std, default_std)):
        if given is None:
            rgb = [sum(default) / len(default)] if channels == 1 else default
            given = list(islice(cycle(rgb), channels))
        if len(given) != channels:
            raise ZooError(f"backbone {name}: {key} has {len(given)} values for {channels} channels")
        adapted.append([float(value) for value in given])
    if min(adapted[1]) <= 0:
        raise ZooError(f"backbone {name}: std must be positive, not {adapted[1]}")
    return adapted[0], adapted[1]


def _densenet_transitions(features: nn.Module, x: Tensor) -> list[Tensor]:
    """A DenseNet tapped after the norm and ReLU of its transitions and after its last norm (smp's encoder)."""
    taps = []
    for name, layer in features.named_children():
        if name.startswith("transition"):
            x = layer.norm(x)  # type: ignore[operator]
            taps.append(x)
            x = layer.pool(layer.conv(x))  # type: ignore[operator]
            continue
        x = layer(x)
        if name in ("norm0", "norm5"):
            taps.append(x)
    return taps
