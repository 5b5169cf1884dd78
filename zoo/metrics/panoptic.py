"""Panoptic segmentation: panoptic quality and its relatives, equal to COCO's panopticapi.

One image becomes ten numbers a class, from one pass over its pixels (`zoo.metrics.segments`): sums over images are all
that any of the scores needs, so intervals and paired comparisons come from the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import ZooError, unknown
from zoo.metrics import segments
from zoo.metrics.base import Metric, image_name
from zoo.metrics.boundary import boundary_distance
from zoo.metrics.instance import InstanceMetric
from zoo.metrics.resampling import resamples
from zoo.metrics.segments import Bools, Common, Floats, Numbers, Tables
from zoo.metrics.semantic import ABSENT, class_scores, summary
from zoo.structures import VOID, Class, Panoptic, Target

# The rows of an image's statistics; those of boundaries and of nuclei regardless of class are the first four.
IOU, RIGHT, WRONG, MISSED, DAGGER, COVERED, COVERABLE, HIT, PREDICTED, TRUE = range(10)
_SEMANTIC = [HIT, PREDICTED, TRUE]  # as `zoo.metrics.semantic` orders them
_FROM_SEMANTIC = ("mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU")
_GROUPS = {"": None, "_th": True, "_st": False}
_THINGS = "things_"  # before the names of InstanceMetric's tables among ours


class PanopticMetric(Metric):
    """PQ and its factors SQ and RQ, as panopticapi computes them, and what else is made of segments.

    A predicted segment matches a true one of its class if their IoU is above 1/2. Of each class, over all images,

        PQ = SQ * RQ,   SQ = sum of the IoU of matches / matches,   RQ = matches / (matches + wrong / 2 + missed / 2)

    ("PQ/road", "SQ/road", "RQ/road"), and the means over the classes that occur in truth or prediction ("PQ", "SQ",
    "RQ"), over things ("PQ_th", ...) and over stuff ("PQ_st", ...); nan where there are none. As in panopticapi:
    predictions on true void are in no union; void predicted on a segment counts as missing it; a prediction that
    matches nothing is wrong unless more than half of it lies on void and on the crowd of its class (of several, the
    last); crowds match nothing and are not missed; a true segment's area is what the file says (`areas`), and one
    without pixels is missed. A predicted segment without pixels is none, where panopticapi stops.

    Beside it, from the same pass over the pixels:

    | name                                    | is                                                                    |
    |-----------------------------------------|-----------------------------------------------------------------------|
    | PQ_dagger, /road                        | PQ; of stuff: sum of the IoU of all overlaps / true segments          |
    | parsing_covering, /road                 | best IoU of each true segment, weighted by its share of its image     |
    | mIoU, IoU/road, pixel_accuracy, ...     | the semantic scores of the segments' classes, `absent` as there       |

    and on request

    | option      | gives                                                                                             |
    |-------------|---------------------------------------------------------------------------------------------------|
    | `instances` | AP, AP50, ... AP/car of things by the segments' scores (`InstanceMetric`); nan where all are 1    |
    | `boundary`  | PQ_boundary, SQ_boundary, RQ_boundary (_th, _st, /road), by the lesser of mask and boundary IoU,  |
    |             | boundaries being that fraction of the image diagonal wide                                         |
    | `nuclei`    | of the things: bPQ, mPQ (/cell) and mPQ+                                                          |

    PQ_dagger is that of Porzi et al., "Seamless Scene Segmentation", 2019; a stuff class that is only predicted is left
    out of its mean. Parsing covering is that of Yang et al., "DeeperLab", 2019, the mean over classes in the truth;
    void and crowds are removed before. Boundary PQ: Cheng et al., 2021, see `zoo.metrics.boundary`.

    Nuclei: bPQ is the mean over images of the PQ of all things as one class; mPQ the mean over images of the mean over
    classes of the image's own PQ, of classes and images with true objects only, so that what is found of a class that
    is not there costs nothing (Gamper et al. 2020, PanNuke; it takes means over images of a tissue first); mPQ+ is PQ
    over things where an absent class counts 0 (Graham et al. 2021, CoNIC). The code of both adds 1e-6 to denominators.

    `statistics` are float64 (N, 10, K): sum of IoU, matches, wrong, missed; sum of the IoU of all overlaps; covered and
    coverable share; pixels of intersection, prediction and truth.

    Targets and predictions are `Panoptic`; segments of label 255 are void. Raises ZooError for a table that does not
    say which classes are things, sizes that differ within a pair, labels that are no class, and an image evaluated
    twice.
    """

    main = "PQ"
    measured = ("PQ",)

    def __init__(
        self,
        classes: Sequence[Class],
        instances: bool = True,
        boundary: float | None = None,
        nuclei: bool = False,
        absent: str = "union",
        max_detections: int | Sequence[int] = 100,
    ) -> None:
        if isinstance(classes, int) or not all(isinstance(c, Class) for c in classes):
            raise ZooError("panoptic quality needs to know which classes are things: give it the dataset's classes")
        super().__init__(classes)
        if len(self.classes) > VOID:
            raise ZooError(f"255 is void in panoptic labels: at most 255 classes, not {len(self.classes)}")
        if absent not in ABSENT:
            raise unknown("rule for absent classes", absent, ABSENT)
        if boundary is not None and not 0 < boundary < 1:
            raise ZooError(f"boundary is a fraction of the image diagonal in (0, 1) or None, not {boundary}")
        self.boundary, self.nuclei, self.absent = boundary, nuclei, absent
        self.things = np.array([c.thing for c in self.classes])
        if nuclei and not self.things.any():
            raise ZooError("nuclei=true is of things, and none of the classes is one")
        self.add_rows("statistics", 10, len(self.classes), dtype=torch.float64)
        if boundary is not None:
            self.add_rows("boundary_statistics", 4, len(self.classes), dtype=torch.float64)
        if nuclei:
            self.add_rows("binary_statistics", 4, dtype=torch.float64)
        self.instances = instances and bool(self.things.any())
        self._add_instances(max_detections)

    def _add_instances(self, max_detections: int | Sequence[int]) -> None:
        """The tables of an instance metric among ours, so that they are merged and gathered with them."""
        self.max_detections: list[int] | None = None
        if self.instances:
            things = [c for c in self.classes if c.thing]
            self._instances = InstanceMetric(things, boxes=False, max_detections=max_detections)
            self._instances.distributed_available_fn = _nobody
            self.max_detections = list(self._instances.max_detections)
            self._tables = {name: kind for name, kind in self._instances._row_types.items() if name != "ids"}
            for name, (shape, dtype) in self._tables.items():
                self.add_rows(_THINGS + name, *shape, dtype=dtype)
            self.add_rows("scored")

    @property
    def protocol(self) -> dict[str, Any]:
        """The options; `max_detections` is spelled out, None without instances."""
        return {
            "instances": self.instances,
            "boundary": self.boundary,
            "nuclei": self.nuclei,
            "absent": self.absent,
            "max_detections": self.max_detections,
        }

    def update(
        self, predictions: Sequence[Target], targets: Sequence[Target], ids: Sequence[int] | None = None
    ) -> None:
        """Count images. Nothing is counted if one of them is refused."""
        images = [
            (number, *_checked(number, prediction, target, len(self.classes)))
            for number, prediction, target in self.pairs(predictions, targets, ids)
        ]
        if not images:
            return
        rows: dict[str, list[Any]] = {"ids": [np.int64(number) for number, *_ in images]}
        for _, prediction, target, tables in images:
            for name, row in self._rows(prediction, target, tables).items():
                rows.setdefault(name, []).append(row)
        if self.instances:
            self._count_instances([p for _, p, *_ in images], [t for _, _, t, _ in images])
        for name, values in rows.items():
            getattr(self, name).append(torch.from_numpy(np.stack(values)).to(self.device))

    def _rows(self, prediction: Panoptic, target: Panoptic, tables: Tables) -> dict[str, Any]:
        """What one image adds to each table."""
        count = len(self.classes)
        common = segments.common_pixels(target.ids, prediction.ids, len(tables.true), len(tables.predicted))
        pixels = np.bincount(common.true, common.pixels, len(tables.true))
        areas = pixels if target.areas is None else target.areas.numpy()
        predicted = np.bincount(common.predicted, common.pixels, len(tables.predicted))
        void, excused = segments.on_void(common, tables), segments.excused(common, tables)
        pairs = segments.same_class(common, tables)
        values = segments.iou(pairs, areas, predicted, void)
        row = np.empty((10, count))
        row[: MISSED + 1] = segments.matches(pairs, values, tables, excused, predicted, count)
        row[DAGGER] = np.bincount(tables.true[pairs.true], values, count)
        row[COVERED : COVERABLE + 1] = _covering(common, pairs, tables, pixels, predicted, count)
        row[HIT:] = _confusion(common, tables, count)
        rows: dict[str, Any] = {"statistics": row}
        if self.boundary is not None:
            least = self._boundary_iou(prediction, target, tables, pairs, values)
            rows["boundary_statistics"] = segments.matches(pairs, least, tables, excused, predicted, count)
        if self.nuclei:
            one = _as_one_class(tables, self.things)
            own = segments.same_class(common, one)
            values = segments.iou(own, areas, predicted, segments.on_void(common, one))
            excused = segments.excused(common, one)
            rows["binary_statistics"] = segments.matches(own, values, one, excused, predicted, 1)[:, 0]
        if self.instances:
            rows["scored"] = np.int64((prediction.scores[1:] < 1).any())
        return rows

    def _boundary_iou(
        self, prediction: Panoptic, target: Panoptic, tables: Tables, pairs: Common, values: Floats
    ) -> Floats:
        """The lesser of IoU and boundary IoU of `pairs` with IoU `values` (P,)."""
        assert self.boundary is not None
        distance = boundary_distance(target.size, self.boundary)
        true, predicted = len(tables.true), len(tables.predicted)
        edges = segments.boundaries(target.ids, true, distance)
        mine = segments.boundaries(prediction.ids, predicted, distance)
        inner = Tables(np.append(tables.true, 0), np.append(tables.predicted, 0), np.append(tables.crowd, True))
        common = segments.common_pixels(edges, mine, true + 1, predicted + 1)
        areas = np.bincount(common.true, common.pixels, true + 1)
        widths = np.bincount(common.predicted, common.pixels, predicted + 1)
        # A pair that overlaps need not do so on the boundaries.
        found = dict(zip(zip(common.true.tolist(), common.predicted.tolist(), strict=True), common.pixels, strict=True))
        both = [found.get(pair, 0.0) for pair in zip(pairs.true.tolist(), pairs.predicted.tolist(), strict=True)]
        near = pairs._replace(pixels=np.array(both, np.float64))
        return np.minimum(values, segments.iou(near, areas, widths, segments.on_void(common, inner)))

    def _count_instances(self, predictions: Sequence[Panoptic], targets: Sequence[Panoptic]) -> None:
        """The images as instances; what the instance metric learns of them is moved to our tables."""
        found, true = ([x.instances(self.classes) for x in images] for images in (predictions, targets))
        self._instances.update(found, true)
        for name in self._tables:
            getattr(self, _THINGS + name).extend(getattr(self._instances, name))
        self._instances.reset()

    def compute(self) -> dict[str, float]:
        """All scores by name; see the class."""
        images = self.rows()[1].cpu().numpy()
        values, per_class = self._scores(images.sum(0)), self._class_scores(images.sum(0))
        if self.boundary is not None:
            edges = self.table("boundary_statistics")[self.order()].sum(0).cpu().numpy()
            for name, scores in quality(edges).items():
                per_class[f"{name}_boundary"] = scores
                values |= {f"{name}_boundary{group}": mean for group, mean in self._means(scores).items()}
        if self.nuclei:
            values |= self._nuclei(images)
            per_class["mPQ"] = _mean(_of_present(images).T)
        named = {name: float(value) for name, value in values.items()}
        for name, scores in per_class.items():
            named |= {f"{name}/{c.name}": float(score) for c, score in zip(self.classes, scores, strict=True)}
        return named | (self._average_precision() if self.instances else {})

    def resampled(self, key: str, replicates: int, seed: int = 0) -> Floats:
        """As in `Metric`; `key` is a score that `compute` makes of `statistics` alone: PQ, SQ, RQ (_th, _st),
        PQ_dagger, parsing_covering, mIoU and the like, or one of a class.
        """
        statistics = self.rows()[1].cpu().numpy()
        found = []
        for totals in resamples(statistics, replicates, seed):
            means, per_class = self._scores(totals), self._class_scores(totals)
            name, _, label = key.partition("/")
            names = [c.name for c in self.classes]
            if label in names and name in per_class:
                found.append(per_class[name][:, names.index(label)])
            elif key in means:
                found.append(means[key])
            else:
                raise unknown("score with an interval", key, [*means, *(f"{s}/{c}" for s in per_class for c in names)])
        return np.concatenate(found) if found else np.zeros(0)

    def _scores(self, totals: Floats) -> dict[str, Floats]:
        """The scores over classes of data sets with sums (..., 10, K), each (...)."""
        per_class = self._class_scores(totals)
        values = {f"{n}{g}": mean for n in ("PQ", "SQ", "RQ") for g, mean in self._means(per_class[n]).items()}
        values |= {name: _mean(per_class[name]) for name in ("PQ_dagger", "parsing_covering")}
        semantic = summary(totals[..., _SEMANTIC, :], self.absent)
        return values | {name: semantic[name] for name in _FROM_SEMANTIC}

    def _class_scores(self, totals: Floats) -> dict[str, Floats]:
        """The scores of each class of data sets with sums (..., 10, K), each (..., K)."""
        scores = quality(totals)
        true = totals[..., RIGHT, :] + totals[..., MISSED, :]
        dagger = np.where(self.things, scores["PQ"], _ratio(totals[..., DAGGER, :], true))
        covering = _ratio(totals[..., COVERED, :], totals[..., COVERABLE, :])
        semantic = class_scores(totals[..., _SEMANTIC, :], self.absent)
        return scores | {"PQ_dagger": dagger, "parsing_covering": covering, "IoU": semantic["IoU"]}

    def _means(self, scores: Floats) -> dict[str, Floats]:
        """Means over all classes, things, and stuff, by the suffix of their names."""
        groups = {name: slice(None) if kind is None else self.things == kind for name, kind in _GROUPS.items()}
        return {name: _mean(scores[..., kept]) for name, kept in groups.items()}

    def _nuclei(self, images: Floats) -> dict[str, Floats]:
        """bPQ, mPQ and mPQ+ from the statistics of images (N, 10, K)."""
        binary = self.table("binary_statistics")[self.order()].cpu().numpy()[..., None]
        total = quality(images.sum(0))["PQ"][self.things]
        return {
            "bPQ": _mean(_of_present(binary)[:, 0]),
            "mPQ": _mean(_mean(_of_present(images)[:, self.things])),
            "mPQ+": np.nan_to_num(total).mean() if len(images) else np.array(np.nan),
        }

    def _average_precision(self) -> dict[str, float]:
        """The scores of `InstanceMetric` from our tables."""
        metric = self._instances
        metric.update([], [])
        metric.ids = [self.table("ids")]
        for name in self._tables:
            setattr(metric, name, [self.table(_THINGS + name)])
        values: dict[str, float] = metric.compute()
        metric.reset()
        return values if self.table("scored").any() else dict.fromkeys(values, float("nan"))


def quality(totals: Floats) -> dict[str, Floats]:
    """PQ, SQ and RQ of each class, each (..., K), from sums (..., 4 or more, K): IoU, matches, wrong, missed.

    nan for a class that occurs in neither truth nor prediction; SQ is 0 where nothing matches.
    """
    iou, right, wrong, missed = np.moveaxis(totals[..., : MISSED + 1, :], -2, 0)
    halves = right + 0.5 * wrong + 0.5 * missed
    sq = np.where(halves > 0, _ratio(iou, right, 0.0), np.nan)
    return {"PQ": _ratio(iou, halves), "SQ": sq, "RQ": _ratio(right, halves)}


def _of_present(images: Floats) -> Floats:
    """The PQ (N, K) of the classes in each image's truth, nan of others."""
    true = images[:, RIGHT] + images[:, MISSED]
    return np.where(true > 0, quality(images)["PQ"], np.nan)


