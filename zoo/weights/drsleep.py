"""DrSleep's refinenet-pytorch: RefineNet on ResNets, ported from the authors' MatConvNet release. For academic use.

The encoder has torchvision's names at the top level; the decoder those of the release: stage 1 is the coarsest level.
The state dict does not say: that images are RGB, normalised with ImageNet's mean and std, that corners are aligned
where blocks are fused, and how logits are enlarged (its notebook: bicubic, corners not aligned; here bilinear).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import ZooError
from zoo.weights.conventions import classes_of, imagenet
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

# Its names -> ours; a stage s is block s - 1, the n-th unit or link (from 1) is number n - 1.
NAMES = (
    (r"p_ims1d2_outl(\d)_dimred", "blocks.{0}.reduce"),
    (r"adapt_stage(\d)_b\.0\.(\d+)_conv", "blocks.{0}.input.{1}.conv1"),
    (r"adapt_stage(\d)_b\.0\.(\d+)_conv_relu_varout_dimred", "blocks.{0}.input.{1}.conv2"),
    (r"adapt_stage(\d)_b2_joint_varout_dimred", "blocks.{0}.fusion.fine"),
    (r"mflow_conv_g(\d)_pool\.0\.(\d+)_outvar_dimred", "blocks.{0}.pooling.convs.{1}"),
    (r"mflow_conv_g(\d)_b\.0\.(\d+)_conv", "blocks.{0}.output.{1}.conv1"),
    (r"mflow_conv_g(\d)_b\.0\.(\d+)_conv_relu_varout_dimred", "blocks.{0}.output.{1}.conv2"),
    (r"clf_conv", "classifier"),
)
# The last convolution of a stage feeds the next one's fusion.
NEXT = re.compile(r"mflow_conv_g(\d)_b3_joint_varout_dimred")
LEVELS = 4


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a RefineNet of DrSleep's."""
    return "p_ims1d2_outl1_dimred.weight" in state and "clf_conv.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` is for importers that need it.

    Raises:
        ZooError: a Light-Weight RefineNet, or an encoder that is no ResNet of a known depth.
    """
    if state["p_ims1d2_outl1_dimred.weight"].shape[-1] == 1:
        raise ZooError("this is a Light-Weight RefineNet, which is not in this zoo: DrSleep's full RefineNet loads")
    name = backbone or name_encoder(state)
    if name is None:
        raise ZooError("this RefineNet's encoder is no ResNet of a known depth: name it, zoo.load(x, backbone=...)")
    options: dict[str, Any] = {
        "channels": [_width(state, "p_ims1d2_outl1_dimred"), _width(state, "p_ims1d2_outl2_dimred")],
        "input_units": _count(state, r"adapt_stage1_b\.0\.(\d+)_conv\.weight"),
        "output_units": _count(state, r"mflow_conv_g1_b\.0\.(\d+)_conv\.weight"),
        "crp_stages": _count(state, r"mflow_conv_g1_pool\.0\.(\d+)_outvar_dimred\.weight"),
        "align_fusion": True,
        "align_corners": False,
    }
    statistics = imagenet()
    classes, told = classes_of(_width(state, "clf_conv"))
    assumed = {key: options[key] for key in ("align_fusion", "align_corners")} | statistics | told
    return Recipe(
        source="DrSleep",
        name="refinenet",
        classes=classes,
        backbone={"name": name, "levels": LEVELS, **statistics},
        options=options,
        state={rename(key): value for key, value in state.items()},
        assumed=assumed,
    )


def rename(key: str) -> str:
    """Our name of one of its parameters; what is not of the decoder belongs to the encoder."""
    module, _, tail = key.rpartition(".")
    for pattern, ours in NAMES:
        if match := re.fullmatch(pattern, module):
            return ours.format(*(int(number) - 1 for number in match.groups())) + f".{tail}"
    if match := NEXT.fullmatch(module):
        return f"blocks.{match[1]}.fusion.coarse.{tail}"
    return f"backbone.model.{key}"


def _width(state: Mapping[str, Tensor], name: str) -> int:
    """Output channels of a convolution; ZooError where the file lacks it."""
    if f"{name}.weight" not in state:
        raise ZooError(f"this looks like a RefineNet of DrSleep's, but has no {name}.weight: is the file whole?")
    return state[f"{name}.weight"].shape[0]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many keys `pattern` matches."""
    return sum(re.fullmatch(pattern, key) is not None for key in state)
