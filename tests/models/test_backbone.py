"""What a backbone owes: raw pixels in, a described pyramid out, whatever the network; or one clear refusal."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone, _check_complete, backbone_names, create_backbone, supports
from zoo.models.dilation import dilate_first_blocks

torch.set_num_threads(1)


def features(backbone: Backbone, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> list[Tensor]:
    with torch.no_grad():
        return backbone.eval()(images, sizes)


def randomize(model: nn.Module) -> nn.Module:
    """Batch statistics that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            # timm starts the last norm of a residual block at zero, which would hide the block.
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "vgg11", "test_convnext", "swinv2_cr_tiny_ns_224", "hardcorenas_a"])
def test_describes_itself(name: str) -> None:
    backbone = create_backbone(name, levels=6)
    maps = features(backbone, torch.rand(1, 3, 64, 96))
    assert [f.shape[1] for f in maps] == backbone.channels
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in maps] == [(s, s) for s in backbone.strides]
    assert backbone.strides == sorted(backbone.strides)


def test_levels_are_the_coarsest() -> None:
    six = create_backbone("vgg11", levels=6)
    assert six.strides == [1, 2, 4, 8, 16, 32]
    two = create_backbone("vgg11", levels=2)
    assert (two.strides, two.channels) == ([16, 32], [512, 512])


def test_equals_timm_on_normalised_pixels() -> None:
    """The features are those of timm's own wrapper; the names of the weights are the classifier's."""
    backbone = create_backbone("test_resnet", levels=5)
    randomize(backbone)
    wrapper = timm.create_model("test_resnet", features_only=True).eval()
    wrapper.load_state_dict(backbone.model.state_dict(), strict=True)
    assert set(backbone.model.state_dict()) < set(timm.create_model("test_resnet").state_dict())
    pixels = torch.randint(0, 256, (2, 3, 61, 47), dtype=torch.uint8)
    cfg = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (cfg.mean, cfg.std))
    with torch.no_grad():
        wanted = wrapper((pixels / 255 - mean) / std)
    for ours, theirs in zip(features(backbone, pixels), wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * (theirs.max() - theirs.min())


# ---- normalisation


def test_uint8_and_float_are_the_same_pixels() -> None:
    backbone = create_backbone("test_resnet", mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    pixels = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    wanted = (pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 2.0]
    ).view(1, 3, 1, 1)
    assert torch.allclose(backbone.normalize(pixels).double(), wanted, atol=1e-6, rtol=0)
    images = pixels / 255
    before = images.clone()
    assert torch.allclose(backbone.normalize(images).double(), wanted, atol=1e-6, rtol=0)
    assert torch.equal(images, before), "the caller's tensor was written to"


def test_memory_format_is_kept() -> None:
    backbone = create_backbone("test_resnet")
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert backbone.normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert backbone.normalize(images.contiguous()).is_contiguous()


def test_pixels_beyond_sizes_do_not_count() -> None:
    backbone = create_backbone("test_resnet")
    images = torch.rand(2, 3, 64, 64)
    sizes = [(40, 64), (64, 33)]
    noisy = images.clone()
    noisy[0, :, 40:], noisy[1, :, :, 33:] = 7.0, -3.0
    x = backbone.normalize(noisy, sizes)
    assert (x[0, :, 40:] == 0).all()
    assert (x[1, :, :, 33:] == 0).all()
    assert torch.equal(x[0, :, :40], backbone.normalize(images)[0, :, :40])
    for a, b in zip(features(backbone, images, sizes), features(backbone, noisy, sizes), strict=True):
        assert torch.equal(a, b)


def test_one_size_per_image() -> None:
    with pytest.raises(ValueError):
        create_backbone("test_resnet").normalize(torch.rand(2, 3, 8, 8), [(8, 8)])


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, [0.449]), (3, [0.485, 0.456, 0.406]), (5, [0.485, 0.456, 0.406, 0.485, 0.456])]
)
def test_statistics_follow_the_channels(channels: int, mean: list[float]) -> None:
    backbone = create_backbone("resnet10t", in_channels=channels, mean=None)
    base = timm.get_pretrained_cfg("resnet10t").mean
    wanted = mean if tuple(base) == (0.485, 0.456, 0.406) else None
    assert wanted is not None
    assert backbone.config["mean"] == pytest.approx(mean, abs=1e-3)
    assert features(backbone, torch.rand(1, channels, 33, 33))[-1].isfinite().all()


def test_other_channels_than_built_for() -> None:
    with pytest.raises(ZooError, match=r"built for 3 channels, the images have 4.*in_channels=4"):
        create_backbone("test_resnet")(torch.rand(1, 4, 32, 32))


def test_statistics_of_another_length() -> None:
    with pytest.raises(ZooError, match="mean has 2 values for 3 channels"):
        create_backbone("test_resnet", mean=[0.5, 0.5])
    with pytest.raises(ZooError, match="std must be positive"):
        create_backbone("test_resnet", std=[1.0, 0.0, 1.0])


