"""What a backbone owes: raw pixels in, a described pyramid out, whatever the network; or one clear refusal."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from backbones import features
from peers import randomize, randomized
from torch import nn

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone

torch.set_num_threads(1)


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
    first = randomized(create_backbone(**wishes))
    second = create_backbone(**pickle.loads(pickle.dumps(first.config)))
    second.load_state_dict(first.state_dict(), strict=True)
    assert second.config == first.config
    x = torch.rand(1, wishes.get("in_channels", 3), 49, 65)
    for a, b in zip(features(first, x), features(second, x), strict=True):
        assert torch.equal(a, b)


def test_a_copy_is_independent() -> None:
    """An average of weights is a deep copy: its features must come from its own weights."""
    first = randomized(create_backbone("densenet121", taps="transition"))
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
