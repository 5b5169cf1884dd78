"""Which query answers for which true segment: the cheapest assignment, of all layers and images at once.

Carion et al., "DETR", ECCV 2020, equation 1; costs of masks as in "MaskFormer" (NeurIPS 2021) and "Mask2Former".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F


class Matched(NamedTuple):
    """The pairs of one image in every layer: queries and segments (L, m) each, m the fewer of both, by segment."""

    queries: Tensor
    segments: Tensor


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each segment's class: logits (..., Q, K + 1), labels (n,) -> (..., Q, n)."""
    return -logits.softmax(-1)[..., labels]


def cross_entropy_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the points, of each mask with each segment: (..., Q, P), (n, P) -> (..., Q, n).

    t softplus(-x) + (1 - t) softplus(x) = softplus(x) - t x: one product of matrices instead of two.
    """
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth.T) / truth.shape[-1]


def dice_cost(probabilities: Tensor, truth: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of each mask with each segment: (..., Q, P), (n, P) -> (..., Q, n)."""
    both = probabilities @ truth.T
    return 1 - (2 * both + 1) / (probabilities.sum(-1, keepdim=True) + truth.sum(-1) + 1)


def assign(costs: Sequence[Tensor]) -> list[Matched]:
    """The cheapest pairs for the costs (L, Q, n) of each image, on their device, which is waited for once.

    What is no finite number costs most: a training that has diverged is told by its loss.
    """
    most = torch.finfo(torch.float32).max
    flat = torch.cat([cost.float().nan_to_num(most, most, most).flatten() for cost in costs]).cpu()
    found = []
    for cost, own in zip(costs, flat.split([cost.numel() for cost in costs]), strict=True):
        # Of the transpose: what comes first is in order.
        pairs = [linear_sum_assignment(layer.T)[::-1] for layer in own.view(cost.shape).numpy()]
        found.append(torch.from_numpy(np.array(pairs, dtype=np.int64)))  # (L, 2, m)
    device = costs[0].device
    sent = torch.cat([pairs.flatten() for pairs in found])
    if device.type == "cuda":
        sent = sent.pin_memory().to(device, non_blocking=True)
    back = sent.split([pairs.numel() for pairs in found])
    return [Matched(*own.view(pairs.shape).unbind(1)) for own, pairs in zip(back, found, strict=True)]
