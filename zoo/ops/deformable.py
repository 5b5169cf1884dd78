"""Deformable attention: a query reads each map at a few places of its own choice.

Zhu et al., "Deformable DETR", ICLR 2021, arXiv 2010.04159, equation 3. In plain PyTorch, so that it runs everywhere and
exports. Levels are read and added one by one: to hold all samples at once, as the authors' PyTorch version does, takes
three times the memory and half as long again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.masks import Size


def deformable_attention(value: Tensor, sizes: Sequence[Size], grids: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of samples for each query.

    Args:
        value: (B, S, heads, d), the cells of all levels in turn, row by row.
        sizes: (h, w) of each level; S is the sum of their areas.
        grids: of each level the places (B, heads, N, P, 2), x and y in [-1, 1] from edge to edge of the map; what lies
            outside reads 0.
        weights: (B, heads, N, levels, P), summing to 1 over the last two.

    Returns (B, N, heads * d).
    """
    batch, _, heads, width = value.shape
    queries = weights.shape[2]
    planes = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, d, S)
    total: Tensor | None = None
    start = 0
    for level, ((rows, columns), grid) in enumerate(zip(sizes, grids, strict=True)):
        own = planes[..., start : start + rows * columns].unflatten(2, (rows, columns))
        start += rows * columns
        samples = F.grid_sample(own, grid.flatten(0, 1), "bilinear", "zeros", align_corners=False)
        part = (samples * weights[:, :, :, level].flatten(0, 1)[:, None]).sum(-1)  # (B * heads, d, N)
        total = part if total is None else total + part
    assert total is not None
    return total.view(batch, heads * width, queries).transpose(1, 2)


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
