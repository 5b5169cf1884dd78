"""VainF's DeepLabs: the numbers of its own code on the same weights, kept as goldens, and what its keys decide."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import zoo
from zoo.checkpoint import read
from zoo.errors import ZooError

PLUS, V3 = "vainf_deeplabv3plus_resnet50", "vainf_deeplabv3_resnet50"
MOBILE = "vainf_deeplabv3plus_mobilenet"


def blank(name: str) -> dict[str, Tensor]:
    return {key: torch.zeros(shape) for key, shape in golden.shapes(name).items()}


@pytest.mark.parametrize("name", [PLUS, V3, MOBILE])
def test_equals(name: str) -> None:
    model = zoo.load({"model_state": golden.fill(golden.shapes(name)), "cur_itrs": 30000})
    backbone = "mobilenetv2_100" if name == MOBILE else "resnet50"
    assert (model.header["name"], model.backbone.name) == (name.split("_")[1], backbone)
    golden.check(name, model)
    assumed = model.provenance["assumed"]
    assert (model.provenance["source"], assumed["output_stride"], assumed["align_corners"]) == ("VainF", 16, False)
    assert [c.name for c in model.classes][:2] == ["background", "aeroplane"]


def test_a_mobilenet_in_another_order(tmp_path: Path) -> None:
    """safetensors sorts by name, where block 10 comes before block 4; and a file may lack the counts of batches."""
    state = golden.fill(golden.shapes(MOBILE))
    save_file(state, tmp_path / "sorted.safetensors")
    golden.check(MOBILE, zoo.load(tmp_path / "sorted.safetensors"))
    golden.check(MOBILE, zoo.load({key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}))
    assert list(read(tmp_path / "sorted.safetensors")) != list(state)


def test_rates_follow_the_stride_that_is_told() -> None:
    model = zoo.load(blank(PLUS), output_stride=8)
    assert [branch[0].dilation[0] for branch in model.aspp.convs[1:-1]] == [12, 24, 36]
    assert "output_stride" not in model.provenance["assumed"]


def test_fine_features_move_behind_the_context() -> None:
    state = blank(PLUS)
    state["classifier.classifier.0.weight"][:, :48] = 1
    weight = zoo.load(state).decoder[0][0].weight
    assert weight[:, 256:].eq(1).all()
    assert weight[:, :256].eq(0).all()


def test_separable_convolutions() -> None:
    """As its --separable_conv makes them: the decoder's 3x3 convolution and ASPP's in two steps each."""
    state = blank(PLUS)
    places = {"classifier.classifier.0": 304} | {f"classifier.aspp.convs.{i}.0": 2048 for i in (1, 2, 3)}
    for place, width in places.items():
        del state[f"{place}.weight"]
        state[f"{place}.body.0.weight"] = torch.zeros(width, 1, 3, 3)
        state[f"{place}.body.1.weight"] = torch.zeros(256, width, 1, 1)
    for part in ("0.weight", "1.weight"):
        weight = state[f"classifier.classifier.0.body.{part}"]
        weight.narrow(0 if part == "0.weight" else 1, 0, 48).fill_(1)
    depthwise, pointwise = zoo.load(state).decoder[0][0]
    assert depthwise.weight[:, 0, 0, 0].tolist() == [0] * 256 + [1] * 48
    assert pointwise.weight[0, :, 0, 0].tolist() == [0] * 256 + [1] * 48


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("backbone.conv4.pointwise.weight", "its own Xception: its models on ResNets and MobileNetV2 load"),
        ("backbone.transition1.0.0.weight", "its own HRNet: its models on ResNets and MobileNetV2 load"),
        ("backbone.layer1.7.conv1.weight", "no ResNet of a known depth"),
    ],
)
def test_other_encoders_are_refused(key: str, said: str) -> None:
    with pytest.raises(ZooError, match=said):
        zoo.load({"model_state": {key: torch.zeros(1), **blank(PLUS)}})


def test_half_a_file() -> None:
    state = blank(V3)
    del state["classifier.classifier.4.weight"]
    with pytest.raises(ZooError, match=r"no classifier\.classifier\.4\.weight: is the file whole"):
        zoo.load(state)
    state = blank(MOBILE)
    del state["backbone.high_level_features.5.conv.3.bias"]
    with pytest.raises(ZooError, match=r"missing +backbone\.model\.blocks\.2\.1\.bn3\.bias"):
        zoo.load(state)
    state = {key: v for key, v in blank(MOBILE).items() if not key.startswith("backbone.high_level_features.5.conv.3")}
    with pytest.raises(ZooError, match=r"MobileNetV2 of VainF's has 101 layers, not 102"):
        zoo.load(state)
    state = blank(PLUS)
    del state["classifier.project.0.weight"]
    with pytest.raises(ZooError, match=r"missing +project\.0\.weight"):
        zoo.load(state)
