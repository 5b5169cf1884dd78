"""Deformable attention against the definition, place by place; both ways; gradients; export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.models.queries.pixel_decoder import DeformableAttention
from zoo.ops import deformable
from zoo.ops.deformable import cell_centres, deformable_attention

SIZES = [(2, 3), (5, 4), (7, 9)]
HEADS, POINTS, WIDTH = 2, 3, 4


def arguments(batch: int = 2, spread: float = 2.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """value, centres, offsets, weights; many places lie outside."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(rows * columns for rows, columns in SIZES)
    value = torch.randn(batch, cells, HEADS, WIDTH, generator=generator, dtype=dtype)
    offsets = spread * torch.randn(batch, cells, HEADS, len(SIZES), POINTS, 2, generator=generator, dtype=dtype)
    weights = torch.rand(batch, cells, HEADS, len(SIZES), POINTS, generator=generator, dtype=dtype)
    return [value, cell_centres(SIZES, value), offsets, weights]


def by_definition(value: Tensor, centres: Tensor, offsets: Tensor, weights: Tensor, query: int, head: int) -> Tensor:
    """Equation 3 for one query and head of the first image."""
    total, start = torch.zeros(WIDTH, dtype=value.dtype), 0
    for level, (rows, columns) in enumerate(SIZES):
        for point in range(POINTS):
            x, y = (centres[query] * torch.tensor([columns, rows]) + offsets[0, query, head, level, point]).tolist()
            for row in range(rows):
                for column in range(columns):
                    near = max(0, 1 - abs(x - column - 0.5)) * max(0, 1 - abs(y - row - 0.5))
                    cell = value[0, start + row * columns + column, head]
                    total += weights[0, query, head, level, point] * near * cell
        start += rows * columns
    return total


def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "CHUNK", 7)
    value, *rest = arguments()
    with torch.no_grad():
        found = deformable_attention(value, SIZES, *rest).unflatten(2, (HEADS, WIDTH))
    for query in (0, 5, 17, 40, len(rest[0]) - 1):
        for head in range(HEADS):
            assert torch.allclose(found[0, query, head], by_definition(value, *rest, query, head), atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 1e5])
def test_both_ways_and_their_gradients_agree(spread: float) -> None:
    """Also exactly on cells' centres and borders (a spread of 0 leaves whole and half numbers), and far outside."""
    tensors = arguments(spread=spread)
    for x in tensors:
        x.requires_grad_()
    value, _, offsets, weights = tensors
    ways = deformable_attention(value, SIZES, *tensors[1:]), deformable._by_maps(value, SIZES, *tensors[1:])
    torch.testing.assert_close(*ways, rtol=0, atol=1e-9)
    wanted = torch.randn(ways[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [value, weights] if spread in (0.0, 1e5) else [value, offsets, weights]  # at a kink rounding decides
    for one, other in zip(*(torch.autograd.grad(way, inputs, wanted) for way in ways), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_what_is_no_number_stays_none() -> None:
    value, centres, offsets, weights = arguments(1)
    offsets[0, 3] = float("nan")
    offsets[0, 4] = float("inf")
    weights[0, 4] = 0.0
    found = deformable_attention(value, SIZES, centres, offsets, weights)
    assert found[0, 3].isnan().all()
    assert found[0, 5:].isfinite().all()


def test_exports() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(HEADS * WIDTH, HEADS, len(SIZES), POINTS).eval()
    cells = sum(rows * columns for rows, columns in SIZES)
    query, x = torch.randn(2, 1, cells, HEADS * WIDTH)
    centres = cell_centres(SIZES, x)

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, query: Tensor, x: Tensor) -> Tensor:
            return self.layer(query, x, SIZES, centres)

    program = torch.export.export(Fixed(), (query, x))
    assert "grid_sampler" in str(program.graph)
    assert "embedding_bag" not in str(program.graph)
    torch.testing.assert_close(program.module()(query, x), Fixed()(query, x), rtol=1e-5, atol=1e-5)
