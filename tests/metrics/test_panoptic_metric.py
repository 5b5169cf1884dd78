"""The panoptic metric against its definitions, panopticapi's decisions worked by hand, and the laws of metrics."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import panoptic_reference as reference
import pytest
import torch
from torchmetrics.detection import ModifiedPanopticQuality, PanopticQuality

from zoo.errors import ZooError
from zoo.metrics import InstanceMetric, PanopticMetric, SemanticMetric, create_metric
from zoo.metrics.segments import common_pixels
from zoo.structures import VOID, Class, Instances, Panoptic

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # pycocotools against NumPy 2
    "ignore:The ``compute`` method of metric",
)
NAMES = ("sky", "road", "tree", "car", "dog", "cell", "nobody")
CLASSES = tuple(Class(name, (i, i, i), thing=i >= 3) for i, name in enumerate(NAMES))
K = len(CLASSES)
Pair = tuple[Panoptic, Panoptic]


def blobs(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """An id map with rectangles of segments 1..count-1 over void; some hide others wholly."""
    ids = np.zeros(size, np.int32)
    for i in range(1, count):
        for _ in range(rng.integers(1, 3)):
            y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
            ids[y : y + rng.integers(2, 16), x : x + rng.integers(2, 16)] = i
    return ids


def random_pair(rng: np.random.Generator) -> Pair:
    """A prediction and a truth with void, crowds, hidden segments, several segments of a stuff class, other areas."""
    size = int(rng.integers(12, 40)), int(rng.integers(12, 40))
    count = int(rng.integers(1, 12))
    true, labels = blobs(rng, size, count), np.append(VOID, rng.integers(0, K - 1, count - 1))
    more = count + int(rng.integers(0, 4))
    over = blobs(rng, size, more)
    ids = np.where((over >= max(count - 2, 1)) & (rng.random() < 0.8), over, true)
    ids = np.roll(ids, rng.integers(-2, 3, 2), (0, 1))
    mine = np.append(labels, rng.integers(0, K - 1, more - count))
    changed = rng.random(more) < 0.15
    changed[0] = False
    mine[changed] = rng.integers(0, K - 1, changed.sum())
    areas = np.bincount(true.ravel(), minlength=count).astype(float)
    if rng.random() < 0.4:
        areas = np.maximum(1, np.round(areas * rng.uniform(0.9, 1.1, count)))
    crowd = np.append(False, rng.random(count - 1) < 0.25)
    return Panoptic(ids, mine, rng.choice([0.5, 0.7, 0.9], more)), Panoptic(true, labels, crowd=crowd, areas=areas)


def random_pairs(seed: int, count: int = 5) -> list[Pair]:
    rng = np.random.default_rng(seed)
    return [random_pair(rng) for _ in range(count)]


def scored(pairs: list[Pair], **options: Any) -> dict[str, float]:
    metric = PanopticMetric(CLASSES, **{"instances": False} | options)
    predictions, targets = zip(*pairs, strict=True)
    metric.update(predictions, targets)
    return metric.compute()


def assert_equal(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


def strip(*spans: tuple[int, int], labels: list[int], width: int = 100, **fields: Any) -> Panoptic:
    """Segments 1.. on an image one pixel high, from column to column, over void."""
    ids = np.zeros((1, width), np.int32)
    for i, (start, end) in enumerate(spans, 1):
        ids[:, start:end] = i
    crowd = [False, *fields.pop("crowd", [False] * len(labels))]
    return Panoptic(ids, [VOID, *labels], crowd=crowd, **fields)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_definitions(seed: int) -> None:
    pairs = random_pairs(seed)
    ours = scored(pairs, boundary=0.03, nuclei=True)
    for theirs in (
        reference.panoptic_quality(pairs, CLASSES),
        reference.panoptic_quality(pairs, CLASSES, ratio=0.03),
        reference.dagger(pairs, CLASSES),
        reference.covering(pairs, CLASSES),
        reference.nuclei(pairs, CLASSES),
    ):
        assert_equal(ours, theirs)
    assert not math.isnan(ours["PQ"])
    assert math.isnan(ours["PQ/nobody"])


def test_the_random_images_hold_what_is_hard() -> None:
    pairs = [pair for seed in range(8) for pair in random_pairs(seed)]
    assert any(t.crowd.any() for _, t in pairs)
    assert any((p.ids[t.ids != 0] == 0).any() for p, t in pairs)
    assert any(len(set(t.labels.tolist())) < len(t.labels) for _, t in pairs)
    assert any(len(t.ids.unique()) < len(t.labels) for _, t in pairs)
    ours = [scored([pair])["PQ"] for pair in pairs]
    assert len({round(score, 3) for score in ours if 0 < score < 1}) > 10


@pytest.mark.parametrize(
    ("prediction", "truth", "pq"),
    [
        # Void predicted inside a segment stays in the union: 40 / 60.
        (strip((0, 40), (60, 100), labels=[3, 3]), strip((0, 60), (60, 100), labels=[3, 3]), (2 / 3 + 1) / 2),
        # A segment all of which is predicted void is missed.
        (strip((60, 100), labels=[3]), strip((0, 60), (60, 100), labels=[3, 3]), 1 / 1.5),
        # All void predicted.
        (strip(labels=[]), strip((0, 60), labels=[3]), 0.0),
        # True void leaves the union: 30 / (60 - 30 + 40 - 30).
        (strip((10, 70), labels=[3]), strip((0, 40), labels=[3]), 30 / 40),
        # IoU of exactly one half is no match.
        (strip((0, 50), (50, 100), labels=[3, 0]), strip((0, 100), labels=[3]), None),
        # A prediction exactly half on void is wrong, one more pixel and it is not.
        (strip((0, 40), (50, 70), labels=[3, 4]), strip((0, 40), (60, 100), labels=[3, 0]), "half"),
        (strip((0, 40), (49, 70), labels=[3, 4]), strip((0, 40), (60, 100), labels=[3, 0]), "more"),
    ],
)
def test_void_as_in_panopticapi(prediction: Panoptic, truth: Panoptic, pq: Any) -> None:
    ours = scored([(prediction, truth)])
    if pq is None:
        assert ours["PQ/car"] == ours["PQ/sky"] == 0
    elif isinstance(pq, str):
        assert (ours["PQ/dog"] == 0) if pq == "half" else math.isnan(ours["PQ/dog"])
    else:
        assert ours["PQ/car"] == pytest.approx(pq, abs=1e-12)


def test_crowds_as_in_panopticapi() -> None:
    crowds = strip((0, 40), (40, 80), labels=[3, 3], crowd=[True, True])
    assert math.isnan(scored([(strip((45, 75), labels=[3]), crowds)])["PQ"])  # on the last crowd
    assert scored([(strip((5, 35), labels=[3]), crowds)])["PQ/car"] == 0  # of two, the last alone excuses
    assert scored([(strip((45, 75), labels=[4]), crowds)])["PQ/dog"] == 0  # of another class
    assert math.isnan(scored([(strip(labels=[]), crowds)])["PQ"])  # and they are not missed


def test_areas_are_those_of_the_file() -> None:
    truth = strip((0, 60), labels=[3], areas=[0.0, 50.0])
    assert scored([(strip((0, 40), labels=[3]), truth)])["PQ/car"] == pytest.approx(40 / 50)


def test_true_segments_without_pixels_are_missed_predicted_ones_are_none() -> None:
    hidden = strip((0, 60), labels=[3, 4])
    seen = strip((0, 60), labels=[3])
    assert scored([(seen, hidden)])["PQ/dog"] == 0
    assert math.isnan(scored([(hidden, seen)])["PQ/dog"])


def test_two_segments_of_a_stuff_class_are_two() -> None:
    truth = strip((0, 50), (50, 100), labels=[0, 0])
    assert scored([(strip((0, 100), labels=[0]), truth)])["PQ/sky"] == 0
    assert scored([(strip((0, 100), labels=[0]), truth)])["PQ_dagger/sky"] == pytest.approx(0.5)


def test_segments_of_label_255_are_void() -> None:
    truth = strip((0, 40), (40, 70), labels=[3, VOID])
    prediction = strip((0, 40), (40, 60), labels=[3, 4])
    assert_equal(scored([(prediction, truth)]), scored([(prediction, strip((0, 40), labels=[3]))]))


def without_hidden(x: Panoptic) -> Panoptic:
    """The segments that have pixels, none of them a crowd; areas are pixels."""
    present = torch.bincount(x.ids.flatten(), minlength=len(x.labels)) > 0
    present[0] = True
    return Panoptic((present.cumsum(0) - 1)[x.ids.long()], x.labels[present])


def channels(x: Panoptic) -> torch.Tensor:
    return torch.stack([x.semantic().labels.long(), x.ids.long()], -1)[None]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchmetrics_where_that_agrees_with_panopticapi(seed: int) -> None:
    """Without predicted void, crowds, other areas, and with one segment for each class of stuff."""
    pairs = []
    for each in random_pairs(seed, 3):
        prediction, target = map(without_hidden, each)
        for x in (prediction, target):
            x.labels[1:].clamp_(min=3)
        upper = target.ids[: target.size[0] // 2]
        upper[upper == 0] = len(target.labels)
        prediction.ids[prediction.ids == 0] = len(prediction.labels)
        pairs.append(tuple(Panoptic(x.ids, [*x.labels.tolist(), 0]) for x in (prediction, target)))
    ours = scored(pairs)
    for kind, name in ((PanopticQuality, "PQ"), (ModifiedPanopticQuality, "PQ_dagger")):
        theirs = kind(things=set(range(3, K)), stuffs={0, 1, 2}, allow_unknown_preds_category=True)
        for prediction, target in pairs:
            true = channels(target)
            true[true == VOID] = 1000
            theirs.update(channels(prediction), true)
        assert ours[name] == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_scores_of_the_same_predictions_as_semantic_and_instance() -> None:
    pairs = random_pairs(7, 8)
    ours = scored(pairs, instances=True)
    predictions, targets = zip(*pairs, strict=True)
    semantic, instance = SemanticMetric(CLASSES), InstanceMetric([c for c in CLASSES if c.thing], boxes=False)
    semantic.update(predictions, targets)
    instance.update([p.instances(CLASSES) for p in predictions], [t.instances(CLASSES) for t in targets])
    expected = semantic.compute()
    names = [name for name in expected if name.startswith("IoU/")]
    for name in ("mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU", *names):
        assert ours[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True)
    assert_equal(ours, instance.compute())
    assert 0 < ours["AP"] < 1


def test_average_precision_needs_scores() -> None:
    pairs = [(replace(p, scores=torch.ones(len(p.labels))), t) for p, t in random_pairs(7, 3)]
    assert math.isnan(scored(pairs, instances=True)["AP"])
    assert "AP" not in scored(pairs)


def test_identity() -> None:
    targets = [without_hidden(t) for _, t in random_pairs(3)]
    values = scored([(t, t) for t in targets], boundary=0.02, nuclei=True)
    defined = {value for name, value in values.items() if not math.isnan(value) and name != "mPQ+"}
    assert defined == {1.0}
    present = [not math.isnan(values[f"PQ/{c.name}"]) for c in CLASSES if c.thing]
    assert values["mPQ+"] == sum(present) / len(present) < 1


def test_order_split_and_merge_change_nothing() -> None:
    pairs, options = random_pairs(7, 8), {"boundary": 0.02, "nuclei": True}
    predictions, targets = zip(*pairs, strict=True)
    whole = PanopticMetric(CLASSES, **options)
    whole.update(predictions, targets, range(8))
    parts = [PanopticMetric(CLASSES, **options) for _ in range(2)]
    for i in (7, 5, 0, 3, 1, 6):
        parts[i % 2].update([predictions[i]], [targets[i]], [i])
    parts[0].update(predictions[2:5:2], targets[2:5:2], [2, 4])
    parts[0].merge_state(pickle.loads(pickle.dumps(parts[1])))
    np.testing.assert_equal(parts[0].compute(), whole.compute())
    assert torch.equal(parts[0].rows()[1], whole.rows()[1])
    assert whole.compute()["AP"] > 0
    whole.reset()
    assert math.isnan(whole.compute()["PQ"])


def test_interval() -> None:
    metric = PanopticMetric(CLASSES, instances=False)
    pairs = random_pairs(13, 30)
    metric.update(*zip(*pairs, strict=True))
    values = metric.compute()
    for key in ("PQ", "PQ_th", "SQ", "mIoU", "PQ_dagger", "parsing_covering", "PQ/car"):
        low, high = metric.interval(key, replicates=400)
        assert low < values[key] < high
    draws = np.random.default_rng(0).integers(30, size=(12, 30))  # the definition: data sets of drawn images
    drawn = [scored([pairs[i] for i in row])["PQ"] for row in draws.tolist()]
    assert metric.interval("PQ", replicates=12) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)
    with pytest.raises(ZooError, match="PQ_thing"):
        metric.interval("PQ_thing")
    assert all(math.isnan(side) for side in PanopticMetric(CLASSES).interval())


@pytest.mark.parametrize("noise", [False, True])
def test_common_pixels(noise: bool) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 9, (40, 60)) if noise else blobs(rng, (40, 60), 9) for _ in range(2))
    maps = [torch.from_numpy(x.astype(np.int32)) for x in (first, second)]
    for most in (9, 5000):  # by table, by sorting
        found = common_pixels(*maps, most, most)
        table = np.zeros((9, 9))
        table[found.true, found.predicted] = found.pixels
        expected = [[((first == i) & (second == j)).sum() for j in range(9)] for i in range(9)]
        assert np.array_equal(table, expected)
        assert found.pixels.min() > 0


def test_images_without_pixels_and_without_segments() -> None:
    assert math.isnan(scored([(strip(labels=[]), strip(labels=[]))])["PQ"])
    empty = Panoptic(np.zeros((0, 5), np.int32), [VOID])
    assert math.isnan(scored([(empty, empty)], instances=True)["PQ"])


def test_what_is_refused() -> None:
    with pytest.raises(ZooError, match="which classes are things"):
        create_metric("panoptic", 5)
    with pytest.raises(ZooError, match="which classes are things"):
        PanopticMetric(["a", "b"])
    with pytest.raises(ZooError, match="nuclei=true is of things"):
        PanopticMetric(CLASSES[:2], nuclei=True)
    with pytest.raises(ZooError, match=r"unknown option of the panoptic metric 'boundry'.*boundary"):
        create_metric("panoptic", CLASSES, boundry=0.02)
    one = strip((0, 9), labels=[3])
    with pytest.raises(ZooError, match=r"image 4: the prediction is 1x50, the truth 1x100"):
        PanopticMetric(CLASSES).update([strip(labels=[], width=50)], [one], [4])
    with pytest.raises(ZooError, match=r"the truth has label 9 \(1 segments with such\), but labels are 0..6"):
        scored([(one, strip((0, 9), labels=[9]))])
    with pytest.raises(ZooError, match="the prediction is Instances, the metric compares Panoptic"):
        PanopticMetric(CLASSES).update([Instances.empty((1, 100))], [one])
    metric = PanopticMetric(CLASSES)
    metric.update([one, one], [one, one], [3, 3])
    with pytest.raises(ZooError, match="image 3 was evaluated twice"):
        metric.compute()
