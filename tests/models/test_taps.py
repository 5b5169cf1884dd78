"""What a module inside a backbone puts out: trimmed as levels are, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.backbone import Backbone, create_backbone
from zoo.models.taps import Tap, extract_with, measure_tap


class Means(nn.Module):
    """Means of cells of 8 and of 16 pixels; the finer ones also with channels last, as swin has them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.last, self.idle = nn.AvgPool2d(8), nn.Identity(), nn.Identity()
        self.pair, self.flat = nn.LSTM(3, 3), nn.Flatten()

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        self.flat(self.last(fine.permute(0, 2, 3, 1)))
        self.pair(fine.flatten(2).permute(2, 0, 1))
        return [fine, F.avg_pool2d(fine, 2)]


def padding_backbone(smallest: int = 32) -> Backbone:
    """One that takes multiples of 32 pixels."""
    return Backbone(
        "means", Means(), [3, 3], [8, 16], mean=[0.5] * 3, std=[0.25] * 3, config={"name": "means", "in_channels": 3},
        multiple=32, smallest=smallest,
    )  # fmt: skip


@pytest.mark.parametrize("smallest", [32, 128])
def test_a_tap_does_not_cover_the_padding(smallest: int) -> None:
    """100 pixels are padded to 128: of 16 cells the last three lie beyond the image."""
    backbone = padding_backbone(smallest)
    tap = measure_tap(backbone, "fine")
    assert tap == Tap("fine", 3, 8)
    x = torch.rand(2, 3, 100, 50)
    tapped, *features = extract_with(backbone, tap, x)
    assert tapped.shape == (2, 3, 13, 7)
    assert torch.equal(tapped, features[0])
    torch.testing.assert_close(tapped[..., :12, :6], F.avg_pool2d(x, 8))


@pytest.mark.parametrize(
    ("name", "options"),
    [("lraspp", {"low_module": "fine"}), ("deeplabv3", {"aux_module": "fine", "aux_channels": 2})],
)
def test_models_read_what_is_trimmed(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, 2, padding_backbone(), **options).eval()
    features = model.extract(model.backbone.normalize(torch.rand(1, 3, 100, 100)))
    assert features[0].shape == (1, 3, 13, 13)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("last", r"\[1, \d+, \d+, 3\] for an image of"),
        ("flat", r"\[1, \d+\] for an image of"),
        ("pair", "tuple"),
        ("idle", "nothing"),
    ],
)
def test_what_is_no_map_is_refused(name: str, found: str) -> None:
    with pytest.raises(ZooError, match=f"^module '{name}' of means puts out {found}.*: name a module that gives one"):
        measure_tap(padding_backbone(), name)


def test_channels_that_are_a_width_are_found_out() -> None:
    class Similarities(Means):
        def forward(self, x: Tensor) -> list[Tensor]:
            fine = self.fine(x)
            self.last(fine.new_zeros(len(x), fine.shape[3], *fine.shape[2:]))
            return [fine]

    backbone = padding_backbone()
    backbone.model, backbone.strides = Similarities(), [8]
    with pytest.raises(ZooError, match=r"^module 'last' of means puts out maps of \d+ and \d+ channels, where"):
        measure_tap(backbone, "last")


def test_a_tap_at_a_level_is_that_level() -> None:
    backbone = create_backbone("test_efficientnet").train()
    assert [measure_tap(backbone, f"blocks.{index}") for index in (1, 2)] == [
        Tap("blocks.1", backbone.channels[0], 4),
        Tap("blocks.2", backbone.channels[1], 8),
    ]
    assert backbone.model.training
    x = torch.rand(1, 3, 65, 97)
    tapped, *features = extract_with(backbone.eval(), Tap("blocks.2", backbone.channels[1], 8), x)
    assert torch.equal(tapped, features[1])
