"""Detectron's own files, with Caffe2's names: two-stage detectors, and ResNets trained on ImageNet.

    {"blobs": {"conv1_w": ..., "fpn_inner_res5_2_sum_w": ..., "cls_score_w": ..., "..._momentum": ...}, "cfg": ...}
    {"conv1_w": ..., "res_conv1_bn_s": ..., "res2_0_branch2a_w": ..., "fc1000_w": ...}               MSRA's R-50.pkl

Names become detectron2's, and what follows is that file's business. The background goes from the first row of the
classifier to the last; boxes and masks lose its rows, which nothing reads. Batch norms come as a scale and a bias that
mean and variance have gone into: they get a mean of 0 and a variance of 1 less the epsilon, so that they are just that.
Left out are the classifier of ImageNet, momenta, the bias of the first convolution (numbers around 1e-9 that no network
has) and the fixed interpolation of keypoints.

A detector reads BGR less Detectron's mean, which is half a level off detectron2's, and divides by nothing, also with
ResNeXts. Its boxes reached one pixel further and its RoIAlign lay half a pixel off: it runs here by detectron2's
conventions, as detectron2 itself runs such files unless told otherwise. ImageNet's ResNets get what detectron2's
configurations have with them, see `zoo.weights.detectron2`.

Names: detectron2/checkpoint/c2_model_loading.py; Detectron's config.py for the mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoo.weights import detectron2
from zoo.weights.recipe import Recipe

MEAN_BGR = (102.9801, 115.9465, 122.7717)
EPSILON = 1e-5

_KINDS = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_BODY = "backbone.bottom_up"
# Layers, theirs -> detectron2's.
_LAYERS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(res_)?conv1", f"{_BODY}.stem.conv1"),
    (r"res(\d)_(\d+)_branch(1|2[abc])", lambda found: f"{_BODY}.res{found[1]}.{found[2]}.{_BRANCHES[found[3]]}"),
    (r"fpn_inner_res(\d)_\d+_sum(_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
    (r"conv_rpn(_fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(_fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(_fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"head_conv(\d)", r"roi_heads.box_head.conv\1"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_\[?mask\]?_fcn(\d)", r"roi_heads.mask_head.mask_fcn\1"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
    (r"conv_fcn(\d)", r"roi_heads.keypoint_head.conv_fcn\1"),
    (r"kps_score_lowres", "roi_heads.keypoint_head.score_lowres"),
)
_UNUSED = re.compile(r".*_momentum|conv1_b|(fc1000|pred|kps_score)_[wb]")


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of one of Detectron's two-stage detectors."""
    return {"res2_0_branch2a_w", "cls_score_w"} <= state.keys()


def recognizes_resnet(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a ResNet with Caffe2's names, and of no more."""
    return {"conv1_w", "res2_0_branch2b_w"} <= state.keys() and "cls_score_w" not in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes, see `zoo.weights.detectron2.recipe`."""
    pixels = {"pixel_mean": torch.tensor(MEAN_BGR), "pixel_std": torch.ones(3)}
    found = detectron2.recipe(renamed(state) | pixels, config, backbone)
    said = {key: found.backbone[key] for key in ("mean", "std")}
    return replace(found, source="Detectron", assumed={"channels": "BGR", **said, **found.assumed})


def resnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A ResNet's weights under timm's names, for RGB, and what goes with them: `mean`, `std`, `stride_in_1x1`."""
    theirs = renamed(state)
    body = {detectron2.rename(key).removeprefix("backbone.model."): value for key, value in theirs.items()}
    options, bgr, _ = detectron2.pixels(theirs, body)
    if bgr:
        body["conv1.weight"] = body["conv1.weight"].flip(1)
    return body, options


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under detectron2's names and in its order of classes; what has no name there keeps its own."""
    used = {key: value for key, value in state.items() if not _UNUSED.fullmatch(key)}
    rows = len(used["cls_score_w"]) if "cls_score_w" in used else 0
    found: dict[str, Tensor] = {}
    for key, value in used.items():
        if key.startswith("cls_score_"):
            value = torch.cat([value[1:], value[:1]])
        elif key.startswith("bbox_pred_"):
            value = value[4:]
        elif key.startswith("mask_fcn_logits_") and len(value) == rows:  # and not one mask for all classes
            value = value[1:]
        found[_rename(key)] = value
    for key in [key for key in used if key.endswith("_bn_s") and f"{key[:-1]}rm" not in used]:
        norm = _rename(key).removesuffix("weight")
        found[f"{norm}running_mean"] = torch.zeros_like(used[key])
        found[f"{norm}running_var"] = torch.full_like(used[key], 1 - EPSILON)
    return found


def _rename(key: str) -> str:
    parts = re.fullmatch(r"(.+?)(_[bg]n)?_(w|b|s|rm|riv)", key)
    if parts is None:
        return key
    for pattern, layer in _LAYERS:
        found = re.fullmatch(pattern, parts[1])
        if found:
            name = found.expand(layer) if isinstance(layer, str) else layer(found)
            return f"{name}{'.norm' if parts[2] else ''}.{_KINDS[parts[3]]}"
    return key
