"""DeepLabV3+: parameters of three implementations, which features are fine, what is concatenated, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.deeplabv3plus import DeepLabV3Plus

VAINF: dict[str, Any] = {"decoder_convs": 1}
SMP: dict[str, Any] = {"decoder_convs": 1, "separable": "smp", "post_conv": True}


@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        ("resnet50", VAINF, 39_761_845),
        ("resnet101", VAINF, 58_753_973),
        ("mobilenetv2_100", VAINF, 5_225_717),
        ("resnet50", SMP, 26_682_725),
        ("resnet101", SMP, 45_674_853),
    ],
)
def test_parameters_of_others(backbone: str, options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        model = create_model("deeplabv3plus", 21, backbone, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_papers_decoder() -> None:
    """Two plain 3x3 convolutions of 256 on 256 + 48 channels, at stride 4."""
    model = create_model("deeplabv3plus", 21, "resnet18").eval()
    assert [block[0].weight.shape for block in model.decoder] == [(256, 304, 3, 3), (256, 256, 3, 3)]
    assert model.project[0].weight.shape == (48, 64, 1, 1)
    assert [branch[0].dilation[0] for branch in model.aspp.convs[1:-1]] == [6, 12, 18]
    features = model.extract(torch.rand(1, 3, 96, 64))
    assert model.decode(features, (96, 64)).shape == (1, 21, 24, 16)


@pytest.mark.parametrize(
    ("backbone", "options", "stride", "rates"),
    [
        ("test_resnet", {"output_stride": 8}, 4, [12, 24, 36]),
        ("test_resnet", {"output_stride": 32}, 4, [3, 6, 9]),
        ("test_efficientnet", {"backbone_options": {"levels": 5}}, 4, [6, 12, 18]),  # its finest is at stride 2
        ("test_efficientnet", {"backbone_options": {"levels": 3}}, 8, [6, 12, 18]),
        ("unet", {"output_stride": 32}, 4, [6, 12, 18]),
    ],
)
def test_fine_features_and_rates(backbone: str, options: dict[str, Any], stride: int, rates: list[int]) -> None:
    model = create_model("deeplabv3plus", 2, backbone, **options)
    assert model.backbone.strides[model.low_level] == stride
    assert model.project[0].in_channels == model.backbone.channels[model.low_level]
    assert [branch[0].dilation[0] for branch in model.aspp.convs[1:-1]] == rates


def test_context_comes_first_and_is_resized() -> None:
    """With one-channel stand-ins for what surrounds it, the concatenation is [context, fine features]."""
    model: DeepLabV3Plus = create_model("deeplabv3plus", 2, "test_resnet", align_corners=True)
    model.aspp = nn.Conv2d(1, 1, 1, bias=False)
    model.project = model.decoder = model.classifier = nn.Identity()
    nn.init.constant_(model.aspp.weight, 2)
    fine, coarse = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1.0, 2.0]]]])
    decoded = model.decode([fine, coarse], (4, 12))
    assert decoded.tolist() == [[[[2.0, 3.0, 4.0]], [[0.0, 0.0, 0.0]]]]


def test_separable_convolutions_where_asked_for() -> None:
    def depthwise(part: nn.Module) -> int:
        return sum(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in part.modules())

    both = create_model("deeplabv3plus", 2, "test_resnet", separable="tf", post_conv=True)
    assert (depthwise(both.aspp), depthwise(both.post), depthwise(both.decoder)) == (3, 1, 2)
    decoders = create_model("deeplabv3plus", 2, "test_resnet", separable="tf", aspp_separable=False)
    assert (depthwise(decoders.aspp), depthwise(decoders.decoder)) == (0, 2)


def test_auxiliary_head() -> None:
    model = create_model("deeplabv3plus", 2, "test_resnet", aux_weight=0.4, aux_channels=7)
    features = model.extract(torch.rand(2, 3, 64, 64))
    ((weight, logits),) = model.auxiliary(features)
    assert weight == 0.4
    assert logits.shape == (2, 2, 4, 4)
    assert model.aux_classifier[0].weight.shape[0] == 7
    assert create_model("deeplabv3plus", 2, "test_resnet").auxiliary(features) == []


def test_a_backbone_with_one_level_is_refused() -> None:
    with pytest.raises(ZooError, match=r"besides the coarsest; test_resnet gives strides \[16\]: build it with levels"):
        create_model("deeplabv3plus", 2, "test_resnet", backbone_options={"levels": 1})
