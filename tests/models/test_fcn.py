"""FCN: counts, the auxiliary head, mmsegmentation's head, and backbones that cannot keep stride 8."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.models import create_model


@pytest.mark.parametrize(
    ("backbone", "aux_weight", "expected"),
    [
        ("resnet50", 0.5, 35_322_218),
        ("resnet50", 0, 32_957_013),
        ("resnet101", 0.5, 54_314_346),
        ("resnet101", 0, 51_949_141),
    ],
)
def test_parameters_of_torchvision(backbone: str, aux_weight: float, expected: int) -> None:
    with torch.device("meta"):
        model = create_model("fcn", 21, backbone, aux_weight=aux_weight)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_features_keep_stride_8() -> None:
    model = create_model("fcn", 2, "test_resnet").eval()
    assert model.backbone.strides[-1] == 8
    features = model.extract(torch.randn(1, 3, 65, 97))
    assert model.decode(features, (65, 97)).shape == (1, 2, 9, 13)
    assert [weight for weight, _ in model.auxiliary(features)] == [0.5]


def test_no_auxiliary_head_without_weight() -> None:
    model = create_model("fcn", 2, "test_resnet", aux_weight=0)
    assert model.auxiliary(model.extract(torch.randn(1, 3, 64, 64))) == []
    assert not any(key.startswith("aux") for key in model.state_dict())


def test_a_backbone_that_cannot_dilate_is_refused_unless_coarse_is_asked_for() -> None:
    with pytest.raises(ZooError, match=r"swin_tiny.*output stride of 8: use one that can \(resnet.*output_stride=32"):
        create_model("fcn", 2, "swin_tiny_patch4_window7_224")
    model = create_model("fcn", 2, "pvt_v2_b0", output_stride=32).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 97, 130)).shape == (1, 2, 97, 130)


@torch.no_grad()
def test_mmsegmentations_head_sees_its_input_twice() -> None:
    options = {"convs": 2, "concat_input": True, "channels": 24, "head_dilation": 6, "dropout2d": True}
    model = create_model("fcn", 3, "test_resnet", **options, aux_channels=10).eval()
    head = model.classifier
    assert [layer.dilation[0] for layer in head.convs if isinstance(layer, nn.Conv2d)] == [6, 6]
    assert head.fuse[0].dilation == (1, 1)  # mmsegmentation dilates the others alone
    x = torch.randn(1, model.backbone.channels[-1], 9, 13)
    y = x
    for layer in head.convs:
        y = layer(y)
    expected = head.classifier[1](head.fuse(torch.cat([x, y], dim=1)))
    torch.testing.assert_close(model.decode([x], (72, 104)), expected)
    dropouts = [type(module) for module in model.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))]
    assert dropouts == [nn.Dropout2d, nn.Dropout2d]
    assert model.aux_classifier[4].weight.shape == (3, 10, 1, 1)


def test_a_head_has_a_convolution() -> None:
    with pytest.raises(ZooError, match="convs=0: the head of an FCN has at least 1"):
        create_model("fcn", 2, "test_resnet", convs=0)
    with pytest.raises(ZooError, match=r"^dropout=2: give the share of values to drop"):
        create_model("fcn", 2, "test_resnet", dropout=2)


@pytest.mark.parametrize("name", ["fcn", "pspnet", "deeplabv3"])
def test_an_auxiliary_head_wants_a_level_of_its_own(name: str) -> None:
    options = {"backbone_options": {"levels": 1}}
    with pytest.raises(
        ZooError, match=r"before the coarsest, and backbone test_resnet gives 1: .* or take aux_weight=0"
    ):
        create_model(name, 2, "test_resnet", **options)
    assert not create_model(name, 2, "test_resnet", aux_weight=0, **options).auxiliary([])
