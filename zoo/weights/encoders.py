"""Which classifier a set of weights belongs to, told from the names and shapes that torchvision and smp share."""

from __future__ import annotations

import re
from collections.abc import Mapping

import timm
from torch import Tensor

_BASIC: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_BOTTLENECK: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_VGG = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
_DENSENET: dict[tuple[int, ...], str] = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 36, 24): "densenet161",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 48, 32): "densenet201",
}


def name_encoder(state: Mapping[str, Tensor]) -> str | None:
    """timm's name for an encoder with torchvision's parameter names, or None if it is not one of those."""
    for find in (_resnet, _vgg, _densenet):
        name = find(state)
        if name is not None and timm.is_model(name):
            return name
    return None


def first_convolution(state: Mapping[str, Tensor]) -> Tensor | None:
    """The first 4-d weight of an encoder: its second axis is the number of image channels."""
    stems = ("conv1.weight", "conv1.0.weight", "features.0.weight", "features.conv0.weight", "0.0.weight")
    return next((state[key] for key in stems if key in state), None)


def _resnet(state: Mapping[str, Tensor]) -> str | None:
    if "conv1.weight" not in state or "layer4.0.conv1.weight" not in state or "layer1.0.conv2.weight" not in state:
        return None
    if any(".se" in key for key in state):
        return None
    layers = tuple(_count(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    if "layer1.0.conv3.weight" not in state:
        return f"resnet{_BASIC[layers]}" if layers in _BASIC else None
    if layers not in _BOTTLENECK:
        return None
    depth = _BOTTLENECK[layers]
    width, per_group = state["layer1.0.conv2.weight"].shape[:2]
    if width == per_group:
        return {64: f"resnet{depth}", 128: f"wide_resnet{depth}_2"}.get(width)
    return f"resnext{depth}_{width // per_group}x{per_group}d"


def _vgg(state: Mapping[str, Tensor]) -> str | None:
    kernels = [key for key, value in state.items() if re.fullmatch(r"features\.\d+\.weight", key) and value.ndim == 4]
    name = _VGG.get(len(kernels))
    return f"{name}_bn" if name and "features.1.running_mean" in state else name


def _densenet(state: Mapping[str, Tensor]) -> str | None:
    blocks = tuple(_count(state, rf"features\.denseblock{i}\.denselayer(\d+)\.") for i in (1, 2, 3, 4))
    return _DENSENET.get(blocks)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers `pattern` captures among the keys."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})
