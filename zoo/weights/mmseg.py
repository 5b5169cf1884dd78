"""mmsegmentation: FCN, PSPNet, DeepLabV3 and DeepLabV3+ on its ResNets ("V1c" with a deep stem, or plain).

The state dict does not say: that images are normalised with ImageNet's mean and std, that corners are not aligned (they
are in its configs for 769 pixels), that the last stages keep stride 8 with their first blocks at the rate of the stage
before, the rates of ASPP (12, 24, 36), the weight of the auxiliary loss (0.4). Its files usually have their config and
the names of the classes beside the weights: what these say is taken from there, and the rest is assumed.

Its concatenations begin with the pooled branch in ASPP, where ours end with it. Its loss is the mean over all pixels,
void ones included, ours over those that count. Windows that a config asks for are taken over; where they overlap it
averages logits, and ours probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.structures import Class
from zoo.weights.conventions import DEEP_STEM, classes_of, imagenet, under
from zoo.weights.encoders import name_encoder
from zoo.weights.mmconfig import read_config
from zoo.weights.recipe import Recipe

# The parts of a decode head, by model. What else a head may have is no part of these four.
PARTS = {
    "fcn": {"convs", "conv_seg"},
    "pspnet": {"psp_modules", "bottleneck", "conv_seg"},
    "deeplabv3": {"image_pool", "aspp_modules", "bottleneck", "conv_seg"},
    "deeplabv3plus": {"image_pool", "aspp_modules", "bottleneck", "c1_bottleneck", "sep_bottleneck", "conv_seg"},
}
LOADABLE = "its FCN, PSPNet, DeepLabV3 and DeepLabV3+ load"
BASIC = ("resnet18", "resnet34")  # of their blocks mmsegmentation dilates the first convolution alone
BASE = ("align_corners", "window", "overlap")  # what a config says for any model
# Inside a ConvModule and a DepthwiseSeparableConvModule -> places in our nn.Sequential.
CONV = {"conv": 0, "bn": 1}
SEPARABLE = {"depthwise_conv.conv": 0, "depthwise_conv.bn": 1, "pointwise_conv.conv": 3, "pointwise_conv.bn": 4}


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of an mmsegmentation model with one decode head."""
    return "decode_head.conv_seg.weight" in state and any(key.startswith("backbone.") for key in state)


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What a state dict of mmsegmentation describes.

    Args:
        config: `meta` of the file, if it has one: the config's text, names and colours of the classes.
        backbone: timm's name of the ResNet where keys do not tell.

    Raises:
        ZooError: another head or backbone, or a setting that has no counterpart here.
    """
    said = read_config(config or {})
    head, aux = under(state, "decode_head."), under(state, "auxiliary_head.")
    if aux and all(key.startswith("0.") for key in aux):  # a list of one
        aux = under(aux, "0.")
    name = _find_model(head)
    count = head["conv_seg.weight"].shape[0]
    if count == 1:
        raise ZooError("this head of mmsegmentation has one channel and a threshold: heads with two classes load")
    encoder, stages = _describe_backbone(under(state, "backbone."), backbone)
    stages["levels"] = 4 if name == "deeplabv3plus" else 2 if aux else 1
    assumed = _settle(stages, said)
    if said.get("bgr"):
        _flip(encoder, stages)
    try:
        options, moves = _HEADS[name](head, said)
    except KeyError as error:
        raise ZooError(
            f"this {name} of mmsegmentation lacks decode_head.{error.args[0]}: is the file whole?"
        ) from error
    options |= {"align_corners": False} | {key: said[key] for key in BASE if key in said}
    weights = _moved(head, moves) | _auxiliary(aux, "aux" if name == "pspnet" else "aux_classifier", options, said)
    assumed |= {key: options[key] for key in ("align_corners", "rates", "bins") if key in options and key not in said}
    assumed |= dict.fromkeys(said.get("unread", ()), "not read")
    if aux and not options["aux_weight"]:
        assumed["auxiliary_head"] = "left out"
    classes, told = _classes(config or {}, count)
    assumed |= told
    return Recipe(
        source="mmseg",
        name=name,
        classes=classes,
        backbone=stages,
        options=options,
        state={**{f"backbone.model.{key}": value for key, value in encoder.items()}, **weights},
        assumed=assumed,
    )


def _settle(stages: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Puts what the config says, or else the conventions, into `stages`; returns the conventions that it used."""
    basic = stages["name"].partition(".")[0] in BASIC  # without the tag of timm's weights
    if basic and said.get("dilation") == "full":
        raise ZooError(f"this {stages['name']} of mmsegmentation lacks contract_dilation, for which there is none here")
    conventions = {
        "output_stride": 8,
        "dilation": "previous",
        **imagenet(),
    }
    stages |= {key: said.get(key, value) for key, value in conventions.items()}
    if basic:
        stages["dilation"] = "conv1"
    return {key: stages[key] for key in conventions if key not in said}


