"""Where a model is set up otherwise than its weights are used to: it takes them, and predicts something else.

What both have is compared, and of that what can change a prediction once the weights fit. Values are compared as they
come out: "auto" rates at the stride at hand, the geometry that `padding=None` stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from zoo.models import MODELS, model_options
from zoo.models.backbone import create_backbone
from zoo.models.layers import aspp_rates
from zoo.weights.recipe import Recipe

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(create_backbone).parameters.items()
    if parameter.default is not parameter.empty
}

# Options that need no comparing: names and shapes of the weights tell them, ...
TOLD = {
    "aspp_separable", "attention", "aux_channels", "box_convs", "box_fcs", "box_width", "center", "channels",
    "class_agnostic", "classifier", "classifier_kernel", "coarsest", "concat_input", "convs", "crp_stages",
    "decoder_channels", "decoder_convs", "encoder_layers", "encoder_width", "final_units", "fuse_kernel",
    "global_norm", "head", "in_channels", "input_units", "keypoint_channels", "keypoint_convs", "keypoints", "layers",
    "low_channels", "mask_channels", "mask_convs", "norm", "output_units", "pool_channels", "post_conv",
    "project_kernel", "queries", "rpn_convs", "separable", "stem_type", "stem_width", "width",
}  # fmt: skip
# ... training alone uses them, ...
TRAINING = {
    "aux_module", "aux_weight", "bn_momentum", "class_weight", "classifier_dropout", "dice_weight", "drop_block_rate",
    "drop_path_rate", "drop_rate", "dropout", "dropout2d", "frozen_norm", "frozen_stages", "learn_upsampling", "loss",
    "mask_weight", "no_object_weight", "overlaps", "points", "pretrained", "roi_samples", "rpn_samples",
}  # fmt: skip
# ... they are how one chooses to predict, or they are taken over with the weights (and `levels` is the model's need).
CHOSEN = {
    "detections", "flip", "levels", "mean", "nms_threshold", "object_threshold", "overlap", "overlap_threshold",
    "rpn_candidates", "scales", "score_threshold", "std", "test_limit", "test_proposals", "test_size", "window",
}  # fmt: skip
IGNORED = TOLD | TRAINING | CHOSEN


def differences(model: Any, found: Recipe) -> dict[str, tuple[Any, Any]]:
    """What the weights' own model has and `model` has otherwise: option -> (theirs, here).

    Of a model that was not built by `create_model` the backbone and `align_corners` are compared.
    """
    pairs = _backbone_pairs(model.backbone, found) | _option_pairs(model, found)
    return {key: pair for key, pair in pairs.items() if key not in IGNORED and pair[0] != pair[1]}


def _backbone_pairs(backbone: Any, found: Recipe) -> dict[str, tuple[Any, Any]]:
    theirs, mine = _resolved(found.backbone), _resolved(backbone.config)
    pairs = {key: (theirs.get(key), mine.get(key)) for key in {**theirs, **mine}}
    if pairs["output_stride"] == (32, 32):
        del pairs["dilation"]  # nothing is dilated
    elif not _has_basic_blocks(backbone.model):  # of others "conv1" dilates what "previous" does
        first, second = ("previous" if rule == "conv1" else rule for rule in pairs["dilation"])
        pairs["dilation"] = (first, second)
    return pairs


def _option_pairs(model: Any, found: Recipe) -> dict[str, tuple[Any, Any]]:
    known = model_options(found.name) if found.name in MODELS else {}
    theirs = {key: _plain(value) for key, value in {**known, **found.options}.items()}
    own = {key: getattr(model, key) for key in ("align_corners",) if hasattr(model, key)}
    mine = {key: _plain(value) for key, value in getattr(model, "header", {"options": own})["options"].items()}
    pairs = {key: (theirs[key], mine[key]) for key in mine if key in theirs}
    if "rates" in pairs:
        strides = _stride(model.backbone, found.backbone), model.backbone.strides[-1]
        pairs["rates"] = (aspp_rates(theirs["rates"], strides[0]), aspp_rates(mine["rates"], strides[1]))
    if "padding" in pairs and hasattr(model, "caffe"):
        # The FCNs': the release's geometry has deconvolutions, and the other has none.
        caffe = any(key.startswith("upscore") for key in found.state)
        pairs["padding"] = ("caffe" if caffe else "same", "caffe" if model.caffe else "same")
    return pairs


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """`create_backbone`'s arguments with its defaults; None for what leaves the network as timm has it."""
    values = {key: _plain(value) for key, value in {**DEFAULTS, **config}.items()}
    values["name"] = str(values["name"]).partition(".")[0]  # without the tag of timm's weights
    if set(values["multi_grid"] or ()) == {1}:
        values["multi_grid"] = None
    return {key: None if value is False else value for key, value in values.items()}


def _stride(backbone: Any, config: Mapping[str, Any]) -> int:
    """Of the coarsest features that `config` describes, given a `backbone` of the same kind."""
    asked = config.get("output_stride", DEFAULTS["output_stride"])
    return backbone.strides[-1] if asked == backbone.config.get("output_stride") else asked


def _has_basic_blocks(model: Any) -> bool:
    stage = getattr(model, "layer4", None)
    return stage is not None and not any(name.endswith("conv3") for name, _ in stage.named_modules())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
