"""U-Net and DeepLabV3 equal segmentation_models_pytorch's, weights copied over by renaming prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import assert_equal, normalized, randomize
from torch import nn

import zoo.models

smp = pytest.importorskip("segmentation_models_pytorch")
CLASSES = 5


def renamed(state: dict[str, torch.Tensor], encoder: str = "encoder.") -> dict[str, torch.Tensor]:
    """smp's names -> ours for a U-Net."""
    prefixes = {encoder: "backbone.model.", "segmentation_head.0.": "head."}
    result = {}
    for key, value in state.items():
        for theirs, ours in prefixes.items():
            if key.startswith(theirs):
                key = ours + key.removeprefix(theirs)
        result[key.replace(".attention.", ".")] = value
    return result


def unet_pair(backbone: str, encoder: str, options: dict[str, Any], theirs_options: dict[str, Any]) -> list[nn.Module]:
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=CLASSES, **theirs_options)
    randomize(theirs)
    ours = zoo.models.create_model("unet", CLASSES, backbone, **options)
    state = renamed(theirs.state_dict(), "encoder.model." if encoder.startswith("tu-") else "encoder.")
    if encoder.startswith("tu-"):  # timm's default wrapper flattens stages.0 into stages_0; the order is the same
        names = [key for key in ours.state_dict() if key.startswith("backbone.")]
        trunk = [value for key, value in state.items() if key.startswith("backbone.")]
        state = {key: value for key, value in state.items() if not key.startswith("backbone.")}
        state |= dict(zip(names, trunk, strict=True))
    ours.load_state_dict(state)
    return [ours.eval(), theirs.eval()]


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("resnet18", (250, 333)),
        ("resnet18", (97, 97)),
        ("resnet18", (33, 64)),
        ("resnet50", (97, 130)),
        ("vgg11", (65, 97)),
        ("vgg13_bn", (97, 65)),
    ],
)
def test_unet_equals(backbone: str, size: tuple[int, int]) -> None:
    ours, theirs = unet_pair(backbone, backbone, {}, {})
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert_equal(ours(images), theirs(normalized(images)))


@pytest.mark.parametrize("backbone", ["convnext_atto", "efficientnet_b0"])
def test_unet_equals_on_timm(backbone: str) -> None:
    """convnext has no level at stride 2: smp puts an empty tensor there, we a block without a skip."""
    ours, theirs = unet_pair(backbone, f"tu-{backbone}", {}, {})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(ours(images), theirs(normalized(images)))


def test_unet_options_equal() -> None:
    ours, theirs = unet_pair(
        "resnet18",
        "resnet18",
        {"decoder_channels": (64, 48, 32, 32, 16), "interpolation": "bilinear", "attention": True},
        {
            "decoder_channels": (64, 48, 32, 32, 16),
            "decoder_interpolation": "bilinear",
            "decoder_attention_type": "scse",
        },
    )
    images = torch.rand(1, 3, 97, 66)
    with torch.no_grad():
        assert_equal(ours(images), theirs(normalized(images)))


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplabv3_equals(output_stride: int) -> None:
    torch.manual_seed(0)
    theirs = smp.DeepLabV3("resnet34", encoder_weights=None, encoder_output_stride=output_stride, classes=CLASSES)
    randomize(theirs)
    ours = zoo.models.create_model(
        "deeplabv3",
        CLASSES,
        "resnet34",
        output_stride=output_stride,
        backbone_options={"dilation": "full"},
        rates=(12, 24, 36),
        aux_weight=0,
        align_corners=True,
    )
    prefixes = {
        "encoder.": "backbone.model.",
        "decoder.aspp.": "classifier.0.",
        "decoder.conv.": "classifier.1.",
        "decoder.bn.": "classifier.2.",
        "segmentation_head.0.": "classifier.4.",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        theirs_prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
        state[prefixes[theirs_prefix] + key.removeprefix(theirs_prefix)] = value
    ours.load_state_dict(state)
    images = torch.rand(1, 3, 96, 144)
    with torch.no_grad():
        assert_equal(ours.eval()(images), theirs.eval()(normalized(images)))
