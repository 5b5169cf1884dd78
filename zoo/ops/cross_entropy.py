"""Cross-entropy of small logits at the size of the labels, a strip of rows at a time.

A decoder's logits are an eighth or a quarter of the image; the loss is at full size. Textbook code resizes them and
holds the classes of every pixel twice until the backward pass, the largest tensors of many a training step. But a
cross-entropy's gradient is known with its value, softmax less truth, so both can be computed a strip at a time and the
strip forgotten: what is kept is the gradient of the small logits. A strip lies in the caches, and its exponentials are
computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.strips import Source, at_least_float, sources

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

    Labels are integers, 0..K-1 or `void`, whose pixels have no influence. `weights` (K,) and `label_smoothing` as in
    torch. Computed at least in float32. The gradient is computed with the value: asked for a second derivative, the
    backward pass raises RuntimeError. Raises ValueError where logits and labels are not those of one batch.
    """
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are not of one batch")
    if not labels.numel() or not logits.numel():
        return at_least_float(logits).sum() * 0
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
            small = at_least_float(logits).contiguous()
            batch, classes, height, width = small.shape
            size = (labels.shape[1], labels.shape[2])
            of_rows = _Shares.of(height, size[0], align_corners, small)
            of_columns = _Shares.of(width, size[1], align_corners, small)
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
                used, shares = (rows, None) if of_rows is None else of_rows.part(rows)
                scores = wide[:, :, used] if shares is None else shares @ wide[:, :, used]
                value, slope = _of_strip(scores, labels[:, rows], void, weights, label_smoothing)
                total += value
                if gradient is not None:
                    gradient[:, :, used] += slope if shares is None else shares.T @ slope
            if gradient is not None:
                ctx.dtype = logits.dtype
                ctx.save_for_backward(_narrowed(gradient, of_columns))
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        if torch.is_grad_enabled():  # with create_graph: what was computed with the value has no graph
            raise RuntimeError("zoo's cross-entropy has no second derivative: use torch.nn.functional.cross_entropy")
        (gradient,) = ctx.saved_tensors
        # Half precision comes last: the gradient of a sum over pixels may be beyond float16's range.
        return ((gradient * slope).to(ctx.dtype), None, None, None, None, None)


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
    # Chosen, not multiplied by 0: scores of void pixels may be infinite.
    shifted = torch.where(labelled, scores - scores.amax(1, keepdim=True), 0)
    linear = share * shifted.gather(1, truth)
    whole = share
    if label_smoothing:
        even = scores.new_ones(classes) if weights is None else weights
        spread = (even * (label_smoothing / classes)).view(-1, 1, 1) * labelled
        linear = linear + (shifted * spread).sum(1, keepdim=True)
        whole = share + spread.sum(1, keepdim=True)
    exponentials = shifted.exp_()
    sums = exponentials.sum(1, keepdim=True)
    value = (whole * sums.log() - linear).sum()
    slope = exponentials.mul_(whole / sums).scatter_add_(1, truth, -share)
    return value, slope - spread if label_smoothing else slope


@dataclass(frozen=True)
class _Shares:
    """What each place of a row or column contributes to each of the resized one, (target, length)."""

    matrix: Tensor
    where: list[Source]

    @classmethod
    def of(cls, length: int, target: int, align_corners: bool, like: Tensor) -> _Shares | None:
        """None where both are the same."""
        if length == target:
            return None
        where = sources(length, target, align_corners)
        above, below, share = torch.tensor(where, dtype=torch.float64).unbind(1)
        matrix = torch.zeros(target, length, dtype=torch.float64)
        for places, parts in ((above, 1 - share), (below, share)):
            matrix.scatter_add_(1, places.long()[:, None], parts[:, None])
        return cls(matrix.to(like), where)

    def part(self, targets: slice) -> tuple[slice, Tensor]:
        """The places that some targets lie between, and what these contribute."""
        where = self.where[targets]
        used = slice(where[0][0], where[-1][1] + 1)
        return used, self.matrix[targets, used]


def _narrowed(gradient: Tensor, shares: _Shares | None) -> Tensor:
    """The gradient (B, K, h, w) of what was widened to (B, K, h, W)."""
    if shares is None:
        return gradient
    narrow = gradient.new_zeros((*gradient.shape[:-1], shares.matrix.shape[1]))
    for left in range(0, gradient.shape[-1], _COLUMNS):
        columns = slice(left, left + _COLUMNS)
        used, part = shares.part(columns)
        narrow[..., used] += gradient[..., columns] @ part
    return narrow
