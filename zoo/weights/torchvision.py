"""torchvision's segmentation models: fcn_resnet50/101, deeplabv3_resnet50/101/mobilenet_v3_large, lraspp.

Their parameter names are ours but for the prefix of the backbone. The state dict does not say: that images are
normalised with ImageNet's mean and std, that logits are resized without aligned corners, that ResNets keep the first
block of a dilated stage at the rate before, and that MobileNetV3 does not.
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

# torchvision gives its MobileNetV3 these, timm's default is 1e-5 and 0.1.
MOBILENET: dict[str, Any] = {"name": "mobilenetv3_large_100", "output_stride": 16, "bn_eps": 1e-3, "bn_momentum": 0.01}


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a torchvision segmentation model."""
    heads = [key for key in state if key.startswith("classifier.")]
    if not heads or any(key.startswith("classifier.classifier.") for key in heads):  # VainF's, with the same ResNets
        return False
    return any(key in state for key in ("backbone.conv1.weight", "backbone.0.0.weight"))


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What a torchvision segmentation state dict describes; `config` and `backbone` are for importers that need them.

    Raises:
        ZooError: an encoder that torchvision does not publish with these heads.
    """
    model, last = _head(state)
    encoder = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    heads = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    has_aux = any(key.startswith("aux_classifier.") for key in state)
    options: dict[str, Any] = {"align_corners": False}
    if model == "lraspp":
        options["low_module"] = "blocks.2.0"
    else:
        options["aux_weight"] = 0.5 if has_aux else 0.0
    if model == "deeplabv3":
        options["rates"] = [12, 24, 36]
    name = backbone or name_encoder(encoder)
    if "0.0.weight" in encoder:
        stages = {**MOBILENET, "dilation": "full"}
        names = _mobilenet_names()
        # What is not in timm's keeps its name and shows in the table of keys that do not fit.
        encoder = {names.get(key, key): value for key, value in encoder.items()}
        if has_aux and model == "deeplabv3":
            options["aux_module"] = "blocks.2.0"
        elif has_aux:
            raise ZooError("torchvision publishes no FCN with an auxiliary head on MobileNetV3: use its DeepLabV3")
    elif name is not None and model != "lraspp":
        stages = {"name": name, "output_stride": 8, "dilation": "previous"}
    elif model == "lraspp":
        raise ZooError("torchvision publishes LR-ASPP on MobileNetV3 alone, and this encoder is another")
    else:
        raise ZooError("these ResNet weights are of no depth torchvision publishes: name it, zoo.load(x, backbone=...)")
    statistics = imagenet()
    classes, told = classes_of(last.shape[0])
    assumed: dict[str, Any] = {key: options[key] for key in ("align_corners", "rates") if key in options}
    assumed |= {key: stages[key] for key in ("output_stride", "dilation")} | statistics | told
    return Recipe(
        source="torchvision",
        name=model,
        classes=classes,
        backbone={**stages, **statistics, "levels": 3 if model == "lraspp" else 1 + has_aux},
        options=options,
        state={**{f"backbone.model.{key}": value for key, value in encoder.items()}, **heads},
        assumed=assumed,
    )


def _head(state: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The name of the model, and the weight of its last convolution."""
    model = "deeplabv3" if "classifier.0.convs.0.0.weight" in state else "fcn"
    key = "classifier.4.weight"
    if "classifier.cbr.0.weight" in state:
        model, key = "lraspp", "classifier.high_classifier.weight"
    if key not in state:
        raise ZooError(f"these look like weights of torchvision, but have no {key}: is the file whole?")
    return model, state[key]


def _mobilenet_names() -> dict[str, str]:
    """torchvision's names of MobileNetV3's features -> timm's: the two list the same tensors in the same order."""
    from torchvision.models import mobilenet_v3_large

    with torch.device("meta"):
        theirs = mobilenet_v3_large().features.state_dict()
    with torch.random.fork_rng(devices=[]):
        ours = create_backbone(**MOBILENET).model.state_dict()
    return dict(zip(theirs, ours, strict=True))
