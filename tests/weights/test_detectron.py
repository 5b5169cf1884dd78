"""Detectron's files: the same weights under Caffe2's names and under detectron2's give the same model.

detectron2's names and outputs were compared with detectron2 itself, see `test_detectron2`. The names below are written
from Detectron's own networks, by hand and the other way round than in the importer.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import picture
from test_detectron2 import Everything, meta, narrow
from torch import Tensor

import zoo
from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.weights import _source, detectron, detectron2

LAST = {"50": {2: 2, 3: 3, 4: 5, 5: 2}, "101": {2: 2, 3: 3, 4: 22, 5: 2}}
KINDS = {"weight": "w", "bias": "b"}
NORM_KINDS = {"weight": "s", "bias": "b"}
BRANCHES = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
HEADS = {
    "proposal_generator.rpn_head.conv": "conv_rpn_fpn2",
    "proposal_generator.rpn_head.objectness_logits": "rpn_cls_logits_fpn2",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_bbox_pred_fpn2",
    "roi_heads.box_head.fc1": "fc6",
    "roi_heads.box_head.fc2": "fc7",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "roi_heads.mask_head.deconv": "conv5_mask",
    "roi_heads.mask_head.predictor": "mask_fcn_logits",
    "roi_heads.keypoint_head.score_lowres": "kps_score_lowres",
    **{f"roi_heads.box_head.conv{i}": f"head_conv{i}" for i in range(1, 5)},
    **{f"roi_heads.mask_head.mask_fcn{i}": f"_[mask]_fcn{i}" for i in range(1, 5)},
    **{f"roi_heads.keypoint_head.conv_fcn{i}": f"conv_fcn{i}" for i in range(1, 9)},
}


def caffe2_name(key: str, depth: str, norm: str, pyramid: bool) -> str | None:
    """Detectron's name of one of detectron2's parameters; None for what it has not."""
    layer, _, kind = key.rpartition(".")
    normed = layer.endswith(".norm")
    layer = layer.removesuffix(".norm")
    if kind.startswith("running") or key.startswith("pixel"):
        return None
    end = f"_{norm}_{NORM_KINDS[kind]}" if normed else f"_{KINDS[kind]}"
    if layer in HEADS:
        return (HEADS[layer] if pyramid else HEADS[layer].replace("_fpn2", "")) + end
    if layer.startswith("backbone.fpn_"):
        stage = int(layer[-1])
        sums = f"res{stage}_{LAST[depth][stage]}_sum"
        if "output" in layer:
            return f"fpn_{sums}{end}"
        return f"fpn_inner_{sums}{'' if stage == 5 else '_lateral'}{end}"
    layer = layer.removeprefix("roi_heads.").removeprefix("backbone.").removeprefix("bottom_up.")
    if layer == "stem.conv1":
        return ("res_conv1" if normed and norm == "bn" else "conv1") + end
    stage, block, conv = layer.split(".")
    return f"{stage}_{block}_{BRANCHES[conv]}{end}"


def caffe2(state: dict[str, Tensor], depth: str = "50", norm: str = "bn") -> dict[str, Tensor]:
    """The same weights as Detectron has them: the background first, with rows for its box and its mask."""
    pyramid = any("fpn_lateral" in key for key in state)
    made = {}
    for key, value in state.items():
        name = caffe2_name(key, depth, norm, pyramid)
        if name is None:
            continue
        if name.startswith("cls_score"):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith(("bbox_pred", "mask_fcn_logits")):
            count = 4 if name.startswith("bbox") else 1
            value = torch.cat([torch.full_like(value[:1], 99.0).expand(count, *value.shape[1:]), value])
        made[name] = value
    return made


def affine(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With batch norms that only scale and shift."""
    changed = {key: torch.zeros_like(value) for key, value in state.items() if key.endswith("running_mean")}
    changed |= {key: torch.full_like(x, 1 - 1e-5) for key, x in state.items() if key.endswith("running_var")}
    return state | changed


@pytest.fixture(scope="module")
def fpn() -> tuple[dict[str, Tensor], Any]:
    """Weights under detectron2's names, and the model of them."""
    state = affine(narrow("mask_fpn"))
    return state, zoo.load(state)


def test_the_same_weights_give_the_same_outputs(fpn: tuple[dict[str, Tensor], Any], tmp_path: Path) -> None:
    state, wanted = fpn
    blobs = {key: value.numpy() for key, value in caffe2(state).items()}
    blobs |= {f"{key}_momentum": np.ones(1, np.float32) for key in ("conv_rpn_fpn2_w", "fc6_b")}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "MODEL:\n  TYPE: generalized_rcnn\n"}, 2))
    with torch.no_grad():
        # Detectron's mean is another one, half a level apart.
        same = zoo.load(path, mean=wanted.backbone.config["mean"])
        assert torch.equal(Everything(same)(picture()), Everything(wanted)(picture()))
    assert same.provenance["source"] == "Detectron"
    assert [c.name for c in same.classes][:2] == ["person", "bicycle"]


