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


@pytest.mark.parametrize("model", ["Unet", "DeepLabV3"])
def test_a_folder_tells_all(tmp_path: Path, model: str) -> None:
    """What save_pretrained writes needs no options: timm's encoder, output stride and rates are in config.json."""
    own = {"encoder_output_stride": 16, "decoder_atrous_rates": (6, 12, 18)} if model == "DeepLabV3" else {}
    theirs = peer(model, "tu-resnet10t", **own)
    theirs.save_pretrained(tmp_path)
    ours = zoo.load(tmp_path)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(ours(images), theirs(ours.backbone.normalize(images)))
    assert not {"output_stride", "rates", "interpolation"} & set(ours.provenance["assumed"])


@pytest.mark.parametrize(
    "model",
    ["UnetPlusPlus", "FPN", "PSPNet", "Linknet", "MAnet", "PAN", "DeepLabV3Plus", "UPerNet", "Segformer"],
)
def test_other_decoders_are_refused_by_name(model: str) -> None:
    theirs = getattr(smp, model)("resnet18", encoder_weights=None, classes=2)
    name = {"UnetPlusPlus": r"Unet\+\+", "DeepLabV3Plus": r"DeepLabV3\+"}.get(model, model)
    with pytest.raises(ZooError, match=rf"smp's {name} is not in this zoo yet: its Unet and DeepLabV3 load"):
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


def test_depth_three_is_refused() -> None:
    theirs = peer("Unet", "resnet18", encoder_depth=3, decoder_channels=(64, 32, 16))
    with pytest.raises(ZooError, match="encoder_depth=3 has no counterpart here: depth 5 loads"):
        zoo.load(theirs.state_dict())
