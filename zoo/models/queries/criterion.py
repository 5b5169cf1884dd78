"""The loss of a set of masks with classes: match queries to segments, then compare each pair.

Cheng et al., "Mask2Former", CVPR 2022, section 3.3 and appendix A, as the authors' code has it:

    matching, for each image and layer: 2 * -probability of the class + 5 * cross-entropy + 5 * dice of the masks, at
        12544 uniform points
    classification: cross-entropy over K + 1, no-object weighted 0.1, divided by the sum of the weights; times 2
    mask, dice: of the pairs, at 12544 points each of which three quarters are where the prediction is in doubt;
        summed and divided by the number of true segments in the batch (over all processes, at least 1); times 5 each

Masks are products of embeddings and pixels, and both a product and a bilinear sample are linear. So the matcher looks
at pixels at its points, then multiplies, and only the masks of pairs are ever made: a tenth or so of all.

Differences from the authors' code: the uniform points that an image's layers are matched at, and those that a segment's
layers choose the doubtful ones from, are the same for all layers; costs that are no finite numbers do not stop the
matching; padded masks are not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.masks import Size
from zoo.models.queries import points as point_ops
from zoo.models.queries.matcher import Matched, assign, class_cost, cross_entropy_cost, dice_cost


class Answers(NamedTuple):
    """What L layers say: logits (L, B, Q, K + 1), embeddings (L, B, Q, C) of masks, and the pixels (B, C, h, w)."""

    logits: Tensor
    embeddings: Tensor
    pixels: Tensor


class Truth(NamedTuple):
    """The segments of one image: masks (n, h, w) bool, labels (n,)."""

    masks: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Criterion:
    """Match, then compare the pairs; a subclass says where and how masks are compared.

    Costs and losses have the same weights.
    """

    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0

    def __call__(self, answers: Answers, truths: Sequence[Truth], size: Size) -> dict[str, Tensor]:
        """The terms `classification`, `mask` and `dice` of the last layer, and `auxiliary`, the sum of all others.

        `size` is that of the padded images (H, W), which the answers' pixels cover.
        """
        with torch.autocast(answers.pixels.device.type, enabled=False):
            answers = Answers(*(at_least_float(x) for x in answers))
            matched = assign(self.costs(answers, truths, size))
            classification = class_loss(answers.logits, truths, matched, self.no_object_weight)
            mask, dice = self.mask_losses(answers, truths, matched, size) / count_segments(truths, answers.pixels)
        return by_layer(self.class_weight * classification, self.mask_weight * mask, self.dice_weight * dice)

    @torch.no_grad()
    def costs(self, answers: Answers, truths: Sequence[Truth], size: Size) -> list[Tensor]:
        """What pairing each query with each segment would cost, (L, Q, n) for each image."""
        found = []
        for image, (masks, labels) in enumerate(truths):
            logits = answers.logits[:, image]
            if not len(labels):
                found.append(logits.new_zeros(*logits.shape[:2], 0))
                continue
            pixels, truth = self.places(answers.pixels[image], masks, size)
            drawn = answers.embeddings[:, image] @ pixels
            found.append(
                self.class_weight * class_cost(logits, labels)
                + self.mask_weight * self.mask_cost(drawn, truth)
                + self.dice_weight * dice_cost(drawn.sigmoid_(), truth)
            )
        return found

    def mask_losses(self, answers: Answers, truths: Sequence[Truth], matched: Sequence[Matched], size: Size) -> Tensor:
        """The terms `mask` and `dice` of all pairs, not weighted and summed: (2, L)."""
        total = answers.pixels.new_zeros(2, len(answers.logits))
        for image, ((queries, segments), truth) in enumerate(zip(matched, truths, strict=True)):
            if not segments.shape[1]:
                continue
            chosen = answers.embeddings[:, image].gather(1, queries[..., None].expand(-1, -1, answers.pixels.shape[1]))
            total = total + self.pair_losses(chosen, answers.pixels[image], segments, truth.masks, size)
        return total

    def places(self, pixels: Tensor, masks: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Where masks are compared to be matched: pixels (C, h, w) -> (C, P) and true masks (n, h', w') -> (n, P)."""
        raise NotImplementedError

    def mask_cost(self, logits: Tensor, truth: Tensor) -> Tensor:
        """What of the cost is a mean over places: (L, Q, P), (n, P) -> (L, Q, n)."""
        raise NotImplementedError

    def pair_losses(self, embeddings: Tensor, pixels: Tensor, segments: Tensor, masks: Tensor, size: Size) -> Tensor:
        """`mask` and `dice` of an image's pairs, summed: embeddings (L, m, C) of the queries that were matched with the
        `segments` (L, m), rows of the true masks (n, h', w'); pixels (C, h, w) -> (2, L)."""
        raise NotImplementedError