def _auxiliary(
    aux: Mapping[str, Tensor], prefix: str, options: dict[str, Any], said: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The auxiliary head's weights and, in `options`, its form; none where it is not a single convolution."""
    single = {key.partition(".")[0] for key in aux} == {"convs", "conv_seg"} and _count(aux, "convs") == 1
    options["aux_weight"] = said.get("aux_weight", 0.4) if single else 0.0
    if not options["aux_weight"]:
        return {}
    options["aux_channels"] = aux["conv_seg.weight"].shape[1]
    return _moved(aux, {**_conv_module("convs.0", prefix), "conv_seg": f"{prefix}.4"})


# ---- heads: options, and where each module goes


def _fcn(head: Mapping[str, Tensor], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    count = _count(head, "convs")
    concat = "conv_cat.conv.weight" in head
    options = {
        "convs": count,
        "concat_input": concat,
        "channels": head["conv_seg.weight"].shape[1],
        "head_dilation": said.get("head_dilation", 1),
        "dropout": said.get("dropout", 0.1),
        "dropout2d": True,
    }
    body = "classifier.convs" if concat else "classifier"
    moves = {"conv_seg": "classifier.classifier.1" if concat else f"classifier.{3 * count + 1}"}
    moves |= _conv_module("conv_cat", "classifier.fuse")
    for index in range(count):
        moves |= _conv_module(f"convs.{index}", body, 3 * index)
    return options, moves


def _pspnet(head: Mapping[str, Tensor], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    count = _count(head, "psp_modules")
    bins = list(said.get("bins", (1, 2, 3, 6)))
    if len(bins) != count:
        raise ZooError(
            f"this PSPNet of mmsegmentation pools {count} grids, and keys cannot tell which: 1, 2, 3, 6 load"
        )
    options = {
        "bins": bins,
        "pool_channels": head["psp_modules.0.1.conv.weight"].shape[0],
        "channels": head["conv_seg.weight"].shape[1],
        "dropout": said.get("dropout", 0.1),
    }
    moves = {"conv_seg": "cls.4", **_conv_module("bottleneck", "cls")}
    for index in range(count):
        moves |= _conv_module(f"psp_modules.{index}.1", f"ppm.features.{index}", 1)
    return options, moves


def _deeplab(
    head: dict[str, Tensor], said: Mapping[str, Any], aspp: str, separable: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """What both share: ASPP's branches, with the pooled one moved from the first place to the last."""
    if "bottleneck.conv.weight" not in head:
        raise ZooError("this DeepLabV3+ has a separable convolution after ASPP, which mmsegmentation's own has not")
    channels = head["conv_seg.weight"].shape[1]
    count = _count(head, "aspp_modules")
    rates = list(said.get("rates", (12, 24, 36)))
    if len(rates) != count - 1:
        raise ZooError(f"this ASPP of mmsegmentation has {count} branches, and keys cannot tell their rates: 4 load")
    fuse = head["bottleneck.conv.weight"]
    width = head["image_pool.1.conv.weight"].shape[0]
    head["bottleneck.conv.weight"] = torch.cat([fuse[:, width:], fuse[:, :width]], dim=1)
    moves = _conv_module("image_pool.1", f"{aspp}.convs.{count}", 1) | _conv_module("bottleneck", f"{aspp}.project")
    for index in range(count):
        layers = SEPARABLE if separable and index else CONV
        moves |= _conv_module(f"aspp_modules.{index}", f"{aspp}.convs.{index}", 0, layers)
    options = {
        "rates": rates,
        "channels": channels,
        "dropout": 0.0,
        "project_kernel": fuse.shape[-1],
        "classifier_dropout": said.get("dropout", 0.1),
    }
    return options, moves


def _deeplabv3(head: dict[str, Tensor], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    options, moves = _deeplab(head, said, "classifier.0", separable=False)
    return {**options, "post_conv": False}, {**moves, "conv_seg": "classifier.1"}


def _deeplabv3plus(head: dict[str, Tensor], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    options, moves = _deeplab(head, said, "aspp", separable=True)
    count = _count(head, "sep_bottleneck")
    options |= {
        "low_channels": head["c1_bottleneck.conv.weight"].shape[0],
        "separable": "tf",
        "decoder_convs": count,
    }
    moves |= {"conv_seg": "classifier", **_conv_module("c1_bottleneck", "project")}
    for index in range(count):
        moves |= _conv_module(f"sep_bottleneck.{index}", f"decoder.{index}", 0, SEPARABLE)
    return options, moves


_HEADS: dict[str, Any] = {
    "fcn": _fcn, "pspnet": _pspnet, "deeplabv3": _deeplabv3, "deeplabv3plus": _deeplabv3plus
}  # fmt: skip


def _find_model(head: Mapping[str, Tensor]) -> str:
    parts = {key.partition(".")[0] for key in head}
    for name, wanted in PARTS.items():
        if parts - ({"conv_cat"} if name == "fcn" else set()) == wanted:
            return name
    raise ZooError(f"this head of mmsegmentation ({', '.join(sorted(parts))}) is not known here: {LOADABLE}")


# ---- backbone


def _describe_backbone(encoder: dict[str, Tensor], named: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The ResNet's weights under timm's names, and arguments of create_backbone."""
    deep = "stem.0.weight" in encoder
    if deep:
        encoder = _moved(encoder, {f"stem.{place}": ours for place, ours in DEEP_STEM.items()})
    first = encoder.get("conv1.0.weight" if deep else "conv1.weight")
    depth = None if first is None else name_encoder({**encoder, "conv1.weight": first})
    if first is None or (named is None and depth is None):
        raise ZooError("this backbone of mmsegmentation is no ResNet that is known here: ResNet and ResNetV1c load")
    if encoder.get("layer2.0.downsample.1.weight", first).ndim == 4 and "layer2.0.downsample.0.weight" not in encoder:
        raise ZooError("mmsegmentation's ResNetV1d pools otherwise than timm's where it is dilated: ResNetV1c loads")
    stages: dict[str, Any] = {"name": named or depth, "in_channels": first.shape[1]}
    if deep and depth in BASIC:  # timm has no name for these two
        stages |= {"stem_type": "deep", "stem_width": first.shape[0]}
    elif deep and named is None:
        stages["name"] = f"{depth}s" if first.shape[0] == 64 else f"{depth}c"
    return encoder, stages


def _flip(encoder: dict[str, Tensor], stages: dict[str, Any]) -> None:
    """Weights for BGR images become weights for RGB ones."""
    key = "conv1.0.weight" if "conv1.0.weight" in encoder else "conv1.weight"
    encoder[key] = encoder[key].flip(1)
    stages |= {"mean": stages["mean"][::-1], "std": stages["std"][::-1]}


# ---- names


def _classes(config: Mapping[str, Any], count: int) -> tuple[int | Sequence[str] | Sequence[Class], dict[str, Any]]:
    """Names and colours from beside the weights, else as `classes_of` says."""
    meta = config.get("dataset_meta") or {}
    names = meta.get("classes") or config.get("CLASSES") or ()
    colours = meta.get("palette") or config.get("PALETTE") or ()
    if len(names) == len(colours) == count:
        return [Class(str(name), (int(r), int(g), int(b))) for name, (r, g, b) in zip(names, colours, strict=True)], {}
    if len(names) == count:
        return [str(name) for name in names], {}
    return classes_of(count)


def _conv_module(theirs: str, ours: str, first: int = 0, layers: Mapping[str, int] = CONV) -> dict[str, str]:
    """Where the layers of a ConvModule go: into the nn.Sequential `ours`, from place `first` on."""
    return {f"{theirs}.{name}": f"{ours}.{first + place}" for name, place in layers.items()}


def _moved(state: Mapping[str, Tensor], moves: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with its modules renamed. What has no move keeps its name and shows in the table of what does not fit."""
    renamed = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{moves.get(module, module)}.{leaf}"] = value
    return renamed


def _count(names: Iterable[str], module: str) -> int:
    """How many numbered modules `module` has."""
    return len({key.split(".")[1] for key in names if key.startswith(f"{module}.")})
