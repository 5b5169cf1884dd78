"""An smp state dict gives the model it came from; a `tu-` encoder needs its name, or the config.json beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import assert_equal, normalized, randomized
from torch import nn

import zoo
from zoo.errors import ZooError

smp = pytest.importorskip("segmentation_models_pytorch")


def peer(model: str, encoder: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomized(getattr(smp, model)(encoder, encoder_weights=None, **{"classes": 5, **options}))


@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        ("resnet18", (97, 131)),
        ("resnet50", (50, 83)),
        ("resnext50_32x4d", (64, 64)),
        ("vgg11", (50, 83)),
        ("vgg13_bn", (65, 33)),
        ("densenet121", (97, 83)),
        ("tu-resnet10t", (97, 83)),
        ("tu-test_convnext", (97, 83)),
        ("tu-test_efficientnet", (50, 83)),
        ("tu-mobilenetv3_small_050", (97, 83)),
        ("tu-densenet121", (50, 83)),
        ("tu-hrnet_w18_small", (64, 96)),
    ],
)
@torch.no_grad()
def test_unet_equals(encoder: str, size: tuple[int, int]) -> None:
    theirs = peer("Unet", encoder)
    timms = {"backbone": encoder.removeprefix("tu-")} if encoder.startswith("tu-") else {}
    ours = zoo.load(theirs.state_dict(), **timms)
    assert ours.header["name"] == "unet"
    assert ours.backbone.name == encoder.removeprefix("tu-")
    images = torch.rand(2, 3, *size)
    # smp leaves normalising to its user; for timm's encoders the statistics are timm's.
    assert_equal(ours(images), theirs(ours.backbone.normalize(images) if timms else normalized(images)))


@torch.no_grad()
def test_unet_with_other_widths_channels_and_attention() -> None:
    options = {"decoder_channels": (64, 48, 32, 24, 16), "decoder_attention_type": "scse", "in_channels": 4}
    theirs = peer("Unet", "resnet18", **options)
    ours = zoo.load(theirs.state_dict(), mean=[0.0] * 4, std=[1.0] * 4)
    images = torch.rand(1, 4, 49, 64)
    assert_equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("encoder", "output_stride"), [("resnet18", 8), ("resnet50", 16), ("tu-resnet10t", 8), ("tu-test_efficientnet", 16)]
)
@torch.no_grad()
def test_deeplabv3_equals(encoder: str, output_stride: int) -> None:
    theirs = peer("DeepLabV3", encoder, encoder_output_stride=output_stride)
    told: dict[str, Any] = {"backbone": encoder.removeprefix("tu-")} if encoder.startswith("tu-") else {}
    if output_stride != 8:
        told["output_stride"] = output_stride
    ours = zoo.load(theirs.state_dict(), **told)
    images = torch.rand(1, 3, 64, 96)  # smp's takes multiples of its stride alone
    assert_equal(ours(images), theirs(ours.backbone.normalize(images)))
    assert ours(torch.rand(1, 3, 33, 50)).shape == (1, 5, 33, 50)


@pytest.mark.parametrize(
    ("model", "encoder", "told", "options"),
    [
        ("DeepLabV3", "resnet18", {}, {"decoder_aspp_separable": True}),
        ("DeepLabV3Plus", "resnet18", {}, {}),
        ("DeepLabV3Plus", "resnet50", {"output_stride": 8}, {"encoder_output_stride": 8, "decoder_channels": 96}),
        ("DeepLabV3Plus", "resnet18", {}, {"decoder_aspp_separable": False}),
        ("DeepLabV3Plus", "tu-test_efficientnet", {"backbone": "test_efficientnet"}, {}),
        ("DeepLabV3Plus", "tu-convnext_atto", {"backbone": "convnext_atto"}, {}),  # no level at stride 2
        ("PSPNet", "resnet18", {}, {"psp_out_channels": 64}),
        ("PSPNet", "resnet50", {}, {}),
        ("PSPNet", "resnet18", {}, {"encoder_depth": 4, "upsampling": 16}),
        ("PSPNet", "vgg11", {}, {}),
        ("PSPNet", "densenet121", {}, {}),
        ("PSPNet", "tu-resnet10t", {"backbone": "resnet10t"}, {}),
        ("PSPNet", "tu-test_efficientnet", {"backbone": "test_efficientnet"}, {}),
    ],
)
@torch.no_grad()
def test_dilated_models_equal(model: str, encoder: str, told: dict[str, Any], options: dict[str, Any]) -> None:
    theirs = peer(model, encoder, **options)
    ours = zoo.load(theirs.state_dict(), **told)
    assert ours.header["name"] == model.lower()
    images = torch.rand(2, 3, 64, 96)  # smp's takes multiples of its stride alone
    assert_equal(ours(images), theirs(ours.backbone.normalize(images)))
    assert ours(torch.rand(1, 3, 33, 50)).shape == (1, 5, 33, 50)


def test_unused_stages_are_left_out_and_said() -> None:
    model = zoo.load(peer("PSPNet", "resnet18").state_dict())
    assert not any(key.startswith(("layer3", "layer4")) for key in model.backbone.model.state_dict())
    assumed = model.provenance["assumed"]
    assert (assumed["coarsest"], assumed["align_corners"]) == (8, True)
    assert "left out" in assumed["encoder's unused stages"]
    state = peer("PSPNet", "resnet18").state_dict()
    state["encoder.layer4.extra.weight"] = torch.zeros(3)  # of no ResNet
    with pytest.raises(ZooError, match=r"unexpected  backbone\.model\.layer4\.extra\.weight"):
        zoo.load(state)


def test_what_deeplabv3plus_assumes() -> None:
    assumed = zoo.load(peer("DeepLabV3Plus", "resnet18").state_dict()).provenance["assumed"]
    assert (assumed["output_stride"], assumed["dilation"], assumed["rates"]) == (16, "full", [12, 24, 36])


def test_stride_8_and_16_have_the_same_keys() -> None:
    """Which is why it is assumed, said, and can be overridden."""
    model = zoo.load(peer("DeepLabV3", "resnet18", encoder_output_stride=16).state_dict())
    assert model.backbone.strides[-1] == 8
    assumed = model.provenance["assumed"]
    assert (assumed["output_stride"], assumed["dilation"], assumed["align_corners"]) == (8, "full", True)


def test_older_deeplabv3_names() -> None:
    theirs = peer("DeepLabV3", "resnet18")
    parts = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    state = {}
    for key, value in theirs.state_dict().items():
        new = next((old + key.removeprefix(now) for now, old in parts.items() if key.startswith(now)), key)
        state[new] = value
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert_equal(zoo.load(state)(images), theirs(normalized(images)))


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("Unet", {}),
        ("DeepLabV3", {"encoder_output_stride": 16, "decoder_atrous_rates": (6, 12, 18)}),
        ("DeepLabV3Plus", {"encoder_output_stride": 8, "decoder_atrous_rates": (6, 12, 18)}),
        ("PSPNet", {"encoder_depth": 4, "upsampling": 16}),
    ],
)
def test_a_folder_tells_all(tmp_path: Path, model: str, own: dict[str, Any]) -> None:
    """What save_pretrained writes needs no options: timm's encoder, output stride and rates are in config.json."""
    theirs = peer(model, "tu-resnet10t", **own)
    theirs.save_pretrained(tmp_path)
    ours = zoo.load(tmp_path)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(ours(images), theirs(ours.backbone.normalize(images)))
    assert not {"output_stride", "rates", "interpolation", "coarsest"} & set(ours.provenance["assumed"])


