"""RefineNet: each of its parts by hand, the cascade over any number of levels, the paper's numbers of units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models import create_backbone, create_model
from zoo.models.refinenet import ChainedResidualPooling, Fusion, RefineNet, ResidualConvUnit

NARROW: dict[str, Any] = {"channels": (12, 8)}


def pass_through(conv: nn.Conv2d) -> None:
    """The convolution that copies its input."""
    with torch.no_grad():
        conv.weight.copy_(torch.zeros_like(conv.weight))
        conv.weight[:, :, 1, 1] = torch.eye(conv.out_channels, conv.in_channels)
        if conv.bias is not None:
            conv.bias.zero_()


@pytest.mark.parametrize(("backbone", "expected"), [("resnet50", 99_060_309), ("resnet101", 118_052_437)])
def test_parameters_of_the_release(backbone: str, expected: int) -> None:
    model = create_model("refinenet", 21, backbone)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_residual_unit_carries_what_comes_in_past_its_rectifiers() -> None:
    unit = ResidualConvUnit(2)
    for conv in (unit.conv1, unit.conv2):
        pass_through(conv)
    x = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1).repeat(1, 1, 3, 3)
    kept = x.clone()
    y = unit(x)
    assert torch.equal(y[0, :, 1, 1], torch.tensor([-1.0, 4.0]))  # x + ReLU(x)
    assert torch.equal(x, kept)


def test_chained_pooling_adds_ever_wider_maxima() -> None:
    chain = ChainedResidualPooling(1, stages=2)
    for conv in chain.convs:
        pass_through(conv)
    x = torch.zeros(1, 1, 13, 13)
    x[..., 6, 6] = 1.0
    y = chain(x)[0, 0]
    distance = (torch.arange(13) - 6).abs()
    furthest = torch.maximum(distance[:, None], distance[None])
    expected = (furthest == 0).float() + (furthest <= 2) + (furthest <= 4)
    assert torch.equal(y, expected)
    assert torch.equal(ChainedResidualPooling(1, stages=0)(x), x)


@pytest.mark.parametrize(
    ("align", "row"), [(True, [0.0, 1.0, 2.0, 3.0]), (False, [0.0, 0.75, 2.25, 3.0])], ids=["corners", "edges"]
)
def test_fusion_resizes_the_coarse_path_and_adds(align: bool, row: list[float]) -> None:
    fusion = Fusion(1, 1, align)
    for conv in (fusion.fine, fusion.coarse):
        pass_through(conv)
    coarse = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    fused = fusion(torch.full((1, 1, 1, 4), 10.0), coarse)
    torch.testing.assert_close(fused, 10 + torch.tensor(row).view(1, 1, 1, 4))


def test_only_the_first_convolution_of_a_unit_and_the_classifier_have_a_bias_and_nothing_is_normalised() -> None:
    model = create_model("refinenet", 3, "test_resnet", **NARROW)
    decoder = {name: m for name, m in model.named_modules() if not name.startswith("backbone") and name}
    biased = {name for name, m in decoder.items() if isinstance(m, nn.Conv2d) and m.bias is not None}
    units = {f"{name}.conv1" for name, m in decoder.items() if isinstance(m, ResidualConvUnit)}
    assert biased == {"classifier", *units}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in decoder.values())


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_one_block_for_each_level(levels: int) -> None:
    backbone = create_backbone("test_resnet", levels=levels)
    model = RefineNet(3, backbone, **NARROW).eval()
    assert [block.reduce.in_channels for block in model.blocks] == backbone.channels[::-1]
    assert [block.reduce.out_channels for block in model.blocks] == [12, 8, 8, 8][:levels]
    assert [block.fusion is None for block in model.blocks] == [True, False, False, False][:levels]
    with torch.no_grad():
        features = model.extract(torch.rand(1, 3, 75, 50))
        assert model.decode(features, (75, 50)).shape == (1, 3, *features[0].shape[-2:])
        assert model(torch.rand(1, 3, 75, 50)).shape == (1, 3, 75, 50)


def test_dropout_is_on_the_two_coarsest_levels_and_before_the_classifier() -> None:
    model = create_model("refinenet", 3, "test_resnet", **NARROW, dropout=1.0).train()
    seen: list[Tensor] = []
    for layer in (*(block.reduce for block in model.blocks), model.classifier):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = model(torch.rand(1, 3, 64, 64))
    assert [bool(x.any()) for x in seen] == [False, False, True, True, False]
    torch.testing.assert_close(logits, model.classifier.bias.view(1, 3, 1, 1).expand_as(logits))


def test_the_papers_units() -> None:
    model = create_model("refinenet", 3, "test_resnet", **NARROW, crp_stages=2, output_units=1, final_units=3)
    assert [len(block.input) for block in model.blocks] == [2, 2, 2, 2]
    assert [len(block.pooling.convs) for block in model.blocks] == [2, 2, 2, 2]
    assert [len(block.output) for block in model.blocks] == [1, 1, 1, 3]
    released = create_model("refinenet", 3, "test_resnet", **NARROW)
    assert [len(block.output) for block in released.blocks] == [3, 3, 3, 3]


def test_what_makes_no_network_is_said() -> None:
    with pytest.raises(ZooError, match=r"^channels=\[512\]: give two widths"):
        create_model("refinenet", 3, "test_resnet", channels=[512])
    with pytest.raises(ZooError, match=r"^channels=256: give two widths"):
        create_model("refinenet", 3, "test_resnet", channels=256)
    with pytest.raises(ZooError, match=r"^dropout=2: give the share of values to drop"):
        create_model("refinenet", 3, "test_resnet", dropout=2)
    with pytest.raises(ZooError, match=r"crp_stages=-1: none may be negative"):
        create_model("refinenet", 3, "test_resnet", crp_stages=-1)
