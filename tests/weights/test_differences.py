"""What is said where a model takes weights of a model that is set up otherwise, and what is not said."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch
from test_wkentaro import layout, narrow
from torch import nn

import zoo
from zoo.checkpoint import model_file
from zoo.errors import ZooError
from zoo.models import MODELS, create_model, model_options
from zoo.models.backbone import create_backbone
from zoo.models.deeplabv3 import DeepLabV3
from zoo.models.fcn import FCN
from zoo.models.fcn8s import FCN16s
from zoo.weights import mmseg
from zoo.weights.differences import IGNORED, differences
from zoo.weights.recipe import Recipe

CONFIG = """
model = dict(
    backbone=dict(type='ResNetV1c', dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='PSPHead', align_corners=False, pool_scales=(1, 2, 3, 6)),
    auxiliary_head=dict(loss_decode=dict(loss_weight=0.4)))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""


def found(model: nn.Module, source: str = "zoo") -> Recipe:
    """What a checkpoint of `model` describes."""
    header = model.header
    return Recipe(source, header["name"], 3, dict(header["backbone"]), dict(header["options"]), model.state_dict())


def small(
    name: str, stride: int = 16, dilation: str = "previous", backbone: str = "test_resnet", **options: Any
) -> Any:
    return create_model(
        name, 3, backbone, output_stride=stride, backbone_options={"dilation": dilation}, **options
    ).eval()


@pytest.mark.parametrize("config", [CONFIG, None])
def test_of_a_foreign_file_the_config_counts(config: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"meta": {"config": config, "CLASSES": None}, "state_dict": golden.fill(golden.shapes("mmseg_pspnet18"))}
    theirs = zoo.load(state)
    kept = {key: theirs.header["options"][key] for key in ("pool_channels", "channels", "aux_channels")}
    stem = {key: theirs.backbone.config[key] for key in ("stem_type", "stem_width")}
    capsys.readouterr()
    for dilation, options, said in (
        ("full", {}, "mmseg's pspnet has dilation=conv1 (here full), align_corners=False (here True)"),
        ("conv1", {"align_corners": False}, ""),
    ):
        model = create_model(
            "pspnet", theirs.classes, "resnet18", backbone_options={**stem, "dilation": dilation}, **kept, **options
        )
        zoo.load_weights(model, state)
        assert capsys.readouterr().err.strip().partition(": ")[2] == said


def test_of_ours_the_header_counts(capsys: pytest.CaptureFixture[str]) -> None:
    first = small("deeplabv3", dilation="full", align_corners=True, rates=[1, 2, 3], dropout=0.2, window=64)
    zoo.load_weights(small("deeplabv3"), model_file(first))
    printed = capsys.readouterr().err
    assert printed.endswith(
        "zoo's deeplabv3 has dilation=full (here previous), rates=[1, 2, 3] (here [6, 12, 18]), "
        "align_corners=True (here False)\n"
    )
    zoo.load_weights(small("deeplabv3"), model_file(small("deeplabv3", loss={"dice": 1.0}, flip=True)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "theirs", "mine", "said"),
    [
        ("deeplabv3", {"stride": 8, "rates": [12, 24, 36]}, {"stride": 8}, {}),
        ("deeplabv3", {"stride": 8}, {"stride": 16}, {"output_stride": (8, 16), "rates": ([12, 24, 36], [6, 12, 18])}),
        ("deeplabv3", {"stride": 32, "dilation": "full"}, {"stride": 32}, {}),
        ("deeplabv3", {"backbone": "resnet10t"}, {"backbone": "resnet10t", "dilation": "conv1"},
         {"dilation": ("previous", "conv1")}),
        ("deeplabv3", {"backbone": "resnet26"}, {"backbone": "resnet26", "dilation": "conv1"}, {}),
        ("fcn", {"channels": 16, "backbone": "test_resnet.r160_in1k"}, {}, {}),
        ("fcn", {"head_dilation": 6}, {}, {"head_dilation": (6, 1)}),
        ("pspnet", {"bins": (1, 2, 3, 4)}, {}, {"bins": ([1, 2, 3, 4], [1, 2, 3, 6])}),
        ("lraspp", {"low_module": "layer2.0"}, {}, {"low_module": ("layer2.0", None)}),
        ("unet", {"stride": 32, "interpolation": "bilinear"}, {"stride": 32},
         {"interpolation": ("bilinear", "nearest")}),
    ],
)  # fmt: skip
def test_what_predicts_otherwise(
    name: str, theirs: dict[str, Any], mine: dict[str, Any], said: dict[str, tuple[Any, Any]]
) -> None:
    assert differences(small(name, **mine), found(small(name, **theirs))) == said


