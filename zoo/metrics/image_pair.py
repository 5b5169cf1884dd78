"""One image's detections beside its true objects: what instance metrics ask of the two, computed when asked."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from zoo.errors import ZooError
from zoo.masks import Masks
from zoo.metrics.base import image_name
from zoo.metrics.matching import IOU_THRESHOLDS, cases, in_ranges, match
from zoo.metrics.overlaps import (
    Bools,
    Floats,
    Ints,
    Pairs,
    box_areas,
    box_iou,
    boxes_of,
    intersection_over_union,
    mask_intersections,
    pixel_counts,
)
from zoo.structures import VOID, Instances, Target

NO_CLASS = -1  # the label of void
_REACHABLE: Floats = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)


class ImagePair:
    """D detections and G true objects of image `number`, with labels of `classes` classes.

    Detections stay in the order given; `order` (D,) sorts them by falling score, equal ones as given, `place` (D,) is
    where each lies in it, and `rank` (D,) where among those of its class.

    Raises ZooError if the sizes differ, or a label is no class. A true crowd of label 255 is void.
    """

    def __init__(self, number: int, prediction: Target, target: Target, classes: int) -> None:
        self.name = image_name(number)
        for what, given in (("prediction", prediction), ("truth", target)):
            if not isinstance(given, Instances):
                raise ZooError(f"{self.name}: the {what} is {type(given).__name__}, the metric compares Instances")
        assert isinstance(prediction, Instances)
        assert isinstance(target, Instances)
        if prediction.size != target.size:
            (ph, pw), (th, tw) = prediction.size, target.size
            raise ZooError(
                f"{self.name}: the prediction is {ph}x{pw}, the truth {th}x{tw}: predict at the size of the truth"
            )
        self.prediction, self.target = _on_cpu(prediction), _on_cpu(target)
        self.labels: Ints = self.prediction.labels.numpy()
        self.scores = self.prediction.scores.detach().numpy()
        self.crowd: Bools = self.target.crowd.numpy()
        labels = self.target.labels.numpy()
        self.void: Bools = self.crowd & (labels == VOID) if classes <= VOID else np.zeros(len(labels), bool)
        self.true_labels: Ints = np.where(self.void, NO_CLASS, labels)
        self._check_labels("prediction", self.labels, classes)
        self._check_labels("truth", labels[~self.void], classes)
        self.order: Ints = np.argsort(-self.scores, kind="stable")
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(self.order))
        self.rank = _ranks(self.labels, self.order)

    def _check_labels(self, what: str, labels: Ints, classes: int) -> None:
        if len(labels) and (labels.min() < 0 or labels.max() >= classes):
            wrong = labels[(labels < 0) | (labels >= classes)]
            raise ZooError(
                f"{self.name}: the {what} has label {wrong[0]} ({len(wrong)} objects with such), but labels are "
                f"0..{classes - 1}: give the metric the classes of the data"
            )

    @property
    def has_masks(self) -> bool:
        """Whether there are masks wherever there are objects."""
        return all(each.masks is not None or not len(each) for each in (self.prediction, self.target))

    @property
    def masks(self) -> tuple[Masks, Masks]:
        """Masks of detections and truths; asked for only where there are."""
        mine, theirs = (each.masks or Masks.from_rle([], each.size) for each in (self.prediction, self.target))
        return mine, theirs

    @cached_property
    def pixels(self) -> Ints:
        """Pixels of each detection (D,)."""
        return pixel_counts(self.masks[0])

    @cached_property
    def true_pixels(self) -> Ints:
        """Pixels of each truth (G,)."""
        return pixel_counts(self.masks[1])

    @cached_property
    def boxes(self) -> Floats:
        """(D,4)"""
        return boxes_of(self.prediction.masks, self.prediction.boxes)

    @cached_property
    def true_boxes(self) -> Floats:
        """(G,4)"""
        return boxes_of(self.target.masks, self.target.boxes)

    @cached_property
    def true_areas(self) -> Floats:
        """The truths' areas (G,): as given, else pixels, else of boxes."""
        if self.target.areas is not None:
            return self.target.areas.numpy()
        return self.true_pixels.astype(np.float64) if self.target.masks is not None else box_areas(self.true_boxes)

    def candidates(self, limit: int | None = None) -> Bools:
        """The pairs (D, G) of one class, of at most `limit` detections of it."""
        same = self.labels[:, None] == self.true_labels
        return same if limit is None else same & (self.rank < limit)[:, None]

    def common_pixels(self, limit: int | None = None, least: float = 0.0) -> Pairs:
        """Pixels in common of `candidates(limit)`, without pairs whose areas alone keep the IoU below `least`."""
        wanted = self.candidates(limit)
        if least:
            mine, theirs = self.pixels[:, None], self.true_pixels
            wanted &= ((mine >= least * theirs) & (theirs >= least * mine)) | self.crowd
        return mask_intersections(*self.masks, self.pixels, wanted)

    def void_pixels(self) -> Ints:
        """Pixels of each detection on void (D,)."""
        on_void = np.broadcast_to(self.void, (len(self.labels), len(self.void)))
        common = mask_intersections(*self.masks, self.pixels, on_void)
        return np.bincount(common.detections, common.values, len(self.labels)).astype(np.int64)

    def mask_iou(self, common: Pairs, crowd: bool = True) -> Pairs:
        """IoU from common pixels; with `crowd`, that with crowds is intersection over detection."""
        crowds = self.crowd if crowd else np.zeros_like(self.crowd)
        return intersection_over_union(common, self.pixels, self.true_pixels, crowds)

    def box_iou(self, limit: int) -> Pairs:
        """IoU of the boxes of `candidates(limit)`."""
        return box_iou(self.boxes, self.true_boxes, self.crowd, self.candidates(limit))

    def keypoints(self, count: int) -> tuple[Floats, Floats]:
        """Keypoints (D,P,3) and (G,P,3), P = `count`. ZooError where they are missing or of another number."""
        found = []
        for what, each in (("prediction", self.prediction), ("truth", self.target)):
            points = np.zeros((0, count, 3)) if each.keypoints is None else each.keypoints.detach().double().numpy()
            if len(points) != len(each) or points.shape[1:] != (count, 3):
                has = "no keypoints" if each.keypoints is None else f"keypoints of shape {points.shape}"
                raise ZooError(f"{self.name}: the {what} has {has}, the metric's {count} sigmas want (N,{count},3)")
            found.append(points)
        return found[0], found[1]

    def outcomes(self, iou: Pairs, areas: Floats | Ints, limit: int, counted: Bools | None = None) -> Ints:
        """Right and wrong (D,2) as bits of `matching`, of the `limit` surest detections of each class.

        `areas` (D,) are the detections'; `counted` (G,) are the truths that are not ignored, by default all but crowds.
        """
        allowed = self.rank < limit
        if not allowed.all():
            iou = iou.where(allowed[iou.detections])
        counts = cases(in_ranges(self.true_areas)) * (~self.crowd if counted is None else counted)
        outside = cases(~in_ranges(areas))
        return np.stack(match(iou, self.place, counts, self.crowd, outside, _REACHABLE), 1) * allowed[:, None]


def _on_cpu(instances: Instances) -> Instances:
    return instances if instances.labels.device.type == "cpu" else instances.to("cpu")


def _ranks(labels: Ints, order: Ints) -> Ints:
    """The rank (D,) of each detection within its label, when taken in `order`."""
    ordered = labels[order]
    by_label = np.argsort(ordered, kind="stable")
    starts = np.searchsorted(ordered[by_label], ordered[by_label])
    ranks = np.empty(len(order), np.int64)
    ranks[order[by_label]] = np.arange(len(order)) - starts
    return ranks
