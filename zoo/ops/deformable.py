"""Deformable attention: a query reads each map at a few places of its own choice.

Zhu et al., "Deformable DETR", ICLR 2021, arXiv 2010.04159, equation 3. In plain PyTorch, so that it runs everywhere and
exports, in two ways that give the same to rounding:

- by maps, everywhere: `grid_sample` of each level, levels added one by one. To hold all samples at once, as the
  authors' PyTorch version does, takes three times the memory and half as long again.
- by rows, on the CPU: a bilinear sample is a weighted sum of four cells, so what a head of a query gets is one of
  4 * levels * P cells. A cell's channels lie together, and `embedding_bag` adds such rows with vector instructions,
  where `grid_sample` gathers number by number: six times as fast. Cells get a border of zeros for what lies outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.masks import Size

CHUNK = 2048  # queries whose cells are listed at once where no gradient is recorded: what caches hold
BEFORE, AFTER = 1, 2  # zeros beside a map: a place up to a cell outside has three neighbours there, or four


def deformable_attention(
    value: Tensor, sizes: Sequence[Size], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """The weighted sum of samples for each query.

    Args:
        value: (B, S, heads, d), the cells of all levels in turn, row by row.
        sizes: (h, w) of each level; S is the sum of their areas.
        centres: (N, 2), where queries look from: x and y in [0, 1] from edge to edge of every map.
        offsets: (B, N, heads, levels, P, 2), from there, x and y in cells of the level; what lies outside reads 0.
        weights: (B, N, heads, levels, P), summing to 1 over the last two.

    Returns (B, N, heads * d).
    """
    by_rows = value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)
    if by_rows and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        images = zip(value, offsets, weights, strict=True)
        return torch.stack([_by_rows(own, sizes, centres, *rest) for own, *rest in images])
    return _by_maps(value, sizes, centres, offsets, weights)


def _by_maps(value: Tensor, sizes: Sequence[Size], centres: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    queries = weights.shape[1]
    planes = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, d, S)
    around = (2 * centres - 1).to(offsets.dtype)[:, None, None]
    total: Tensor | None = None
    start = 0
    for level, (rows, columns) in enumerate(sizes):
        own = planes[..., start : start + rows * columns].unflatten(2, (rows, columns))
        start += rows * columns
        grid = (around + offsets[..., level, :, :] * offsets.new_tensor([2 / columns, 2 / rows])).transpose(1, 2)
        samples = F.grid_sample(own, grid.flatten(0, 1), "bilinear", "zeros", align_corners=False)
        part = (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (B * heads, d, N)
        total = part if total is None else total + part
    assert total is not None
    return total.view(batch, heads * width, queries).transpose(1, 2)


def _by_rows(value: Tensor, sizes: Sequence[Size], centres: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """For one image: without the batch's axis, (N, heads * d)."""
    queries, heads, levels, points = weights.shape
    border = BEFORE + AFTER
    pitch = max(columns for _, columns in sizes) + border  # of all levels: a cell's neighbours are equally far in each
    tops = [0]
    for rows, _ in sizes:
        tops.append(tops[-1] + rows + border)
    cells = _bordered(value, sizes, tops, pitch)  # (heads * rows * pitch, d)
    first = torch.arange(heads, dtype=torch.int32)[:, None, None] * (tops[-1] * pitch)
    top = value.new_tensor(tops[:-1])[:, None]
    height, width = (value.new_tensor(side)[:, None] for side in zip(*sizes, strict=True))
    around = centres.to(value.dtype)[:, None, None, None]  # (N, 1, 1, 1, 2)
    shift = BEFORE - 0.5  # a cell's number is where its corner is, its value is that of its centre
    neighbours = (0, 1, pitch, pitch + 1)
    last = len(cells) - 1 - neighbours[-1]
    found = []
    step = queries if torch.is_grad_enabled() else CHUNK
    for start in range(0, queries, step):
        some = slice(start, start + step)
        # The cell above and left of a place, of the bordered map.
        x = torch.minimum((offsets[some, ..., 0] + (around[some, ..., 0] * width + shift)).clamp(min=0), width + BEFORE)
        y = torch.minimum(
            (offsets[some, ..., 1] + (around[some, ..., 1] * height + shift)).clamp(min=0), height + BEFORE
        )
        left, above = x.detach().floor(), y.detach().floor()
        places = ((above + top) * pitch).add_(left).to(torch.int32).add_(first).clamp_(0, last)  # no number: any
        lower = weights[some] * (y - above)
        upper = weights[some] - lower
        across = x - left
        right_below, right_above = lower * across, upper * across
        shares = upper - right_above, right_above, lower - right_below, right_below
        total: Tensor | None = None
        for distance, share in zip(neighbours, shares, strict=True):
            bags = places.view(-1, levels * points), share.reshape(-1, levels * points)
            part = F.embedding_bag(bags[0], cells[distance:], mode="sum", per_sample_weights=bags[1])
            total = part if total is None else total.add_(part)
        assert total is not None
        found.append(total.view(-1, heads * value.shape[-1]))
    return torch.cat(found)


def _bordered(value: Tensor, sizes: Sequence[Size], tops: Sequence[int], pitch: int) -> Tensor:
    """Cells (S, heads, d) of all levels, one below the other with zeros around, of each head in turn: rows of d."""
    _, heads, width = value.shape
    cells = value.new_zeros(heads, tops[-1], pitch, width)
    parts = value.split([rows * columns for rows, columns in sizes])
    for own, top, (rows, columns) in zip(parts, tops, sizes, strict=False):
        place = cells[:, top + BEFORE : top + BEFORE + rows, BEFORE : BEFORE + columns]
        place.copy_(own.unflatten(0, (rows, columns)).permute(2, 0, 1, 3))
    return cells.view(-1, width)


def cell_centres(sizes: Sequence[Size], like: Tensor) -> Tensor:
    """The centres of all cells of all levels, x and y in [0, 1], (S, 2): where queries that are cells look from.

    On the device of `like`, in its type or float32 if that is wider.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    found = []
    for rows, columns in sizes:
        y = (torch.arange(rows, dtype=dtype, device=like.device) + 0.5) / rows
        x = (torch.arange(columns, dtype=dtype, device=like.device) + 0.5) / columns
        found.append(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1))
    return torch.cat(found)
