"""pycocotools on our structures: what the instance metric has to equal, and random images that try it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zoo.structures import Instances, Masks

SUFFIX = {"segm": "", "bbox": "_box", "keypoints": "_keypoints"}


def evaluate(
    predictions: Sequence[Instances],
    targets: Sequence[Instances],
    classes: int,
    kind: str = "segm",
    limits: Sequence[int] = (1, 10, 100),
    sigmas: Sequence[float] = (),
    order: Sequence[int] | None = None,
    boundary: float | None = None,
) -> dict[str, float]:
    """The values of pycocotools under our names, -1 as nan; `order` are the ids of the images.

    With `boundary`, overlaps of masks are those of boundary-iou-api at that fraction of the diagonal.
    """
    ids = list(range(len(targets))) if order is None else list(order)
    truth, found = COCO(), COCO()
    images = [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in zip(ids, targets, strict=True)]
    categories = [{"id": k + 1, "name": str(k)} for k in range(classes)]
    for api, structures in ((truth, targets), (found, predictions)):
        records = []
        for i, x in zip(ids, structures, strict=True):
            records += [dict(r, image_id=i) for r in _records(x, kind, detected=api is found)]
        for number, record in enumerate(records, 1):
            record["id"] = number
        api.dataset = {"images": images, "annotations": records, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluator = COCOeval(truth, found, kind) if boundary is None else BoundaryEval(truth, found, kind)
        evaluator.boundary = boundary
        evaluator.params.maxDets = list(limits)
        if sigmas:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return _values(evaluator, classes, kind, limits)


class BoundaryEval(COCOeval):
    """With the overlap of boundary-iou-api: d erosions by 3x3 of the padded image, the lesser IoU but for crowds."""

    boundary: float

    def computeIoU(self, image: int, category: int) -> Any:
        both = super().computeIoU(image, category)
        truths, found = self._gts[image, category], self._dts[image, category]
        if not len(truths) or not len(found):
            return both
        found = [found[i] for i in np.argsort([-d["score"] for d in found], kind="mergesort")]
        edges = [[self.edge(r["segmentation"]) for r in rows] for rows in (found[: self.params.maxDets[-1]], truths)]
        crowd = np.array([r["iscrowd"] for r in truths])
        return np.where(crowd > 0, both, np.minimum(both, coco.iou(*edges, crowd.tolist())))

    def edge(self, rle: Any) -> Any:
        mask = coco.decode(rle)
        depth = max(1, round(self.boundary * float(np.hypot(*mask.shape))))
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        for _ in range(depth):
            padded = cv2.erode(padded, np.ones((3, 3), np.uint8))
            padded[[0, -1]], padded[:, [0, -1]] = 0, 0
        return coco.encode(np.asfortranarray(mask - padded[1:-1, 1:-1]))


def _records(x: Instances, kind: str, detected: bool) -> list[dict[str, Any]]:
    """COCO records of an image, as loadRes completes those of detections."""
    pixels = x.masks.area().numpy() if x.masks is not None else None
    rles = x.masks.rle() if x.masks is not None else None
    boxes = (x.boxes if x.boxes is not None else x.masks.boxes()).double().numpy()
    records = []
    for i in range(len(x)):
        x0, y0, x1, y1 = boxes[i].tolist()
        record: dict[str, Any] = {
            "category_id": int(x.labels[i]) + 1,
            "score": float(x.scores[i]),
            "iscrowd": int(x.crowd[i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": rles[i] if rles is not None else {},
        }
        box_area = (x1 - x0) * (y1 - y0)
        record["area"] = box_area if pixels is None or (detected and kind == "bbox") else float(pixels[i])
        if not detected and x.areas is not None:
            record["area"] = float(x.areas[i])
        if x.keypoints is not None:
            points = x.keypoints[i].double().numpy()
            record["keypoints"] = points.ravel().tolist()
            record["num_keypoints"] = int((points[:, 2] > 0).sum())
            if detected and kind == "keypoints":
                (left, top), (right, bottom) = points[:, :2].min(0), points[:, :2].max(0)
                record["area"] = (right - left) * (bottom - top)
        if detected:
            record["iscrowd"] = 0
        records.append(record)
    return records


def _values(evaluator: COCOeval, classes: int, kind: str, limits: Sequence[int]) -> dict[str, float]:
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]  # (T,R,K,A,M), (T,K,A,M)
    suffix = SUFFIX[kind] if not isinstance(evaluator, BoundaryEval) else "_boundary"
    sizes = "ML" if kind == "keypoints" else "SML"
    values = {"AP": precision[..., 0, -1], "AP50": precision[0, ..., 0, -1], "AP75": precision[5, ..., 0, -1]}
    values |= {f"AP{size}": precision[..., a, -1] for a, size in enumerate(sizes, 1)}
    values |= {f"AR@{limit}": recall[..., 0, m] for m, limit in enumerate(limits)}
    values |= {f"AR{size}": recall[..., a, -1] for a, size in enumerate(sizes, 1)}
    named = {f"{name}{suffix}": _mean(v) for name, v in values.items()}
    return named | {f"AP{suffix}/class_{k}": _mean(precision[:, :, k, 0, -1]) for k in range(classes)}


def _mean(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def ellipse(size: tuple[int, int], centre: NDArray[Any], radius: NDArray[Any]) -> NDArray[np.bool_]:
    y, x = np.ogrid[: size[0], : size[1]]
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1


def random_image(
    rng: np.random.Generator, classes: int, most: int = 8, keypoints: int = 0
) -> tuple[Instances, Instances]:
    """A prediction and its truth: near and far detections, ties of all kinds, crowds, empty masks, odd areas."""
    size = (int(rng.integers(20, 170)), int(rng.integers(20, 170)))
    true_count = 0 if rng.random() < 0.25 else int(rng.integers(1, most))
    centres = rng.uniform(0, size, (true_count, 2)).round()
    radii = np.exp(rng.uniform(0.7, 4.2, (true_count, 2)))
    labels = rng.integers(0, classes - 1, true_count)  # the last class is never in the truth
    truth = _instances(size, centres, radii, labels, np.ones(true_count), rng.random(true_count) < 0.2)
    truth.areas = None if rng.random() < 0.3 else _odd(truth.masks.area().double(), rng)
    rows = rng.integers(0, max(true_count, 1), 0 if rng.random() < 0.15 else int(rng.integers(1, 4 * most)))
    if not true_count:
        near, wide, own = rng.uniform(0, size, (len(rows), 2)), np.full((len(rows), 2), 9.0), np.zeros(len(rows), int)
    else:
        exact = rng.random((len(rows), 1)) < 0.3
        near = centres[rows] + np.where(exact, 0, rng.normal(0, 2, (len(rows), 2)).round())
        wide = radii[rows] * np.where(exact, 1, np.exp(rng.normal(0, 0.15, (len(rows), 2))))
        own = labels[rows]
    wide[rng.random(len(rows)) < 0.05] = 1e-3  # next to nothing
    own = np.where(rng.random(len(rows)) < 0.8, own, rng.integers(0, classes, len(rows)))
    scores = rng.choice([0.3, 0.5, 0.5, 0.9, rng.random()], len(rows))
    found = _instances(size, near, wide, own, scores, np.zeros(len(rows), bool))
    if keypoints:
        shape = np.array([size[1], size[0]])
        points = rng.uniform(0, shape, (true_count, keypoints, 2))
        moved = points[rows] if true_count else rng.uniform(0, shape, (len(rows), keypoints, 2))
        moved = moved + rng.normal(0, 1.5, moved.shape)
        seen = rng.integers(0, 3, (true_count, keypoints, 1)) * (rng.random((true_count, 1, 1)) < 0.8)
        truth.keypoints = torch.from_numpy(np.concatenate([points, seen], 2)).float()
        found.keypoints = torch.from_numpy(np.concatenate([moved, moved[..., :1] * 0 + 1], 2)).float()
    return found, truth


def _odd(areas: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Areas that disagree with the pixels, some of them exactly on a bound."""
    factors = torch.from_numpy(rng.choice([0.2, 1.0, 5.0], len(areas)))
    return torch.where(torch.from_numpy(rng.random(len(areas)) < 0.2), torch.tensor(1024.0).double(), areas * factors)


def _instances(
    size: tuple[int, int],
    centres: NDArray[Any],
    radii: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any],
    crowd: NDArray[Any],
) -> Instances:
    masks = np.zeros((len(labels), *size), bool)
    for mask, centre, radius in zip(masks, centres, radii, strict=True):
        mask[:] = ellipse(size, centre, radius)
    return Instances(Masks.from_dense(masks), labels, torch.from_numpy(np.asarray(scores, np.float32)), crowd)
