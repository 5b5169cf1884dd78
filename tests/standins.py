"""Two tiny models that hold the places of the instance and panoptic families.

They are registered where real ones will be, so that data, loss, engine, prediction, metric interface, checkpoints,
results and pictures are tested with all three tasks before the families move in. They are built for seconds of training
on `scenes`, not for scores; what they do is nevertheless what real ones do: the instance model returns RoI grids, the
panoptic one trains on `segments()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.metrics import METRICS, InstanceMetric, PanopticMetric
from zoo.metrics.base import Metric
from zoo.models import MODELS
from zoo.models.backbone import Backbone
from zoo.models.layers import join
from zoo.models.semantic import evaluating
from zoo.structures import VOID, Batch, Class, Instances, Masks, Panoptic, Size, as_classes

GRID = 14


class _Pixels(nn.Module):
    """A backbone and three convolutions that give an embedding (B, width, h, w) at its finest stride."""

    natural_backbone: ClassVar[str] = "test_resnet"
    needs: ClassVar[dict[str, int]] = {"levels": 4}
    encoder_options: ClassVar[tuple[str, ...]] = ()
    header: dict[str, Any]

    def __init__(self, classes: int | Sequence[str | Class], backbone: Backbone, *, width: int = 32) -> None:
        super().__init__()
        self.classes = as_classes(classes)
        self.backbone = backbone
        self.lateral = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in backbone.channels])
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def embed(self, images: Tensor, sizes: Sequence[Size] | None) -> Tensor:
        levels = [conv(x) for conv, x in zip(self.lateral, self.backbone(images, sizes), strict=True)]
        size = levels[0].shape[-2:]
        total = torch.stack([F.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels]).sum(0)
        return self.mix(total)


class InstanceStandIn(_Pixels):
    """A class or "nothing" for every pixel; each connected patch of a class is an object."""

    task = "instance"

    def __init__(self, classes: int | Sequence[str | Class], backbone: Backbone, *, width: int = 32) -> None:
        super().__init__(classes, backbone, width=width)
        self.head = nn.Conv2d(width, len(self.classes) + 1, 1)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Tensor:
        """Logits (B, K + 1, H, W), the last for nothing."""
        return F.interpolate(
            self.head(self.embed(images, sizes)), images.shape[-2:], mode="bilinear", align_corners=False
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        logits = self(batch.images, batch.sizes)
        truth = torch.full(logits.shape[:1] + logits.shape[2:], VOID, device=logits.device)
        for row, target, (height, width) in zip(truth, batch.targets or [], batch.sizes, strict=True):
            row[:height, :width] = len(self.classes)
            for mask, label in zip(*target.segments(), strict=True):
                row[:height, :width][mask] = label
        pixels = F.cross_entropy(logits, truth, ignore_index=VOID)
        return {"pixels": join(pixels, self.parameters())}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Instances]:
        with evaluating(self):
            logits = self(batch.images, batch.sizes)
        found = []
        for scores, (h, w), size in zip(logits.softmax(1), batch.sizes, batch.original_sizes, strict=True):
            scores = F.interpolate(scores[None, :, :h, :w], size, mode="bilinear", align_corners=False)[0]
            found.append(self._objects(scores.cpu()).to(scores.device))
        return found

    def _objects(self, scores: Tensor) -> Instances:
        """`scores` (K + 1, H, W) -> one object for each connected patch, as a RoI grid on its box."""
        size, winner = (scores.shape[1], scores.shape[2]), scores.argmax(0).numpy()
        grids, boxes, labels, sure = [torch.zeros(0, GRID, GRID)], [], [], []
        for label in range(len(self.classes)):
            count, patches, stats, _ = cv2.connectedComponentsWithStats((winner == label).astype(np.uint8))
            for patch in range(1, count):
                x, y, w, h, area = stats[patch].tolist()
                if area >= 20:
                    mask = torch.from_numpy(patches == patch)
                    inside = mask[y : y + h, x : x + w].float()[None, None]
                    grids.append(F.interpolate(inside, (GRID, GRID), mode="area")[0])
                    boxes.append([x, y, x + w, y + h])
                    labels.append(label)
                    sure.append(float(scores[label][mask].mean()))
        masks = Masks.from_rois(torch.cat(grids), torch.tensor(boxes).reshape(-1, 4), size)
        return Instances(masks, labels, sure, boxes=torch.tensor(boxes).reshape(-1, 4))


class PanopticStandIn(_Pixels):
    """Masks as products of learnt queries and pixels, each with a class, matched to the truth's segments."""

    task = "panoptic"

    def __init__(
        self, classes: int | Sequence[str | Class], backbone: Backbone, *, width: int = 32, queries: int = 16
    ) -> None:
        super().__init__(classes, backbone, width=width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.pool = nn.Linear(width, width)
        self.kind = nn.Linear(width, len(self.classes) + 1)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> tuple[Tensor, Tensor]:
        """Mask logits (B, Q, H, W) and class logits (B, Q, K + 1), the last class for nothing."""
        pixels = self.embed(images, sizes)
        attention = torch.einsum("qc,bchw->bqhw", self.queries, pixels).flatten(2).softmax(-1)
        seen = self.queries + self.pool(torch.einsum("bqp,bcp->bqc", attention, pixels.flatten(2)))
        masks = torch.einsum("bqc,bchw->bqhw", seen, pixels)
        return F.interpolate(masks, images.shape[-2:], mode="bilinear", align_corners=False), self.kind(seen)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = []
        for masks, kinds, target, (h, w) in zip(
            *self(batch.images, batch.sizes), batch.targets or [], batch.sizes, strict=True
        ):
            truth, labels = target.segments()
            terms.append(self._matched_loss(masks[:, :h, :w].flatten(1), kinds, truth.flatten(1).float(), labels))
        mask, kind = torch.stack(terms).mean(0)
        return {"mask": join(mask, self.parameters()), "class": kind}

    def _matched_loss(self, masks: Tensor, kinds: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
        """(2,): 1 - Dice of the matched masks, and the cross-entropy of all classes."""
        share = masks.sigmoid()
        dice = 1 - 2 * (share @ truth.T) / (share.sum(1, keepdim=True) + truth.sum(1)).clamp(min=1)
        costs = dice - kinds.softmax(1)[:, labels]
        rows, columns = linear_sum_assignment(costs.detach().float().cpu().numpy())
        wanted = torch.full((len(kinds),), len(self.classes), device=kinds.device)
        wanted[rows] = labels[columns]
        return torch.stack([dice[rows, columns].sum() / max(len(rows), 1), F.cross_entropy(kinds, wanted)])

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Panoptic]:
        with evaluating(self):
            masks, kinds = self(batch.images, batch.sizes)
        found = []
        for mask, kind, (h, w), size in zip(masks, kinds, batch.sizes, batch.original_sizes, strict=True):
            mask = F.interpolate(mask[None, :, :h, :w], size, mode="bilinear", align_corners=False)[0]
            found.append(self._segments(mask, kind.softmax(-1)))
        return found

    def _segments(self, masks: Tensor, kinds: Tensor) -> Panoptic:
        """Each pixel to the query that claims it most; queries of one stuff class share a segment."""
        scores, labels = kinds[:, :-1].max(1)
        owner = (masks.sigmoid() * scores[:, None, None]).argmax(0)
        ids = torch.zeros_like(owner)
        segments: dict[Any, int] = {}
        for query in owner.unique().tolist():
            thing = self.classes[int(labels[query])].thing
            key = (int(labels[query]), query if thing else None)
            ids[owner == query] = segments.setdefault(key, len(segments) + 1)
        table = torch.tensor([VOID, *(label for label, _ in segments)], device=ids.device)
        return Panoptic(ids, table)


STANDINS: dict[str, tuple[type[_Pixels], type[Metric]]] = {
    "instance": (InstanceStandIn, InstanceMetric),
    "panoptic": (PanopticStandIn, PanopticMetric),
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins into the registries, for one test."""
    for task, (model, metric) in STANDINS.items():
        monkeypatch.setitem(MODELS, f"{task}_standin", model)
        monkeypatch.setitem(METRICS, task, metric)
