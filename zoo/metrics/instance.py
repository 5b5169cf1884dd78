"""Instance segmentation: average precision as the COCO API has it, and what else is reported of objects.

One image becomes a few numbers a detection: its class, its score, its rank, and in which cases it was right or wrong
(`zoo.metrics.matching`). Masks are looked at once and forgotten, so half a million detections take some 25 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo.metrics import cityscapes_ap
from zoo.metrics import keypoints as oks
from zoo.metrics import objects as separate
from zoo.metrics.base import Metric
from zoo.metrics.boundary import boundary_distance, boundary_overlaps
from zoo.metrics.image_pair import ImagePair
from zoo.metrics.matching import AREAS, IOU_THRESHOLDS, Curves, T, curves, in_ranges
from zoo.metrics.overlaps import Bools, Floats, Ints, Pairs, box_areas
from zoo.metrics.resampling import Detections, Objects, average_precision, in_range, weights
from zoo.structures import Class, Target

KEYPOINT_DETECTIONS = 20
_SUFFIX = {"masks": "", "boxes": "_box", "boundary": "_boundary", "keypoints": "_keypoints"}
# A truth's row ends in bits: the ranges of areas it counts in, has keypoints, counts for Cityscapes.
_LABELLED, _REAL = 1 << len(AREAS), 2 << len(AREAS)
Rows = dict[str, NDArray[Any]]
Cells = tuple[slice, int, slice]  # classes, range and thresholds of a precision (K, A, T) that a score is the mean of


class InstanceMetric(Metric):
    """AP of masks and boxes, and more on request; equal to the official evaluators.

    | option       | gives                                                                            | as in          |
    |--------------|----------------------------------------------------------------------------------|----------------|
    | `masks`      | AP, AP50, AP75, APS, APM, APL, AR@1, AR@10, AR@100, ARS, ARM, ARL, AP/person, ... | COCO API      |
    | `boxes`      | the same of boxes: AP_box, AP50_box, ..., AP_box/person, ...                      | COCO API      |
    | `boundary`   | AP_boundary, ..., boundaries being that fraction of the image diagonal wide       | boundary-iou  |
    | `keypoints`  | AP_keypoints, ..., by OKS with these sigmas; 20 detections, no small objects      | COCO API      |
    | `objects`    | AP_dsb2018, AJI, AJI+, object_precision, object_recall, object_F1 (/person, ...) | objects.py |
    | `cityscapes` | AP_cityscapes, AP50_cityscapes, AP_cityscapes/car, ...                            | its scripts   |

    AP is the mean over the classes in the truth and over IoUs of .5, .55, ... .95; without any detection it is 0,
    without truth nan (pycocotools: -1). Of an image *and class* the `max_detections` surest count; a number n stands
    for (1, 10, n): AR@1 and AR@10 are recalls with fewer. Small, medium and large go by the truth's `areas` where it
    has them (COCO's field `area`), else by pixels, else by boxes; unmatched detections go by their pixels, in box AP by
    their boxes, in keypoint AP by the extent of their keypoints. Equal scores are in the order of image ids, and within
    an image in that given.

    Crowds, and what detects them, are ignored as COCO does. The boxes are those given, else those of the masks. If any
    image lacks masks, all scores of masks are nan. A crowd of label 255 in the truth is void, of which only
    `cityscapes` takes notice. `objects` is the score from which a detection is taken for an object, `object_iou` the
    IoU that makes it right. `statistics` are, per image: detections kept, true objects, 1 if masks are missing.

    Intervals are those of AP, made of 500 replicates, each of which costs as much as AP itself.

    Targets and predictions are `Instances`. Raises ZooError for sizes that differ within a pair, labels that are no
    class, missing keypoints, and an image evaluated twice.
    """

    main = "AP"
    object_counts: Tensor  # int64 (K, 3): right, detected, true

    replicates = 500

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        masks: bool = True,
        boxes: bool = True,
        boundary: float | None = None,
        keypoints: Sequence[float] | None = None,
        objects: float | None = None,
        object_iou: float = 0.5,
        cityscapes: bool = False,
        max_detections: int | Sequence[int] = 100,
    ) -> None:
        super().__init__(classes)
        self.max_detections = _limits(max_detections)
        if boundary is not None and not 0 < boundary < 1:
            raise ZooError(f"boundary is a fraction of the image diagonal in (0, 1) or None, not {boundary}")
        if not 0 < object_iou <= 1:
            raise ZooError(f"object_iou is an IoU in (0, 1], not {object_iou}")
        self.boundary, self.objects, self.object_iou, self.cityscapes = boundary, objects, object_iou, cityscapes
        self.sigmas = None if keypoints is None else tuple(float(sigma) for sigma in keypoints)
        if self.sigmas is not None and not min(self.sigmas, default=0) > 0:
            raise ZooError(f"keypoints are the sigmas of the keypoints, positive numbers, not {keypoints}")
        wanted = dict(zip(_SUFFIX, (masks, boxes, boundary is not None, keypoints is not None), strict=True))
        self.families = [name for name in _SUFFIX if wanted[name]]
        self.needs_masks = masks or boundary is not None or objects is not None or cityscapes
        if not self.families and not self.needs_masks:
            raise ZooError("an InstanceMetric that computes nothing: set masks, boxes or another option")
        if self.families:
            self.main = "AP" + _SUFFIX[self.families[0]]
        else:
            self.main = "AP_cityscapes" if cityscapes else "AP_dsb2018"
        self.measured = tuple(f"AP{_SUFFIX[name]}" for name in self.families)
        self._add_tables()

    def _add_tables(self) -> None:
        self.add_rows("statistics", 3)
        self.add_rows("truths", 2, dtype=torch.int32)  # class, bits
        self.add_rows("detections", 2, dtype=torch.int32)  # class, rank within it
        self.add_rows("scores", dtype=torch.float32)
        for name in self.families:
            self.add_rows(f"{name}_outcomes", 2)  # right, wrong: bits of `matching`
        if self.cityscapes:
            self.add_rows("cityscapes_outcomes", 2)
        if self.objects is not None:
            self.add_rows("object_scores", 3, dtype=torch.float64)  # AP_dsb2018, AJI, AJI+ of the image
            self.add_state("object_counts", torch.zeros(len(self.classes), 3, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def protocol(self) -> dict[str, Any]:
        """The options, with `max_detections` spelled out."""
        return {
            "masks": "masks" in self.families,
            "boxes": "boxes" in self.families,
            "boundary": self.boundary,
            "keypoints": None if self.sigmas is None else list(self.sigmas),
            "objects": self.objects,
            "object_iou": self.object_iou,
            "cityscapes": self.cityscapes,
            "max_detections": list(self.max_detections),
        }

    def update(
        self, predictions: Sequence[Target], targets: Sequence[Target], ids: Sequence[int] | None = None
    ) -> None:
        """Evaluate images. Nothing is counted if one of them is refused."""
        images = [
            (number, self._rows(ImagePair(number, prediction, target, len(self.classes))))
            for number, prediction, target in self.pairs(predictions, targets, ids)
        ]
        if not images:
            return
        cast(list[Tensor], self.ids).append(torch.tensor([number for number, _ in images], device=self.device))
        for name in images[0][1]:
            rows = torch.from_numpy(np.concatenate([each[name] for _, each in images])).to(self.device)
            if name == "object_counts":
                self.object_counts = self.object_counts + rows.view(len(images), -1, 3).sum(0)
            else:
                cast(list[Tensor], getattr(self, name)).append(rows)

    def _rows(self, pair: ImagePair) -> Rows:
        """What one image adds to each table."""
        limit = self.max_detections[-1]
        most = limit if self.sigmas is None else max(limit, KEYPOINT_DETECTIONS)
        kept = pair.order if self.cityscapes else pair.order[pair.rank[pair.order] < most]
        flags = (in_ranges(pair.true_areas) & ~pair.crowd[:, None]) @ (1 << np.arange(len(AREAS)))
        outcomes: Rows = {}
        others: Rows = {}
        if self.needs_masks and pair.has_masks:
            if self.cityscapes or self.objects is not None:
                common = pair.common_pixels()
            else:
                common = pair.common_pixels(limit, least=IOU_THRESHOLDS[0])
            outcomes |= self._mask_outcomes(pair, common, limit)
            if self.objects is not None:
                others |= self._object_rows(pair, common, self.objects)
            if self.cityscapes:
                flags |= _REAL * (~pair.crowd & (pair.true_pixels >= cityscapes_ap.SMALL))
        elif self.needs_masks:
            outcomes |= self._without_masks(len(pair.rank))
            others |= {} if self.objects is None else _no_objects(len(self.classes))
        if "boxes" in self.families:
            outcomes["boxes"] = pair.outcomes(pair.box_iou(limit), box_areas(pair.boxes), limit)
        if self.sigmas is not None:
            outcomes["keypoints"], seen = _keypoint_outcomes(pair, self.sigmas)
            flags |= _LABELLED * seen
        real = ~pair.void
        return (
            {f"{name}_outcomes": table[kept] for name, table in outcomes.items()}
            | others
            | {
                "statistics": np.array([[len(kept), real.sum(), not pair.has_masks]]),
                "truths": np.stack([pair.true_labels, flags], 1)[real].astype(np.int32),
                "detections": np.stack([pair.labels, pair.rank], 1)[kept].astype(np.int32),
                "scores": pair.scores[kept],
            }
        )

    def _mask_outcomes(self, pair: ImagePair, common: Pairs, limit: int) -> Rows:
        rows: Rows = {}
        iou = pair.mask_iou(common)
        if "masks" in self.families:
            rows["masks"] = pair.outcomes(iou, pair.pixels, limit)
        if self.boundary is not None:
            distance = boundary_distance(pair.target.size, self.boundary)
            near = iou.where(iou.values >= IOU_THRESHOLDS[0])
            least = boundary_overlaps(*pair.masks, near, pair.crowd, distance)
            rows["boundary"] = pair.outcomes(least, pair.pixels, limit)
        if self.cityscapes:
            plain = pair.mask_iou(common, crowd=False)
            sizes = pair.pixels, pair.true_pixels
            both = cityscapes_ap.outcomes(common, plain, pair.void_pixels(), pair.place, *sizes, pair.crowd)
            rows["cityscapes"] = np.stack(both, 1)
        return rows

    def _without_masks(self, detections: int) -> Rows:
        names = [name for name in (*self.families, "cityscapes") if name not in ("boxes", "keypoints")]
        return {name: np.zeros((detections, 2), np.int64) for name in names if name != "cityscapes" or self.cityscapes}

    def _object_rows(self, pair: ImagePair, common: Pairs, score: float) -> Rows:
        """Scores of the image (1, 3) and its counts (K, 3)."""
        excused = separate.on_crowds(common, pair.mask_iou(common, crowd=False), pair.pixels, pair.crowd)
        mine, true = (pair.scores >= score) & ~excused, ~pair.crowd
        own = common.where(mine[common.detections] & true[common.truths])
        iou = pair.mask_iou(own)
        renumbered = np.cumsum(mine) - 1, np.cumsum(true) - 1
        own, iou = (Pairs(renumbered[0][p.detections], renumbered[1][p.truths], p.values) for p in (own, iou))
        place, objects = pair.place[mine], int(true.sum())
        right = separate.matched(iou, place, objects, self.object_iou)
        labels = (pair.labels[mine][right], pair.labels[mine], pair.true_labels[true])
        counts = [np.bincount(each, minlength=len(self.classes)) for each in labels]
        aji = separate.aji(own, pair.pixels[mine], pair.true_pixels[true])
        return {
            "object_scores": np.array([[separate.dsb2018(iou, place, objects), *aji]]),
            "object_counts": np.stack(counts, 1).astype(np.int64),
        }

    def compute(self) -> dict[str, float]:
        """All scores by name; see the class."""
        tables = self._sorted()
        statistics = self.table("statistics").cpu().numpy()
        masks_missing = bool(statistics[:, 2].any())
        values: dict[str, float] = {}
        for name in self.families:
            scores = self._coco(name, tables)
            undefined = masks_missing and name in ("masks", "boundary")
            values |= dict.fromkeys(scores, float("nan")) if undefined else scores
        if self.cityscapes:
            scores = self._cityscapes(tables)
            values |= dict.fromkeys(scores, float("nan")) if masks_missing else scores
        if self.objects is not None:
            scores = self._objects()
            values |= dict.fromkeys(scores, float("nan")) if masks_missing else scores
        return values

    def resampled(self, key: str, replicates: int, seed: int = 0) -> Floats:
        """As in `Metric`; `key` is an AP (not an AR) of masks, boxes, boundaries or keypoints, also that of a class."""
        names = [c.name for c in self.classes]
        cells = {score: (name, own) for name in self.families for score, own in _precisions(names, name).items()}
        if key not in cells:
            raise unknown("score with an interval", key, cells)
        name, (classes, area, thresholds) = cells[key]
        with self.gathered():
            tables, statistics = self._sorted(), self.table("statistics").cpu().numpy()
        if name in ("masks", "boundary") and statistics[:, 2].any():
            return np.full(replicates, np.nan)
        wanted = np.arange(T)[thresholds]
        right, wrong = (in_range(bits, area, wanted) for bits in tables[f"{name}_outcomes"].T)
        found = Detections(tables["images"], tables["detections"][:, 0], right, wrong)
        labels, flags = tables["truths"].T
        required = 1 << area | (_LABELLED if name == "keypoints" else 0)
        real = (flags & required == required) & np.isin(labels, np.arange(len(names))[classes])
        objects = Objects(tables["true_images"][real], labels[real])
        parts = weights(len(statistics), replicates, seed)
        found_ap = [_means(average_precision(found, objects, part, len(names))) for part in parts]
        return np.concatenate(found_ap) if found_ap else np.zeros(0)

    def kept(self) -> dict[str, Tensor]:
        """As in `Metric`; besides, in the order of images, the tables of detections and objects of which AP is made."""
        with self.gathered():
            order = self.order()
            counts = self.table("statistics")
            tables = {"ids": self.table("ids")[order], "statistics": counts[order]}
            for name in ("truths", "detections", "scores", *(f"{family}_outcomes" for family in self.families)):
                images = self.table(name).split(counts[:, int(name == "truths")].tolist())
                tables[name] = torch.cat([self.table(name)[:0], *(images[i] for i in order.tolist())])
        return tables

    def _sorted(self) -> Rows:
        """The tables of detections, by falling score, equal scores by id of the image; and the truths.

        `images` and `true_images` say of each where its image stands in the order of ids.
        """
        images = np.empty(len(self.table("ids")), np.int64)
        images[self.order().cpu().numpy()] = np.arange(len(images))
        counts = self.table("statistics").cpu().numpy()
        names = ["detections", "scores", *(n for n in self._row_types if n.endswith("_outcomes"))]
        tables = {name: self.table(name).cpu().numpy() for name in names}
        tables["images"] = np.repeat(images, counts[:, 0])
        order = np.lexsort((tables["images"], -tables["scores"]))
        truths = {"truths": self.table("truths").cpu().numpy(), "true_images": np.repeat(images, counts[:, 1])}
        return {name: table[order] for name, table in tables.items()} | truths

    def _coco(self, name: str, tables: Rows) -> dict[str, float]:
        keypoints = name == "keypoints"
        limits = (KEYPOINT_DETECTIONS,) if keypoints else self.max_detections
        labels, ranks = tables["detections"].T.astype(np.int64)
        right, wrong = tables[f"{name}_outcomes"].T
        objects = _objects_by_range(tables["truths"], len(self.classes), _LABELLED if keypoints else 0)
        found = curves(labels, right, wrong, objects)
        fewer = {}
        for limit in limits[:-1]:
            within = ranks < limit
            hits = np.bincount(labels[within], _ones(right[within]), len(self.classes))
            fewer[limit] = _mean(np.divide(hits, objects[:, 0] * T, out=_nans(hits), where=objects[:, 0] > 0))
        return _named(found, fewer, limits[-1], [c.name for c in self.classes], name)

    def _cityscapes(self, tables: Rows) -> dict[str, float]:
        labels, flags = tables["truths"].T
        objects = np.bincount(labels[flags & _REAL > 0], minlength=len(self.classes))
        right, wrong = tables["cityscapes_outcomes"].T
        found = tables["detections"][:, 0], tables["scores"].astype(np.float64)
        ap = cityscapes_ap.average_precision(*found, right, wrong, objects)
        values = {"AP_cityscapes": _mean(ap), "AP50_cityscapes": _mean(ap[:, 0])}
        return values | {f"AP_cityscapes/{c.name}": float(ap[k].mean()) for k, c in enumerate(self.classes)}

    def _objects(self) -> dict[str, float]:
        images = self.table("object_scores")[self.order()].cpu().numpy()
        values = {name: _mean(images[:, i]) for i, name in enumerate(("AP_dsb2018", "AJI", "AJI+"))}
        counts = self.object_counts.cpu().numpy()
        for suffix, (right, detected, true) in [
            ("", counts.sum(0)),
            *((f"/{c.name}", counts[k]) for k, c in enumerate(self.classes)),
        ]:
            values[f"object_precision{suffix}"] = _ratio(right, detected)
            values[f"object_recall{suffix}"] = _ratio(right, true)
            values[f"object_F1{suffix}"] = _ratio(2 * right, detected + true)
        return values


def _limits(given: int | Sequence[int]) -> tuple[int, ...]:
    limits = [1, 10, given] if isinstance(given, int) else list(given)
    if not limits or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in limits):
        raise ZooError(f"max_detections is a number of detections an image and class, or a list of some, not {given}")
    most = given if isinstance(given, int) else max(limits)
    return tuple(sorted({n for n in limits if n <= most}))


def _keypoint_outcomes(pair: ImagePair, sigmas: Sequence[float]) -> tuple[Ints, Bools]:
    """Right and wrong (D,2), and the truths (G,) that count: with a labelled keypoint, and no crowds."""
    mine, theirs = pair.keypoints(len(sigmas))
    wanted = pair.candidates(KEYPOINT_DETECTIONS)
    similar = oks.similarities(mine, theirs, pair.true_boxes, pair.true_areas, sigmas, wanted)
    seen = oks.labelled(theirs) & ~pair.crowd
    return pair.outcomes(similar, oks.extents(mine), KEYPOINT_DETECTIONS, seen), seen


def _no_objects(classes: int) -> Rows:
    return {"object_scores": np.full((1, 3), np.nan), "object_counts": np.zeros((classes, 3), np.int64)}


def _objects_by_range(truths: NDArray[np.int32], classes: int, required: int) -> Ints:
    """The objects that count (K, A), from rows of class and bits; `required` bits must be set."""
    labels, flags = truths[truths[:, 1] & required == required].T
    return np.stack([np.bincount(labels[flags >> a & 1 > 0], minlength=classes) for a in range(len(AREAS))], 1)


def _ones(right: Ints) -> Ints:
    """At how many thresholds each detection is right, in the range of all areas."""
    return (right[:, None] >> np.arange(T) & 1).sum(1)


def _precisions(names: Sequence[str], family: str) -> dict[str, Cells]:
    """The cells of which each AP of a family is the mean."""
    suffix, every = _SUFFIX[family], slice(None)
    at = {f"{round(100 * threshold)}": t for t, threshold in enumerate(IOU_THRESHOLDS)}
    cells: dict[str, Cells] = {f"AP{suffix}": (every, 0, every)}
    cells |= {f"AP{iou}{suffix}": (every, 0, slice(at[iou], at[iou] + 1)) for iou in ("50", "75")}
    cells |= {f"AP{size}{suffix}": (every, a, every) for a, size in _sizes(family)}
    return cells | {f"AP{suffix}/{name}": (slice(k, k + 1), 0, every) for k, name in enumerate(names)}


def _sizes(family: str) -> list[tuple[int, str]]:
    """The ranges of areas that have scores of their own; keypoints are not evaluated on small objects."""
    return [(a, size) for a, size in enumerate(AREAS) if size and (family != "keypoints" or size != "S")]


def _named(found: Curves, fewer: dict[int, float], limit: int, names: Sequence[str], family: str) -> dict[str, float]:
    """COCO's summary of precision and recall (K, A, T)."""
    precision, recall = found
    suffix = _SUFFIX[family]
    values = {score: _mean(precision[cells]) for score, cells in _precisions(names, family).items()}
    recalls = {f"AR@{n}{suffix}": value for n, value in fewer.items()}
    recalls[f"AR@{limit}{suffix}"] = _mean(recall[:, 0])
    recalls |= {f"AR{size}{suffix}": _mean(recall[:, a]) for a, size in _sizes(family)}
    whole = {score: value for score, value in values.items() if "/" not in score}
    return whole | recalls | values


def _mean(scores: Floats) -> float:
    """The mean without nan; nan where nothing is left."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else float("nan")


def _means(scores: Floats) -> Floats:
    """The mean of each replicate (r, K, T) without nan; nan where nothing is left."""
    defined = ~np.isnan(scores)
    counts = defined.sum((1, 2))
    total = np.where(defined, scores, 0.0).sum((1, 2))
    return np.divide(total, counts, out=_nans(total), where=counts > 0)


def _nans(like: NDArray[Any]) -> Floats:
    return np.full(like.shape, np.nan)


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
