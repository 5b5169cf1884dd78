"""Bootstrap over images: average precision against evaluations of the drawn images, paired draws, kept tables."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from coco_reference import evaluate, random_image

from zoo.errors import ZooError
from zoo.metrics import InstanceMetric, Metric, PanopticMetric, SemanticMetric, create_metric, instance, resampling
from zoo.structures import VOID, Class, Instances, Panoptic, Semantic

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools against NumPy 2
K, N = 4, 6
SIGMAS = (0.03, 0.05, 0.1, 0.02, 0.07)
OPTIONS: dict[str, Any] = {"boundary": 0.02, "keypoints": SIGMAS}
Images = list[tuple[Instances, Instances]]


def images(seed: int, count: int = N) -> Images:
    """Scores tie between images, not within one, where copies of an image are in another order than its detections."""
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng, K, keypoints=5) for _ in range(count)]
    levels = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    return [(replace(p, scores=torch.from_numpy(rng.permutation(levels)[: len(p)])), t) for p, t in pairs]


def filled(pairs: Images, **options: Any) -> InstanceMetric:
    metric = InstanceMetric(K, **options)
    metric.update(*zip(*pairs, strict=True), list(range(len(pairs))))
    return metric


def semantic(seed: int = 0) -> SemanticMetric:
    rng = np.random.default_rng(seed)
    metric = SemanticMetric(3)
    for i in range(5):
        metric.update(*([Semantic(rng.integers(0, 3, (6, 8), dtype=np.uint8))] for _ in range(2)), [i])
    return metric


def panoptic() -> PanopticMetric:
    rng = np.random.default_rng(0)
    metric = PanopticMetric([Class(str(k), (0, 0, 0), thing=k > 0) for k in range(3)])
    for i in range(5):
        maps = (rng.integers(0, 5, (4, 6)) for _ in range(2))
        metric.update(*([Panoptic(ids, [VOID, 0, 1, 2, 1])] for ids in maps), [i])
    return metric


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [
        ("segm", "", {}),
        ("bbox", "_box", {}),
        ("keypoints", "_keypoints", {"limits": (20,), "sigmas": SIGMAS}),
        ("segm", "_boundary", {"boundary": 0.02}),
    ],
)
def test_a_replicate_is_pycocotools_on_the_images_it_draws(kind: str, suffix: str, options: dict[str, Any]) -> None:
    pairs = images(3)
    metric = filled(pairs, **OPTIONS)
    draws = np.sort(np.random.default_rng(7).integers(N, size=(8, N)), axis=1).tolist()
    wanted = [evaluate(*zip(*(pairs[i] for i in row), strict=True), K, kind, **options) for row in draws]
    names = [f"AP{suffix}", f"AP50{suffix}", f"AP75{suffix}", f"APM{suffix}", f"APL{suffix}"]
    names += [f"AP{suffix}/class_{k}" for k in range(K)] + ([] if kind == "keypoints" else [f"APS{suffix}"])
    for name in names:
        found = metric.resampled(name, 8, seed=7)
        assert found == pytest.approx([values[name] for values in wanted], abs=1e-9, rel=0, nan_ok=True), name
    assert len({round(values[f"AP{suffix}"], 6) for values in wanted}) > 4


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_score_itself(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [random_image(np.random.default_rng([seed, i]), K, keypoints=5) for i in range(12)]  # all kinds of ties
    metric = filled(pairs, **OPTIONS)
    monkeypatch.setattr(instance, "weights", lambda count, replicates, seed: iter([np.ones((1, count), np.int64)]))
    scores = metric.compute()
    resampled = {name: metric.resampled(name, 1)[0] for name in scores if name.startswith("AP")}
    assert len(resampled) == 4 * (6 + K) - 1
    assert resampled == pytest.approx({name: scores[name] for name in resampled}, abs=1e-12, rel=0, nan_ok=True)


def test_an_interval_holds_the_score_and_narrows_with_images() -> None:
    few, many = filled(images(1, 10)), filled(images(1, 60))
    widths = []
    for metric in (few, many):
        low, high = metric.interval("AP50", 200)
        assert low < metric.compute()["AP50"] < high
        assert metric.interval("AP50", 200, level=0.5)[0] > low
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]
    assert few.interval() == few.interval("AP", 500, 0.95, 0)
    assert few.measured == ("AP", "AP_box")


def test_draws_are_the_same_for_every_model_and_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of two models is paired: of one that misses every other image's objects it is never negative."""
    pairs = images(5, 20)
    better = filled([(t, t) for _, t in pairs])
    worse = filled([(t if i % 2 else t[:0], t) for i, (_, t) in enumerate(pairs)])
    gaps = better.resampled("AP", 100) - worse.resampled("AP", 100)
    assert gaps.min() >= 0
    assert gaps.std() > 0
    whole = filled(pairs, **OPTIONS)
    expected = {name: whole.resampled(name, 50) for name in whole.measured}
    monkeypatch.setattr(resampling, "_AT_ONCE", 61)
    for name, values in expected.items():
        assert whole.resampled(name, 50) == pytest.approx(values, abs=1e-12, rel=0)


def test_order_of_arrival_and_merging_do_not_matter() -> None:
    pairs = [random_image(np.random.default_rng([9, i]), K, keypoints=5) for i in range(N)]
    whole, parts = filled(pairs, **OPTIONS), [InstanceMetric(K, **OPTIONS) for _ in range(2)]
    for i in (4, 1, 5, 0, 2, 3):
        parts[i % 2].update([pairs[i][0]], [pairs[i][1]], [i])
    parts[1].merge_state(parts[0])
    for name in whole.measured:
        np.testing.assert_array_equal(parts[1].resampled(name, 20), whole.resampled(name, 20))
    for name, rows in whole.kept().items():
        assert torch.equal(parts[1].kept()[name], rows), name


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_what_is_kept_gives_the_same_replicates(kind: str) -> None:
    made: dict[str, Metric] = {"semantic": semantic(), "instance": filled(images(2)), "panoptic": panoptic()}
    metric, file = made[kind], io.BytesIO()
    sums = {"confusion": metric.confusion.numpy()} if isinstance(metric, SemanticMetric) else {}  # lies there too
    np.savez_compressed(file, **{name: rows.numpy() for name, rows in metric.kept().items()}, **sums)
    file.seek(0)
    again = create_metric(kind, metric.classes, **metric.protocol)  # which a result has
    with np.load(file) as tables:
        again.restore(tables)
    np.testing.assert_array_equal(again.resampled(metric.main, 30), metric.resampled(metric.main, 30))
    other = type(metric)(metric.classes[:2])
    if kind == "instance":
        other = InstanceMetric(metric.classes, boxes=False)
    with pytest.raises(ZooError, match="with the classes and the protocol of the result"):
        other.restore({name: rows.numpy() for name, rows in metric.kept().items()})


def test_what_has_no_interval() -> None:
    metric = filled(images(2))
    with pytest.raises(ZooError, match="score with an interval 'AR@100'"):
        metric.interval("AR@100")
    assert all(math.isnan(side) for side in InstanceMetric(K).interval())
    truth = images(2, 1)[0][1]
    metric.update([Instances(None, [0], boxes=torch.tensor([[0.0, 0, 4, 4]]), size=truth.size)], [truth], [N])
    assert np.isnan(metric.resampled("AP", 10)).all()
    assert InstanceMetric(K, masks=False, boxes=False, cityscapes=True).measured == ()
