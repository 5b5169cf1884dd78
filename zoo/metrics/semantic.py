"""Semantic segmentation: scores of the whole data set from exact counts, with intervals over its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo.metrics.base import Metric, image_name
from zoo.metrics.boundary import boundary_distance, boundary_labels, void_where
from zoo.metrics.counts import Counts, pair_counts
from zoo.metrics.resampling import resamples
from zoo.structures import VOID, Class, Target

Floats = NDArray[np.float64]

ABSENT = ("union", "truth", "zero", "one")


class SemanticMetric(Metric):
    """mIoU and its relatives, as the Cityscapes scripts compute them.

    With the counts of a class over all labelled pixels of all images, intersection I, truth T, predicted P:

        IoU = I / (T + P - I)   Dice = F1 = 2 I / (T + P)   precision = I / P   recall = I / T

    each per class ("IoU/road", "Dice/road", "precision/road", "recall/road") and as a mean over classes ("mIoU",
    "Dice" and its other name "F1", "precision", "recall" and its other name "mean_accuracy"); "pixel_accuracy" is
    sum I / sum T and "fwIoU" the mean IoU weighted by T. "mIoU_per_image" and "Dice_per_image" are means over images
    of the image's own mean over classes: another quantity, comparable with no benchmark's mIoU. "boundary_IoU" is
    the IoU of boundaries alone (see `zoo.metrics.boundary`), also accumulated over the set.

    Pixels whose truth is void (255) count nowhere, whatever is predicted there; boundaries too are drawn after
    removing them from both maps. A prediction that is void or no class, on a labelled pixel, is a miss: it counts in
    T and in no P.

    `absent` rules on scores that are 0 / 0:

    | rule    | 0 / 0 is | mean over                                                       | as in                   |
    |---------|----------|-----------------------------------------------------------------|-------------------------|
    | "union" | nan      | classes whose score is defined: a class only predicted has IoU 0 | Cityscapes, VOC, mmseg  |
    | "truth" | nan      | of those, the classes in the truth: one only predicted is nan   | detectron2              |
    | "zero"  | 0        | all classes                                                     | ADE20K devkit           |
    | "one"   | 1        | all classes                                                     | smp, zero_division=1    |

    `boundary` is the width of a boundary as a fraction of the image diagonal, None to leave boundaries out.
    Counts are int64 and sums exact; the one division is in float64.

    Targets and predictions are `Semantic`, or `Panoptic` (its classes count). Raises ZooError for sizes that differ
    within a pair, for a truth label that is neither class nor void, and for an image evaluated twice.
    """

    main = "mIoU"
    measured = ("mIoU",)
    confusion: Tensor  # int64 (K, K + 1): truth by prediction, the last column for predictions that are no class

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        absent: str = "union",
        boundary: float | None = 0.02,
    ) -> None:
        super().__init__(classes)
        if absent not in ABSENT:
            raise unknown("rule for absent classes", absent, ABSENT)
        if len(self.classes) > VOID:
            raise ZooError(f"semantic labels are bytes and 255 is void: at most 255 classes, not {len(self.classes)}")
        if boundary is not None and not 0 < boundary < 1:
            raise ZooError(f"boundary is a fraction of the image diagonal in (0, 1) or None, not {boundary}")
        self.absent = absent
        self.boundary = boundary
        count = len(self.classes)
        self.add_state("confusion", torch.zeros(count, count + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_rows("statistics", 3, count)
        if boundary is not None:
            self.add_rows("boundary_statistics", 3, count)

    @property
    def protocol(self) -> dict[str, Any]:
        """{"absent": rule, "boundary": fraction of the diagonal or None}."""
        return {"absent": self.absent, "boundary": self.boundary}

    def update(
        self, predictions: Sequence[Target], targets: Sequence[Target], ids: Sequence[int] | None = None
    ) -> None:
        """Count images. Nothing is counted if one of them is refused."""
        images = [
            (number, *self._aligned(number, prediction.semantic().labels, target.semantic().labels))
            for number, prediction, target in self.pairs(predictions, targets, ids)
        ]
        if not images:
            return
        counts = [self._count(number, prediction, truth) for number, prediction, truth in images]
        self._append("ids", [np.int64(number) for number, _, _ in images])
        self._append("statistics", [_statistics(each) for each in counts])
        if self.boundary is not None:
            edges = [self._count_edges(prediction, truth) for _, prediction, truth in images]
            self._append("boundary_statistics", [_statistics(each) for each in edges])
        self.confusion = self.confusion + torch.from_numpy(sum(counts[1:], counts[0])).to(self.device)

    def compute(self) -> dict[str, float]:
        """All scores by name; see the class. Per-class names end in "/" and the name of the class."""
        images = self.rows()[1].cpu().numpy()
        totals = images.sum(0)
        per_class = class_scores(totals, self.absent)
        values = {name: float(value) for name, value in summary(totals, self.absent).items()}
        own = class_scores(images, self.absent)
        values["mIoU_per_image"] = float(_mean(_mean(own["IoU"])))
        values["Dice_per_image"] = float(_mean(_mean(own["Dice"])))
        if self.boundary is not None:
            edges = self.table("boundary_statistics").sum(0).cpu().numpy()
            per_class["boundary_IoU"] = class_scores(edges, self.absent)["IoU"]
            values["boundary_IoU"] = float(_mean(per_class["boundary_IoU"]))
        for name, scores in per_class.items():
            values |= {f"{name}/{c.name}": float(score) for c, score in zip(self.classes, scores, strict=True)}
        return values

    def resampled(self, key: str, replicates: int, seed: int = 0) -> Floats:
        """As in `Metric`; `key` is any name that `compute` gives but those per image."""
        edges = key.startswith("boundary_IoU")
        statistics = self._gathered("boundary_statistics" if edges else "statistics")
        found = [self._score(totals, key) for totals in resamples(statistics, replicates, seed)]
        return np.concatenate(found) if found else np.zeros(0)

    def _score(self, statistics: Floats, key: str) -> Floats:
        """The score `key` of each of R data sets, (R, 3, K) -> (R,)."""
        edges = key.startswith("boundary_IoU")
        name, _, label = (key.removeprefix("boundary_") if edges else key).partition("/")
        names = [c.name for c in self.classes]
        scores = class_scores(statistics, self.absent)
        if label in names and name in scores:
            return scores[name][:, names.index(label)]
        means = {"IoU": _mean(scores["IoU"])} if edges else summary(statistics, self.absent)
        if label or name not in means:
            raise unknown("score with an interval", key, [*means, *(f"{s}/{c}" for s in scores for c in names)])
        return means[name]

    def _aligned(self, number: int, prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        if prediction.shape != truth.shape:
            (ph, pw), (th, tw) = prediction.shape, truth.shape
            raise ZooError(
                f"{image_name(number)}: the prediction is {ph}x{pw}, the truth {th}x{tw}: "
                "predict at the size of the truth"
            )
        return prediction, truth.to(prediction.device)

    def _count(self, number: int, prediction: Tensor, truth: Tensor) -> Counts:
        """The confusion matrix (K, K + 1) of an image, void left out."""
        count = len(self.classes)
        counts = pair_counts(truth, prediction, count)
        if counts[count + 1].any():
            strange = truth[(truth >= count) & (truth != VOID)]
            value = int(strange.min())
            raise ZooError(
                f"{image_name(number)}: the truth has label {value} on {int((strange == value).sum())} pixels, but "
                f"labels are 0..{count - 1} and 255 for void: give the metric the classes of the data"
            )
        return counts[:count]

    def _count_edges(self, prediction: Tensor, truth: Tensor) -> Counts:
        """Pixels by their classes in both maps, (K + 1, K + 1), where each counts as void off its boundaries."""
        assert self.boundary is not None
        distance = boundary_distance((truth.shape[0], truth.shape[1]), self.boundary)
        # Void leaves both maps before boundaries are drawn, else what is predicted there would move them.
        seen = void_where(truth == VOID, prediction)
        counts = pair_counts(boundary_labels(truth, distance), boundary_labels(seen, distance), len(self.classes))
        return counts[:-1]

    def _append(self, name: str, rows: Sequence[Counts | np.int64]) -> None:
        getattr(self, name).append(torch.from_numpy(np.stack(rows)).to(self.device))

    def _gathered(self, name: str) -> Floats:
        """The table `name` of all processes in order of ids, float64."""
        with self.gathered():
            return self.table(name)[self.order()].double().cpu().numpy()


def _statistics(counts: Counts) -> Counts:
    """Intersection, predicted and truth of each class, (3, K), from counts of K or more rows and K + 1 columns."""
    count = counts.shape[1] - 1
    return np.stack([counts.diagonal()[:count], counts[:, :count].sum(0), counts[:count].sum(1)])


def class_scores(statistics: Counts | Floats, absent: str = "union") -> dict[str, Floats]:
    """IoU, Dice, precision and recall of each class: counts (..., 3, K) of intersection, predicted, truth -> (..., K).

    `absent` as in `SemanticMetric`.
    """
    hit, predicted, truth = np.moveaxis(statistics, -2, 0)
    empty = {"zero": 0.0, "one": 1.0}.get(absent, np.nan)
    scores = {
        "IoU": _ratio(hit, predicted + truth - hit, empty),
        "Dice": _ratio(2 * hit, predicted + truth, empty),
        "precision": _ratio(hit, predicted, empty),
        "recall": _ratio(hit, truth, empty),
    }
    if absent == "truth":
        scores = {name: np.where(truth > 0, score, np.nan) for name, score in scores.items()}
    return scores


def summary(statistics: Counts | Floats, absent: str = "union") -> dict[str, Floats]:
    """The scores over classes of data sets with counts (..., 3, K); each (...)."""
    scores = class_scores(statistics, absent)
    hit, _, truth = np.moveaxis(statistics, -2, 0)
    iou_or_nothing = np.where(truth > 0, scores["IoU"], 0.0)
    return {
        "mIoU": _mean(scores["IoU"]),
        "pixel_accuracy": _ratio(hit.sum(-1), truth.sum(-1), np.nan),
        "mean_accuracy": _mean(scores["recall"]),
        "fwIoU": _ratio((truth * iou_or_nothing).sum(-1), truth.sum(-1), np.nan),
        "Dice": _mean(scores["Dice"]),
        "precision": _mean(scores["precision"]),
        "recall": _mean(scores["recall"]),
        "F1": _mean(scores["Dice"]),
    }


def _ratio(part: NDArray[Any], whole: NDArray[Any], empty: float) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(whole), empty), where=whole > 0)


def _mean(scores: Floats) -> Floats:
    """The mean over the last axis without nan; nan where nothing is left."""
    defined = ~np.isnan(scores)
    return _ratio(np.where(defined, scores, 0.0).sum(-1), defined.sum(-1), np.nan)
