"""Mask R-CNN: Faster R-CNN with a small fully convolutional network on each region, which draws the object's mask.

He, Gkioxari, Dollár, Girshick: "Mask R-CNN", ICCV 2017, arXiv 1703.06870.

    images (B, 3, H, W)
      -> Faster R-CNN, see `zoo.models.two_stage.faster_rcnn`: boxes of objects and their classes
      -> pooler: RoIAlign of each object's box from its level, (N, 256, 14, 14)
      -> mask_head: 4 x (conv3x3 256, ReLU), deconv2x2 256 to 28x28, ReLU, conv1x1 to a logit per class
      -> the predicted class's sigmoid (N, 28, 28), drawn on the image where the box is

    training: the regions of objects; the truth's mask cut out by each region at 28x28; binary cross-entropy of the true
    class's logits, so that classes do not compete

variant c4 (figure 4, left): the last stage of the backbone, which the box head runs too, takes the convolutions' place:
(N, 2048, 7, 7) -> deconv 256 -> 14x14.

Differences from the paper: those of detectron2 or torchvision, by `conventions`. In the paper regions are sampled with
one object to three others from 64 (C4) or 512 (FPN) an image, in both implementations from 512 always.
The heads of torchvision's maskrcnn_resnet50_fpn_v2 are norm="batch", rpn_convs=2, box_convs=4, box_fcs=1; those of
detectron2's baselines with GN the same with norm="group", rpn_convs=1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from zoo.errors import ZooError
from zoo.masks import Masks
from zoo.models.backbone import Backbone
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.faster_rcnn import FasterRCNN, Found
from zoo.models.two_stage.heads import MaskHead, split_rows
from zoo.models.two_stage.sampling import Regions, Truth
from zoo.structures import Class, Instances, Size

CHUNK = 2**24  # pixels of true masks that are made numbers of at once


class MaskRCNN(FasterRCNN):
    """A box, a class, a score and a mask for each object.

    Args:
        mask_convs, mask_channels: of the mask head ("c4" has no convolutions).
        class_agnostic: one mask for whatever class instead of one for each (table 2b).
        options: of `FasterRCNN`.
    """

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        mask_convs: int = 4,
        mask_channels: int = 256,
        class_agnostic: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(classes, backbone, **options)
        c4 = self.variant == "c4"
        self.mask_pooler = self.pooler(14)
        self.mask_head = MaskHead(
            backbone.channels[-1] if c4 else self.neck.channels[0],
            len(self.classes),
            convs=0 if c4 else mask_convs,
            channels=mask_channels,
            norm=self.norm,
            agnostic=class_agnostic,
        )

    def branch_loss(self, pyramid: list[Tensor], regions: Regions, truths: list[Truth]) -> dict[str, Tensor]:
        """The term `mask`: mean over the regions of objects and their cells; 0 where a batch has none."""
        boxes, owners, labels = regions.objects()
        check_masks(truths)
        if not len(labels):
            return {"mask": pyramid[0].new_zeros(())}
        logits = full(self.mask_head(self.features(self.mask_pooler, pyramid, boxes), labels))
        soft, aligned = self.conventions.soft_masks, self.conventions.aligned
        targets = [cut_out(*own, logits.shape[-1], aligned, soft) for own in zip(truths, owners, boxes, strict=True)]
        return {"mask": F.binary_cross_entropy_with_logits(logits, torch.cat(targets).to(logits.dtype))}

    def describe(self, pyramid: list[Tensor], found: list[Found], sizes: list[tuple[Size, Size]]) -> list[Instances]:
        """Detections with their masks as RoI grids."""
        boxes, labels = [own.boxes for own in found], torch.cat([own.labels for own in found])
        grids = full(self.mask_head(self.features(self.mask_pooler, pyramid, boxes), labels)).sigmoid()
        instances = []
        for own, grid, (size, original) in zip(found, split_rows(grids, boxes), sizes, strict=True):
            scaled, keep = self.rescale(own.boxes, size, original)
            masks = Masks.from_rois(grid[keep], scaled[keep], original, self.conventions.paste_rule)
            instances.append(Instances(masks, own.labels[keep], own.scores[keep], boxes=scaled[keep]))
        return instances

    def probe(self, pyramid: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        pooled = self.features(self.mask_pooler, pyramid, boxes)
        labels = torch.zeros(len(pooled), dtype=torch.int64, device=pooled.device)
        return [*super().probe(pyramid, boxes), self.mask_head(pooled, labels)]


def check_masks(truths: Sequence[Truth]) -> None:
    """Refuses truth that has boxes alone."""
    for number, truth in enumerate(truths):
        if truth.instances.masks is None and len(truth.rows):
            raise ZooError(
                f"image {number} of the batch has boxes but no masks, which this model trains on: give the dataset's "
                "annotations masks (polygons, RLE), or train keypoint_rcnn, which needs none"
            )


def cut_out(truth: Truth, owners: Tensor, boxes: Tensor, size: int, aligned: bool, soft: bool) -> Tensor:
    """The true masks of regions: for each box (n, 4) what of its owner's mask lies in it, (n, size, size).

    Each cell is the mean over its pixels, `aligned` or half a pixel off (torchvision), and unless `soft` 1 where that
    is a half or more.
    """
    masks = truth.instances.masks
    if masks is None or not len(boxes):
        return boxes.new_zeros(0, size, size)
    dense = masks.dense().to(boxes.device)
    rows, pixels = truth.rows[owners], masks.size[0] * masks.size[1]
    if len(dense) > len(boxes):
        dense, rows = dense[rows], torch.arange(len(rows), device=boxes.device)
    step = max(1, CHUNK // max(pixels, 1))
    grids = boxes.new_zeros(len(boxes), size, size)
    rois = torch.cat([rows[:, None].to(boxes.dtype), boxes], 1)
    for start in range(0, len(dense), step):  # of very many or very large masks; else once
        own = ((rows >= start) & (rows < start + step)).nonzero()[:, 0] if step < len(dense) else slice(None)
        part = dense[start : start + step, None].to(boxes.dtype)
        grids[own] = roi_align(part, rois[own] - rois.new_tensor([start, 0, 0, 0, 0]), size, 1.0, 0, aligned)[:, 0]
    return grids if soft else (grids >= 0.5).to(boxes.dtype)
