"""DeepLabV3: rates that follow the stride, the cascade, multi-grid, a batch of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.deeplabv3 import DeepLabV3
from zoo.models.layers import ASPP, PixelClassifier


def rates(model: DeepLabV3) -> list[int]:
    return [branch[0].dilation[0] for branch in model.classifier[0].convs[1:-1]]


def dilations(module: nn.Module) -> list[int]:
    return [m.dilation[0] for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("backbone", "aux_weight", "expected"),
    [
        ("resnet50", 0, 39_638_869),
        ("resnet50", 0.5, 42_004_074),
        ("resnet101", 0, 58_630_997),
        ("resnet101", 0.5, 60_996_202),
        ("mobilenetv3_large_100", 0, 11_025_477),
    ],
)
def test_parameters_of_torchvision(backbone: str, aux_weight: float, expected: int) -> None:
    with torch.device("meta"):
        model = create_model("deeplabv3", 21, backbone, aux_weight=aux_weight)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_parameters_of_the_mobile_ones() -> None:
    """torchvision's, whose auxiliary head reads an early block, and VainF's."""
    early = create_model("deeplabv3", 21, "mobilenetv3_large_100", output_stride=16, aux_module="blocks.2.0")
    assert sum(parameter.numel() for parameter in early.parameters()) == 11_029_328
    with torch.device("meta"):
        vainf = create_model("deeplabv3", 21, "mobilenetv2_100", output_stride=16, aux_weight=0)
    assert sum(parameter.numel() for parameter in vainf.parameters()) == 5_113_877


@pytest.mark.parametrize(("stride", "expected"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_auto_rates_follow_the_stride(stride: int, expected: list[int]) -> None:
    assert rates(create_model("deeplabv3", 2, "test_resnet", output_stride=stride)) == expected


def test_rates_may_be_given() -> None:
    assert rates(create_model("deeplabv3", 2, "test_resnet", rates=[2, 5])) == [2, 5]


@pytest.mark.parametrize(("stride", "expected"), [(16, [2, 4, 8]), (8, [4, 8, 16])])
def test_the_papers_multi_grid(stride: int, expected: list[int]) -> None:
    options = {"multi_grid": (1, 2, 4), "dilation": "full"}
    model = create_model("deeplabv3", 2, "resnet50", output_stride=stride, backbone_options=options)
    assert dilations(model.backbone.model.layer4) == expected


def test_the_papers_head_has_no_convolution_after_aspp() -> None:
    torchvisions = create_model("deeplabv3", 2, "test_resnet")
    papers = create_model("deeplabv3", 2, "test_resnet", post_conv=False, aux_weight=0)
    assert [type(layer) for layer in papers.classifier] == [ASPP, PixelClassifier]
    assert len(torchvisions.classifier) == 5
    assert papers.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_the_head_of_mmseg() -> None:
    """3x3 projection, 512 channels, no convolution after it, dropout of whole channels before the classifier."""
    options = {"channels": 512, "project_kernel": 3, "post_conv": False, "dropout": 0, "classifier_dropout": 0.5}
    model = create_model("deeplabv3", 21, "resnet50", **options, aux_weight=0.4, aux_channels=256)
    head = sum(parameter.numel() for parameter in model.classifier.parameters())
    branches = 2 * 2048 * 512 + 3 * 9 * 2048 * 512 + 5 * 2 * 512
    assert head == branches + 9 * 5 * 512 * 512 + 2 * 512 + 512 * 21 + 21
    assert model.aux_classifier[0].weight.shape == (256, 1024, 3, 3)
    assert isinstance(model.aux_classifier[3], nn.Dropout2d)
    classifier = model.classifier[-1].train()
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(21, 512)[..., None, None])
        classifier.bias.zero_()
    kept = classifier(torch.ones(4, 512, 3, 3))
    assert torch.equal(kept, kept[..., :1, :1].expand_as(kept))  # a channel is dropped everywhere or nowhere
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(classifier.eval()(torch.ones(1, 512, 3, 3)), torch.ones(1, 21, 3, 3))


@pytest.mark.parametrize(("separable", "norms"), [("tf", 2), ("smp", 1)])
def test_separable_branches(separable: str, norms: int) -> None:
    aspp = ASPP(8, 4, (2, 3), dropout=0.0, separable=separable).eval()
    branch = aspp.convs[1]
    convolutions = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size[0], c.groups, c.dilation[0]) for c in convolutions] == [(3, 8, 2), (1, 1, 1)]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in branch.modules()) == norms
    assert aspp(torch.rand(1, 8, 9, 7)).shape == (1, 4, 9, 7)


def test_the_cascade_doubles_the_rate_from_block_to_block() -> None:
    """Section 3.2: block5, block6, block7 at rates 4, 8, 16 with stride 16; identity shortcuts; multi-grid in each."""
    options = {"output_stride": 16, "head": "cascaded", "aux_weight": 0}
    model = create_model("deeplabv3", 2, "resnet50", **options).eval()
    assert [dilations(block) for block in model.classifier[:-1]] == [[4] * 3, [8] * 3, [16] * 3]
    assert all(unit.downsample is None for block in model.classifier[:-1] for unit in block)
    grid = create_model("deeplabv3", 2, "resnet50", **options, backbone_options={"multi_grid": (1, 2, 1)})
    assert [dilations(block) for block in grid.classifier[:-1]] == [[4, 8, 4], [8, 16, 8], [16, 32, 16]]
    original = model.backbone.model.layer4[1].conv2.weight
    assert torch.equal(model.classifier[0][1].conv2.weight, original)
    assert model.classifier[0][1].conv2.weight is not original
    with torch.no_grad():
        assert model(torch.rand(1, 3, 65, 97)).shape == (1, 2, 65, 97)


def test_a_batch_of_one_leaves_the_pooled_statistics_alone() -> None:
    aspp = ASPP(8, 4, (1, 2, 3), dropout=0.0).train()
    pooled, plain = aspp.convs[-1][2], aspp.convs[0][1]
    aspp(torch.randn(1, 8, 9, 9)).sum().backward()
    assert torch.equal(pooled.running_mean, torch.zeros(4))
    assert not torch.equal(plain.running_mean, torch.zeros(4))
    aspp(torch.randn(2, 8, 9, 9))
    assert not torch.equal(pooled.running_mean, torch.zeros(4))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ZooError, match="unknown separable convolution 'mmseg': None, tf or smp"):
        create_model("deeplabv3", 2, "test_resnet", separable="mmseg")
    with pytest.raises(ZooError, match="unknown DeepLabV3 head 'asp'"):
        create_model("deeplabv3", 2, "test_resnet", head="asp")
    with pytest.raises(ZooError, match=r"layer4, which test_efficientnet does not have: take resnet50"):
        create_model("deeplabv3", 2, "test_efficientnet", head="cascaded")
    with pytest.raises(ZooError, match=r"unknown module of test_efficientnet 'blocks.9': did you mean"):
        create_model("deeplabv3", 2, "test_efficientnet", aux_module="blocks.9")
    with pytest.raises(ZooError, match=r"unknown module of test_efficientnet 'blocks.9': did you mean"):
        create_model("deeplabv3", 2, "test_efficientnet", aux_module="blocks.9", aux_weight=0)


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rates": 12}, r"rates=12: give the dilations of one or more branches, such as \[6, 12, 18\], or 'auto'"),
        ({"rates": "foo"}, "rates='foo': give the dilations"),
        ({"rates": []}, r"rates=\[\]: give the dilations"),
        ({"rates": [6, 0]}, r"rates=\[6, 0\]: give the dilations"),
        ({"rates": [6.5]}, r"rates=\[6.5\]: give the dilations"),
        ({"project_kernel": 2}, "project_kernel=2: an even kernel shifts the map by half a pixel, use 1 or 3"),
        ({"dropout": 2}, "dropout=2: give the share of values to drop, from 0 to 1"),
        ({"classifier_dropout": -0.1}, "classifier_dropout=-0.1: give the share"),
    ],
)
def test_options_that_make_no_aspp_are_said(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=f"^{sentence}"):
        create_model(name, 2, "test_resnet", **options)
