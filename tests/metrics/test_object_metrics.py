"""DSB2018, AJI, object F1 and Cityscapes AP against their definitions, written out on masks one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from coco_reference import ellipse
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from zoo.metrics import InstanceMetric
from zoo.structures import VOID, Instances, Masks

SIZE = (60, 70)
Dense = NDArray[np.bool_]


def disjoint(rng: np.random.Generator, count: int) -> Dense:
    """Objects that do not overlap, as an id map holds them; none is empty."""
    ids = np.zeros(SIZE, int)
    for i in range(1, count + 1):
        ids[ellipse(SIZE, rng.uniform(0, SIZE), rng.uniform(3, 14, 2))] = i
    masks = ids == np.arange(1, count + 1)[:, None, None]
    return masks[masks.any((1, 2))]


def moved(rng: np.random.Generator, masks: Dense) -> Dense:
    """Detections of most of the objects, shifted or cut, disjoint, and some of nothing."""
    ids = np.zeros(SIZE, int)
    for i, mask in enumerate(masks, 1):
        if rng.random() < 0.85:
            ids[np.roll(mask, rng.integers(-2, 3, 2), (0, 1))] = i
    cut = int(rng.integers(20, 60))
    ids[:, cut:] += (ids[:, cut:] > 0) * 100 * (rng.random() < 0.5)
    ids[:4, :9] = 300
    found = np.unique(ids[ids > 0])
    return ids == found[:, None, None]


def sets(seed: int, count: int = 8) -> list[tuple[Dense, Dense]]:
    rng = np.random.default_rng(seed)
    truths = [disjoint(rng, int(rng.integers(0, 12))) for _ in range(count)]
    return [(moved(rng, t), t) for t in truths]


def table(found: Dense, truth: Dense) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intersection and union (G, D)."""
    both = np.array([[(t & d).sum() for d in found] for t in truth], float).reshape(len(truth), len(found))
    either = np.array([[(t | d).sum() for d in found] for t in truth], float).reshape(both.shape)
    return both, either


def scored(pairs: list[tuple[Dense, Dense]], **options: Any) -> dict[str, float]:
    metric = InstanceMetric(["cell"], **options)
    structures = [[Instances(Masks.from_dense(m), [0] * len(m)) for m in pair] for pair in pairs]
    metric.update(*zip(*structures, strict=True))
    return metric.compute()


