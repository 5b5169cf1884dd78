"""Stages that nobody reads are left out, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from backbones import features, refusal
from peers import randomized

from zoo.models.backbone import create_backbone


@pytest.mark.parametrize(
    ("name", "wishes", "gone"),
    [
        ("resnet18", {}, ("layer3", "layer4")),
        ("vgg11", {"mlp_ratio": 1 / 64}, ("features.16", "features.18")),  # conv5
        ("test_convnext", {}, ("stages.2", "stages.3")),
        ("densenet121", {}, ("features.transition2", "features.denseblock3", "features.norm5")),
        ("densenet121", {"taps": "transition"}, ("features.transition2.conv", "features.denseblock3")),
        ("hardcorenas_a", {}, ("blocks.3", "blocks.5")),
        ("test_efficientnet", {}, ("blocks.3",)),
        ("swinv2_cr_tiny_ns_224", {}, ("stages.2", "stages.3")),
        ("regnetx_002", {}, ("s3", "s4")),
    ],
)
def test_coarse_stages_are_left_out(name: str, wishes: dict, gone: tuple[str, ...]) -> None:
    """The maps that stay are the same maps; the stages that nobody reads are neither held nor run."""
    whole = randomized(create_backbone(name, levels=6, **wishes))
    cut = create_backbone(name, levels=6, coarsest=8, **wishes)
    assert cut.strides == [stride for stride in whole.strides if stride <= 8]
    assert cut.strides[-1] == 8
    theirs = whole.state_dict()
    lost = theirs.keys() - cut.state_dict().keys()
    assert all(any(key.startswith(f"model.{part}.") for key in theirs) for part in gone)
    assert all(key in lost for key in theirs if key.startswith(tuple(f"model.{part}." for part in gone)))
    cut.load_state_dict({key: value for key, value in theirs.items() if key not in lost})
    used: set[int] = set()
    maps = cut.train()(torch.rand(2, 3, 64, 96))
    todo = [feature.grad_fn for feature in maps]
    while todo:
        node = todo.pop()
        if node is not None and node not in used:
            used.add(node)  # type: ignore[arg-type]
            todo += [parent for parent, _ in node.next_functions]
    reached = {id(node.variable) for node in used if hasattr(node, "variable")}
    assert [key for key, p in cut.named_parameters() if id(p) not in reached] == []
    cut.load_state_dict({key: value for key, value in theirs.items() if key not in lost})  # batch statistics again
    images = torch.rand(1, 3, 64, 96)
    for ours, full in zip(features(cut, images), features(whole, images), strict=False):
        assert torch.equal(ours, full)


def test_levels_count_what_is_left() -> None:
    cut = create_backbone("resnet18", levels=2, coarsest=16)
    assert (cut.strides, cut.channels) == ([8, 16], [128, 256])
    assert create_backbone("resnet18", levels=4, coarsest=64).strides == [4, 8, 16, 32]


def test_stages_are_left_out_by_the_stride_they_have() -> None:
    """Of a dilated network none is coarser than its output stride; of one at stride 16 the last two have it."""
    dilated = create_backbone("resnet18", output_stride=8, coarsest=8, levels=3)
    assert dilated.strides == [8, 8, 8]
    assert create_backbone("resnet18", output_stride=16, coarsest=8, levels=2).strides == [4, 8]
    assert len(dilated.model.layer4) == 2


def test_a_coarsest_stride_that_cannot_be() -> None:
    assert "has strides [4, 8, 16, 32], none of them 2 or less" in refusal(name="test_convnext", coarsest=2)
    assert "coarsest must be a stride such as 8, 16 or 32" in refusal(name="test_resnet", coarsest=7)
    assert "no pretrained weights and no output_stride, multi_grid, coarsest or stride_in_1x1" in refusal(
        name="unet", coarsest=8
    )
