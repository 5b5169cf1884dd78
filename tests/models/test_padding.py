"""Padding before the expansion: where it is, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone


def test_blocks_are_padded_before_their_expansion() -> None:
    plain = create_backbone("mobilenetv2_050", output_stride=16).eval()
    early = create_backbone("mobilenetv2_050", output_stride=16, early_padding=True).eval()
    early.load_state_dict(plain.state_dict())
    assert (early.channels, early.strides) == (plain.channels, plain.strides)
    block = early.model.blocks[5][1]
    assert (block.conv_pw.padding, block.conv_dw.padding, block.conv_dw.dilation) == ((2, 2), (0, 0), (2, 2))
    x = torch.rand(1, block.conv_pw.in_channels, 9, 9)
    border = block.bn1(torch.zeros(1, block.conv_pw.out_channels, 13, 13))  # what an expansion makes of padding
    border[..., 2:-2, 2:-2] = block.bn1(torch.nn.functional.conv2d(x, block.conv_pw.weight))
    with torch.no_grad():
        expected = x + block.bn3(block.conv_pwl(block.bn2(block.conv_dw(border))))
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)
    assert create_backbone(**early.config).model.conv_stem.padding == (0, 0)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ZooError, match=r"backbone test_efficientnet has no early_padding: it is for mobilenetv2_\*"):
        create_backbone("test_efficientnet", early_padding=True)


@pytest.mark.parametrize("options", [{"levels": 5}, {"coarsest": 16}])
def test_the_map_at_stride_2_is_refused(options: dict[str, int]) -> None:
    """Of 68 pixels the stem without padding makes 33."""
    with pytest.raises(
        ZooError, match=r"^early_padding leaves the map of .*050 at stride 2 a pixel short.*levels=4 or"
    ):
        create_backbone("mobilenetv2_050", early_padding=True, **options)