@pytest.mark.parametrize(
    ("layout", "depth", "norm"),
    [
        ("mask_fpn", "50", "bn"),
        ("mask_c4", "50", "bn"),
        ("mask_x101", "101", "bn"),
        ("mask_gn", "50", "gn"),
        ("keypoint", "50", "bn"),
    ],
)
def test_every_layout_is_detectron2_s(layout: str, depth: str, norm: str) -> None:
    state = meta(layout)
    blobs = caffe2(state, depth, norm)
    if layout == "keypoint":
        blobs |= {"kps_score_w": torch.empty(17, 17, 4, 4), "kps_score_b": torch.empty(17)}
    assert _source(blobs) == "Detectron"
    found, wanted = detectron.recipe(blobs), detectron2.recipe(state)
    assert (found.name, found.options, found.classes) == (wanted.name, wanted.options, wanted.classes)
    assert found.backbone["name"] == wanted.backbone["name"]
    assert found.backbone["stride_in_1x1"] is wanted.backbone["stride_in_1x1"]
    assert found.backbone["mean"] == pytest.approx([122.7717 / 255, 115.9465 / 255, 102.9801 / 255])
    assert found.backbone["std"] == pytest.approx([1 / 255] * 3)  # also of ResNeXts
    assert found.assumed.items() >= {"channels": "BGR", "mean": found.backbone["mean"]}.items()
    shape = {key: value.shape for key, value in wanted.state.items()}
    assert {key: value.shape for key, value in found.state.items()} == shape


def test_one_mask_for_all_classes_stays() -> None:
    blobs = caffe2(meta("mask_fpn")) | {
        "mask_fcn_logits_w": torch.empty(1, 256, 1, 1),
        "mask_fcn_logits_b": torch.ones(1),
    }
    found = detectron.recipe(blobs)
    assert found.options["class_agnostic"] is True
    assert found.state["mask_head.predictor.bias"].tolist() == [1]


def test_boxes_alone_and_what_has_no_name_are_refused() -> None:
    blobs = caffe2(meta("mask_fpn"))
    with pytest.raises(ZooError, match="Faster R-CNN or RPN, which draws boxes alone"):
        zoo.load({key: value for key, value in blobs.items() if "mask" not in key})
    odd = detectron.renamed({"nonlocal_conv3_1_theta_w": torch.ones(1), "cls_score_w": torch.ones(2, 1)})
    assert "nonlocal_conv3_1_theta_w" in odd  # and fitting says so


def imagenet(state: dict[str, Tensor], depth: str = "50") -> dict[str, Tensor]:
    """A ResNet alone, as it was trained on ImageNet."""
    body = {key: value for key, value in state.items() if key.startswith("backbone.bottom_up.")}
    extra = {"conv1_b": torch.ones(64), "fc1000_w": torch.ones(1000, 2048), "fc1000_b": torch.ones(1000)}
    return caffe2(body, depth) | extra


@pytest.fixture(scope="module")
def msra(fpn: tuple[dict[str, Tensor], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R-50.pkl with the weights of `fpn`'s backbone."""
    path = tmp_path_factory.mktemp("MSRA") / "R-50.pkl"
    path.write_bytes(pickle.dumps({key: value.numpy() for key, value in imagenet(fpn[0]).items()}, 2))
    return path


def test_msra_s_weights_make_a_backbone(fpn: tuple[dict[str, Tensor], Any], msra: Path) -> None:
    wanted = fpn[1].backbone
    found = create_backbone("resnet50", pretrained=msra).eval()
    with torch.no_grad():
        for ours, theirs in zip(found(picture()), wanted(picture()), strict=True):
            assert torch.equal(ours, theirs)
    assert found.config["mean"] == pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255])
    assert found.config["std"] == pytest.approx([1 / 255] * 3)
    assert found.config["stride_in_1x1"] is True
    with torch.device("meta"):
        again = create_backbone(**found.config)
    assert again.model.layer2[0].conv1.stride == (2, 2)
    gray = create_backbone("resnet50", pretrained=msra, in_channels=1, coarsest=4, mean=[0.5])
    assert gray.config["mean"] == [0.5]
    assert torch.allclose(gray.model.conv1.weight, found.model.conv1.weight.sum(1, keepdim=True))


def test_resnexts_and_group_norms_have_pixels_and_strides_of_their_own() -> None:
    state, options = detectron.resnet(imagenet(meta("mask_x101"), "101"))
    assert options["stride_in_1x1"] is False
    assert options["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert state["layer3.22.bn3.running_var"].shape == (1024,)
    groups = {key: value for key, value in meta("mask_gn").items() if "bottom_up" in key}
    state, options = detectron.resnet(caffe2(groups, norm="gn"))
    assert options["stride_in_1x1"] is False
    assert options["std"] == pytest.approx([1 / 255] * 3)
    assert "bn1.weight" in state
    assert "bn1.running_var" not in state


def test_statistics_that_are_in_the_file_stay() -> None:
    state = {
        "res_conv1_bn_s": torch.ones(2),
        "res_conv1_bn_rm": torch.full((2,), 3.0),
        "res_conv1_bn_riv": torch.ones(2),
    }
    assert detectron.renamed(state)["backbone.bottom_up.stem.conv1.norm.running_mean"].tolist() == [3, 3]


@pytest.mark.parametrize("name", ["resnet26", "mobilenetv3_small_050"])
def test_another_network_is_refused(name: str, msra: Path) -> None:
    with pytest.raises(ZooError, match=f"does not hold weights of backbone {name}: .* such as"):
        create_backbone(name, pretrained=msra)


def test_another_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(pickle.dumps({"a": np.ones(2)}, 2))
    with pytest.raises(ZooError, match=r"some\.pkl' does not hold weights of backbone resnet50: it is a pickle"):
        create_backbone("resnet50", pretrained=path)
