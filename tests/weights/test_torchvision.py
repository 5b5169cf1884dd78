"""A torchvision state dict, and nothing else, gives the model it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peers import assert_equal, normalized, randomized
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation

import zoo
from zoo.errors import ZooError

SIZES = [(65, 97), (50, 83)]


def peer(name: str, classes: int = 5, aux: bool = False) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(segmentation, name)
    return randomized(build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux))


@pytest.mark.parametrize(
    ("name", "aux", "backbone"),
    [
        ("fcn_resnet50", True, "resnet50"),
        ("fcn_resnet101", False, "resnet101"),
        ("deeplabv3_resnet50", True, "resnet50"),
        ("deeplabv3_resnet101", False, "resnet101"),
        ("deeplabv3_mobilenet_v3_large", True, "mobilenetv3_large_100"),
        ("deeplabv3_mobilenet_v3_large", False, "mobilenetv3_large_100"),
    ],
)
@torch.no_grad()
def test_equals(name: str, aux: bool, backbone: str) -> None:
    theirs = peer(name, aux=aux)
    ours = zoo.load(theirs.state_dict())
    assert (ours.header["name"], ours.backbone.name) == (name.split("_")[0], backbone)
    assert not ours.training
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        wanted = theirs(normalized(images))
        assert_equal(ours(images), wanted["out"])
        heads = ours.auxiliary(ours.extract(ours.backbone.normalize(images)))
        assert bool(heads) == aux
        for weight, logits in heads:
            assert weight == 0.5
            assert_equal(F.interpolate(logits, size, mode="bilinear", align_corners=False), wanted["aux"])


def test_provenance_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.load(peer("deeplabv3_resnet50", classes=21).state_dict())
    assert model.provenance["source"] == "torchvision"
    assumed = model.provenance["assumed"]
    assert assumed["align_corners"] is False
    assert assumed["dilation"] == "previous"
    assert assumed["rates"] == [12, 24, 36]
    assert assumed["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert [c.name for c in model.classes][:2] == ["background", "aeroplane"]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert "torchvision's deeplabv3 on resnet50; assumed" in printed[0]


def test_options_win() -> None:
    state = peer("deeplabv3_resnet50", classes=2).state_dict()
    model = zoo.load(state, output_stride=16, rates=[6, 12, 18], classes=["no", "yes"], flip=True, mean=[0.5] * 3)
    assert model.backbone.strides[-1] == 16
    assert [c.name for c in model.classes] == ["no", "yes"]
    assert model.flip
    assert model.header["options"]["rates"] == [6, 12, 18]
    assert model.backbone.config["mean"] == [0.5] * 3
    assert not {"output_stride", "rates", "mean"} & set(model.provenance["assumed"])
    with pytest.raises(ZooError, match=r"unknown option of deeplabv3 'rate': did you mean rates"):
        zoo.load(state, rate=[6, 12, 18])


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files(tmp_path: Path, wrap: str | None, kind: str) -> None:
    """As people save them: inside a training checkpoint, from DataParallel, in either format."""
    theirs = peer("deeplabv3_mobilenet_v3_large")
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "x.pth")
    model = zoo.load(tmp_path / f"x.{kind}")
    images = torch.rand(1, 3, 33, 49)
    with torch.no_grad():
        assert_equal(model(images), theirs(normalized(images))["out"])
    assert model.provenance["file"] == str(tmp_path / f"x.{kind}")


def test_saved_as_ours_and_loaded_again(tmp_path: Path) -> None:
    """The header carries what the import decided."""
    from zoo.checkpoint import save_model

    first = zoo.load(peer("deeplabv3_mobilenet_v3_large", aux=True).state_dict())
    save_model(tmp_path / "ours.ckpt", first)
    second = zoo.load(tmp_path / "ours.ckpt")
    images = torch.randint(0, 256, (1, 3, 47, 61), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


@torch.no_grad()
def test_lraspp_equals() -> None:
    torch.manual_seed(0)
    theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    randomized(theirs)
    ours = zoo.load(theirs.state_dict())
    assert (ours.header["name"], ours.backbone.name) == ("lraspp", "mobilenetv3_large_100")
    assert [c.name for c in ours.classes][:2] == ["background", "aeroplane"]
    assert ours.provenance["assumed"]["dilation"] == "full"
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        assert_equal(ours(images), theirs(normalized(images))["out"])


@pytest.mark.parametrize("lost", ["backbone.layer3.4.conv2.weight", "classifier.4.bias", "backbone.3.block.1.0.weight"])
def test_a_lost_key_is_named(lost: str) -> None:
    name = "deeplabv3_mobilenet_v3_large" if lost.startswith("backbone.3") else "fcn_resnet50"
    state = peer(name).state_dict()
    del state[lost]
    with pytest.raises(ZooError, match=r"1 key does not fit") as error:
        zoo.load(state)
    assert "missing" in str(error.value)


def test_half_a_file() -> None:
    state = peer("fcn_resnet50").state_dict()
    with pytest.raises(ZooError, match="of no known layout"):
        zoo.load({key: value for key, value in state.items() if key.startswith("backbone.")})
    with pytest.raises(ZooError, match=r"no classifier\.4\.weight: is the file whole"):
        zoo.load({key: value for key, value in state.items() if "classifier.4" not in key})