def _checked(number: int, prediction: Target, target: Target, classes: int) -> tuple[Panoptic, Panoptic, Tables]:
    """The pair, and the labels of its segments. ZooError for what cannot be compared."""
    labels: list[NDArray[np.int64]] = []
    for what, given in (("prediction", prediction), ("truth", target)):
        if not isinstance(given, Panoptic):
            raise ZooError(f"{image_name(number)}: the {what} is {type(given).__name__}, the metric compares Panoptic")
        own = given.labels.cpu().numpy()
        wrong = own[(own < 0) | (own >= classes) & (own != VOID)]
        if len(wrong):
            raise ZooError(
                f"{image_name(number)}: the {what} has label {wrong[0]} ({len(wrong)} segments with such), but labels "
                f"are 0..{classes - 1} and 255 for void: give the metric the classes of the data"
            )
        labels.append(own)
    assert isinstance(prediction, Panoptic)
    assert isinstance(target, Panoptic)
    if prediction.size != target.size:
        (ph, pw), (th, tw) = prediction.size, target.size
        raise ZooError(
            f"{image_name(number)}: the prediction is {ph}x{pw}, the truth {th}x{tw}: predict at the size of the truth"
        )
    return prediction, target, Tables(labels[1], labels[0], target.crowd.cpu().numpy())


