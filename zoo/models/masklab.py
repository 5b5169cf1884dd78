"""MaskLab: each object's mask from what the pixels are, and where they say the centre of their object lies.

Chen, Hermans, Papandreou, Schroff, Wang, Adam: "MaskLab: Instance Segmentation by Refining Object Detection with
Semantic and Direction Features", CVPR 2018, arXiv 1712.04837.

    images (B, 3, H, W)
      -> backbone: conv1 (stride 2), conv2 (4), conv3 (8), conv4 (8, dilated), conv5 (8, dilated)
      -> conv4 -> RPN -> boxes -> crop and resize, 14x14, deformable -> max pooling 7x7 -> box_head: a copy of conv5,
         mean, classes and boxes                                                        as in Faster R-CNN
      -> conv5 -> mask_head.semantic: 1x1, K channels; mask_head.direction: 1x1, 8 directions x 4 distances
      for each box, with its class:
      -> the class's semantic channel, cut out 41x41; the direction channels, of which each cell reads one
         (`zoo.models.two_stage.direction`); 1x1 of the two, begun at (0.5, 1) -> coarse logits (41, 41)
      -> with conv1 and conv2 cut out at 41x41: 3 x (conv5x5 64, ReLU), 1x1 -> refined logits, sigmoid, drawn in the box

    training: the mask branch on the true boxes and classes; binary cross-entropy of coarse and refined logits.
    Directions have no truth of their own: the pooling is fixed, and the mask's loss teaches what each channel has to be

This is a re-implementation from the paper. Its authors have released no code and no weights, so there is nothing to
compare outputs with; what is tested is what the paper says. How sure we are of what the options begin with:

    sure     crop_size, directions, distance_bins, logits, refine_levels, refine_channels, refine_kernel: the best rows
             of the paper's tables. The beginning of the 1x1. True boxes alone for the mask branch. Stride 8.
    likely   anchor_sizes, roi_samples, test_proposals, 14x14 and max pooling, one point in each cell of a crop: of the
             TensorFlow Object Detection API, on which the paper builds. refine_convs: three, then a 1x1.
    guess    distance_norm, distance_edges, box_rates, mask_rates, deformable, mask_samples, coarse_weight,
             refined_weight: reasons with each of them below.

Differences from the paper: the recipe (what is not MaskLab's own follows detectron2, see `two_stage.conventions`); K
counts the classes of objects alone, since no box would ever read a channel of background; the deformable crop has no
hidden layer; with one kind of logits alone they are the coarse logits, without a 1x1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.masks import Masks
from zoo.models.backbone import Backbone
from zoo.models.dilation import dilate_blocks
from zoo.models.layers import resize
from zoo.models.mask_rcnn import check_masks, cut_out
from zoo.models.semantic import evaluating
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.conventions import CONVENTIONS, Conventions
from zoo.models.two_stage.deformable_crop import DeformableCrop
from zoo.models.two_stage.direction import DirectionMaskHead, regions
from zoo.models.two_stage.faster_rcnn import Dense, FasterRCNN, Found
from zoo.models.two_stage.heads import MeanBoxHead, split_rows
from zoo.models.two_stage.neck import Conv, LastLevel
from zoo.models.two_stage.roi import RoIPooler, numbered
from zoo.models.two_stage.sampling import Regions, Truth, keys
from zoo.models.two_stage.stages import dense_last_stage, keep_statistics
from zoo.structures import Batch, Class, Instances, Size

BOX_CROP = 14
CHUNK = 64  # boxes whose masks are computed at once in prediction: 140 MB of conv1 and conv2


class MaskLab(FasterRCNN):
    """A box, a class, a score and a mask for each object.

    Args:
        crop_size: side of the masks, 41. Tested in the paper: 21, 41, 81, 161, 321, which differ by 0.4 AP50.
        logits: what coarse masks are made of: "both", "semantic" or "direction".
        directions, distance_bins: 8 sectors and 4 rings around a box's centre. Tested: 2, 4, 6, 8 and 1, 4.
        distance_norm: guess. "l2" takes distance for what it is called; "linf" gives rings of the box's own shape.
        distance_edges: guess. Where rings end, see `two_stage.direction.regions`. None: they are equally thick,
            as "quantized" says nothing of another rule.
        refine_levels: maps that masks are refined with: 1 for conv1, 2, 3. Tested: none, (1,), (1, 2), (1, 2, 3).
        refine_convs, refine_channels, refine_kernel: the convolutions on them.
        deformable: guess. Parts along a side of the box that the second crop moves, 7: parts of 2x2 cells, as in the
            paper's figure, where 4x4 cells have 2x2 parts. 0: one plain crop.
        box_rates: guess. Dilations of the blocks in the box head's conv5: the paper tries (1, 1, 1), (1, 2, 1),
            (1, 2, 4) and says that varying them helps; the mildest of those that vary.
        mask_rates: guess. The same for the conv5 of the logits, in multiples of its own rate, 4 at stride 8: (1, 2, 1)
            is the paper's 4, 8, 4, of which it says that it matters little.
        mask_samples: guess. At most this many true boxes of an image are drawn for the mask losses, for memory's sake:
            as many as regions for the box head.
        coarse_weight, refined_weight: guess. Of the two mask losses; the paper gives no formula, 1 is the plain sum.
        conventions, rpn_convs, anchor_sizes, anchor_ratios, rpn_samples, roi_samples, rpn_candidates, test_proposals,
            score_threshold, nms_threshold, detections, frozen_norm, norm_epsilon, test_size, test_limit: of
            `FasterRCNN`.
        frozen_stages: of `FasterRCNN`, which counts maps: 2 is conv1 and conv2, detectron2's FREEZE_AT=2.
    """

    needs: ClassVar[dict[str, Any]] = {"output_stride": 8, "levels": 5, "dilation": "full"}
    natural_backbone: ClassVar[str] = "resnet101"
    backbone_copies: ClassVar[tuple[str, ...]] = ("box_head.stage.",)  # its weights are the backbone's at first
    # Crop and resize is TensorFlow's: one point in each cell.
    presets: ClassVar[Mapping[str, Conventions]] = {
        name: replace(own, sampling_ratio=1) for name, own in CONVENTIONS.items()
    }

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        crop_size: int = 41,
        logits: str = "both",
        directions: int = 8,
        distance_bins: int = 4,
        distance_norm: str = "l2",
        distance_edges: Sequence[float] | None = None,
        refine_levels: Sequence[int] = (1, 2),
        refine_convs: int = 3,
        refine_channels: int = 64,
        refine_kernel: int = 5,
        deformable: int = 7,
        box_rates: Sequence[int] = (1, 2, 1),
        mask_rates: Sequence[int] = (1, 2, 1),
        mask_samples: int = 64,
        coarse_weight: float = 1.0,
        refined_weight: float = 1.0,
        conventions: str = "detectron2",
        rpn_convs: int = 1,
        anchor_sizes: Sequence[float] = (64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_samples: int = 256,
        roi_samples: int = 64,
        rpn_candidates: int | None = None,
        test_proposals: int = 300,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        frozen_stages: int = 0,
        frozen_norm: bool = False,
        norm_epsilon: float | None = None,
        test_size: int | None = None,
        test_limit: int = 1333,
    ) -> None:
        if mask_samples < 1:
            raise ZooError(f"mask_samples={mask_samples}: give 1 or more")
        # "c4": one map, from which regions are cut, and a stage of the backbone on each of them.
        super().__init__(
            classes, backbone, variant="c4", conventions=conventions, rpn_convs=rpn_convs, anchor_sizes=anchor_sizes,
            anchor_ratios=anchor_ratios, rpn_samples=rpn_samples, roi_samples=roi_samples,
            rpn_candidates=rpn_candidates, test_proposals=test_proposals, score_threshold=score_threshold,
            nms_threshold=nms_threshold, detections=detections, frozen_stages=frozen_stages, frozen_norm=frozen_norm,
            norm_epsilon=norm_epsilon, test_size=test_size, test_limit=test_limit,
        )  # fmt: skip
        stage = dense_last_stage(backbone)
        self.box_head.stage = copy.deepcopy(stage)  # now, when norms and what is trained of them are decided
        dilate_blocks(self.box_head.stage, box_rates)
        dilate_blocks(stage, [rate * max(1, 32 // backbone.strides[-1]) for rate in mask_rates])
        aligned, (channels, stride) = self.conventions.aligned, (backbone.channels[-2], backbone.strides[-2])
        self.deform = DeformableCrop(channels, BOX_CROP, deformable, stride, aligned) if deformable else None
        self.refine_levels = list(refine_levels)
        if not set(self.refine_levels) <= set(range(1, 6)):
            raise ZooError(
                f"refine_levels={self.refine_levels}: name maps from 1 (conv1) to 5, such as [1, 2], or none"
            )
        self.mask_head = DirectionMaskHead(
            backbone.channels[-1],
            backbone.strides[-1],
            len(self.classes),
            logits,
            regions(crop_size, directions, distance_bins, distance_norm, distance_edges),
            directions * distance_bins,
            self.conventions,
        )
        refined = [(backbone.channels[level - 1], backbone.strides[level - 1]) for level in self.refine_levels]
        options = (refine_convs, refine_channels, refine_kernel, crop_size, self.conventions)
        self.refine = Refinement(refined, *options) if refined else None
        self.mask_samples, self.directions = mask_samples, directions
        self.coarse_weight, self.refined_weight = coarse_weight, refined_weight

    def create_box_head(self) -> nn.Module:
        return StageBoxHead(self.backbone.channels[-1], len(self.classes))

    # ---- the network

    def look(self, normalized: Tensor) -> Dense:
        """The dense part. Its maps: conv4, on which anchors are; the mask head's logits; those for refinement."""
        maps = self.backbone.extract(normalized)
        logits = self.mask_head.dense(maps[-1])
        return Dense([maps[-2], logits, *(maps[level - 1] for level in self.refine_levels)], *self.rpn([maps[-2]]))

    def features(self, pooler: RoIPooler, pyramid: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Regions (R, C, 14, 14) of conv4."""
        crop = pooler(pyramid, boxes)
        return crop if self.deform is None else self.deform(pyramid[0], boxes, crop)

    def masks(self, pyramid: list[Tensor], rois: Tensor, labels: Tensor) -> list[Tensor]:
        """Coarse and, if the model has them, refined logits (R, s, s) of regions (R, 5) with classes `labels` (R,)."""
        coarse = self.mask_head(pyramid[1], rois, labels)
        return [coarse] if self.refine is None else [coarse, self.refine(coarse, pyramid[2:], rois)]

    # ---- training

    def branch_loss(self, pyramid: list[Tensor], regions: Regions, truths: list[Truth]) -> dict[str, Tensor]:
        """The terms `coarse_mask` and, with refinement, `mask`: means over true boxes and their cells, 0 without any.

        True boxes instead of the sampled regions: a region's centre is not the object's, its directions would be wrong.
        """
        check_masks(truths)
        rows = [self._drawn(truth) for truth in truths]
        boxes = [truth.boxes[own] for truth, own in zip(truths, rows, strict=True)]
        labels = torch.cat([truth.labels[own] for truth, own in zip(truths, rows, strict=True)])
        weights = {"coarse_mask": self.coarse_weight, "mask": self.refined_weight}
        if self.refine is None:
            del weights["mask"]
        if not len(labels):
            return {name: pyramid[0].new_zeros(()) for name in weights}
        logits = [full(x) for x in self.masks(pyramid, numbered(boxes), labels)]
        soft, aligned = self.conventions.soft_masks, self.conventions.aligned
        size = logits[0].shape[-1]
        cut = torch.cat([cut_out(*own, size, aligned, soft) for own in zip(truths, rows, boxes, strict=True)])
        return {
            name: weight * F.binary_cross_entropy_with_logits(x, cut.to(x.dtype))
            for (name, weight), x in zip(weights.items(), logits, strict=True)
        }

    def _drawn(self, truth: Truth) -> Tensor:
        """Which of an image's objects the mask losses look at, (n,)."""
        count = len(truth.boxes)
        if count <= self.mask_samples:
            return torch.arange(count, device=truth.boxes.device)
        return keys(count, truth.boxes.device).topk(self.mask_samples).indices

    # ---- prediction

    def describe(self, pyramid: list[Tensor], found: list[Found], sizes: list[tuple[Size, Size]]) -> list[Instances]:
        """Detections with their masks as RoI grids."""
        boxes, labels = [own.boxes for own in found], torch.cat([own.labels for own in found])
        parts = zip(numbered(boxes).split(CHUNK), labels.split(CHUNK), strict=True)
        grids = torch.cat([full(self.masks(pyramid, *part)[-1]).sigmoid() for part in parts])
        instances = []
        for own, grid, (size, original) in zip(found, split_rows(grids, boxes), sizes, strict=True):
            scaled, keep = self.rescale(own.boxes, size, original)
            masks = Masks.from_rois(grid[keep], scaled[keep], original, self.conventions.paste_rule)
            instances.append(Instances(masks, own.labels[keep], own.scores[keep], boxes=scaled[keep]))
        return instances

    def probe(self, pyramid: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        rois = numbered(boxes)
        return [*super().probe(pyramid, boxes), *self.masks(pyramid, rois, rois[:, 0].long() * 0)]

    @torch.no_grad()
    def explain(self, batch: Batch) -> list[Explanation | None]:
        """What leads to the mask of the best object of each image, for pictures; None where there is none."""
        found: list[Explanation | None] = []
        with evaluating(self):
            for row, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
                pixels = batch.images[row : row + 1, :, : size[0], : size[1]]
                normalized = self._resized(self.backbone.normalize(pixels))
                found.append(self._explained(normalized, original))
        return found

    def _explained(self, normalized: Tensor, original: Size) -> Explanation | None:
        seen = (normalized.shape[-2], normalized.shape[-1])
        dense = self.look(normalized)
        proposals = self._propose(dense, self.anchors(dense.pyramid, seen), [seen])
        (found,) = self.classify(dense.pyramid, proposals, [seen])
        if not len(found.scores):
            return None
        rois, label = numbered([found.boxes[:1]]), found.labels[:1]
        stride = self.neck.strides[0]
        whole = [side * stride for side in dense.pyramid[1].shape[-2:]]
        logits = resize(resize(full(dense.pyramid[1]), whole)[..., : seen[0], : seen[1]], original)[0]
        semantic, direction = self.mask_head.split(logits)
        return Explanation(
            box=self.rescale(found.boxes[:1], seen, original)[0][0],
            label=int(label),
            score=float(found.scores[0]),
            semantic=None if semantic is None else semantic[label[0]],
            direction=None if direction is None else direction.unflatten(0, (self.directions, -1)),
            read=full(self.mask_head.read(dense.pyramid[1], rois, label))[0],
            masks=[full(x)[0] for x in self.masks(dense.pyramid, rois, label)],
        )

    # ---- what differs from the skeleton

    def train(self, mode: bool = True) -> MaskLab:
        super().train(mode)
        keep_statistics(self.box_head)
        return self

    def _neck(self) -> LastLevel:
        if len(self.backbone.channels) != 5:
            raise ZooError(
                f"backbone {self.backbone.name} gives {len(self.backbone.channels)} maps, where MaskLab needs conv1 to "
                "conv5: build it with levels=5; use resnet*, resnext*, regnet*, efficientnet* or mobilenetv2*"
            )
        return LastLevel(self.backbone.channels[-2], self.backbone.strides[-2])


@dataclass
class Explanation:
    """What leads to the mask of one object; all are logits.

    Attributes:
        box, label, score: of the object, (4,) in the image.
        semantic: (H, W) of its class, over the whole image; None without them.
        direction: (directions, bins, H, W) over the whole image; None without them.
        read: (1 or 2, s, s) what the object's box has of semantic and direction logits, pooled.
        masks: (s, s) each, coarse and, if there is one, refined.
    """

    box: Tensor
    label: int
    score: float
    semantic: Tensor | None
    direction: Tensor | None
    read: Tensor
    masks: list[Tensor]


class StageBoxHead(MeanBoxHead):
    """Regions (R, C, 14, 14) -> max pooling, the copy of conv5 `stage`, mean, logits (R, K + 1), offsets (R, K, 4)."""

    stage: nn.Module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):
            return self.predict(x.new_zeros(0, self.cls.in_features))
        return super().forward(self.stage(F.max_pool2d(x, 2)))


class Refinement(nn.Module):
    """Coarse logits and early maps, cut out alike -> refined logits, as a hypercolumn (section 3.2).

    Args:
        maps: channels and stride of each map.
        convs, channels, kernel: convolutions with ReLU before the last, 1x1.
        size: of the masks.
    """

    def __init__(
        self, maps: Sequence[tuple[int, int]], convs: int, channels: int, kernel: int, size: int, own: Conventions
    ) -> None:
        super().__init__()
        if convs < 1 or channels < 1 or kernel < 1 or not kernel % 2:
            raise ZooError(
                f"refine_convs={convs}, refine_channels={channels}, refine_kernel={kernel}: give 1 or more of each, "
                "and an odd kernel; refine_levels=[] for none"
            )
        self.strides = [stride for _, stride in maps]
        self.pooler = RoIPooler(self.strides, size, own)
        widths = [1 + sum(channels for channels, _ in maps)] + [channels] * convs
        self.conv = nn.ModuleList([Conv(widths[i], channels, kernel) for i in range(convs)])
        self.predictor = nn.Conv2d(channels, 1, 1)
        for conv in self.conv:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, coarse: Tensor, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """(R, s, s) of coarse logits (R, s, s), maps (B, C, h, w) and regions (R, 5)."""
        crops = [self.pooler.crop(x, rois, stride) for x, stride in zip(maps, self.strides, strict=True)]
        x = torch.cat([coarse[:, None].to(crops[0].dtype), *crops], 1)
        for conv in self.conv:
            x = conv(x)
        return self.predictor(x)[:, 0]
