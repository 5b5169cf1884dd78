"""Instance evaluation against faster-coco-eval, pycocotools, torchmetrics, torchvision, and boundary-iou-api's way.

Part of `python benchmarks/metrics.py`. Images are 480x640 with 7 objects of 80 classes and 21 detections ("detector"),
or 100 detections most of which are wrong ("queries"). faster-coco-eval (also one of torchmetrics' two backends) is
compared where it is installed: pip install faster-coco-eval.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection.roi_heads import paste_masks_in_image

from zoo.metrics import InstanceMetric
from zoo.metrics.boundary import boundary_crop, boundary_distance
from zoo.metrics.matching import T
from zoo.ops import masks as rle_ops
from zoo.structures import Instances, Masks

Row = tuple[str, float, float, str]
Run = Callable[[], Any]

SIZE = (480, 640)
CLASSES = 80
TURNS = 5
HAS_FASTER = importlib.util.find_spec("faster_coco_eval") is not None


@dataclass
class Image:
    """Dense masks of truth and detections, with their labels, and scores."""

    true: NDArray[np.bool_]
    true_labels: NDArray[np.int64]
    found: NDArray[np.bool_]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


def workload(count: int, detections: int | None, seed: int = 0) -> Iterator[Image]:
    """Images with objects about 37 pixels in radius, and detections of half of them; None: about 21 detections."""
    rng = np.random.default_rng(seed)
    often = rng.permutation(1 / np.arange(1, CLASSES + 1))
    often /= often.sum()
    for _ in range(count):
        objects, total = rng.poisson(7), detections or rng.poisson(21)
        labels = rng.choice(CLASSES, objects, p=often)
        centres, radii = rng.uniform(0, SIZE, (objects, 2)), np.exp(rng.normal(3.6, 0.7, (objects, 2)))
        near = (rng.random(total) < (0.3 if detections else 0.55)) & (objects > 0)
        of = rng.integers(0, max(objects, 1), total)
        middle, wide = rng.uniform(0, SIZE, (total, 2)), np.exp(rng.normal(3.6, 0.7, (total, 2)))
        own = rng.choice(CLASSES, total, p=often)
        middle[near] = centres[of[near]] + rng.normal(0, 6, (near.sum(), 2))
        wide[near] = radii[of[near]] * np.exp(rng.normal(0, 0.15, (near.sum(), 2)))
        own[near] = np.where(rng.random(near.sum()) < 0.8, labels[of[near]], own[near])
        scores = np.where(near, rng.beta(4, 2, total), rng.beta(1.3, 4, total)).astype(np.float32)
        yield Image(_ellipses(centres, radii), labels, _ellipses(middle, wide), own, scores)


def _ellipses(centres: NDArray[Any], radii: NDArray[Any]) -> NDArray[np.bool_]:
    masks = np.zeros((len(centres), *SIZE), np.uint8)
    for mask, (y, x), (b, a) in zip(masks, centres, radii, strict=True):
        cv2.ellipse(mask, (int(x), int(y)), (max(int(a), 2), max(int(b), 2)), x + y, 0, 360, 1, -1)
    return masks.astype(bool)


def seconds(contenders: dict[str, Callable[[], Run]], turns: int = TURNS) -> dict[str, float]:
    """Median CPU seconds of each, taking turns; each is prepared anew, which is not timed."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, prepare in contenders.items():
            run = prepare()
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def rows(what: str, times: dict[str, float], units: int, targets: dict[str, float]) -> Iterator[Row]:
    """Milliseconds a unit and ratios to ours, the first contender."""
    ours = next(iter(times.values()))
    for name, each in times.items():
        least, goal = targets.get(name), ""
        if least is not None:
            goal = f">= {least:g}x: {'met' if each / ours >= least else 'MISSED'}"
        yield f"{what}: {name}", 1000 * each / units, each / ours, goal


@dataclass
class Records:
    """A workload as RLEs: for each image labels and RLEs of the truth, labels, scores and RLEs found; and as COCO's."""

    images: list[Any]
    truth: dict[str, Any]
    results: list[dict[str, Any]]

    def evaluate(self, metric: InstanceMetric) -> dict[str, float]:
        """What our metric says."""
        for number, (true_labels, true, labels, scores, found) in enumerate(self.images):
            prediction = Instances(Masks.from_rle(found, SIZE), labels, scores)
            metric.update([prediction], [Instances(Masks.from_rle(true, SIZE), true_labels)], [number])
        return metric.compute()


