"""Faster R-CNN, the skeleton of two-stage models: propose regions, pool them, say of each what it is and where it ends.

Ren, He, Girshick, Sun: "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497; with a pyramid: Lin et al., "Feature Pyramid
Networks for Object Detection", CVPR 2017, arXiv 1612.03144.

    images (B, 3, H, W), normalised, padded with zeros to a multiple of 32
      -> backbone: c2..c5, strides 4..32
      -> neck: p2..p6 (B, 256, h, w), strides 4..64
      -> rpn: objectness (B, 3hw) and offsets (B, 3hw, 4) of each level                      `forward` ends here
      -> propose: up to 1000 boxes an image over all levels
      -> pooler: each box from its level, (R, 256, 7, 7)
      -> box_head: logits (R, K + 1), the last for background, offsets (R, K, 4)
      -> scores above 0.05, non-maximum suppression within each class at 0.5, the best 100 of an image
      -> a branch of the subclass on those boxes: masks, keypoints

Variants, as detectron2 has them: "fpn" is the above. "c4": no neck, one map of stride 16 (res4) with 15 anchors; the
backbone's last stage runs on each region (14x14 -> 7x7) and its mean is classified. "dc5": no neck, res5 dilated to
stride 16, 15 anchors, the heads of "fpn" on it.

Differences from the papers: what detectron2 and torchvision do, see `zoo.models.two_stage.conventions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import batched_nms

from zoo.errors import ZooError, unknown
from zoo.models.backbone import Backbone
from zoo.models.fold import folding
from zoo.models.layers import join
from zoo.models.semantic import evaluating, rows_of_sizes
from zoo.models.two_stage import boxes as box_ops
from zoo.models.two_stage.anchors import Anchors
from zoo.models.two_stage.conventions import CONVENTIONS, Conventions, choose
from zoo.models.two_stage.heads import ROI_WEIGHTS, BoxHead, MeanBoxHead, box_loss
from zoo.models.two_stage.neck import FPN, LastLevel
from zoo.models.two_stage.roi import RoIPooler
from zoo.models.two_stage.rpn import RPN, propose, rpn_loss
from zoo.models.two_stage.sampling import Regions, Truth, read_truth, sample_regions
from zoo.models.two_stage.stages import before_last_stage, freeze, keep_statistics, last_stage
from zoo.structures import Batch, Class, Instances, Size, as_classes

VARIANTS = ("fpn", "c4", "dc5")


class Dense(NamedTuple):
    """What is computed of every cell: maps (B, C, h, w), objectness (B, n) and offsets (B, n, 4), by level."""

    pyramid: list[Tensor]
    objectness: list[Tensor]
    offsets: list[Tensor]


@dataclass
class Found:
    """Detections of one image in the network's coordinates, best first: boxes (N, 4), labels (N,), scores (N,)."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class FasterRCNN(nn.Module):
    """Boxes of objects and their classes; subclasses add what is said of each object.

    Args:
        classes: how many, their names, or a dataset's table (of things).
        backbone: a built `Backbone`.
        conventions: "detectron2" or "torchvision", see `zoo.models.two_stage.conventions`.
        variant: "fpn", "c4" or "dc5".
        pooling: of regions, "align" (RoIAlign) or "pool" (RoIPool, the ablation of Mask R-CNN's table 2c).
        channels: of the neck, and of the box head's convolutions.
        norm: of the neck's and the heads' convolutions: None, "batch", "group".
        rpn_convs: 3x3 convolutions before the RPN's outputs.
        anchor_sizes: one for each level of the pyramid, or all at each cell of the one map ("c4", "dc5"), in pixels.
        anchor_ratios: heights over widths.
        box_convs, box_fcs, box_width: convolutions, hidden layers and their width in the box head ("c4" has none).
        rpn_samples, roi_samples: anchors and regions of each image that the losses look at.
        rpn_candidates: proposals of each level, the best ones, among which suppression chooses; None: 2000 in training
            and 1000 in prediction with a pyramid, 12000 and 6000 without.
        test_proposals: regions of each image that are looked at in prediction.
        score_threshold: detections score more than this.
        nms_threshold: of two detections of a class with a higher overlap one is dropped.
        detections: at most this many of each image.
        frozen_stages: this many of the backbone's maps, and all that they are made by, are not trained: 1 is the stem
            and the first stage (detectron2's FREEZE_AT=2, mmdetection's frozen_stages=1).
        frozen_norm: batch norms of the backbone keep their statistics and weights.
        norm_epsilon: of the backbone's batch norms; None leaves them as they are. torchvision's COCO_V1 weights want 0.
        test_size, test_limit: in prediction resize the short side to this many pixels, the long one to at most these.
    """

    task = "instance"
    needs: ClassVar[dict[str, Any]] = {"levels": 4}
    natural_backbone: ClassVar[str] = "resnet50"
    encoder_options: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Conventions]] = CONVENTIONS
    header: dict[str, Any]
    box_head: Any

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        conventions: str = "detectron2",
        variant: str = "fpn",
        pooling: str = "align",
        channels: int = 256,
        norm: str | None = None,
        rpn_convs: int = 1,
        anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        box_convs: int = 0,
        box_fcs: int = 2,
        box_width: int = 1024,
        rpn_samples: int = 256,
        roi_samples: int = 512,
        rpn_candidates: int | None = None,
        test_proposals: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        frozen_stages: int = 0,
        frozen_norm: bool = False,
        norm_epsilon: float | None = None,
        test_size: int | None = None,
        test_limit: int = 1333,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise unknown("variant", variant, VARIANTS)
        counts = {"rpn_samples": rpn_samples, "roi_samples": roi_samples, "test_proposals": test_proposals}
        if rpn_candidates is not None:
            counts["rpn_candidates"] = rpn_candidates
        for name, count in {**counts, "detections": detections, "channels": channels, "test_limit": test_limit}.items():
            if count < 1:
                raise ZooError(f"{name}={count}: give 1 or more")
        self.classes = as_classes(classes)
        self.backbone = backbone
        self.conventions = choose(conventions, self.presets)
        self.variant, self.pooling, self.channels, self.norm = variant, pooling, channels, norm
        self.neck = self._neck()
        self.anchors = Anchors(self._anchor_sizes(anchor_sizes), anchor_ratios, self.neck.strides, self.conventions)
        self.rpn = RPN(self.neck.channels[0], self.anchors.per_cell, rpn_convs)
        self.box_pooler = self.pooler(14 if variant == "c4" else 7)
        self.box_options = {"convs": box_convs, "fcs": box_fcs, "width": box_width}
        self.box_head = self.create_box_head()
        self.rpn_samples, self.roi_samples = rpn_samples, roi_samples
        self.rpn_candidates, self.test_proposals = rpn_candidates, test_proposals
        self.score_threshold, self.nms_threshold, self.detections = score_threshold, nms_threshold, detections
        self.test_size, self.test_limit = test_size, test_limit
        for module in backbone.modules():
            if isinstance(module, _BatchNorm) and norm_epsilon is not None:
                module.eps = norm_epsilon
        freeze(backbone, frozen_stages, frozen_norm)

    @classmethod
    def needs_of(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """What these options ask of a backbone that is still to be built."""
        return {"output_stride": 16, "dilation": "full"} if options.get("variant") == "dc5" else {}

    # ---- what a subclass writes

    def create_box_head(self) -> nn.Module:
        """Classes and boxes of pooled regions (R, C, s, s)."""
        if self.variant == "c4":
            return MeanBoxHead(self.backbone.channels[-1], len(self.classes))
        options: dict[str, Any] = {**self.box_options, "conv_channels": self.channels, "norm": self.norm}
        return BoxHead(self.neck.channels[0], len(self.classes), self.box_pooler.size, **options)

    def branch_loss(self, pyramid: list[Tensor], regions: Regions, truths: list[Truth]) -> dict[str, Tensor]:
        """Further terms of the loss, from the regions of objects."""
        return {}

    def describe(self, pyramid: list[Tensor], found: list[Found], sizes: list[tuple[Size, Size]]) -> list[Instances]:
        """Detections as they are given out, at the original sizes; `sizes` are those before and after scaling."""
        instances = []
        for own, (size, original) in zip(found, sizes, strict=True):
            boxes, keep = self.rescale(own.boxes, size, original)
            instances.append(Instances(None, own.labels[keep], own.scores[keep], boxes=boxes[keep], size=original))
        return instances

    def probe(self, pyramid: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        """What the heads give for some boxes: tells which batch norms can be folded into their convolutions."""
        return list(self.box_head(self.features(self.box_pooler, pyramid, boxes)))

    # ---- the three verbs

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Dense:
        """The dense part of images (B, C, H, W), uint8 or float in [0, 1]; pixels beyond `sizes` are padding."""
        return self.look(self.backbone.normalize(images, sizes))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss: rpn_objectness, rpn_box, classification, box, and those of the branch.

        Crowds are left out. Images without an object teach what background is. Every trainable parameter is in the
        graph of the first term. Raises ZooError for images without truth, and when training has diverged.
        """
        truths = read_truth(batch, batch.images.device, self.anchors.dtype)
        dense = self(batch.images, batch.sizes)
        anchors = self.anchors(dense.pyramid, self._padded(batch.images.shape[-2:]))
        terms = rpn_loss(dense.objectness, dense.offsets, anchors, truths, self.rpn_samples, self.conventions)
        proposals = self._propose(dense, anchors, batch.sizes, training=True)
        regions = sample_regions(proposals, truths, self.roi_samples, background=len(self.classes))
        terms |= self.box_losses(dense.pyramid, regions, truths, batch.sizes)
        terms |= self.branch_loss(dense.pyramid, regions, truths)
        terms["rpn_objectness"] = join(terms["rpn_objectness"], self.parameters())
        return terms

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Instances]:
        """One `Instances` per image, at its original size, best first, in evaluation mode whatever the model's mode is.

        Images of one size are predicted together and without the batch's padding, so that a prediction does not depend
        on what else is in the batch.
        """
        results: dict[int, Instances] = {}
        with evaluating(self):
            for (size, original), rows in rows_of_sizes(batch).items():
                images = batch.images if len(rows) == len(batch) else batch.images[rows]
                normalized = self._resized(self.backbone.normalize(images[..., : size[0], : size[1]]))
                seen = (normalized.shape[-2], normalized.shape[-1])
                with folding(self, self._trial, normalized):
                    found = self.detect(normalized, [seen] * len(rows), [original] * len(rows))
                results |= dict(zip(rows, found, strict=True))
        return [results[row] for row in range(len(batch))]

    # ---- the steps

    def look(self, normalized: Tensor) -> Dense:
        """The dense part of normalised images (B, C, H, W)."""
        height, width = normalized.shape[-2:]
        to_height, to_width = self._padded((height, width))
        x = normalized
        if (to_height, to_width) != (height, width):
            x = F.pad(x, (0, to_width - width, 0, to_height - height))
        features = [before_last_stage(self.backbone, x)] if self.variant == "c4" else self.backbone.extract(x)
        pyramid = self.neck(features)
        return Dense(pyramid, *self.rpn(pyramid))

    def detect(self, normalized: Tensor, sizes: Sequence[Size], originals: Sequence[Size]) -> list[Instances]:
        """What is on normalised images (B, C, H, W), of which `sizes` are no padding, at sizes `originals`."""
        dense = self.look(normalized)
        anchors = self.anchors(dense.pyramid, self._padded(normalized.shape[-2:]))
        # As pooling reads them; it would copy them each time.
        layout = torch.channels_last if normalized.device.type == "cpu" else torch.contiguous_format
        pyramid = [x.contiguous(memory_format=layout) for x in dense.pyramid]
        proposals = self._propose(dense, anchors, sizes)
        found = self.classify(pyramid, proposals, sizes)
        return self.describe(pyramid, found, list(zip(sizes, originals, strict=True)))

    def box_losses(
        self, pyramid: list[Tensor], regions: Regions, truths: list[Truth], sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """The terms `classification` and `box`."""
        logits, offsets = self.box_head(self.features(self.box_pooler, pyramid, regions.boxes))
        classification, box = box_loss(logits, offsets, regions, self.conventions.box_beta)
        return {"classification": classification, "box": box}

    def classify(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """Detections among the proposals."""
        logits, offsets = self.box_head(self.features(self.box_pooler, pyramid, proposals))
        scores = box_ops.full(logits).softmax(-1)[:, :-1]
        return self.select(scores, offsets, proposals, sizes, ROI_WEIGHTS)

    def select(
        self,
        scores: Tensor,
        offsets: Tensor,
        proposals: list[Tensor],
        sizes: Sequence[Size],
        weights: box_ops.Weights,
    ) -> list[Found]:
        """From scores (R, K) and offsets (R, K or 1, 4) of regions the detections of each image.

        Boxes are made of the few pairs of a region and a class that score enough.
        """
        sure = (scores > self.score_threshold) & offsets.isfinite().all(-1)
        region, label = sure.nonzero().unbind(1)
        own = offsets[region, label.clamp(max=offsets.shape[1] - 1)]
        image = torch.repeat_interleave(
            torch.arange(len(proposals), device=scores.device),
            torch.tensor([len(boxes) for boxes in proposals], device=scores.device),
            output_size=len(scores),
        )[region]
        boxes = box_ops.decode(own, torch.cat(proposals)[region], weights)
        limits = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
        boxes = torch.minimum(boxes.clamp(min=0), limits[image])
        score = scores[region, label]
        if self.conventions.least_box is not None:
            keep = box_ops.sides(boxes) >= self.conventions.least_box
            boxes, score, label, image = boxes[keep], score[keep], label[keep], image[keep]
        counts = torch.bincount(image, minlength=len(proposals)).tolist()
        found = []
        for parts in zip(*(x.split(counts) for x in (boxes, score, label)), strict=True):
            kept = batched_nms(*parts, self.nms_threshold)[: self.detections]
            found.append(Found(parts[0][kept], parts[2][kept], parts[1][kept]))
        return found

    # ---- what the steps share

    def features(self, pooler: RoIPooler, pyramid: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Regions (R, C, s, s) as the heads take them."""
        pooled = pooler(pyramid, boxes)
        if self.variant != "c4":
            return pooled
        stage = last_stage(self.backbone)
        return stage(pooled) if len(pooled) else pooled.new_zeros(0, self.backbone.channels[-1], 7, 7)

    def pooler(self, size: int) -> RoIPooler:
        """Regions of size x size cells, from all levels but the one that is for large anchors alone."""
        strides = self.neck.strides[:-1] if self.variant == "fpn" else self.neck.strides
        return RoIPooler(strides, size, self.conventions, self.pooling)

    def rescale(self, boxes: Tensor, size: Size, original: Size) -> tuple[Tensor, Tensor]:
        """Boxes at the original size, and which of them are kept (N,)."""
        boxes = box_ops.scale(boxes, size, original)
        if not self.conventions.clip_detections:
            return boxes, torch.ones_like(boxes[:, 0], dtype=torch.bool)
        boxes = box_ops.clip(boxes[None], [original])[0]
        return boxes, box_ops.sides(boxes) > 0

    def train(self, mode: bool = True) -> FasterRCNN:
        """Training or evaluation mode, but for frozen norms."""
        super().train(mode)
        keep_statistics(self.backbone)
        return self

    def _propose(
        self, dense: Dense, anchors: list[Tensor], sizes: Sequence[Size], training: bool = False
    ) -> list[Tensor]:
        if training:
            after = self.conventions.train_proposals if self.variant == "fpn" else 2000
            before = 2000 if self.variant == "fpn" else 12000
        else:
            after = self.test_proposals
            before = 1000 if self.variant == "fpn" else 6000
        before = self.rpn_candidates or max(before, after)
        found = dense.objectness, dense.offsets
        return propose(*found, anchors, sizes, before, after, self.conventions, training)

    def _trial(self, normalized: Tensor) -> Tensor:
        """Everything the network gives for a small image and a box on it, in one row."""
        dense = self.look(normalized)
        box = normalized.new_tensor([[0.0, 0.0, normalized.shape[-1], normalized.shape[-2]]])
        heads = self.probe(dense.pyramid, [box] * len(normalized))
        return torch.cat([x.flatten() for x in (*dense.objectness, *dense.offsets, *heads)])

    def _padded(self, size: Sequence[int]) -> Size:
        """(H, W) after padding: with a pyramid the coarsest of the backbone's maps shall cover whole cells."""
        if self.variant != "fpn":
            return size[0], size[1]
        multiple = self.backbone.strides[-1]
        return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple

    def _resized(self, normalized: Tensor) -> Tensor:
        """Normalised images with the short side at `test_size`, the long one at `test_limit` at most."""
        if self.test_size is None:
            return normalized
        height, width = normalized.shape[-2:]
        factor = min(self.test_size / min(height, width), self.test_limit / max(height, width))
        antialias = self.conventions.antialias
        size = [int(side * factor + (0.5 if antialias else 0)) for side in (height, width)]
        return F.interpolate(normalized, size, mode="bilinear", align_corners=False, antialias=antialias)

    def _neck(self) -> FPN | LastLevel:
        channels, strides = self.backbone.channels, self.backbone.strides
        if self.variant == "fpn":
            return FPN(channels, strides, self.channels, self.norm)
        if self.variant == "dc5":
            return LastLevel(channels[-1], strides[-1])
        last_stage(self.backbone)
        return LastLevel(channels[-2], strides[-2])

    def _anchor_sizes(self, sizes: Sequence[float]) -> list[list[float]]:
        if self.variant != "fpn":
            return [list(sizes)]
        strides = self.neck.strides
        if len(sizes) != len(strides):
            raise ZooError(
                f"anchor_sizes={list(sizes)}: a pyramid of strides {strides} takes {len(strides)} sizes, such as "
                f"{[8 * stride for stride in strides]}"
            )
        return [[size] for size in sizes]
