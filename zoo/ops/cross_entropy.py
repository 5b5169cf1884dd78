"""Cross-entropy of small logits at the size of the labels, a strip of rows at a time.

A decoder's logits are an eighth or a quarter of the image; the loss is at full size. Textbook code resizes them and
holds the classes of every pixel twice until the backward pass, the largest tensors of many a training step. But a
cross-entropy's gradient is known with its value, softmax less truth, so both can be computed a strip at a time and the
strip forgotten: what is kept is the gradient of the small logits. A strip lies in the caches, and its exponentials are
computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.ops.strips import sources

# Scores of a strip: 4 MiB, of which a few copies lie in a second or third level cache; a GPU wants long kernels.
_SCORES = {"cpu": 1 << 20}
_SCORES_ELSEWHERE = 1 << 27
# Columns of the image that go back to the logits' columns in one product.
_COLUMNS = 256


def resized_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    void: int,
    align_corners: bool = False,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The sum over pixels of `F.cross_entropy` of logits (B, K, h, w) resized (bilinear) to labels (B, H, W).

    Labels are integers, 0..K-1 or `void`, which has no influence. `weights` (K,) and `label_smoothing` as in torch.
    Computed at least in float32. The gradient is computed with the value, so there is no second derivative.
    """
    return _ResizedCrossEntropy.apply(logits, labels, void, align_corners, weights, label_smoothing)


class _ResizedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        void: int,
        align_corners: bool,
        weights: Tensor | None,
        label_smoothing: float,
    ) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            small = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
            batch, classes, height, width = small.shape
            size = (labels.shape[1], labels.shape[2])
            of_rows = _shares(height, size[0], align_corners, small)
            of_columns = _shares(width, size[1], align_corners, small)
            wide = small
            if of_columns is not None:
                planes = small.view(1, -1, width)
                wide = F.interpolate(planes, size=size[1], mode="linear", align_corners=align_corners)
                wide = wide.view(batch, classes, height, size[1])
            gradient = torch.zeros_like(wide) if ctx.needs_input_grad[0] else None
            total = small.new_zeros(())
            step = max(8, _SCORES.get(small.device.type, _SCORES_ELSEWHERE) // (batch * classes * size[1]))
            for top in range(0, size[0], step):
                rows = slice(top, min(top + step, size[0]))
                shares = None if of_rows is None else of_rows[rows]
                used = rows if shares is None else _used(shares)
                scores = wide[:, :, used] if shares is None else shares[:, used] @ wide[:, :, used]
                value, slope = _of_strip(scores, labels[:, rows], void, weights, label_smoothing)
                total += value
                if gradient is not None:
                    gradient[:, :, used] += slope if shares is None else shares[:, used].T @ slope
            if gradient is not None:
                ctx.save_for_backward(_narrowed(gradient, of_columns).to(logits.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * slope, None, None, None, None, None)


def _of_strip(
    scores: Tensor, labels: Tensor, void: int, weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The summed loss of scores (B, K, n, W) and labels (B, n, W), and its gradient (B, K, n, W)."""
    classes = scores.shape[1]
    labelled = (labels != void)[:, None]
    truth = torch.where(labelled, labels[:, None], 0).long()
    # Of every class's share in the loss: (1 - s) w[y] for the true one, s w[k] / K for each; void pixels have none.
    share = labelled.to(scores.dtype) if weights is None else weights[truth] * labelled
    share = share * (1 - label_smoothing)
    shifted = scores - scores.amax(1, keepdim=True)
    linear = (share * shifted.gather(1, truth)).sum()
    whole = share
    if label_smoothing:
        even = scores.new_ones(classes) if weights is None else weights
        spread = (even * (label_smoothing / classes)).view(-1, 1, 1) * labelled
        linear += (shifted * spread).sum()
        whole = share + spread.sum(1, keepdim=True)
    exponentials = shifted.exp_()
    sums = exponentials.sum(1, keepdim=True)
    value = (whole * sums.log()).sum() - linear
    slope = exponentials.mul_(whole / sums).scatter_add_(1, truth, -share)
    return value, slope - spread if label_smoothing else slope


def _shares(length: int, target: int, align_corners: bool, like: Tensor) -> Tensor | None:
    """What each of `length` places contributes to each of `target`, (target, length); None where they are the same."""
    if length == target:
        return None
    above, below, share = torch.tensor(sources(length, target, align_corners), dtype=torch.float64).unbind(1)
    shares = torch.zeros(target, length, dtype=torch.float64)
    for places, parts in ((above, 1 - share), (below, share)):
        shares.scatter_add_(1, places.long()[:, None], parts[:, None])
    return shares.to(like)


def _used(shares: Tensor) -> slice:
    """From the first to the last column that is not zero."""
    places = shares.any(0).nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


def _narrowed(gradient: Tensor, shares: Tensor | None) -> Tensor:
    """The gradient (B, K, h, w) of what was widened to (B, K, h, W) with these shares (W, w)."""
    if shares is None:
        return gradient
    narrow = gradient.new_zeros((*gradient.shape[:-1], shares.shape[1]))
    for left in range(0, len(shares), _COLUMNS):
        part = shares[left : left + _COLUMNS]
        used = _used(part)
        narrow[..., used] += gradient[..., left : left + _COLUMNS] @ part[:, used]
    return narrow