def records_of(count: int, detections: int | None) -> Records:
    """A workload as RLEs."""
    records: list[Any] = []
    images, annotations, results = [], [], []
    for number, image in enumerate(workload(count, detections)):
        true, found = rle_ops.encode(image.true), rle_ops.encode(image.found)
        records.append((image.true_labels, true, image.labels, image.scores, found))
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        for label, rle, area in zip(image.true_labels.tolist(), true, rle_ops.area(true).tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
            annotations.append(annotation | {"segmentation": rle, "area": area, "bbox": coco.toBbox(rle).tolist()})
        for label, score, rle in zip(image.labels.tolist(), image.scores.tolist(), found, strict=True):
            results.append({"image_id": number, "category_id": label, "score": score, "segmentation": rle})
    categories = [{"id": k, "name": str(k)} for k in range(CLASSES)]
    return Records(records, {"images": images, "annotations": annotations, "categories": categories}, results)


def ap_from_rle(kind: str, count: int, detections: int | None) -> Iterator[Row]:
    """RLEs in, COCO's twelve numbers out, loading included."""
    records = records_of(count, detections)

    def ours() -> dict[str, float]:
        return records.evaluate(InstanceMetric(CLASSES, boxes=False))

    def official() -> Run:
        fresh, loaded = copy.deepcopy((records.truth, records.results)), COCO()
        return lambda: _summarized(loaded, fresh, COCOeval)

    def faster() -> Run:
        import faster_coco_eval

        fresh = copy.deepcopy((records.truth, records.results))
        return lambda: _summarized(faster_coco_eval.COCO(fresh[0]), fresh, faster_coco_eval.COCOeval_faster)

    contenders: dict[str, Callable[[], Run]] = {"ours": lambda: ours, "pycocotools": official}
    targets = {}
    if HAS_FASTER:
        contenders["faster-coco-eval"], targets["faster-coco-eval"] = faster, 1.0
    value = ours()
    for name, prepare in list(contenders.items())[1:]:
        stats = prepare()()
        for key, i in (("AP", 0), ("AP50", 1), ("APS", 3), ("AR@1", 6), ("AR@100", 8), ("ARL", 11)):
            assert abs(value[key] - stats[i]) < 1e-9, f"{key} of {name} differs"
    yield from rows(f"AP from RLE, {kind}, {count} images", seconds(contenders), count, targets)


def _summarized(api: Any, fresh: Any, evaluation: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        if not api.dataset:
            api.dataset = fresh[0]
            api.createIndex()
        evaluator = evaluation(api, api.loadRes(fresh[1]), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def ap_from_dense(count: int) -> Iterator[Row]:
    """Dense masks in, as a validation loop has them."""
    images = [each for each in workload(count, None) if len(each.true)]  # torchmetrics drops images without truth
    pairs = []
    for each in images:
        found = Instances(Masks.from_dense(each.found), each.labels, each.scores)
        pairs.append((found, Instances(Masks.from_dense(each.true), each.true_labels)))

    def ours() -> dict[str, float]:
        metric = InstanceMetric(CLASSES, boxes=False)
        for number, (found, truth) in enumerate(pairs):
            metric.update([found], [truth], [number])
        return metric.compute()

    def theirs(backend: str) -> Run:
        def run() -> dict[str, Any]:
            thresholds = {"iou_thresholds": np.linspace(0.5, 0.95, 10).tolist()}
            thresholds |= {"rec_thresholds": np.linspace(0, 1, 101).tolist()}
            metric = MeanAveragePrecision(iou_type="segm", backend=backend, **thresholds)
            for found, truth in pairs:
                predicted = {"masks": found.masks.dense(), "labels": found.labels, "scores": found.scores}
                metric.update([predicted], [{"masks": truth.masks.dense(), "labels": truth.labels}])
            return metric.compute()

        return run

    contenders: dict[str, Callable[[], Run]] = {"ours": lambda: ours}
    for backend in ["pycocotools", *(["faster_coco_eval"] if HAS_FASTER else [])]:
        contenders[f"torchmetrics, {backend}"] = lambda backend=backend: theirs(backend)
        assert abs(ours()["AP"] - float(theirs(backend)()["map"])) < 1e-6, f"AP of {backend} differs"
    targets = dict.fromkeys(list(contenders)[1:], 5.0)
    yield from rows(f"AP from dense masks, {len(pairs)} images", seconds(contenders, 3), len(pairs), targets)


def roi_grids(count: int = 100) -> Iterator[Row]:
    """28x28 probabilities on boxes to RLEs."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, 28),) * 2, indexing="ij")
    noise = torch.nn.functional.avg_pool2d(torch.randn(count, 1, 32, 32, generator=rng), 5, 1)[:, 0]
    grids = torch.sigmoid(8 * (0.9 - (x**2 + y**2).sqrt()) + 6 * noise)
    extent = torch.exp(0.6 * torch.randn(count, 2, generator=rng) + 4.5).clamp(10, 400)
    centre = torch.rand(count, 2, generator=rng) * torch.tensor(SIZE[::-1])
    limits = torch.tensor([SIZE[1], SIZE[0]] * 2)
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], 1).clamp(min=0).minimum(limits)

    def torchvision() -> Any:
        masks = paste_masks_in_image(grids[:, None], boxes, SIZE)[:, 0] > 0.5
        return coco.encode(np.asfortranarray(masks.numpy().view(np.uint8).transpose(1, 2, 0)))

    assert rle_ops.paste(grids, boxes, SIZE, "torchvision") == torchvision(), "the strings differ"
    contenders = {
        "ours, torchvision's rule": lambda: lambda: rle_ops.paste(grids, boxes, SIZE, "torchvision"),
        "ours, detectron2's rule": lambda: lambda: rle_ops.paste(grids, boxes, SIZE, "detectron2"),
        "torchvision paste, threshold, pycocotools encode": lambda: torchvision,
    }
    yield from rows("a RoI grid to RLE", seconds(contenders), count, {list(contenders)[2]: 6.0})


def eroded(mask: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    """A boundary by the algorithm of boundary-iou-api: the whole image in a ring of zeros, d erosions by 3x3."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]


def boundaries(count: int = 12) -> Iterator[Row]:
    """Masks to their boundaries, 2 % of the diagonal wide: of all detections of some images."""
    masks = np.concatenate([each.found for each in workload(count, None)])
    distance = boundary_distance(SIZE)

    def ours() -> list[rle_ops.Crop]:
        return [boundary_crop(rle_ops.crop_dense(mask), distance) for mask in masks]

    def theirs() -> list[NDArray[np.uint8]]:
        return [eroded(mask.view(np.uint8), distance) for mask in masks]

    for (crop, left, top), full in zip(ours(), theirs(), strict=True):
        drawn = np.zeros(SIZE, bool)
        drawn[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert np.array_equal(drawn, full), "the boundaries differ"
    contenders = {"ours": lambda: ours, "boundary-iou-api's algorithm": lambda: theirs}
    yield from rows("a dense mask's boundary", seconds(contenders), len(masks), {"boundary-iou-api's algorithm": 5.0})


class BoundaryEval(COCOeval):
    """Boundary AP by the algorithm of boundary-iou-api: each mask's boundary as an RLE, overlaps the lesser IoU."""

    def _prepare(self) -> None:
        super()._prepare()
        for each in (*self._gts.values(), *self._dts.values()):
            for one in each:
                mask = eroded(coco.decode(one["segmentation"]), boundary_distance(SIZE))
                one["boundary"] = coco.encode(np.asfortranarray(mask))

    def computeIoU(self, imgId: int, catId: int) -> Any:
        true = self._gts[imgId, catId]
        found = sorted(self._dts[imgId, catId], key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        if not true or not found:
            return []
        parts = ([[one[key] for one in each] for each in (found, true)] for key in ("segmentation", "boundary"))
        return np.minimum(*(coco.iou(*each, [0] * len(true)) for each in parts))


def boundary_ap(count: int = 40) -> Iterator[Row]:
    """RLEs in, boundary AP out (and ours says the AP of masks too)."""
    records = records_of(count, None)

    def ours() -> dict[str, float]:
        return records.evaluate(InstanceMetric(CLASSES, boxes=False, boundary=0.02))

    def theirs() -> Run:
        fresh = copy.deepcopy((records.truth, records.results))
        return lambda: _summarized(COCO(), fresh, BoundaryEval)

    assert abs(ours()["AP_boundary"] - theirs()()[0]) < 1e-9, "boundary AP differs"
    contenders: dict[str, Callable[[], Run]] = {"ours": lambda: ours, "boundary-iou-api's algorithm": theirs}
    yield from rows(f"boundary AP from RLE, {count} images", seconds(contenders), count, {list(contenders)[1]: 5.0})


def interval(detections: int = 40_000, classes: int = 20, images: int = 2000, replicates: int = 200) -> Iterator[Row]:
    """The bootstrap over images from tables as an evaluation leaves them: half of the detections find an object."""
    rng = np.random.default_rng(0)
    of, objects = (np.bincount(rng.integers(0, images, n), minlength=images) for n in (detections, detections // 2))
    scores = rng.random(detections).astype(np.float32)
    reached = rng.integers(0, T + 1, detections) * (rng.random(detections) < scores)  # thresholds
    hits = (1 << reached) - 1
    metric = InstanceMetric(classes, boxes=False)
    metric.restore(
        {
            "ids": np.arange(images),
            "statistics": np.stack([of, objects, 0 * of], 1),
            "truths": np.stack([rng.integers(0, classes, objects.sum()), np.ones(objects.sum())], 1).astype(np.int32),
            "detections": np.stack([rng.integers(0, classes, detections), 0 * hits], 1).astype(np.int32),
            "scores": scores,
            "masks_outcomes": np.stack([hits, ((1 << T) - 1) - hits], 1),
        }
    )
    times = seconds({"ours": lambda: lambda: metric.interval("AP", replicates)})
    yield from rows(
        f"interval of AP, {replicates} replicates, {detections} detections of {classes} classes", times, 1, {}
    )


def table() -> Iterator[Row]:
    """All comparisons: what, milliseconds, ratio to ours, and whether a target is met."""
    yield from ap_from_rle("detector", 400, None)
    yield from ap_from_rle("queries", 150, 100)
    yield from ap_from_dense(40)
    yield from roi_grids()
    yield from boundaries()
    yield from boundary_ap()
    yield from interval()
