"""Stride traded for dilation: the maps, their rates, the conventions, who has none."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import features
from peers import randomized
from torch import nn

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.models.dilation import dilate_first_blocks


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["test_resnet", "vgg11_bn", "densenet121", "test_convnext", "test_efficientnet", "lcnet_050", "regnetx_002"]
)
def test_output_stride(name: str, output_stride: int) -> None:
    backbone = create_backbone(name, output_stride=output_stride)
    maps = features(backbone, torch.rand(1, 3, 64, 64))
    assert backbone.strides[-1] == output_stride
    assert maps[-1].shape[-1] == 64 // output_stride


def test_largefov_sizes() -> None:
    """DeepLab v1's own numbers: 321 pixels give 41, 375x500 give 47x63."""
    backbone = create_backbone("vgg11", output_stride=8, levels=6)
    assert features(backbone, torch.rand(1, 3, 321, 321))[-1].shape[-2:] == (41, 41)
    assert features(backbone, torch.rand(1, 3, 375, 500))[-1].shape[-2:] == (47, 63)


@pytest.mark.parametrize(
    ("name", "level", "coarse", "fine"),
    [("resnet18", -1, 32, 8), ("resnet26", -2, 32, 8), ("vgg11", -2, 16, 8), ("densenet121", -1, 32, 8)],
)
def test_dilated_features_hold_the_strided_ones(name: str, level: int, coarse: int, fine: int) -> None:
    """Trading stride for dilation computes the same numbers, at more places: every few of them are the old ones.

    Exact, borders included, where a stride only leaves out: DenseNet's average pools are made to. VGG is compared
    before its last pool, which LargeFOV does not dilate.
    """
    strided = randomized(create_backbone(name, output_stride=coarse))
    dilated = create_backbone(name, output_stride=fine)
    dilated.load_state_dict(strided.state_dict())
    if name == "densenet121":
        for transition in (strided.model.features.transition2, strided.model.features.transition3):
            transition.pool = nn.MaxPool2d(1, stride=2)
    x = torch.rand(1, 3, 128, 160)
    few, many = features(strided, x)[level], features(dilated, x)[level]
    step = strided.strides[level] // dilated.strides[level]
    assert step > 1
    assert few.std() > 0
    assert torch.allclose(many[..., ::step, ::step], few, atol=1e-5 * float(few.max() - few.min()), rtol=0)


def rates(stage: nn.Module) -> list[int]:
    return [m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def test_dilation_conventions() -> None:
    previous = create_backbone("resnet26", output_stride=8).model
    assert (rates(previous.layer3), rates(previous.layer4)) == ([1, 2], [2, 4])
    full = create_backbone("resnet26", output_stride=8, dilation="full").model
    assert (rates(full.layer2), rates(full.layer3), rates(full.layer4)) == ([1, 1], [2, 2], [4, 4])
    full = create_backbone("resnet26", output_stride=16, dilation="full").model
    assert (rates(full.layer3), rates(full.layer4)) == ([1, 1], [2, 2])


def test_dilation_of_one_block_per_stage() -> None:
    assert rates(create_backbone("resnet14t", output_stride=16, dilation="full").model.layer4) == [2]


def test_multi_grid() -> None:
    for output_stride, wanted in [(16, [2, 4, 8]), (8, [4, 8, 16]), (32, [1, 2, 4])]:
        model = create_backbone("resnet50", output_stride=output_stride, multi_grid=(1, 2, 4)).model
        assert rates(model.layer4) == wanted
    with pytest.raises(ZooError, match=r"multi_grid \[1, 2, 4\] has 3 factors, resnet18's last stage 2 blocks"):
        create_backbone("resnet18", multi_grid=(1, 2, 4))


def test_full_dilation_elsewhere_is_refused() -> None:
    with pytest.raises(ZooError, match=r"test_convnext has no dilation='full'.*resnet"):
        create_backbone("test_convnext", output_stride=16, dilation="full")


def test_dilate_first_blocks_changes_features() -> None:
    previous = randomized(create_backbone("resnet18", output_stride=8))
    full = copy.deepcopy(previous)
    dilate_first_blocks("resnet18", full.model, 8, full=True, multi_grid=None)
    x = torch.rand(1, 3, 65, 65)
    a, b = features(previous, x)[-1], features(full, x)[-1]
    assert a.shape == b.shape
    assert (a - b).norm() > 0.05 * a.norm()