@pytest.mark.parametrize(
    "model",
    ["UnetPlusPlus", "FPN", "Linknet", "MAnet", "PAN", "UPerNet", "Segformer"],
)
def test_other_decoders_are_refused_by_name(model: str) -> None:
    theirs = getattr(smp, model)("resnet18", encoder_weights=None, classes=2)
    name = {"UnetPlusPlus": r"Unet\+\+"}.get(model, model)
    with pytest.raises(ZooError, match=rf"smp's {name} is not in this zoo yet: its Unet, DeepLabV3, DeepLabV3Plus and"):
        zoo.load(theirs.state_dict())


def test_timm_encoder_without_a_name() -> None:
    with pytest.raises(ZooError, match=r"keys cannot tell which: zoo\.load\(x, backbone=NAME\)"):
        zoo.load(peer("Unet", "tu-resnet10t").state_dict())


def test_timm_encoder_with_a_wrong_name() -> None:
    with pytest.raises(ZooError, match="keys do not fit"):
        zoo.load(peer("Unet", "tu-test_efficientnet").state_dict(), backbone="test_resnet")


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "mit_b0", "se_resnet50", "timm-skresnet18"])
def test_unknown_encoders(encoder: str) -> None:
    if encoder not in smp.encoders.get_encoder_names():
        pytest.skip(f"this smp has no {encoder}")
    with pytest.raises(ZooError, match=r"encoder .* has no counterpart here: resnet\*"):
        zoo.load(peer("Unet", encoder).state_dict())


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    theirs = peer("Unet", "resnet18", encoder_depth=3, decoder_channels=(64, 32, 16))
    with pytest.raises(ZooError, match="encoder_depth=3 has no counterpart here: depth 5 loads"):
        zoo.load(theirs.state_dict())
    peer("DeepLabV3Plus", "resnet18", encoder_depth=4).save_pretrained(tmp_path)
    with pytest.raises(ZooError, match="DeepLabV3Plus with encoder_depth=4 has no counterpart here: depth 5 loads"):
        zoo.load(tmp_path)
    with pytest.raises(ZooError, match="smp's PSPNet without batch norm in the decoder"):
        zoo.load(peer("PSPNet", "resnet18", decoder_use_norm=False).state_dict())


@pytest.mark.parametrize("lost", ["decoder.block1.0.weight", "decoder.aspp.0.project.0.weight"])
def test_half_a_file(lost: str) -> None:
    state = peer("DeepLabV3Plus", "resnet18").state_dict()
    del state[lost]
    with pytest.raises(ZooError, match=rf"no {lost}: is the file whole|missing +aspp\.project\.0\.weight"):
        zoo.load(state)