def test_dsb2018_is_the_mean_over_thresholds_and_images() -> None:
    pairs = sets(0)
    scores = []
    for found, truth in pairs:
        both, either = table(found, truth)
        iou = both / np.maximum(either, 1)
        hits = [(iou > round(0.5 + 0.05 * i, 2)).sum() for i in range(10)]  # disjoint: no two on one above a half
        scores.append(np.mean([h / (len(found) + len(truth) - h) for h in hits]))
    values = scored(pairs, objects=0.5)
    assert values["AP_dsb2018"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert 0.1 < values["AP_dsb2018"] < 0.9


def test_dsb2018_is_strictly_above_its_thresholds() -> None:
    truth, found = np.zeros((2, 1, *SIZE), bool)
    truth[0, 0, :20], found[0, 0, :12] = True, True  # IoU .6: above .5 and .55
    assert scored([(found, truth)], objects=0.5)["AP_dsb2018"] == pytest.approx(0.2, abs=1e-12)


def test_aji_equals_its_definition() -> None:
    pairs = sets(1)
    reused, single = [], []
    for found, truth in pairs:
        both, either = table(found, truth)
        iou = both / np.maximum(either, 1)
        for rows, columns, scores in (
            (np.arange(len(truth)), iou.argmax(1) if len(found) else [], reused),
            (*linear_sum_assignment(-iou), single),
        ):
            chosen = [(g, d) for g, d in zip(rows, columns, strict=True) if both[g, d]]
            alone = sum(truth[g].sum() for g in range(len(truth)) if g not in [c[0] for c in chosen])
            alone += sum(found[d].sum() for d in range(len(found)) if d not in [c[1] for c in chosen])
            scores.append(sum(both[c] for c in chosen) / (sum(either[c] for c in chosen) + alone))
    values = scored(pairs, objects=0.5)
    assert values["AJI"] == pytest.approx(np.mean(reused), abs=1e-12)
    assert values["AJI+"] == pytest.approx(np.mean(single), abs=1e-12)
    assert values["AJI"] != values["AJI+"]


def test_aji_by_hand() -> None:
    """One detection over two objects of 10 pixels: AJI takes it twice, AJI+ once."""
    truth, found = np.zeros((2, *SIZE), bool), np.zeros((1, *SIZE), bool)
    truth[0, 0, :10], truth[1, 0, 10:20], found[0, 0, :20] = True, True, True
    values = scored([(found, truth)], objects=0.5)
    assert values["AJI"] == pytest.approx(20 / 40)
    assert values["AJI+"] == pytest.approx(10 / 30)


def test_objects_are_counted_over_the_set_from_a_score_on() -> None:
    pairs = sets(2)
    hits = sum(int((np.divide(*table(f, t)) >= 0.5).sum()) for f, t in pairs if len(f) and len(t))
    detected, true = sum(len(f) for f, _ in pairs), sum(len(t) for _, t in pairs)
    values = scored(pairs, objects=0.5)
    assert values["object_precision"] == values["object_precision/cell"] == hits / detected
    assert values["object_recall"] == hits / true
    assert values["object_F1"] == pytest.approx(2 * hits / (detected + true))
    none = scored(pairs, objects=1.5)
    assert math.isnan(none["object_precision"])
    assert none["object_recall"] == 0


def test_detections_on_crowds_are_no_objects() -> None:
    truth, found = np.zeros((2, *SIZE), bool), np.zeros((3, *SIZE), bool)
    truth[0, :10, :10], truth[1, 30:, :] = True, True
    found[0, :10, :10], found[1, 28:40, 5:20], found[2, 20:40, 30:60] = True, True, True
    metric = InstanceMetric(1, objects=0.5)
    metric.update(
        [Instances(Masks.from_dense(found), [0] * 3)], [Instances(Masks.from_dense(truth), [0, 0], None, [0, 1])]
    )
    values = metric.compute()
    assert values["object_precision"] == 0.5  # the second lies on the crowd, of the third only half
    assert values["object_recall"] == 1


def cityscapes(images: list[dict[str, Any]], classes: int) -> NDArray[np.float64]:
    """AP (K, thresholds): the official script's loops, image by image, on masks."""
    result = np.full((classes, 10), np.nan)
    for k in range(classes):
        for number, threshold in enumerate(np.arange(0.5, 1.0, 0.05)):
            points, missed, real = [], 0, 0
            for image in images:
                found = [(m, s) for m, s, c in image["found"] if c == k and m.any()]
                truths = [(m, crowd) for m, c, crowd in image["truth"] if c == k]
                touched = [False] * len(found)
                for mask, crowd in truths:
                    near = [i for i, (m, _) in enumerate(found) if (m & mask).sum() / (m | mask).sum() > threshold]
                    for i in near:
                        touched[i] = True
                    if crowd or mask.sum() < 100:
                        continue
                    real += 1
                    scores = sorted((found[i][1] for i in near), reverse=True)
                    missed += not scores
                    points += [(s, place == 0) for place, s in enumerate(scores)]
                for (mask, score), hit in zip(found, touched, strict=True):
                    ignored = (mask & image["void"]).sum()
                    for other, crowd in truths:
                        ignored += (mask & other).sum() * (int(crowd) + int(other.sum() < 100))
                    if not hit and ignored / mask.sum() <= threshold:
                        points.append((score, False))
            if real:
                result[k, number] = area(points, missed)
    return result


def area(points: list[tuple[float, bool]], missed: int) -> float:
    total = sum(hit for _, hit in points) + missed
    curve = []
    for score in sorted({s for s, _ in points}):
        kept = [hit for s, hit in points if s >= score]
        curve.append((sum(kept) / len(kept), sum(kept) / total))
    if not curve:
        return 0.0
    curve.append((curve[-1][0], 0.0))
    recall = [curve[0][1], *(r for _, r in curve), 0.0]
    return sum(p * (recall[i] - recall[i + 2]) / 2 for i, (p, _) in enumerate(curve))


def test_cityscapes_ap_equals_the_rules_of_its_script() -> None:
    rng = np.random.default_rng(5)
    images, predictions, targets = [], [], []
    for _ in range(14):
        truth = disjoint(rng, int(rng.integers(0, 9)))
        found = np.concatenate([moved(rng, truth), moved(rng, truth)[::2]])  # several on one object
        found[rng.random(len(found)) < 0.05] = False
        void = ellipse(SIZE, rng.uniform(0, SIZE), rng.uniform(5, 25, 2)) & ~truth.any(0)
        own, crowd = rng.integers(0, 3, len(truth)), rng.random(len(truth)) < 0.25
        mine, scores = rng.integers(0, 3, len(found)), rng.choice([0.2, 0.5, 0.9, 0.95], len(found)).astype(np.float32)
        near = [int(np.argmax([(t & f).sum() for t in truth])) if len(truth) else 0 for f in found]
        mine = np.where((rng.random(len(found)) < 0.8) & (len(truth) > 0), own[near] if len(truth) else 0, mine)
        images.append(
            {
                "found": list(zip(found, scores.tolist(), mine.tolist(), strict=True)),
                "truth": list(zip(truth, own.tolist(), crowd.tolist(), strict=True)),
                "void": void,
            }
        )
        predictions.append(Instances(Masks.from_dense(found), mine, scores))
        masks = Masks.from_dense(np.concatenate([truth, void[None]]))
        targets.append(Instances(masks, [*own, VOID], None, [*crowd, True]))
    metric = InstanceMetric(3, cityscapes=True)
    metric.update(predictions, targets)
    values = metric.compute()
    expected = cityscapes(images, 3)
    assert values["AP_cityscapes"] == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert values["AP50_cityscapes"] == pytest.approx(np.nanmean(expected[:, 0]), abs=1e-12)
    for k in range(3):
        assert values[f"AP_cityscapes/class_{k}"] == pytest.approx(expected[k].mean(), abs=1e-12)
    assert 0.1 < values["AP_cityscapes"] < 0.9


def test_void_is_neutral_to_coco() -> None:
    """A true crowd of label 255 changes nothing but Cityscapes' AP."""
    (found, truth), *_ = sets(6)
    void = np.zeros((1, *SIZE), bool)
    void[0, :5] = True
    plain = Instances(Masks.from_dense(truth), [0] * len(truth))
    marked = Instances(
        Masks.from_dense(np.concatenate([truth, void])), [0] * len(truth) + [VOID], None, [0] * len(truth) + [1]
    )
    prediction = Instances(Masks.from_dense(found), [0] * len(found))
    values = []
    for target in (plain, marked):
        metric = InstanceMetric(1, objects=0.5, cityscapes=True)
        metric.update([prediction], [target])
        values.append(metric.compute())
    assert values[0].pop("AP_cityscapes") != values[1].pop("AP_cityscapes")
    for value in values:
        for name in ("AP50_cityscapes", "AP_cityscapes/class_0"):
            value.pop(name)
    np.testing.assert_equal(*values)
