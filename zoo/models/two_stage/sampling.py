"""Which anchors and regions a loss looks at: matching with the truth's boxes, and sampling of both kinds.

Faster R-CNN (NeurIPS 2015, section 3.1.2) for anchors, Fast R-CNN (ICCV 2015, section 2.3) for regions. All of it
keeps shapes that the host knows: an accelerator is waited for once a batch, when the numbers of sampled regions are
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.two_stage import boxes as box_ops
from zoo.structures import Batch, Instances

CHUNK = 2**22  # pairs of a box and an anchor that are compared at once


@dataclass
class Truth:
    """What a two-stage model trains on of one image: boxes (G, 4), labels (G,), and the objects' rows in `instances`.

    No crowds, and no boxes without an area.
    """

    boxes: Tensor
    labels: Tensor
    rows: Tensor
    instances: Instances


@dataclass
class Regions:
    """The sampled regions of a batch, of each image those of objects first.

    Attributes:
        boxes: per image (n, 4).
        labels: (R,) of all; background is the number of classes.
        targets: (R, 4) the matched object's box, the region itself where the image has no object.
        owners: per image (n,) the matched object, as an index into its `Truth`.
        foreground: per image how many are regions of objects.
    """

    boxes: list[Tensor]
    labels: Tensor
    targets: Tensor
    owners: list[Tensor]
    foreground: list[int]

    def objects(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Of the regions of objects: boxes and owners per image, labels of all."""
        ends = torch.tensor([len(boxes) for boxes in self.boxes]).cumsum(0).tolist()
        starts = [end - len(boxes) for end, boxes in zip(ends, self.boxes, strict=True)]
        labels = [self.labels[start : start + n] for start, n in zip(starts, self.foreground, strict=True)]
        boxes = [boxes[:n] for boxes, n in zip(self.boxes, self.foreground, strict=True)]
        owners = [owners[:n] for owners, n in zip(self.owners, self.foreground, strict=True)]
        return boxes, owners, torch.cat(labels)


def read_truth(batch: Batch, device: torch.device, dtype: torch.dtype) -> list[Truth]:
    """The truth of every image. Boxes that the file does not give are those of the masks.

    Raises ZooError for an image without truth (an empty `Instances` is one).
    """
    found = []
    for target, size, image in zip(batch.targets or [None] * len(batch), batch.sizes, batch.ids, strict=True):
        if not isinstance(target, Instances):
            kind = "no truth" if target is None else f"{type(target).__name__} for its truth"
            raise ZooError(f"image {image} has {kind}: the loss needs Instances, Instances.empty(size) if it has none")
        if target.size != tuple(size):
            raise ZooError(f"image {image} is {size} (height, width) but its truth {target.size}: transform both")
        boxes = target.boxes if target.boxes is not None else target.masks.boxes()  # type: ignore[union-attr]
        found.append((boxes.to(device, dtype), target.labels.to(device), target.crowd.to(device)))
    kept = [(box_ops.sides(boxes) > 0) & ~crowd for boxes, _, crowd in found]
    rows = torch.cat(kept).cpu().split([len(keep) for keep in kept])  # one wait for all images
    truths = []
    for (boxes, labels, _), keep, target in zip(found, rows, batch.targets or [], strict=True):
        index = keep.nonzero()[:, 0].to(device)
        truths.append(Truth(boxes[index], labels[index], index, target))
    return truths


def keys(count: int, device: torch.device) -> Tensor:
    """What decides a draw without replacement: a random number for each of `count`, the largest win."""
    return torch.rand(count, device=device)


def sample(positive: Tensor, negative: Tensor, count: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Up to `count` of the rows that are `positive` (A,) or `negative` (A,), at most a `share` of them positive.

    Returns indices of positives and their number, indices of negatives and their number. There are more indices than
    these numbers say; only the first ones count.
    """
    most = int(count * share)
    order = keys(len(positive), positive.device)
    chosen = torch.where(positive, order, -1.0).topk(min(most, len(order))).indices
    others = torch.where(negative, order, -1.0).topk(min(count, len(order))).indices
    positives = positive.sum().clamp(max=most)
    return chosen, positives, others, torch.minimum(negative.sum(), count - positives)


def match_anchors(boxes: Tensor, anchors: Tensor, high: float = 0.7, low: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Which `anchors` (A, 4) are an object's and which are background, (A,) each, and each one's best box (A,).

    An anchor is positive at an overlap of `high`, or where no other overlaps a box more (whatever the overlap, all
    that tie); negative below `low` with all. Its box is the one it overlaps most, also where another one chose it.
    """
    best, owner = anchors.new_zeros(len(anchors)), anchors.new_zeros(len(anchors), dtype=torch.int64)
    chosen = torch.zeros_like(owner, dtype=torch.bool)
    step = max(1, CHUNK // max(len(anchors), 1))
    for start in range(0, len(boxes), step):  # of very many boxes on a large image; else once
        overlap = box_ops.overlaps(boxes[start : start + step], anchors)
        most = overlap.amax(1, keepdim=True)
        chosen |= ((overlap == most) & (most > 0)).any(0)
        value, index = overlap.max(0)
        owner = torch.where(value > best, index + start, owner)
        best = torch.maximum(best, value)
    return (best >= high) | chosen, (best < low) & ~chosen, owner


def match_regions(boxes: Tensor, truth: Truth, threshold: float, background: int) -> tuple[Tensor, Tensor, Tensor]:
    """For regions (n, 4): labels (n,), the best object's index (n,) and its box (n, 4)."""
    if not len(truth.boxes):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing + background, nothing, boxes
    best, owner = box_ops.overlaps(truth.boxes, boxes).max(0)
    labels = torch.where(best >= threshold, truth.labels[owner], background)
    return labels, owner, truth.boxes[owner]


def sample_regions(
    proposals: Sequence[Tensor],
    truths: Sequence[Truth],
    count: int,
    background: int,
    threshold: float = 0.5,
    share: float = 0.25,
) -> Regions:
    """`count` of each image's proposals and true boxes, at most a `share` of them with an object.

    A region is an object's at an overlap of `threshold`, and else background.
    """
    drawn = []
    for boxes, truth in zip(proposals, truths, strict=True):
        boxes = torch.cat([boxes, truth.boxes])
        matched = match_regions(boxes, truth, threshold, background)
        found = matched[0] < background
        drawn.append((boxes, matched, sample(found, ~found, count, share)))
    counts = torch.stack([torch.stack([n, m]) for _, _, (_, n, _, m) in drawn]).tolist()  # the wait
    picked = [
        (boxes, matched, torch.cat([objects[:n], others[:m]]))
        for (boxes, matched, (objects, _, others, _)), (n, m) in zip(drawn, counts, strict=True)
    ]
    return Regions(
        boxes=[boxes[rows] for boxes, _, rows in picked],
        labels=torch.cat([labels[rows] for _, (labels, _, _), rows in picked]),
        targets=torch.cat([target[rows] for _, (_, _, target), rows in picked]),
        owners=[owner[rows] for _, (_, owner, _), rows in picked],
        foreground=[n for n, _ in counts],
    )
