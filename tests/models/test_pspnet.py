"""PSPNet: counts, the pyramid against its definition, the dilation it prefers, its loss, a batch of one."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.backbone import create_backbone
from zoo.models.families import DILATED_FAMILIES, FULL_FAMILIES, has_full_dilation
from zoo.models.pspnet import PSPNet, PyramidPooling
from zoo.structures import Batch, Semantic


def dilations(module: nn.Module) -> list[int]:
    return [m.dilation[0] for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("backbone", "expected", "without_aux"),
    [("resnet50s", 49_081_578, 46_716_373), ("resnet101s", 68_073_706, 65_708_501)],
)
def test_parameters_of_semseg(backbone: str, expected: int, without_aux: int) -> None:
    with torch.device("meta"):
        model = create_model("pspnet", 21, backbone)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert expected - sum(parameter.numel() for parameter in model.aux.parameters()) == without_aux


def test_no_auxiliary_head_without_weight() -> None:
    model = create_model("pspnet", 2, "test_resnet", aux_weight=0)
    assert model.auxiliary(model.extract(torch.randn(1, 3, 64, 64))) == []
    assert not any(key.startswith("aux") for key in model.state_dict())


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_the_pyramid_is_pooled_then_convolved_then_resized(align_corners: bool) -> None:
    """Against its definition: cells of a 12x12 map averaged by hand, 1x1 convolutions as products of matrices."""
    torch.manual_seed(0)
    module = PyramidPooling(8, 5, (1, 2, 3, 6), global_norm=True, align_corners=align_corners).eval()
    x = torch.randn(2, 8, 12, 12)
    parts = [x]
    for size, branch in zip((1, 2, 3, 6), module.features, strict=True):
        convolution, norm = branch[1], branch[2]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
        side = 12 // size
        means = x.reshape(2, 8, size, side, size, side).mean(dim=(3, 5))
        y = torch.einsum("oc,bchw->bohw", convolution.weight[..., 0, 0], means)
        y = (y - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-5).sqrt()
        parts.append(F.interpolate(y.clamp(min=0), (12, 12), mode="bilinear", align_corners=align_corners))
    torch.testing.assert_close(module(x), torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)


def test_the_loss_is_main_plus_two_fifths_of_auxiliary_with_aligned_corners() -> None:
    torch.manual_seed(0)
    model = create_model("pspnet", 4, "test_resnet").eval()
    images = torch.rand(2, 3, 49, 65)
    labels = torch.randint(0, 4, (2, 49, 65), dtype=torch.uint8)
    labels[:, :9] = 255
    features = model.extract(model.backbone.normalize(images))
    main, aux = (
        F.cross_entropy(
            F.interpolate(logits, (49, 65), mode="bilinear", align_corners=True), labels.long(), ignore_index=255
        )
        for logits in (model.cls(model.ppm(features[-1])), model.aux(features[-2]))
    )
    terms = model.loss(Batch.of(images, [Semantic(row) for row in labels]))
    torch.testing.assert_close(terms["cross_entropy"], main)
    torch.testing.assert_close(terms["auxiliary"], 0.4 * aux)


def test_dilated_stages_are_dilated_from_their_first_block() -> None:
    model = create_model("pspnet", 2, "resnet26")
    assert (dilations(model.backbone.model.layer3), dilations(model.backbone.model.layer4)) == ([2, 2], [4, 4])
    assert model.header["backbone"]["dilation"] == "full"


def test_a_dilation_that_is_asked_for_wins() -> None:
    model = create_model("pspnet", 2, "resnet26", backbone_options={"dilation": "previous"})
    assert (dilations(model.backbone.model.layer3), dilations(model.backbone.model.layer4)) == ([1, 2], [2, 4])


def test_a_backbone_without_such_blocks_keeps_its_own_dilation() -> None:
    model = create_model("pspnet", 2, "convnext_atto")
    assert (model.backbone.strides[-1], model.header["backbone"]["dilation"]) == (8, "previous")
    for dilation in ("full", "conv1"):
        with pytest.raises(ZooError, match=f"convnext_atto has no dilation='{dilation}'"):
            create_model("pspnet", 2, "convnext_atto", backbone_options={"dilation": dilation})


@pytest.mark.parametrize(
    "name",
    [
        "hardcorenas_a", "lcnet_035", "mobilenetv3_small_050", "resnest14d", "resnet10t", "skresnet18",
        "convnext_atto", "cspresnet50", "densenet121", "inception_next_atto", "mobileone_s0", "mobilevit_xxs",
        "regnetx_002", "resnetv2_18", "rexnet_100", "test_nfnet",
    ],
)  # fmt: skip
def test_families_say_whether_they_have_it(name: str) -> None:
    """What `create_model` prefers is what `create_backbone` takes."""
    if has_full_dilation(name):
        assert create_backbone(name, output_stride=8, dilation="full").strides[-1] == 8
    else:
        with pytest.raises(ZooError, match="has no dilation='full'"):
            create_backbone(name, output_stride=8, dilation="full")


def test_families_with_it_can_be_dilated() -> None:
    assert set(FULL_FAMILIES) < set(DILATED_FAMILIES)
    assert not has_full_dilation("unet")


def test_every_family_with_it_is_named_where_it_is_refused() -> None:
    with pytest.raises(ZooError) as raised:
        create_backbone("convnext_atto", output_stride=8, dilation="full")
    patterns = re.findall(r"\w+\*", str(raised.value))
    for family in FULL_FAMILIES:
        assert any(fnmatch(name, pattern) for name in timm.list_models(module=family) for pattern in patterns), family
    assert all(any(has_full_dilation(name) for name in timm.list_models(pattern)) for pattern in patterns)
    with pytest.raises(ZooError, match=r"test_efficientnet has no multi_grid: it is for (?!.*efficientnet)"):
        create_backbone("test_efficientnet", output_stride=8, multi_grid=(1, 2, 4))


def test_a_batch_of_one_leaves_the_pooled_statistics_alone() -> None:
    model = create_model("pspnet", 2, "test_resnet").train()
    pooled, finer = model.ppm.features[0][2], model.ppm.features[1][2]
    zeros = torch.zeros_like(pooled.running_mean)
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    sum(model.loss(Batch.of(torch.rand(1, 3, 40, 40), [Semantic(labels)])).values()).backward()
    assert torch.equal(pooled.running_mean, zeros)
    assert not torch.equal(finer.running_mean, zeros)
    model.loss(Batch.of(torch.rand(2, 3, 40, 40), [Semantic(labels)] * 2))
    assert not torch.equal(pooled.running_mean, zeros)


def test_the_form_of_segmentation_models_pytorch() -> None:
    """No norm on the branch of bin 1, 1x1 fusion, 3x3 classifier, one level."""
    options = {"global_norm": False, "channels": 24, "fuse_kernel": 1, "classifier_kernel": 3, "aux_weight": 0}
    model = create_model("pspnet", 3, "test_resnet", **options, backbone_options={"levels": 1})
    assert isinstance(model, PSPNet)
    assert [type(layer) for layer in model.ppm.features[0]] == [nn.AdaptiveAvgPool2d, nn.Conv2d, nn.ReLU]
    channels = model.backbone.channels[-1]
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if "backbone" not in key}
    assert shapes["ppm.features.0.1.bias"] == (channels // 4,)
    assert shapes["cls.0.weight"] == (24, 2 * channels, 1, 1)
    assert shapes["cls.4.weight"] == (3, 24, 3, 3)
    assert model.eval()(torch.rand(1, 3, 65, 50)).shape == (1, 3, 65, 50)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bins": ()}, r"bins=\(\): give the sides"),
        ({"bins": (0, 2)}, r"bins=\(0, 2\): give the sides"),
        ({"bins": 6}, "bins=6: give the sides"),
        ({"dropout": 1.5}, "dropout=1.5: give the share of values to drop"),
        ({"fuse_kernel": 2}, "fuse_kernel=2: an even kernel"),
        ({"classifier_kernel": 0}, "classifier_kernel=0: an even kernel"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        create_model("pspnet", 2, "test_resnet", **options)
