"""U-Net: the paper's sizes and counts, its overlap-tile property, the plan of smp's decoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.backbone import create_backbone
from zoo.models.unet import UNet, UNetEncoder, mirror_to_fit, plan


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def valid() -> UNet:
    """The network of 2015, one channel in, two classes out."""
    torch.manual_seed(0)
    return create_model("unet", 2, in_channels=1, padding="valid").eval()


@pytest.mark.parametrize(
    ("channels", "classes", "padding", "expected"),
    [(1, 2, "valid", 31_030_658), (3, 21, "valid", 31_033_045), (3, 21, "same", 31_038_933)],
)
def test_parameters_of_the_paper(channels: int, classes: int, padding: str, expected: int) -> None:
    assert count(create_model("unet", classes, in_channels=channels, padding=padding)) == expected


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("resnet18", 14_331_109),
        ("resnet34", 24_439_269),
        ("resnet50", 32_524_005),
        ("vgg16", 23_751_141),
        ("vgg16_bn", 23_759_589),
    ],
)
def test_parameters_of_smp(backbone: str, expected: int) -> None:
    assert count(create_model("unet", 21, backbone)) == expected


def test_572_gives_388(valid: UNet) -> None:
    with torch.no_grad():
        features = valid.backbone.extract(torch.randn(1, 1, 572, 572))
        assert [tuple(feature.shape[1:]) for feature in features] == [
            (64, 568, 568),
            (128, 280, 280),
            (256, 136, 136),
            (512, 64, 64),
            (1024, 28, 28),
        ]
        assert valid.head(valid.decoder(features, (572, 572))).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("side", [188, 204, 220])
def test_valid_sizes_lose_184(valid: UNet, side: int) -> None:
    with torch.no_grad():
        assert valid.decoder(valid.backbone.extract(torch.randn(1, 1, side, 188)), (side, 188)).shape[2:] == (
            side - 184,
            4,
        )


@pytest.mark.parametrize("side", [172, 189, 200])
def test_other_sizes_are_refused_by_the_encoder(side: int) -> None:
    with pytest.raises(ZooError, match=rf"188\+16k pixels, not \({side}, 188\)"):
        UNetEncoder(1, padding="valid")(torch.zeros(1, 1, side, 188))


def test_mirroring_meets_the_border() -> None:
    x = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    row = mirror_to_fit(x)[0, 0, 92]
    assert row.shape == (20 + 184,)
    assert row[88:101].tolist() == [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]
    tall = mirror_to_fit(torch.rand(1, 1, 120, 5))
    assert torch.equal(tall[0, 0, 91 - 50], tall[0, 0, 93 + 50])
    assert mirror_to_fit(torch.ones(1, 1, 1, 1)).shape == (1, 1, 188, 188)


def test_overlap_tile_is_seamless(valid: UNet) -> None:
    """Tiles cut with their context give exactly what the whole image gives: no padding takes part in the result."""
    valid = copy.deepcopy(valid).double()  # so that the order of sums, which differs with the size, is out of sight
    image = torch.rand(1, 1, 36, 52, dtype=torch.float64)
    with torch.no_grad():
        whole = valid.eval()(image)
        canvas = mirror_to_fit(valid.backbone.normalize(image))
        tile = canvas[..., 16 : 16 + 204, 32 : 32 + 204]
        logits = valid.head(valid.decoder(valid.backbone.extract(tile), (204, 204)))
    torch.testing.assert_close(whole[..., 16:36, 32:52], logits, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(33, 33), (1, 5), (50, 63)])
def test_own_encoder_takes_any_size(padding: str, size: tuple[int, int], valid: UNet) -> None:
    model = valid if padding == "valid" else create_model("unet", 2, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, *size)).shape == (1, 2, *size)


def test_initial_activations_keep_their_scale() -> None:
    """The point of N(0, sqrt(2/N)): a deep network without normalisation neither fades nor explodes."""
    torch.manual_seed(0)
    encoder = UNetEncoder(1, padding="valid")
    with torch.no_grad():
        features = encoder(torch.randn(1, 1, 188, 188))
    ratio = (features[-1].pow(2).mean() / features[0].pow(2).mean()).item()
    assert 0.1 < ratio < 100


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([2, 4, 8, 16, 32], [(16, 3), (8, 2), (4, 1), (2, 0), (1, None)]),
        ([4, 8, 16, 32], [(16, 2), (8, 1), (4, 0), (2, None), (1, None)]),
        ([1, 2, 4], [(2, 1), (1, 0)]),
        ([2, 4, 8, 8, 8], [(8, 3), (8, 2), (4, 1), (2, 0), (1, None)]),
        ([4, 32], [(16, None), (8, None), (4, 0), (2, None), (1, None)]),
    ],
)
def test_plan(strides: list[int], expected: list[tuple[int, int | None]]) -> None:
    assert plan(strides) == expected


def test_dropout_acts_in_training_only() -> None:
    model = create_model("unet", 2, "test_efficientnet", dropout=0.5).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), model(image))
        model.dropout.train()
        assert not torch.equal(model(image), model(image))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ZooError, match="padding='valid' does not go with the backbone resnet18"):
        create_model("unet", 2, "resnet18", padding="valid")
    with pytest.raises(ZooError, match="backbone='unet' built with the same padding"):
        create_model("unet", 2, create_backbone("unet", levels=5), padding="valid")
    with pytest.raises(ZooError, match="unknown padding 'mirror'"):
        create_model("unet", 2, padding="mirror")
    with pytest.raises(ZooError, match="needs 5 numbers"):
        create_model("unet", 2, "resnet18", decoder_channels=(64, 32))
