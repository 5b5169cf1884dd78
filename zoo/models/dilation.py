"""Stride into dilation, where timm does not do it, and the conventions of a stage's first block.

Sources: Chen et al., Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs (ICLR 2015), the
LargeFOV network, for VGG; Chen et al., Rethinking Atrous Convolution (2017), section 3.2, for multi-grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any

from torch import nn

from zoo.errors import ZooError


def dilate_vgg(model: Any, output_stride: int) -> None:
    """DeepLab's VGG: every pool 3x3 with padding 1, the last ones without stride, what follows them dilated.

    At a stride of 8 this is LargeFOV's trunk: 321x321 pixels give 41x41 features.
    """
    stride, rate = 1, 1
    for index, layer in enumerate(model.features):
        if isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (rate, rate)
        elif isinstance(layer, nn.MaxPool2d):
            keep = 2 * stride <= output_stride
            stride, rate = (2 * stride, rate) if keep else (stride, 2 * rate)
            model.features[index] = nn.MaxPool2d(3, 2 if keep else 1, padding=1)


def dilate_densenet(model: Any, output_stride: int) -> None:
    """No pooling in the last transition(s); the 3x3 convolutions of the dense blocks after them dilated."""
    stride, rate = 4, 1
    for name, layer in model.features.named_children():
        if name.startswith("transition"):
            if 2 * stride <= output_stride:
                stride *= 2
            else:
                rate *= 2
                layer.pool = nn.Identity()
        elif name.startswith("denseblock"):
            _set_dilation(layer, rate)


# What has dilation='full' besides ResNets and their kin.
FULL_OTHERS = "efficientnet*, mobilenetv2*, mobilenetv3*, hardcorenas*"

CONVERTERS: dict[str, Callable[[Any, int], None]] = {"vgg": dilate_vgg, "densenet": dilate_densenet}


def dilate_first_blocks(
    name: str, model: Any, output_stride: int, full: bool, multi_grid: Sequence[int] | None
) -> None:
    """Give the first block of a dilated stage the stage's own rate; multiply the last stage's rates by `multi_grid`.

    timm and torchvision leave that block at the rate of the stage before it. All conventions have the same parameters,
    so the wrong one loads silently: a PSPNet-50's last features are then off by a quarter.

    Raises:
        ZooError: neither a ResNet nor, for `full`, of the MobileNet or EfficientNet family; a `multi_grid` of another
            length than the last stage.
    """
    if hasattr(model, "layer4"):
        rates = [max(1, stride // output_stride) for stride in (8, 16, 32)]
        stages = [model.layer2, model.layer3, model.layer4]
        for stage, rate in zip(stages, rates, strict=True):
            if full and rate > 1:
                _set_dilation(stage, rate)
        if multi_grid is not None:
            _apply_multi_grid(name, model.layer4, rates[-1], multi_grid)
    elif hasattr(model, "blocks") and multi_grid is None:
        for stage in model.blocks:
            rate = max((conv.dilation[0] for conv in _spatial_convolutions(stage)), default=1)
            if rate > 1:
                _set_dilation(stage, rate)
    else:
        what, others = ("multi_grid", "") if multi_grid is not None else ("dilation='full'", f", {FULL_OTHERS}")
        raise ZooError(
            f"backbone {name} has no {what}: it is for resnet*, resnext*, resnest*, res2net*, skresnet*{others}"
        )


def dilate_first_convolutions(name: str, model: Any) -> None:
    """Of the two convolutions of a ResNet's basic blocks leave the second undilated, as mmsegmentation has it.

    Raises:
        ZooError: not a ResNet.
    """
    if not hasattr(model, "layer4"):
        raise ZooError(f"backbone {name} has no dilation='conv1': it is for resnet18, resnet34 and their kin")
    for block in (*model.layer3, *model.layer4):
        if not hasattr(block, "conv3"):
            _set_dilation(block.conv2, 1)


def stride_first_convolutions(name: str, model: Any) -> None:
    """Move the stride of a ResNet's blocks from the 3x3 convolution to the 1x1 one before it, as He et al. have it.

    Both have the same parameters, so the wrong one loads silently: the features of a ResNet-50 are then off by 11 % to
    18 %. A stage whose stride became dilation has nothing to move.

    Raises:
        ZooError: no ResNet with bottlenecks, or one that has its stride in a layer of its own.
    """
    stages = [getattr(model, f"layer{i}", None) for i in (2, 3, 4)]
    blocks: list[Any] = [stage[0] for stage in stages if isinstance(stage, nn.Sequential)]
    plain = [all(hasattr(block, f"conv{i}") for i in (1, 2, 3)) for block in blocks]
    if not blocks or not all(plain) or any(not isinstance(getattr(b, "aa", None), nn.Identity) for b in blocks):
        raise ZooError(
            f"backbone {name} has no stride_in_1x1: it is for resnet50, resnet101, resnext* and other bottlenecks"
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def dilate_blocks(stage: nn.Module, rates: Iterable[int]) -> None:
    """Give the blocks of a stage these rates, in turn: the first block the first, again from there if there are more.

    Raises ZooError for a rate below 1.
    """
    rates = list(rates)
    if not rates or min(rates) < 1:
        raise ZooError(f"rates {rates} of a stage's blocks: give one or more whole numbers of 1 or more")
    for block, rate in zip(stage.children(), cycle(rates), strict=False):
        _set_dilation(block, rate)


def _apply_multi_grid(name: str, stage: Sequence[nn.Module], rate: int, factors: Sequence[int]) -> None:
    if len(factors) != len(stage):
        raise ZooError(
            f"multi_grid {list(factors)} has {len(factors)} factors, {name}'s last stage {len(stage)} blocks"
        )
    for block, factor in zip(stage, factors, strict=True):
        _set_dilation(block, rate * factor)


def _spatial_convolutions(module: nn.Module) -> Iterable[nn.Conv2d]:
    return (m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1)


def _set_dilation(module: nn.Module, rate: int) -> None:
    for conv in _spatial_convolutions(module):
        conv.dilation = (rate, rate)
        if conv.padding != (0, 0):  # TensorFlow's 'same' convolutions pad by themselves
            conv.padding = (rate * (conv.kernel_size[0] // 2), rate * (conv.kernel_size[1] // 2))
