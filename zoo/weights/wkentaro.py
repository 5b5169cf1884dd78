"""wkentaro/pytorch-fcn: FCN-32s, FCN-16s, FCN-8s and FCN-8s-atonce, converted from the authors' Caffe files or trained.

Its state dict is a flat list of layers, conv1_1 to upscore8, named as in the Caffe release. It does not say: that
images are BGR in 0..255 less a mean and not divided by anything (flipped here into the first convolution), the padding
of 100 pixels and the pools that round up, and, of FCN-8s, whether pool4 and pool3 are scaled: FCN-8s-atonce has the
same keys and needs `at_once=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import ZooError
from zoo.models import MODELS
from zoo.weights.conventions import classes_of
from zoo.weights.recipe import Recipe

# Of RGB in 0..255.
MEAN = (122.67891434, 116.66876762, 104.00698793)
# Convolutions per stage of VGG16; in timm's `features` each is followed by its ReLU, and each stage by a pool.
STAGES = (2, 2, 3, 3, 3)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the release's layers."""
    return "conv1_1.weight" in state and "score_fr.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What an FCN's state dict describes; `config` and `backbone` are for importers that need them.

    Raises:
        ZooError: images of other than three channels.
    """
    first = state["conv1_1.weight"]
    if first.shape[1] != 3:
        raise ZooError(f"this FCN reads {first.shape[1]} channels, and the order BGR is of 3: others do not load")
    name = next(
        (n for key, n in (("score_pool3", "fcn8s"), ("score_pool4", "fcn16s")) if f"{key}.weight" in state), "fcn32s"
    )
    names = _trunk()
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        weights[f"{names.get(layer, layer)}.{kind}"] = value.flip(1) if key == "conv1_1.weight" else value
    classes, told = classes_of(state["score_fr.weight"].shape[0])
    statistics = {"mean": [value / 255 for value in MEAN], "std": [1 / 255] * 3}
    options: dict[str, Any] = {"padding": "caffe"}
    if name == "fcn8s":
        options["at_once"] = False
    return Recipe(
        source="wkentaro",
        name=name,
        classes=classes,
        backbone={"name": backbone or "vgg16", **MODELS[name].needs, **statistics},  # type: ignore[attr-defined]
        options=options,
        state=weights,
        assumed={**options, **statistics, **told},
    )


def _trunk() -> dict[str, str]:
    """The release's names of VGG's convolutions -> ours."""
    names = {"fc6": "backbone.model.pre_logits.fc1", "fc7": "backbone.model.pre_logits.fc2"}
    index = 0
    for stage, count in enumerate(STAGES, start=1):
        for convolution in range(1, count + 1):
            names[f"conv{stage}_{convolution}"] = f"backbone.model.features.{index}"
            index += 2
        index += 1
    return names
