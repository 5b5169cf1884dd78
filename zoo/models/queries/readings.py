"""The three readings of one answer: queries with classes and masks become labels, objects or segments.

Cheng et al., "MaskFormer", NeurIPS 2021, section 3.4, and "Mask2Former", appendix A, with the rules of the authors'
code, step by step in the functions. (The post-processing of transformers differs from it: ids of things that are
merged, areas weighted by scores, no void, masks by way of 384x384.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.masks import Masks, Size
from zoo.ops.strips import Strips, stored
from zoo.structures import VOID, Class, Instances, Panoptic, Semantic

CHUNK = 2**23  # pixels of masks that are enlarged at once: what caches hold, and few for an accelerator
CHUNK_ELSEWHERE = 2**28


@dataclass(frozen=True)
class Place:
    """Where an image lies: `padded` is what the masks cover, `size` the image in it, `original` what is wanted."""

    padded: Size
    size: Size
    original: Size

    def enlarge(self, masks: Tensor) -> Tensor:
        """Mask logits (n, h, w) at the original size (n, H, W): to the padded size, cropped, to the original."""
        whole = _resize(masks[None], self.padded)[..., : self.size[0], : self.size[1]]
        return _resize(whole, self.original)[0]

    def chunks(self, masks: Tensor) -> Iterator[Tensor]:
        """The same, some of the masks at a time."""
        pixels = CHUNK if masks.device.type == "cpu" else CHUNK_ELSEWHERE
        most = max(side[0] * side[1] for side in (self.padded, self.original))
        for some in masks.split(max(1, pixels // most)):
            yield self.enlarge(some)


def read_semantic(logits: Tensor, masks: Tensor, place: Place) -> Semantic:
    """The class with the highest sum over queries of probability of the class times that of the mask.

    Args:
        logits: (Q, K + 1).
        masks: logits (Q, h, w).

    Sums are made at the size the network saw and then resized, as the authors do where nothing else is read.
    """
    shares = logits.softmax(-1)[:, :-1].T  # (K, Q)
    height, width = place.size
    enlarged = stored(masks[None]).resized(place.padded)

    def read(top: int, bottom: int) -> Tensor:
        probabilities = enlarged.read(top, bottom)[0, ..., :width].sigmoid()
        return (shares @ probabilities.flatten(1)).view(1, len(shares), bottom - top, width)

    scores = Strips((1, len(shares), height, width), read)
    return Semantic(scores.resized(place.original).labels(masks.device)[0])


def read_instances(
    logits: Tensor, masks: Tensor, place: Place, classes: Sequence[Class], detections: int = 100
) -> Instances:
    """The best pairs of a query and a class, best first: masks where the logit is above 0.

    Of all Q * K pairs the `detections` with the highest probability; of a table with stuff in it the things. A score is
    that probability times the mean probability of the mask's pixels.
    """
    scores, pairs = logits.softmax(-1)[:, :-1].flatten().topk(min(detections, len(logits) * len(classes)))
    labels, queries = pairs % len(classes), pairs // len(classes)
    things = torch.tensor([c.thing for c in classes], device=labels.device)
    if things.any() and not things.all():
        keep = things[labels]
        scores, labels, queries = scores[keep], labels[keep], queries[keep]
    needed, row = queries.unique(return_inverse=True)
    dense = torch.zeros(len(needed), *place.original, dtype=torch.bool, device=masks.device)
    quality = scores.new_zeros(len(needed))
    start = 0
    for part in place.chunks(masks[needed]):
        rows = slice(start, start + len(part))
        start += len(part)
        torch.gt(part, 0, out=dense[rows])
        inside = dense[rows].flatten(1)
        quality[rows] = (part.sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)
    scores = scores * quality[row]
    order = scores.argsort(descending=True, stable=True)
    return Instances(Masks.from_dense(dense[row[order]]), labels[order], scores[order])


def read_panoptic(
    logits: Tensor,
    masks: Tensor,
    place: Place,
    classes: Sequence[Class],
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """Every pixel to the query that claims it most, where that query's own mask has it; void elsewhere.

    Queries count whose best class is one and scores above `object_threshold`. A pixel goes to the highest product of
    score and mask probability. A query is dropped that wins less than `overlap_threshold` of its mask (probability of
    at least a half), or nothing. Queries of one class of stuff are one segment, with the first one's score. Ids count
    from 1 in the queries' order.
    """
    scores, labels = logits.softmax(-1).max(-1)
    kept = ((labels < len(classes)) & (scores > object_threshold)).nonzero()[:, 0]
    scores, labels = scores[kept], labels[kept]
    winner = torch.zeros(place.original, dtype=torch.int32, device=masks.device)
    if not len(kept):
        return Panoptic(winner, winner.new_tensor([VOID]))
    best = torch.full(place.original, -1.0, dtype=scores.dtype, device=masks.device)
    inside = torch.zeros_like(winner, dtype=torch.bool)
    areas = []
    planes = (plane for part in place.chunks(masks[kept]) for plane in part.sigmoid().unbind())
    for number, plane in enumerate(planes):  # torch's argmax over the first axis is far slower
        own, claim = plane >= 0.5, plane * scores[number]
        areas.append(own.count_nonzero())
        more = claim > best
        winner.masked_fill_(more, number)
        inside = torch.where(more, own, inside)
        torch.maximum(best, claim, out=best)
    flat = winner.flatten()
    won = torch.bincount(flat, minlength=len(kept))
    left = torch.bincount(flat, inside.flatten().double(), minlength=len(kept))
    facts = torch.stack([won.double(), left, torch.stack(areas).double(), labels.double()], 1).tolist()
    numbers, segments = _number(facts, classes, overlap_threshold)
    table = torch.tensor(numbers, dtype=torch.int32, device=masks.device)
    ids = table.index_select(0, flat).view_as(winner) * inside
    void = labels.new_tensor([VOID])
    return Panoptic(ids, torch.cat([void, labels[segments]]), torch.cat([scores.new_ones(1), scores[segments]]))


def _number(
    facts: Sequence[Sequence[float]], classes: Sequence[Class], overlap_threshold: float
) -> tuple[list[int], list[int]]:
    """For each query (pixels won, of these inside its mask, of the mask, class) its id, 0 if dropped; and of each id
    the query it began with."""
    numbers, segments, stuff = [], [], dict[int, int]()
    for query, (won, left, area, label) in enumerate(facts):
        kind = int(label)
        if not (won and left and area) or won / area < overlap_threshold:
            numbers.append(0)
        elif kind in stuff:
            numbers.append(stuff[kind])
        else:
            segments.append(query)
            numbers.append(len(segments))
            if not classes[kind].thing:
                stuff[kind] = len(segments)
    return numbers, segments


def _resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear (1, n, h, w) -> (1, n, *size)."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
