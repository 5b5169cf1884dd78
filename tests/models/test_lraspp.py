"""LR-ASPP: torchvision's parameters, the gate, which features are fine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.lraspp import LRASPPHead


def test_parameters_of_torchvision() -> None:
    model = create_model("lraspp", 21)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_221_538
    assert (model.backbone.strides, model.backbone.channels) == ([8, 16, 16], [40, 112, 960])


def test_the_head_by_hand() -> None:
    """One channel: relu(3x) times sigmoid(2 mean(x)), resized, plus the fine features."""
    head = LRASPPHead(1, 1, 1, 1).eval()
    for parameter in head.parameters():
        nn.init.ones_(parameter) if parameter.ndim == 4 else nn.init.zeros_(parameter)
    nn.init.constant_(head.cbr[0].weight, 3)
    nn.init.ones_(head.cbr[1].weight)
    head.cbr[1].eps = 0.0
    nn.init.constant_(head.scale[1].weight, 2)
    high, low = torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[[[0.5, 0.25, 0.0]]]])
    gate = torch.tensor(2 * 0.5).sigmoid().item()
    expected = [0.5, 0.25 + 3 * gate, 6 * gate]
    assert head(low, high, align_corners=True).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("stride", "levels", "index"), [(16, 3, 0), (16, 4, 1), (32, 3, 0), (8, 3, 0)])
def test_fine_features_are_at_stride_8(stride: int, levels: int, index: int) -> None:
    options = {"levels": levels}
    model = create_model("lraspp", 2, "test_efficientnet", output_stride=stride, backbone_options=options)
    assert (model.low_level, model.backbone.strides[index]) == (index, 8)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ZooError, match=r"besides the coarsest; test_resnet gives strides \[16\]: build it with levels"):
        create_model("lraspp", 2, "test_resnet", backbone_options={"levels": 1})
    with pytest.raises(ZooError, match=r"unknown module of test_efficientnet 'blocks.9': did you mean"):
        create_model("lraspp", 2, "test_efficientnet", low_module="blocks.9")
