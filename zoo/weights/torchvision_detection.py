"""torchvision's maskrcnn_resnet50_fpn, its v2, and keypointrcnn_resnet50_fpn, or the same on another ResNet.

Classes: theirs are COCO's ids with background at 0 and ten ids that name nothing; here background is last, and the ten
keep their rows. The regression of background, which nothing reads, is left out.

The state dict does not say: torchvision's conventions (rounded anchors, RoIAlign without the half-pixel shift, how
masks are drawn), that images are resized to a short side of 800, ImageNet's mean and std, and the epsilon of frozen
batch norms. torchvision sets that to 0 for its COCO_V1 files, which were trained with 0; a file from a training that
began with a pretrained backbone alone wants backbone norms with `norm_epsilon=1e-5`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from zoo.errors import ZooError
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

# Theirs -> ours, in the newer spelling of both.
NAMES = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral.\1."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.", r"neck.lateral.\1.norm."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.output.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.", r"neck.output.\1.norm."),
    (r"rpn\.head\.conv\.(\d+)\.0\.", r"rpn.conv.\1."),
    (r"rpn\.head\.cls_logits\.", "rpn.cls."),
    (r"rpn\.head\.bbox_pred\.", "rpn.reg."),
    (r"roi_heads\.box_head\.fc6\.", "box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "box_head.fc2."),
    (r"roi_heads\.box_head\.(\d+)\.0\.", r"box_head.conv.\1."),
    (r"roi_heads\.box_head\.(\d+)\.1\.", r"box_head.conv.\1.norm."),
    (r"roi_heads\.box_head\.(\d+)\.(weight|bias)$", r"box_head.fc1.\2"),
    (r"roi_heads\.box_predictor\.cls_score\.", "box_head.cls."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "box_head.reg."),
    (r"roi_heads\.mask_head\.(\d+)\.0\.", r"mask_head.conv.\1."),
    (r"roi_heads\.mask_head\.(\d+)\.1\.", r"mask_head.conv.\1.norm."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.predictor."),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.", "keypoint_head.deconv."),
    (r"backbone\.body\.", "backbone.model."),
)
# Files from before torchvision 0.14.
OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a torchvision two-stage detector."""
    return "roi_heads.box_predictor.cls_score.weight" in state and "rpn.head.cls_logits.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` and `backbone` are for importers that need them.

    Raises:
        ZooError: a Faster R-CNN, which has neither masks nor keypoints; a backbone that is no ResNet.
    """
    model = _model(state)
    body = {key.removeprefix("backbone.body."): x for key, x in state.items() if key.startswith("backbone.body.")}
    name = backbone or name_encoder(body)
    if name is None:
        raise ZooError("this backbone is of no ResNet that torchvision publishes: name it, zoo.load(x, backbone=...)")
    renamed = {_rename(key): value for key, value in state.items()}
    options = _options(model, renamed)
    frozen = not any(key.endswith("num_batches_tracked") for key in body)
    assumed: dict[str, Any] = {"conventions": "torchvision", "test_size": 800, "test_limit": 1333, "frozen_stages": 1}
    if frozen:
        assumed |= {"frozen_norm": True, "norm_epsilon": 0.0}
    statistics = {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    count = len(renamed["box_head.cls.weight"]) - 1
    classes = _classes(model, count)
    told = {"classes": "COCO's, with its unused ids"} if count == 90 else {}
    return Recipe(
        source="torchvision",
        name=model,
        classes=classes,
        backbone={"name": name, "levels": 4, **statistics},
        options={**options, **assumed},
        state=_reordered(renamed),
        assumed={**assumed, **statistics, **told},
    )


def _model(state: Mapping[str, Any]) -> str:
    if any(key.startswith("roi_heads.keypoint_predictor.") for key in state):
        return "keypoint_rcnn"
    if any(key.startswith("roi_heads.mask_predictor.") for key in state):
        return "mask_rcnn"
    raise ZooError(
        "these are weights of a Faster R-CNN, which draws boxes alone: the zoo takes maskrcnn and keypointrcnn"
    )


def _rename(key: str) -> str:
    # roi_heads.mask_head.mask_fcn1 is number 0; the keypoint head counts its ReLUs too.
    key = re.sub(r"mask_head\.mask_fcn(\d+)\.", lambda found: f"mask_head.{int(found[1]) - 1}.0.", key)
    key = re.sub(r"^roi_heads\.keypoint_head\.(\d+)\.", lambda found: f"keypoint_head.conv.{int(found[1]) // 2}.", key)
    for pattern, ours in (*OLD_NAMES, *NAMES):
        key = re.sub(f"^{pattern}", ours, key)
    return key


def _options(model: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names and shapes tell."""
    norm = any(key.startswith("neck.") and key.endswith("running_mean") for key in state)
    options: dict[str, Any] = {
        "channels": len(state["neck.lateral.0.weight"]),
        "norm": "batch" if norm else None,
        "rpn_convs": _count(state, r"rpn\.conv\.(\d+)\."),
        "box_convs": _count(state, r"box_head\.conv\.(\d+)\."),
        "box_fcs": _count(state, r"box_head\.fc(\d+)\."),
        "box_width": len(state["box_head.fc1.weight"]),
    }
    if model == "mask_rcnn":
        convs, channels = _count(state, r"mask_head\.conv\.(\d+)\."), state["mask_head.deconv.weight"].shape[1]
        return options | {"mask_convs": convs, "mask_channels": channels}
    keypoints = state["keypoint_head.deconv.weight"]
    convs = _count(state, r"keypoint_head\.conv\.(\d+)\.")
    return options | {
        "keypoints": keypoints.shape[1],
        "keypoint_convs": convs,
        "keypoint_channels": keypoints.shape[0],
    }


def _reordered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Background last, and nowhere but among the classes."""
    moved = dict(state)
    for kind in ("weight", "bias"):
        moved[f"box_head.cls.{kind}"] = torch.roll(state[f"box_head.cls.{kind}"], -1, 0)
        moved[f"box_head.reg.{kind}"] = state[f"box_head.reg.{kind}"][4:]
        if f"mask_head.predictor.{kind}" in state:
            moved[f"mask_head.predictor.{kind}"] = state[f"mask_head.predictor.{kind}"][1:]
    return moved


def _classes(model: str, count: int) -> int | list[str]:
    if model == "keypoint_rcnn" and count == 1:
        return ["person"]
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    if count != len(names):
        return count
    return [f"unused_{number}" if name == "N/A" else name for number, name in enumerate(names, 1)]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, state) if found})
