"""Masks compared at points instead of all pixels: Kirillov et al., "PointRend", CVPR 2020, section 3.2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.masks import Size

CHUNK = 2**22  # pixels of masks that are made floats at once: what caches hold, and few for an accelerator
CHUNK_ELSEWHERE = 2**27


def draw(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform points (*shape, 2): x and y in [0, 1]."""
    return torch.rand((*shape, 2), device=device)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (N, C, h, w) at points (N, P, 2), x and y in [0, 1] from edge to edge: (N, C, P), bilinear, 0 outside."""
    return F.grid_sample(maps, (2 * points - 1)[:, :, None], "bilinear", "zeros", align_corners=False)[..., 0]


def sample_truth(masks: Tensor, rows: Tensor, points: Tensor, size: Size) -> Tensor:
    """Rows (M,) of binary masks (n, h, w) at points (M or 1, P, 2) of an image of `size`: float32 (M, P).

    The same as `sample` of masks that are padded with zeros to `size` and made floats, without padding, copying or
    widening any: four bytes are read for each point. For points that masks share, or masks that several rows share.
    """
    _, height, width = masks.shape
    flat = masks.view(torch.uint8).flatten()
    x, y = points[..., 0] * size[1] - 0.5, points[..., 1] * size[0] - 0.5
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top
    first = rows[:, None] * (height * width)
    total: Tensor | None = None
    for down in (0, 1):
        row = top.long() + down
        for across in (0, 1):
            column = left.long() + across
            share = (lower_share if down else 1 - lower_share) * (right_share if across else 1 - right_share)
            share = share * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            part = flat[first + place] * share
            total = part if total is None else total + part
    assert total is not None
    return total


def sample_masks(masks: Tensor, points: Tensor, size: Size) -> Tensor:
    """Each of the binary masks (n, h, w) at its own points (n, P, 2) of an image of `size`: (n, P), as `sample_truth`.

    For many points: masks are made floats, some of them at a time, and read by a kernel.
    """
    missing = (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1])
    some = max(1, (CHUNK if masks.device.type == "cpu" else CHUNK_ELSEWHERE) // (size[0] * size[1]))
    parts = zip(masks.split(some), points.split(some), strict=True)
    return torch.cat(
        [sample(F.pad(own, missing).to(own_points.dtype)[:, None], own_points)[:, 0] for own, own_points in parts]
    )


@torch.no_grad()
def uncertain_points(masks: Tensor, count: int, oversample: float, importance: float) -> Tensor:
    """`count` points for each of the mask logits (M, L, h, w), L layers' of M segments: (M, L, count, 2).

    Of `oversample` times as many uniform ones those where the logit is nearest to 0, a share `importance` of the
    count; the rest is drawn anew. A segment's layers choose among the same ones.
    """
    many, chosen = int(count * oversample), int(importance * count)
    candidates = draw((len(masks), many), masks.device)
    doubt = sample(masks, candidates).abs_()
    nearest = doubt.topk(chosen, 2, largest=False, sorted=False).indices[..., None].expand(-1, -1, -1, 2)
    picked = candidates[:, None].expand(-1, masks.shape[1], -1, -1).gather(2, nearest)
    fresh = draw((len(masks), count - chosen), masks.device)[:, None]
    return torch.cat([picked, fresh.expand(-1, masks.shape[1], -1, -1)], 2)