# ---- sizes


def test_padding_is_trimmed() -> None:
    """A network that wants multiples of 32 gives maps that cover the image, not the padding."""
    backbone = create_backbone("hrnet_w18_small")
    assert backbone.multiple == 32
    shapes = [f.shape[-2:] for f in features(backbone, torch.rand(1, 3, 33, 70))]
    assert shapes == [(9, 18), (5, 9), (3, 5), (2, 3)]


def test_padding_comes_after_normalising() -> None:
    backbone = create_backbone("hrnet_w18_small")
    images = torch.rand(1, 3, 64, 64)
    smaller = features(backbone, images[..., :40, :50])
    padded = features(backbone, images, [(40, 50)])
    for few, many in zip(smaller, padded, strict=True):
        assert torch.allclose(few, many[..., : few.shape[-2], : few.shape[-1]], atol=1e-5)


def test_native_sizes_are_not_padded() -> None:
    assert create_backbone("test_resnet").multiple == 1


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "test_convnext", "test_resnet"])
@pytest.mark.parametrize("size", [(1, 1), (7, 20), (31, 5)])
def test_tiny_images(name: str, size: tuple[int, int]) -> None:
    for f in features(create_backbone(name), torch.rand(1, 3, *size)):
        assert f.numel() > 0


# ---- output stride and dilation


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
    strided = randomize(create_backbone(name, output_stride=coarse))
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
    previous = randomize(create_backbone("resnet18", output_stride=8))
    full = copy.deepcopy(previous)
    dilate_first_blocks("resnet18", full.model, 8, full=True, multi_grid=None)
    x = torch.rand(1, 3, 65, 65)
    a, b = features(previous, x)[-1], features(full, x)[-1]
    assert a.shape == b.shape
    assert (a - b).norm() > 0.05 * a.norm()


# ---- what is kept of the network


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
    whole = randomize(create_backbone(name, levels=6, **wishes))
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
    assert "no pretrained weights and no output_stride, multi_grid or coarsest" in refusal(name="unet", coarsest=8)


def test_hidden_layers_of_a_classifier(tmp_path) -> None:
    """fc6 and fc7 of VGG, with the weights of timm's file or torchvision's; the features are the same as without."""
    small = {"mlp_ratio": 1 / 64}  # 64 hidden units instead of 4096
    theirs = timm.create_model("vgg11", **small)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    hidden = theirs.pre_logits
    plain = create_backbone("vgg11", pretrained=tmp_path / "timm.pth", levels=6, **small)
    assert plain.hidden is None
    assert not any("pre_logits" in key for key in plain.state_dict())
    backbone = create_backbone("vgg11", pretrained=tmp_path / "timm.pth", levels=6, classifier=True, **small)
    assert torch.equal(backbone.hidden.fc1.weight, hidden.fc1.weight)
    assert torch.equal(backbone.state_dict()["model.pre_logits.fc2.weight"], hidden.fc2.weight)
    images = torch.rand(1, 3, 64, 96)
    maps = features(backbone, images)
    for ours, wanted in zip(maps, features(plain, images), strict=True):
        assert torch.equal(ours, wanted)
    with torch.no_grad():
        wanted = theirs.eval().forward_head(theirs.forward_features(backbone.normalize(images)), pre_logits=True)
        assert torch.equal(backbone.hidden(maps[-1]).mean((2, 3)), wanted)
    again = create_backbone(**backbone.config)
    again.load_state_dict(backbone.state_dict(), strict=True)
    assert (again.strides, again.config) == (backbone.strides, backbone.config)


def test_torchvisions_names_of_the_hidden_layers(tmp_path) -> None:
    """timm reads torchvision's files of VGG too, where these are linear layers: nothing is missing."""
    model = create_backbone("vgg11", classifier=True, mlp_ratio=1 / 64).model
    names = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}
    state = {key: value[:1].clone() for key, value in model.state_dict().items()}
    for ours, theirs in names.items():
        state |= {f"{theirs}.{kind}": state.pop(f"{ours}.{kind}") for kind in ("weight", "bias")}
    torch.save(state, tmp_path / "torchvision.pth")
    _check_complete("vgg11", model, tmp_path / "torchvision.pth")
    del state["classifier.3.bias"]
    torch.save(state, tmp_path / "torchvision.pth")
    with pytest.raises(ZooError, match=r"lacks 1 of .*, such as pre_logits\.fc2\.bias"):
        _check_complete("vgg11", model, tmp_path / "torchvision.pth")


def test_networks_without_hidden_layers_ignore_the_wish() -> None:
    backbone = create_backbone("test_resnet", classifier=True)
    assert backbone.hidden is None
    assert backbone.state_dict().keys() == create_backbone("test_resnet").state_dict().keys()


