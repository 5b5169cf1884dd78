"""U-Net, DeepLabV3, DeepLabV3+ and PSPNet equal segmentation_models_pytorch's, weights copied over by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import assert_equal, normalized, randomize
from torch import nn
from torch.nn import functional as F

import zoo.models
from zoo.structures import Batch, Semantic

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


def deeplabv3plus_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES, decoder_aspp_dropout=0.0)
    randomize(theirs)
    ours = zoo.models.create_model(
        "deeplabv3plus",
        CLASSES,
        "resnet18",
        backbone_options={"dilation": "full"},
        rates=(12, 24, 36),
        dropout=0.0,
        separable="smp",
        post_conv=True,
        decoder_convs=1,
        align_corners=True,
    )
    ours.load_state_dict({plus_name(key): value for key, value in theirs.state_dict().items()})
    return ours, theirs


def plus_name(key: str) -> str:
    """smp's name -> ours for a DeepLabV3+."""
    prefixes = {
        "encoder.": "backbone.model.",
        "decoder.aspp.0.": "aspp.",
        "decoder.aspp.1.": "post.0.",
        "decoder.aspp.2.": "post.1.",
        "decoder.block1.": "project.",
        "decoder.block2.": "decoder.0.",
        "segmentation_head.0.": "classifier.",
    }
    theirs = next(prefix for prefix in prefixes if key.startswith(prefix))
    return prefixes[theirs] + key.removeprefix(theirs)


def test_deeplabv3plus_equals() -> None:
    """Logits; then, in training and double precision, loss and gradients."""
    ours, theirs = (model.eval() for model in deeplabv3plus_pair())
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_equal(ours(images), theirs(normalized(images)))

    ours, theirs = (model.train().double() for model in (ours, theirs))
    labels = torch.arange(2 * 64 * 96).remainder(CLASSES).view(2, 64, 96).to(torch.uint8)
    labels[:, :20] = 255
    expected = F.cross_entropy(theirs(normalized(images.double())), labels.long(), ignore_index=255)
    expected.backward()
    term = ours.loss(Batch.of(images, [Semantic(row) for row in labels]))["cross_entropy"]
    term.backward()
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=0, check_dtype=False)
    gradients = {plus_name(key): parameter.grad for key, parameter in theirs.named_parameters()}
    for key in ("aspp.convs.2.0.0.weight", "aspp.convs.4.1.weight", "project.0.weight", "decoder.0.0.1.weight"):
        assert_equal(ours.get_parameter(key).grad, gradients[key])


@torch.no_grad()
def test_pspnet_equals() -> None:
    torch.manual_seed(0)
    theirs = randomize(smp.PSPNet("resnet18", encoder_weights=None, classes=CLASSES, psp_out_channels=64)).eval()
    ours = zoo.models.create_model(
        "pspnet",
        CLASSES,
        "resnet18",
        output_stride=32,
        backbone_options={"levels": 1, "coarsest": 8},
        global_norm=False,
        channels=64,
        fuse_kernel=1,
        classifier_kernel=3,
        aux_weight=0,
    ).eval()
    state = {}
    for key, value in theirs.state_dict().items():
        if key.startswith(("encoder.layer3.", "encoder.layer4.")):
            continue
        if key == "decoder.conv.0.weight":  # [pools, features] -> [features, pools]
            value = value.roll(128, dims=1)
        for old, new in (
            ("encoder.", "backbone.model."),
            ("decoder.psp.blocks.", "ppm.features."),
            (".pool.1.1.", ".2."),
            (".pool.1.0.", ".1."),
            ("decoder.conv.", "cls."),
            ("segmentation_head.0.", "cls.4."),
        ):
            key = key.replace(old, new)
        state[key] = value
    ours.load_state_dict(state)
    images = torch.rand(2, 3, 64, 96)
    assert_equal(ours(images), theirs(normalized(images)))