def _covering(
    common: Common, pairs: Common, tables: Tables, pixels: Numbers, predicted: Numbers, classes: int
) -> Floats:
    """Of each class the share of the image that true segments have, times their best IoU, and that share (2, K)."""
    kept = (tables.true != VOID) & ~tables.crowd
    outside = ~kept[common.true]
    removed = np.bincount(common.predicted[outside], common.pixels[outside], len(predicted))
    best = np.zeros(len(pixels))
    np.maximum.at(best, pairs.true, segments.iou(pairs, pixels, predicted, removed))
    shares = pixels[kept] / max(pixels.sum(), 1)
    labels = tables.true[kept]
    return np.stack([np.bincount(labels, shares * best[kept], classes), np.bincount(labels, shares, classes)])


def _confusion(common: Common, tables: Tables, classes: int) -> Floats:
    """Pixels of each class in both, in the prediction and in the truth, true void aside (3, K)."""
    true, predicted = tables.true[common.true], tables.predicted[common.predicted]
    seen = true != VOID
    true, predicted, pixels = true[seen], predicted[seen], common.pixels[seen]
    both, known = true == predicted, predicted != VOID
    return np.stack(
        [
            np.bincount(true[both], pixels[both], classes),
            np.bincount(predicted[known], pixels[known], classes),
            np.bincount(true, pixels, classes),
        ]
    )


def _as_one_class(tables: Tables, things: Bools) -> Tables:
    """All things as class 0; stuff is void in the prediction and a crowd of no class in the truth."""
    table = np.full(VOID + 1, VOID)
    table[np.flatnonzero(things)] = 0
    true = table[tables.true]
    stuff = (tables.true != VOID) & (true == VOID)
    return Tables(np.where(stuff, 1, true), table[tables.predicted], tables.crowd | stuff)


def _ratio(part: Floats, whole: Floats, empty: float = np.nan) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(whole), empty), where=whole > 0)


def _mean(scores: Floats) -> Floats:
    """The mean over the last axis without nan; nan where nothing is left."""
    defined = ~np.isnan(scores)
    return _ratio(np.where(defined, scores, 0.0).sum(-1), defined.sum(-1))


def _nobody() -> bool:
    """No other processes: the tables of the instance metric are gathered with ours."""
    return False