def test_an_older_config_rebuilds() -> None:
    """Headers written before these options existed do not name them."""
    config = create_backbone("test_resnet").config
    older = {key: value for key, value in config.items() if key not in ("classifier", "coarsest")}
    assert create_backbone(**older).config == config


# ---- rebuilding


@pytest.mark.parametrize(
    "wishes",
    [
        {"name": "test_resnet", "output_stride": 16, "levels": 3, "dilation": "full", "in_channels": 4},
        {"name": "densenet121", "taps": "transition", "levels": 5},
        {"name": "test_efficientnet", "bn_eps": 1e-3},
        {"name": "unet", "padding": "same", "in_channels": 1, "levels": 5},
        {"name": "resnet18", "coarsest": 16, "levels": 2},
    ],
)
def test_config_rebuilds(wishes: dict) -> None:
    first = randomize(create_backbone(**wishes))
    second = create_backbone(**pickle.loads(pickle.dumps(first.config)))
    second.load_state_dict(first.state_dict(), strict=True)
    assert second.config == first.config
    x = torch.rand(1, wishes.get("in_channels", 3), 49, 65)
    for a, b in zip(features(first, x), features(second, x), strict=True):
        assert torch.equal(a, b)


def test_a_copy_is_independent() -> None:
    """An average of weights is a deep copy: its features must come from its own weights."""
    first = randomize(create_backbone("densenet121", taps="transition"))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    assert features(first, torch.rand(1, 3, 33, 33))[-1].abs().max() > 0
    assert features(second, torch.rand(1, 3, 33, 33))[-1].abs().max() == 0


def test_building_leaves_no_trace() -> None:
    """Measuring a network leaves its mode and its batch statistics alone."""
    backbone = create_backbone("test_resnet")
    assert all(module.training for module in backbone.modules())
    assert all(m.num_batches_tracked == 0 for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


# ---- refusals


def refusal(**wishes: object) -> str:
    with pytest.raises(ZooError) as error:
        create_backbone(**wishes)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_misspelt_names() -> None:
    assert "did you mean convnext_tiny" in refusal(name="convnextt")
    assert "such as resnet50" in refusal(name="zzzz")
    assert "resnet50.a1_in1k" in refusal(name="resnet50.a1_in1kk")
    assert "swin" in refusal(name="swin_tiny_patch4_window7_225")


def test_misspelt_options() -> None:
    assert "drop_path_rat" in refusal(name="test_resnet", drop_path_rat=0.1)
    assert "8, 16 or 32, not 4" in refusal(name="test_resnet", output_stride=4)
    assert "'previous', 'full' or 'conv1', not 'ful'" in refusal(name="test_resnet", dilation="ful")


def test_no_pyramid() -> None:
    for name in ("vit_tiny_patch16_224", "convmixer_768_32", "mixer_s32_224", "hiera_tiny_224"):
        assert f"backbone {name} is bound to one image size or has no pyramid" in refusal(name=name)


def test_no_output_stride() -> None:
    message = refusal(name="swin_tiny_patch4_window7_224", output_stride=8)
    assert "cannot keep an output stride of 8" in message
    assert "resnet*" in message
    assert "densenet*" in message


def test_unreachable_weights() -> None:
    """Offline (the fixture cuts the network): which file, from where, and the way without."""
    message = refusal(name="test_resnet.r160_in1k", pretrained=True)
    for part in ("model.safetensors", "https://huggingface.co/timm/test_resnet.r160_in1k", "backbone.pretrained=false"):
        assert part in message
    assert "no pretrained weights" in refusal(name="darknet17", pretrained=True)
    assert "no file 'nowhere.pth'" in refusal(name="test_resnet", pretrained="nowhere.pth")


def test_weights_from_a_file(tmp_path) -> None:
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = create_backbone("test_resnet", pretrained=tmp_path / "weights.pth")
    assert torch.equal(backbone.model.conv1[0].weight, classifier.conv1[0].weight)
    assert "pretrained" not in backbone.config
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert "does not hold timm's weights" in refusal(name="test_resnet", pretrained=tmp_path / "other.pth")


def test_one_channel_sums_rgb_filters(tmp_path) -> None:
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    grey = create_backbone("test_resnet", pretrained=tmp_path / "weights.pth", in_channels=1)
    wanted = classifier.conv1[0].weight.sum(dim=1, keepdim=True)
    assert torch.allclose(grey.model.conv1[0].weight, wanted, atol=1e-6)


def test_what_serves() -> None:
    assert supports("resnet50.a1_in1k", 8)
    assert supports("swin_tiny_patch4_window7_224")
    assert not supports("swin_tiny_patch4_window7_224", 8)
    assert not supports("vit_tiny_patch16_224")
    assert set(backbone_names(16)) < set(backbone_names())
    assert len(backbone_names()) > 700
