"""State dicts of torchvision's detectors: what is read off them, and what is refused. (Outputs: tests/parity.)"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import zoo
from zoo.errors import ZooError
from zoo.weights import SOURCES, _source
from zoo.weights.torchvision_detection import recipe


def shapes(name: str, **options: Any) -> dict[str, Tensor]:
    """The state dict of a detector on the meta device: names and shapes, no values."""
    with torch.device("meta"):
        return getattr(detection, name)(weights=None, weights_backbone=None, **options).state_dict()


def frozen() -> dict[str, Tensor]:
    """As the published file of version 1 is: norms without a count of batches."""
    with torch.device("meta"):
        body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
        return detection.MaskRCNN(body, num_classes=91).state_dict()


def test_version_one() -> None:
    found = recipe(frozen())
    assert (found.name, found.backbone["name"]) == ("mask_rcnn", "resnet50")
    assert found.options["conventions"] == "torchvision"
    assert (found.options["test_size"], found.options["test_limit"]) == (800, 1333)
    assert (found.options["norm_epsilon"], found.options["frozen_norm"]) == (0.0, True)
    assert (found.options["box_convs"], found.options["box_fcs"], found.options["norm"]) == (0, 2, None)
    assert isinstance(found.classes, list)
    assert len(found.classes) == len(set(found.classes)) == 90
    assert (found.classes[0], found.classes[11], found.classes[89]) == ("person", "unused_12", "toothbrush")
    assert {"conventions", "test_size", "norm_epsilon", "mean", "classes"} <= found.assumed.keys()


def test_version_two() -> None:
    found = recipe(shapes("maskrcnn_resnet50_fpn_v2"))
    options = {"norm": "batch", "rpn_convs": 2, "box_convs": 4, "box_fcs": 1, "mask_convs": 4, "mask_channels": 256}
    assert found.options.items() >= options.items()
    assert not {"norm_epsilon", "frozen_norm"} & found.options.keys()


def test_keypoints() -> None:
    found = recipe(shapes("keypointrcnn_resnet50_fpn", num_keypoints=5))
    assert (found.name, found.classes) == ("keypoint_rcnn", ["person"])
    options = {"keypoints": 5, "keypoint_convs": 8, "keypoint_channels": 512}
    assert found.options.items() >= options.items()


def test_old_names_are_the_same() -> None:
    """Files from before torchvision 0.14."""
    new = frozen()
    spelling = (
        (r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
    )
    old = {}
    for key, value in new.items():
        for pattern, text in spelling:
            key = re.sub(pattern, text, key)
        old[key] = value
    assert len(old.keys() - new.keys()) == 26
    assert recipe(old).state.keys() == recipe(new).state.keys()


def test_background_moves_to_the_end_and_nowhere_else() -> None:
    state = {key: value for key, value in frozen().items() if "predictor" not in key}
    rows = torch.arange(91.0)
    state["roi_heads.box_predictor.cls_score.weight"] = rows[:, None].expand(91, 1024)
    state["roi_heads.box_predictor.cls_score.bias"] = rows
    state["roi_heads.box_predictor.bbox_pred.weight"] = rows.repeat_interleave(4)[:, None].expand(364, 1024)
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(364.0)
    state["roi_heads.mask_predictor.conv5_mask.weight"] = torch.zeros(256, 256, 2, 2)
    state["roi_heads.mask_predictor.mask_fcn_logits.weight"] = rows[:, None, None, None].expand(91, 256, 1, 1)
    state["roi_heads.mask_predictor.mask_fcn_logits.bias"] = rows
    moved = recipe(state).state
    assert moved["box_head.cls.bias"].tolist() == [*range(1, 91), 0]
    assert moved["box_head.cls.weight"][:, 0].tolist() == [*range(1, 91), 0]
    assert moved["box_head.reg.bias"].tolist() == [*range(4, 364)]
    assert moved["box_head.reg.weight"][::4, 0].tolist() == [*range(1, 91)]
    assert moved["mask_head.predictor.bias"].tolist() == [*range(1, 91)]
    assert moved["mask_head.predictor.weight"][:, 0, 0, 0].tolist() == [*range(1, 91)]


def test_what_is_refused() -> None:
    state = shapes("fasterrcnn_resnet50_fpn")
    assert _source(state) == "torchvision detection"
    assert [name for name, source in SOURCES.items() if source.recognizes(state)] == ["torchvision detection"]
    with pytest.raises(ZooError, match="weights of a Faster R-CNN, which draws boxes alone"):
        zoo.load(state)
    cut = {key: value for key, value in frozen().items() if "layer3" not in key}
    with pytest.raises(ZooError, match=r"no ResNet that torchvision publishes: name it, zoo\.load\(x, backbone="):
        zoo.load(cut)