@dataclass(frozen=True)
class PointCriterion(Criterion):
    """Mask2Former's: masks are compared at points, `oversample` and `importance` say how they are drawn."""

    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def places(self, pixels: Tensor, masks: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """At points that all of an image's masks and layers share."""
        points = point_ops.draw((1, self.points), masks.device)
        truth = point_ops.sample_truth(masks, torch.arange(len(masks), device=masks.device), points, size)
        return point_ops.sample(pixels[None], points)[0], truth.to(pixels.dtype)

    def mask_cost(self, logits: Tensor, truth: Tensor) -> Tensor:
        return cross_entropy_cost(logits, truth)

    def pair_losses(self, embeddings: Tensor, pixels: Tensor, segments: Tensor, masks: Tensor, size: Size) -> Tensor:
        logits = embeddings.transpose(0, 1) @ pixels.flatten(1)  # (m, L, h * w)
        logits = logits.unflatten(2, pixels.shape[-2:])
        points = point_ops.uncertain_points(logits.detach(), self.points, self.oversample, self.importance)
        if segments.shape[1] == len(masks):  # every one in every layer, in order
            wanted = point_ops.sample_masks(masks, points.flatten(1, 2), size)
        else:
            wanted = point_ops.sample_truth(masks, segments.T.flatten(), points.flatten(0, 1), size)
        wanted = wanted.view(points.shape[:-1]).flatten(0, 1).to(logits.dtype)
        sampled = point_ops.sample(logits.flatten(0, 1)[:, None], points.flatten(0, 1))[:, 0]
        cross_entropy = F.binary_cross_entropy_with_logits(sampled, wanted, reduction="none").mean(-1)
        return torch.stack([cross_entropy, dice_loss(sampled, wanted)]).view(2, *points.shape[:2]).sum(1)


def class_loss(logits: Tensor, truths: Sequence[Truth], matched: Sequence[Matched], no_object_weight: float) -> Tensor:
    """Cross-entropy of logits (L, B, Q, K + 1), the mean by weight over each layer's queries: (L,)."""
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:-1], nothing, dtype=torch.int64, device=logits.device)
    for image, ((queries, segments), truth) in enumerate(zip(matched, truths, strict=True)):
        wanted[:, image].scatter_(1, queries, truth.labels[segments])
    weights = torch.where(wanted == nothing, no_object_weight, 1.0).to(logits.dtype)
    losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(weights)
    return (losses * weights).sum((1, 2)) / weights.sum((1, 2))


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of each of the pairs (M, P): (M,)."""
    probabilities = logits.sigmoid()
    return 1 - (2 * (probabilities * truth).sum(-1) + 1) / (probabilities.sum(-1) + truth.sum(-1) + 1)


def count_segments(truths: Sequence[Truth], like: Tensor) -> Tensor:
    """How many segments the batch has, averaged over all processes, at least 1; nobody waits for it."""
    count = like.new_tensor(float(sum(len(truth.labels) for truth in truths)))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def by_layer(classification: Tensor, mask: Tensor, dice: Tensor) -> dict[str, Tensor]:
    """Terms (L,) each -> those of the last layer by name, and `auxiliary`, all others in one (none for one layer)."""
    terms = {"classification": classification[-1], "mask": mask[-1], "dice": dice[-1]}
    if len(classification) > 1:
        terms["auxiliary"] = (classification + mask + dice)[:-1].sum()
    return terms


def at_least_float(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
