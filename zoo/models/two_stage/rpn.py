"""The region proposal network: at every cell of every level, how likely each anchor is an object, and where it ends.

Ren, He, Girshick, Sun: "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497, section 3; on a pyramid as in FPN, CVPR 2017,
section 4.1 (one head for all levels, one anchor size per level).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from zoo.errors import ZooError
from zoo.models.two_stage import boxes as box_ops
from zoo.models.two_stage.conventions import Conventions
from zoo.models.two_stage.neck import Conv
from zoo.models.two_stage.sampling import Truth, match_anchors, sample
from zoo.structures import Size

NMS = 0.7


class RPN(nn.Module):
    """Maps of one number of channels -> per level objectness (B, h * w * A) and offsets (B, h * w * A, 4)."""

    def __init__(self, channels: int, per_cell: int, convs: int = 1) -> None:
        super().__init__()
        self.conv = nn.ModuleList([Conv(channels, channels) for _ in range(convs)])
        self.cls = nn.Conv2d(channels, per_cell, 1)
        self.reg = nn.Conv2d(channels, 4 * per_cell, 1)
        for conv in (*self.conv, self.cls, self.reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = [], []
        for x in maps:
            for conv in self.conv:
                x = conv(x)
            objectness.append(self.cls(x).permute(0, 2, 3, 1).flatten(1))
            offsets.append(self.reg(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return objectness, offsets


@torch.no_grad()
def propose(
    objectness: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Sequence[Size],
    before: int,
    after: int,
    conventions: Conventions,
    training: bool = False,
) -> list[Tensor]:
    """Per image up to `after` boxes (n, 4), best first: of each level the `before` best, thinned by suppression.

    Boxes end at the borders of the images, whose (H, W) are `sizes`.

    Raises:
        ZooError: a box that is not finite, in training, where it means that the loss has diverged. Otherwise such
            boxes are dropped.
    """
    scores, found, levels = [], [], []
    for level, (score, offset, anchor) in enumerate(zip(objectness, offsets, anchors, strict=True)):
        best, index = box_ops.full(score).topk(min(before, score.shape[1]), dim=1)
        scores.append(best)
        found.append(box_ops.decode(offset.gather(1, index[..., None].expand(-1, -1, 4)), anchor[index]))
        levels.append(torch.full_like(index[0], level))
    score, boxes, level_of = torch.cat(scores, 1), torch.cat(found, 1), torch.cat(levels)
    finite = boxes.isfinite().all(-1) & score.isfinite()
    boxes = box_ops.clip(boxes, sizes)
    least, side = conventions.least_proposal, box_ops.sides(boxes)
    valid = finite & (side >= least if least else side > 0)
    all_finite, all_valid = torch.stack([finite.all(), valid.all()]).tolist()  # one wait for the whole batch
    if training and not all_finite:
        raise ZooError("proposals are no longer finite: training has diverged, use a lower learning rate or a warm-up")
    kept = []
    for row in range(len(boxes)):
        own = (boxes[row], score[row], level_of)
        if not all_valid:
            own = (own[0][valid[row]], own[1][valid[row]], own[2][valid[row]])
        kept.append(own[0][batched_nms(*own, NMS)[:after]])
    return kept


def rpn_loss(
    objectness: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    truths: Sequence[Truth],
    count: int,
    conventions: Conventions,
) -> dict[str, Tensor]:
    """Binary cross-entropy of `count` sampled anchors an image, and the distance of the positive ones' offsets."""
    every, flat = torch.cat(list(anchors)), torch.cat(list(objectness), 1)
    shift = torch.cat(list(offsets), 1)
    total: Tensor | int = count * len(truths)
    sampled, entropy, distance = [], [], []
    for row, truth in enumerate(truths):
        positive, negative, owner = match_anchors(truth.boxes, every)
        objects, positives, others, negatives = sample(positive, negative, count, share=0.5)
        ranks = torch.arange(max(len(objects), len(others)), device=every.device)
        are_objects, are_others = ranks[: len(objects)] < positives, ranks[: len(others)] < negatives
        # The objectness of an object is one: log(1 + exp(-x)); of background log(1 + exp(x)).
        found, absent = box_ops.full(flat[row, objects]), box_ops.full(flat[row, others])
        entropy += [torch.where(are_objects, F.softplus(-found), 0).sum()]
        entropy += [torch.where(are_others, F.softplus(absent), 0).sum()]
        own = truth.boxes[owner[objects]] if len(truth.boxes) else every[objects]
        targets = box_ops.encode(own, every[objects])
        distance.append(box_ops.smooth_l1(shift[row, objects], targets, are_objects, conventions.rpn_beta))
        sampled.append(positives + negatives)
    if conventions.sampled_normalizer:
        total = torch.stack(sampled).sum().clamp(min=1)
    return {"rpn_objectness": torch.stack(entropy).sum() / total, "rpn_box": torch.stack(distance).sum() / total}
