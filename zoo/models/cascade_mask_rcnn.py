"""Cascade Mask R-CNN: three box heads in a row, each trained on the better boxes that the one before made.

Cai and Vasconcelos: "Cascade R-CNN: High Quality Object Detection and Instance Segmentation", TPAMI 2019,
arXiv 1906.09756 (CVPR 2018, arXiv 1712.00726).

    images (B, 3, H, W)
      -> Mask R-CNN's pyramid and proposals
      -> box_head.0 on the proposals: logits, offsets (R, 1, 4) whatever the class -> boxes
      -> box_head.1 on those boxes -> boxes -> box_head.2 -> boxes
      -> scores: mean of the three heads'; boxes: the last one's; then as in Mask R-CNN, masks once, on the final boxes

    training: regions are sampled once; head t calls a region an object's from an overlap of 0.5, 0.6, 0.7; the later
    heads take all boxes of the one before, matched anew, without sampling. The gradient that each head hands down to
    the features is divided by three.

Differences from the paper: those of detectron2. The mask branch is trained on the first stage's regions and used once;
the paper's has one for each stage and averages them (mmdetection does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.mask_rcnn import MaskRCNN
from zoo.models.two_stage import boxes as box_ops
from zoo.models.two_stage.boxes import Weights
from zoo.models.two_stage.conventions import CASCADE_CONVENTIONS
from zoo.models.two_stage.faster_rcnn import Found
from zoo.models.two_stage.heads import BoxHead, box_loss, split_rows
from zoo.models.two_stage.sampling import Regions, Truth, match_regions
from zoo.structures import Class, Size

# Of the offsets of each stage: the better the boxes, the smaller what is left to learn.
STAGE_WEIGHTS: tuple[Weights, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class CascadeMaskRCNN(MaskRCNN):
    """Mask R-CNN with three box heads.

    Args:
        overlaps: from which a region is an object's, in each stage.
        options: of `MaskRCNN` and `FasterRCNN`.
    """

    presets: ClassVar = CASCADE_CONVENTIONS

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        overlaps: Sequence[float] = (0.5, 0.6, 0.7),
        **options: Any,
    ) -> None:
        if len(overlaps) != len(STAGE_WEIGHTS):
            raise ZooError(f"overlaps={list(overlaps)}: a cascade has three stages, such as [0.5, 0.6, 0.7]")
        super().__init__(classes, backbone, **options)
        self.overlaps = list(overlaps)

    def create_box_head(self) -> nn.Module:
        if self.variant == "c4":
            raise ZooError("cascade_mask_rcnn has the variants fpn and dc5: with c4 there is no published head")
        named: dict[str, Any] = {**self.box_options, "conv_channels": self.channels, "norm": self.norm}
        channels, size = self.neck.channels[0], self.box_pooler.size
        heads = [BoxHead(channels, len(self.classes), size, agnostic=True, **named) for _ in STAGE_WEIGHTS]
        return nn.ModuleList(heads)

    def box_losses(
        self, pyramid: list[Tensor], regions: Regions, truths: list[Truth], sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """The terms `classification` and `box`, each the sum over the stages."""
        terms = []
        boxes = regions.boxes
        for stage, weights in enumerate(STAGE_WEIGHTS):
            if stage:
                regions = self._match(boxes, truths, self.overlaps[stage])
            pooled = _Scaled.apply(self.box_pooler(pyramid, regions.boxes))
            logits, offsets = self.box_head[stage](pooled)
            terms.append(torch.stack(box_loss(logits, offsets, regions, self.conventions.box_beta, weights)))
            boxes = self._moved(offsets, regions.boxes, sizes, weights, training=True)
        classification, box = torch.stack(terms).sum(0)
        return {"classification": classification, "box": box}

    def classify(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size]) -> list[Found]:
        scores = []
        for stage, weights in enumerate(STAGE_WEIGHTS):
            logits, offsets = self.box_head[stage](self.box_pooler(pyramid, proposals))
            scores.append(box_ops.full(logits).softmax(-1)[:, :-1])
            if stage < len(STAGE_WEIGHTS) - 1:
                proposals = self._moved(offsets, proposals, sizes, weights)
        return self.select(torch.stack(scores).mean(0), offsets, proposals, sizes, weights)

    def probe(self, pyramid: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        pooled, labels = self.mask_pooler(pyramid, boxes), torch.zeros(len(boxes), dtype=torch.int64)
        heads = [x for head in self.box_head for x in head(self.box_pooler(pyramid, boxes))]
        return [*heads, self.mask_head(pooled, labels)]

    @torch.no_grad()
    def _moved(
        self,
        offsets: Tensor,
        boxes: list[Tensor],
        sizes: Sequence[Size],
        weights: Weights,
        training: bool = False,
    ) -> list[Tensor]:
        """Each image's boxes after a stage, inside their image; in training without those that have no area left."""
        moved = split_rows(box_ops.decode(offsets[:, 0], torch.cat(boxes), weights), boxes)
        moved = [box_ops.clip(own[None], [size])[0] for own, size in zip(moved, sizes, strict=True)]
        if not training:  # a box that is not finite cannot be pooled: the last head decides on what it was
            return [torch.where(own.isfinite(), own, before) for own, before in zip(moved, boxes, strict=True)]
        keep = [box_ops.sides(own) > 0 for own in moved]
        if bool(torch.cat(keep).all()):
            return moved
        return [own[kept] for own, kept in zip(moved, keep, strict=True)]

    @torch.no_grad()
    def _match(self, boxes: list[Tensor], truths: list[Truth], threshold: float) -> Regions:
        """All boxes, matched with the truth. (Those of objects are not first: only box losses take these.)"""
        pairs = zip(boxes, truths, strict=True)
        labels, owners, targets = zip(
            *(match_regions(own, truth, threshold, len(self.classes)) for own, truth in pairs), strict=True
        )
        return Regions(boxes, torch.cat(labels), torch.cat(targets), list(owners), [0] * len(boxes))


class _Scaled(torch.autograd.Function):
    """The same values; the gradient divided by the number of stages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / len(STAGE_WEIGHTS)
