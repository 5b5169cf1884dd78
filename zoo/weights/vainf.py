"""VainF's DeepLabV3Plus-Pytorch: DeepLabV3 and DeepLabV3+ on ResNets and MobileNetV2, as its script saves them.

A ResNet has torchvision's names below `backbone.`, the heads are below `classifier.`; MobileNetV2 pads at other places
than timm's (`early_padding`). The state dict does not say: that images are normalised with ImageNet's mean and std,
that logits are resized without aligned corners, and that the output stride is 16 with rates 6, 12, 18 (8 with 12, 24,
36 has the same keys; its published files are called `_os16`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.weights.conventions import classes_of, imagenet
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

# Its other encoders, by a key that only they have.
OTHERS = {"backbone.conv4.pointwise.weight": "Xception", "backbone.transition1.0.0.weight": "HRNet"}
LOADABLE = "its models on ResNets and MobileNetV2 load"
MOBILENET: dict[str, Any] = {"name": "mobilenetv2_100", "early_padding": True}
MOBILENET_STEM = "low_level_features.0.0.weight"


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a model of VainF's."""
    # A head of ours may have a part called classifier as well; the encoder then is below `backbone.model.`.
    return (
        any(key.startswith("classifier.classifier.") for key in state)
        and any(key.startswith("backbone.") for key in state)
        and not any(key.startswith("backbone.model.") for key in state)
    )


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` is for importers that need it.

    Raises:
        ZooError: an encoder other than MobileNetV2 or a ResNet of a known depth, or a file without its last layer.
    """
    for key, other in OTHERS.items():
        if key in state:
            raise ZooError(f"this model of VainF's is on its own {other}: {LOADABLE}")
    encoder = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    heads = {key.removeprefix("classifier."): value for key, value in state.items() if key.startswith("classifier.")}
    if MOBILENET_STEM in encoder:
        encoder = _mobilenet(encoder)
        stages = dict(MOBILENET)
    else:
        stages = {"name": backbone or name_encoder(encoder)}
    if stages["name"] is None:
        raise ZooError("this DeepLab's encoder is no ResNet of a known depth: name it, zoo.load(x, backbone=...)")
    plus = any(key.startswith("aspp.") for key in heads)
    last = "classifier.3.weight" if plus else "classifier.4.weight"
    if last not in heads:
        raise ZooError(f"these look like weights of VainF, but have no classifier.{last}: is the file whole?")
    classes, told = classes_of(heads[last].shape[0])
    options: dict[str, Any] = {"align_corners": False, "dropout": 0.1, "aux_weight": 0.0, "rates": "auto"}
    if plus:
        options |= {"decoder_convs": 1, "separable": "smp" if "classifier.0.body.0.weight" in heads else None}
    stages |= {"output_stride": 16, "dilation": "previous", "levels": 4 if plus else 1}
    statistics = imagenet()
    assumed = {"output_stride": 16, "dilation": "previous", "align_corners": False, **statistics, **told}
    return Recipe(
        source="VainF",
        name="deeplabv3plus" if plus else "deeplabv3",
        classes=classes,
        backbone={**stages, **statistics},
        options=options,
        state={
            **{f"backbone.model.{key}": value for key, value in encoder.items()},
            **(_plus_head(heads) if plus else heads),
        },
        assumed=assumed,
    )


def _mobilenet(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of its MobileNetV2's weights: the same layers, in the order of the numbers in its names.

    The order of the file does not count (safetensors sorts by name), nor whether it has the counts of batches.
    """
    with torch.random.fork_rng(devices=[]):
        ours = list(dict.fromkeys(_layer(key) for key in create_backbone(**MOBILENET).model.state_dict()))
    theirs = sorted({_layer(key) for key in encoder}, key=_numbers)
    if len(ours) != len(theirs):
        raise ZooError(f"this MobileNetV2 of VainF's has {len(theirs)} layers, not {len(ours)}: is the file whole?")
    names = dict(zip(theirs, ours, strict=True))
    return {f"{names[_layer(key)]}.{key.rpartition('.')[2]}": value for key, value in encoder.items()}


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _numbers(layer: str) -> list[int]:
    """`high_level_features.4.conv.1.0` -> [4, 1, 0]: blocks are numbered through low-level and high-level features."""
    return [int(part) for part in layer.split(".") if part.isdecimal()]


def _plus_head(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeepLabV3+'s names; its decoder's input as [context, fine features], which VainF has the other way round."""
    places = {"classifier.3.": "classifier.", "classifier.": "decoder.0."}
    low = heads["project.0.weight"].shape[0] if "project.0.weight" in heads else 0
    renamed: dict[str, Tensor] = {}
    for key, value in heads.items():
        theirs = next((prefix for prefix in places if key.startswith(prefix)), None)
        ours = key if theirs is None else places[theirs] + key.removeprefix(theirs)
        ours = ours.replace(".body.", ".")  # its separable convolutions
        if ours in ("decoder.0.0.weight", "decoder.0.0.0.weight", "decoder.0.0.1.weight"):
            axis = 0 if ours == "decoder.0.0.0.weight" else 1  # a depthwise convolution has its channels in front
            value = torch.cat([value.narrow(axis, low, value.shape[axis] - low), value.narrow(axis, 0, low)], dim=axis)
        renamed[ours] = value
    return renamed