def test_options_of_timm_count() -> None:
    plain, other = (
        create_model("fcn", 3, "test_efficientnet", output_stride=16, backbone_options=options)
        for options in ({}, {"bn_eps": 1e-3, "drop_path_rate": 0.1, "bn_momentum": 0.01})
    )
    assert differences(plain, found(other)) == {"bn_eps": (1e-3, None)}
    assert differences(other, found(plain)) == {"bn_eps": (None, 1e-3)}


def test_what_is_ignored_exists() -> None:
    known = {option for name in MODELS for option in model_options(name)}
    timms = {"bn_momentum", "drop_block_rate", "drop_path_rate", "drop_rate", "stem_type", "stem_width"}
    backbones = {"classifier", "coarsest", "in_channels", "levels", "mean", "pretrained", "std"}
    assert known | timms | backbones >= IGNORED
    assert known & {"align_corners", "rates", "bins", "padding", "at_once", "interpolation"} & IGNORED == set()


# ---- stages


def test_the_geometry_that_nobody_named_is_the_one_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    zoo.load_weights(narrow("fcn8s"), golden.fill(layout("fcn8s", 5)))
    assert capsys.readouterr().err == ""
    zoo.load_weights(narrow("fcn8s", at_once=True), golden.fill(layout("fcn8s", 5)))
    assert "fcn8s has at_once=False (here True)" in capsys.readouterr().err


def test_a_stage_of_another_geometry_is_refused() -> None:
    first, second = narrow("fcn32s", padding="same"), narrow("fcn16s", padding="caffe")
    before = {key: value.clone() for key, value in second.state_dict().items()}
    with pytest.raises(ZooError, match=r"fcn32s in .* has no upscore\.weight: build both with the same padding"):
        zoo.load_weights(second, model_file(first))
    assert all(torch.equal(value, before[key]) for key, value in second.state_dict().items())


def test_a_stage_that_resizes_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    first = narrow("fcn32s", padding="same", align_corners=True)
    zoo.load_weights(narrow("fcn16s", padding="same"), model_file(first))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("zoo's fcn32s has align_corners=True (here False)")


# ---- models that `create_model` did not build


def test_without_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    """All of the weights, with mean and std, and what can be compared."""
    first = small("deeplabv3", align_corners=True, dilation="full")
    first.backbone.set_statistics([0.1] * 3, [0.2] * 3)
    model = DeepLabV3(3, create_backbone("test_resnet", output_stride=16))
    zoo.load_weights(model, model_file(first))
    assert torch.equal(model.classifier[-1].weight, first.classifier[-1].weight)
    assert model.backbone.config["mean"] == pytest.approx([0.1] * 3)
    printed = capsys.readouterr().err
    assert "has dilation=full (here previous), align_corners=True (here False)" in printed


def test_what_needs_a_header_is_refused() -> None:
    first = small("fcn")
    model = FCN(3, create_backbone("test_resnet", output_stride=16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZooError, match="skip_head=True takes a twin of the model, and this FCN does not say"):
        zoo.load_weights(model, model_file(first), skip_head=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    stage = FCN16s(3, narrow("fcn32s").backbone)
    with pytest.raises(ZooError, match="beginning with the weights of fcn32s takes a twin"):
        zoo.load_weights(stage, model_file(narrow("fcn32s")))


def test_bare_weights_of_a_head_with_a_classifier_inside() -> None:
    """mmsegmentation's FCN in our names has keys that begin as VainF's do."""
    first, second = (small("fcn", concat_input=True, convs=2) for _ in range(2))
    with torch.no_grad():
        first.classifier.classifier[1].bias.add_(1)
    zoo.load_weights(second, first.state_dict())
    assert torch.equal(second.classifier.classifier[1].bias, first.classifier.classifier[1].bias)
    state = {key: torch.empty(shape, device="meta") for key, shape in golden.shapes("mmseg_fcn50").items()}
    recipe = mmseg.recipe(state)
    assert recipe.options["concat_input"]
    assert zoo.weights._source(recipe.state) is None
