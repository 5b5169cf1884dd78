"""detectron2's two-stage detectors: Mask R-CNN with FPN, C4 or DC5, Keypoint R-CNN, Cascade Mask R-CNN, on a ResNet.

The model zoo's files are pickles, which `zoo.weights.pickles` reads. Renamed are parameters alone, but for the first
convolution: detectron2 reads images as BGR, so its input channels change places. The scale of pixels stays that of the
file: where detectron2 divides by 1 and not by ImageNet's standard deviation, as for all weights that began with MSRA's
ResNets, `std` is 1/255.

The state dict does not say: that images are resized to a short side of 800; which stages were frozen; and, unless it
has the buffers `pixel_mean` and `pixel_std` (only old files do), the order of channels, their scale, and whether blocks
halve the size in their first convolution (`stride_in_1x1`). Assumed is what the model zoo's configurations have, BGR
and, with

    batch norms             std 1/255         stride in the 1x1       MSRA's weights, and the baselines with LSJ
    group norms             std 1/255         stride in the 3x3
    groups (ResNeXt)        std ImageNet's    stride in the 3x3

Another file wants `zoo.load(file, stride_in_1x1=False, std=[...])`; one that was trained on RGB its buffers, put into
the state dict before `zoo.load`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from zoo.errors import ZooError
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

# Theirs -> ours.
NAMES = (
    (r"roi_heads\.res5\.", "backbone.res5."),
    (r"backbone\.bottom_up\.", "backbone."),
    (r"backbone\.stem\.conv1\.norm\.", "backbone.model.bn1."),
    (r"backbone\.stem\.", "backbone.model."),
    (r"backbone\.res(\d)\.", lambda found: f"backbone.model.layer{int(found[1]) - 1}."),
    (r"(backbone\.model\.layer.*)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"(backbone\.model\.layer.*)\.shortcut\.", r"\1.downsample.0."),
    (r"(backbone\.model\.layer.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"backbone\.fpn_lateral(\d)\.", lambda found: f"neck.lateral.{int(found[1]) - 2}."),
    (r"backbone\.fpn_output(\d)\.", lambda found: f"neck.output.{int(found[1]) - 2}."),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.", r"rpn.conv.\1."),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.conv.0."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.cls."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.reg."),
    (r"roi_heads\.box_predictor\.(\d\.)?cls_score\.", r"box_head.\1cls."),
    (r"roi_heads\.box_predictor\.(\d\.)?bbox_pred\.", r"box_head.\1reg."),
    (r"roi_heads\.box_head\.(\d\.)?conv(\d)\.", lambda found: f"box_head.{found[1] or ''}conv.{int(found[2]) - 1}."),
    (r"roi_heads\.box_head\.", "box_head."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda found: f"mask_head.conv.{int(found[1]) - 1}."),
    (r"roi_heads\.mask_head\.", "mask_head."),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.", lambda found: f"keypoint_head.conv.{int(found[1]) - 1}."),
    (r"roi_heads\.keypoint_head\.score_lowres\.", "keypoint_head.deconv."),
)
CELLS = "proposal_generator.anchor_generator.cell_anchors."
MEAN_BGR = (103.53, 116.28, 123.675)
# What makes a file one that no model here can take -> what it is.
FOREIGN = {
    "sem_seg_head.": "a Panoptic FPN, which the zoo does not have",
    ".conv2_offset.": "a ResNet with deformable convolutions, which no backbone here has",
    "roi_heads.mask_head.coarse_head.": "a PointRend, which the zoo does not have",
}


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a detectron2 two-stage detector."""
    return "proposal_generator.rpn_head.objectness_logits.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` and `backbone` are for importers that need them.

    Raises:
        ZooError: a detector without masks and keypoints, or one with parts that no model here has; no ResNet.
    """
    buffers = {key for key in state if key.startswith(CELLS)} | {"pixel_mean", "pixel_std"}
    renamed = {rename(key): value for key, value in state.items() if key not in buffers}
    model = _model(state, renamed)
    body = {key.removeprefix("backbone.model."): x for key, x in renamed.items() if key.startswith("backbone.model.")}
    name = backbone or _name(body)
    if name is None:
        raise ZooError("this backbone is of no ResNet that the zoo knows: name it, zoo.load(x, backbone=...)")
    scale, bgr, assumed = pixels(state, body)
    if bgr:
        renamed["backbone.model.conv1.weight"] = body["conv1.weight"].flip(1)
    count = len(renamed["box_head.0.cls.weight" if model == "cascade_mask_rcnn" else "box_head.cls.weight"]) - 1
    classes, told = _classes(model, count)
    options = _options(model, renamed, count)
    if options["variant"] == "dc5":
        scale |= {"output_stride": 16, "dilation": "full"}
    habits = {"conventions": "detectron2", "test_size": 800, "test_limit": 1333, **_frozen(body)}
    return Recipe(
        source="detectron2",
        name=model,
        classes=classes,
        backbone={"name": name, "levels": 4, **scale},
        options={**options, **_anchors(state), **habits},
        state=renamed,
        assumed={**habits, **assumed, **told},
    )


def rename(key: str) -> str:
    """Our name for one of theirs."""
    for pattern, ours in NAMES:
        key = re.sub(f"^{pattern}", ours, key)
    return key


def _model(state: Mapping[str, Tensor], renamed: Mapping[str, Tensor]) -> str:
    for part, what in FOREIGN.items():
        if any(part in key for key in state):
            raise ZooError(f"these are weights of {what}")
    if any(key.startswith("keypoint_head.") for key in renamed):
        return "keypoint_rcnn"
    if not any(key.startswith("mask_head.") for key in renamed):
        raise ZooError(
            "these are weights of a Faster R-CNN or RPN, which draws boxes alone: the zoo takes Mask, Cascade Mask and "
            "Keypoint R-CNN"
        )
    return "cascade_mask_rcnn" if "box_head.0.cls.weight" in renamed else "mask_rcnn"


def _name(body: Mapping[str, Tensor]) -> str | None:
    name = name_encoder(body)
    if name is None or "bn1.running_mean" in body:
        return name
    return f"{name}_gn" if timm.is_model(f"{name}_gn") else None


def pixels(state: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> tuple[dict[str, Any], bool, dict[str, Any]]:
    """The backbone's `mean`, `std` (RGB) and `stride_in_1x1`; whether the file is for BGR; what of this is assumed."""
    grouped = body["layer1.0.conv2.weight"].shape[1] != len(body["layer1.0.conv2.weight"])
    group_norm = "bn1.running_mean" not in body
    told = "pixel_mean" in state and "pixel_std" in state
    if told:
        mean, std = (state[key].flatten().tolist() for key in ("pixel_mean", "pixel_std"))
        bgr = mean[0] < mean[-1]
        mean, std = (values[::-1] if bgr else values for values in (mean, std))
    else:
        mean, std, bgr = list(MEAN_BGR[::-1]), [1.0] * 3, True
        if grouped:
            std = [255 * value for value in IMAGENET_DEFAULT_STD]
    scale: dict[str, Any] = {"mean": [value / 255 for value in mean], "std": [value / 255 for value in std]}
    if not told and grouped:  # as the table of ImageNet's numbers has them
        scale = {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    # Weights that want pixels of another scale than MSRA's are not MSRA's.
    stride = {"stride_in_1x1": not grouped and not group_norm and all(value == 1 for value in std)}
    return {**scale, **stride}, bgr, {**({} if told else {"channels": "BGR", **scale}), **stride}


def _frozen(body: Mapping[str, Tensor]) -> dict[str, Any]:
    """How the backbone was trained: batch norms that count batches have learned."""
    counting = [key for key in body if key.endswith("num_batches_tracked")]
    frozen: dict[str, Any] = {"frozen_stages": 0 if "bn1.num_batches_tracked" in counting else 1}
    if "bn1.running_mean" in body:
        frozen |= {"frozen_norm": not counting, "norm_epsilon": 1e-5}
    return frozen


def _options(model: str, state: Mapping[str, Tensor], classes: int) -> dict[str, Any]:
    """What names and shapes tell."""
    options: dict[str, Any] = {"variant": "dc5", "norm": _norm(state), "rpn_convs": _count(state, r"rpn\.conv\.(\d)\.")}
    if "neck.lateral.0.weight" in state:
        options |= {"variant": "fpn", "channels": len(state["neck.lateral.0.weight"])}
    stage = r"0\." if model == "cascade_mask_rcnn" else ""
    hidden = state.get("box_head.0.fc1.weight" if stage else "box_head.fc1.weight")
    if hidden is None:
        options["variant"] = "c4"
    else:
        convs, fcs = (_count(state, rf"box_head\.{stage}{kind}(\d)\.") for kind in (r"conv\.", "fc"))
        options |= {"box_convs": convs, "box_fcs": fcs, "box_width": len(hidden)}
    if not stage and len(state["box_head.reg.weight"]) != 4 * classes:
        raise ZooError("the boxes of these weights are the same for every class, which here only a cascade's are")
    if model == "keypoint_rcnn":
        points, convs = state["keypoint_head.deconv.weight"], _count(state, r"keypoint_head\.conv\.(\d)\.")
        return options | {
            "keypoints": points.shape[1],
            "keypoint_convs": convs,
            "keypoint_channels": points.shape[0],
        }
    rows, channels = len(state["mask_head.predictor.weight"]), state["mask_head.deconv.weight"].shape[1]
    options |= {"mask_channels": channels, "class_agnostic": rows == 1 < classes}
    if options["variant"] != "c4":
        options["mask_convs"] = _count(state, r"mask_head\.conv\.(\d)\.")
    return options


def _norm(state: Mapping[str, Tensor]) -> str | None:
    """Of the neck and the heads."""
    own = [key for key in state if ".norm." in key and not key.startswith("backbone.")]
    if not own:
        return None
    return "batch" if any(key.endswith("running_mean") for key in own) else "group"


def _anchors(state: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The sizes and ratios of the anchors that old files have; others are taken to have the usual ones."""
    cells = [state[key].double() for key in sorted(key for key in state if key.startswith(CELLS))]
    if not cells:
        return {}
    sides = torch.cat(cells)[:, 2:] - torch.cat(cells)[:, :2]
    sizes = sides.prod(1).sqrt().mul(1000).round().div(1000).tolist()
    ratios = (sides[:, 1] / sides[:, 0]).mul(1000).round().div(1000).tolist()
    return {"anchor_sizes": list(dict.fromkeys(sizes)), "anchor_ratios": list(dict.fromkeys(ratios))}


def _classes(model: str, count: int) -> tuple[int | list[str], dict[str, str]]:
    """The names, and what is assumed with them: 80 are COCO's, in its order without the unused ids."""
    if model == "keypoint_rcnn" and count == 1:
        return ["person"], {}
    if count != 80:
        return count, {}
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    return [name for name in names if name != "N/A"], {"classes": "COCO's"}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, state) if found})
