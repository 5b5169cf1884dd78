"""The instance metric against pycocotools on random images, the laws of metrics, and cases on which peers differ."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from coco_reference import evaluate, random_image

from zoo.errors import ZooError
from zoo.metrics import InstanceMetric, create_metric
from zoo.structures import VOID, Instances, Masks, Semantic

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # pycocotools against NumPy 2
    "ignore:The ``compute`` method of metric",
)
SIGMAS = (0.03, 0.05, 0.1, 0.02, 0.07)
K = 4
EVERYTHING: dict[str, Any] = {"boundary": 0.02, "objects": 0.4, "cityscapes": True, "keypoints": SIGMAS}
Images = list[tuple[Instances, Instances]]


def images(seed: int, count: int = 6, **options: Any) -> Images:
    rng = np.random.default_rng(seed)
    return [random_image(rng, K, **options) for _ in range(count)]


def scored(pairs: Images, ids: Sequence[int] | None = None, **options: Any) -> dict[str, float]:
    metric = InstanceMetric(K, **options)
    predictions, targets = zip(*pairs, strict=True)
    metric.update(predictions, targets, ids)
    return metric.compute()


def assert_equal(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


def strip(*spans: tuple[int, int], width: int = 40, **fields: Any) -> Instances:
    """Objects of class 0 on an image one pixel high, from column to column."""
    masks = np.zeros((len(spans), 1, width), bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return Instances(Masks.from_dense(masks), fields.pop("labels", [0] * len(spans)), **fields)


def in_form(x: Instances, form: str) -> Instances:
    """The same objects, their masks held in another form."""
    assert x.masks is not None
    if form == "dense":
        return x
    if form == "RLE":
        return replace(x, masks=Masks.from_rle(x.masks.rle(), x.size))
    height, width = x.size
    boxes = torch.tensor([[0.0, 0, width, height]]).expand(len(x), 4)  # a grid of pixels pastes as itself
    return replace(x, masks=Masks.from_rois(x.masks.dense().float(), boxes, x.size))


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int) -> None:
    pairs = images(seed, 7, keypoints=5, most=[8, 30][seed % 5 == 0])
    rng = np.random.default_rng(seed)
    if seed % 3 == 2:  # boxes that are not the masks'
        shift = torch.from_numpy(rng.normal(0, 1, 4)).float()
        pairs = [tuple(replace(x, boxes=x.masks.boxes() + shift) for x in pair) for pair in pairs]
    form = ["dense", "RLE", "RoI"][seed % 3]
    limits = [(1, 10, 100), (1, 2, 3), (1, 10, 300), (5,)][seed % 4]
    ids = rng.permutation(7).tolist()
    ours = scored([(in_form(p, form), t) for p, t in pairs], ids, keypoints=SIGMAS, max_detections=limits)
    predictions, targets = zip(*pairs, strict=True)
    theirs = evaluate(predictions, targets, K, "segm", limits, order=ids)
    theirs |= evaluate(predictions, targets, K, "bbox", limits, order=ids)
    theirs |= evaluate(predictions, targets, K, "keypoints", (20,), SIGMAS, order=ids)
    assert ours.keys() == theirs.keys()
    assert_equal(ours, theirs)
    assert not math.isnan(ours["AP"])


@pytest.mark.parametrize("ratio", [0.02, 0.005])
@pytest.mark.parametrize("form", ["dense", "RLE"])
def test_boundary_ap_equals_the_algorithm_of_its_authors(ratio: float, form: str) -> None:
    pairs = images(20, 12)
    predictions, targets = zip(*pairs, strict=True)
    ours = scored([(in_form(p, form), in_form(t, form)) for p, t in pairs], boundary=ratio)
    theirs = evaluate(predictions, targets, K, boundary=ratio)
    assert_equal(ours, theirs)
    assert 0 < ours["AP_boundary"] < ours["AP"]


def test_polygons_and_rles_score_alike() -> None:
    squares = [[[4.0, 4, 30, 4, 30, 25, 4, 25]], [[10.0, 12, 44, 12, 44, 40, 10, 40]]]
    truth = Instances(Masks.from_polygons(squares, (50, 60)), [0, 1])
    shifted = Instances(Masks.from_polygons([[[6.0, 4, 32, 4, 32, 25, 6, 25]], squares[1][:]], (50, 60)), [0, 1])
    rle = replace(shifted, masks=Masks.from_rle(shifted.masks.rle(), (50, 60)))
    assert scored([(shifted, truth)]) == pytest.approx(
        evaluate([rle], [truth], K) | scored([(rle, truth)]), nan_ok=True
    )


def test_identity() -> None:
    pairs = [(t[~t.crowd], t) for _, t in images(3, keypoints=5)]
    pairs = [(p, replace(t, areas=None)) for p, t in pairs]
    values = scored(pairs, max_detections=100, boundary=0.02, objects=0.5, keypoints=SIGMAS)
    # AR@1 and AR@10 leave detections out, and a true pose without a label makes another's twin ambiguous.
    perfect = {n: v for n, v in values.items() if not n.startswith(("AR@1_", "AR@10_")) and n not in ("AR@1", "AR@10")}
    assert {v for n, v in perfect.items() if "keypoints" not in n and not math.isnan(v)} == {1.0}
    assert values["AP50_keypoints"] > 0.9
    assert values["AR@1"] < 1


def test_order_of_images_does_not_matter() -> None:
    pairs = images(4, keypoints=5)
    forward, backward = InstanceMetric(K, **EVERYTHING), InstanceMetric(K, **EVERYTHING)
    forward.update(*zip(*pairs, strict=True), ids=range(6))
    for i in reversed(range(6)):
        backward.update(*zip(pairs[i], strict=True), ids=[i])
    np.testing.assert_equal(backward.compute(), forward.compute())
    for mine, theirs in zip(backward.rows(), forward.rows(), strict=True):
        assert torch.equal(mine, theirs)


def test_split_and_merge() -> None:
    pairs = images(5, keypoints=5)
    whole, left, right, idle = (InstanceMetric(K, **EVERYTHING) for _ in range(4))
    whole.update(*zip(*pairs, strict=True), ids=range(6))
    left.update(*zip(*pairs[::2], strict=True), ids=[0, 2, 4])
    right.update(*zip(*pairs[1::2], strict=True), ids=[1, 3, 5])
    left.compute()  # a value from before the merge must not survive it
    left.merge_state(pickle.loads(pickle.dumps(right)))
    left.merge_state(idle)
    np.testing.assert_equal(left.compute(), whole.compute())
    idle.merge_state(whole.metric_state)
    np.testing.assert_equal(idle.compute(), whole.compute())
    with pytest.raises(ZooError, match="other classes or protocol"):
        left.merge_state(InstanceMetric(K))


def test_images_without_ids_stay_in_order() -> None:
    """Equal scores on two images: which counts first decides the precision, so the order must be kept on merging."""
    wrong, right = (strip((20, 30)), strip((0, 10))), (strip((0, 10)), strip((0, 10)))
    first, second = InstanceMetric(1), InstanceMetric(1)
    first.update(*zip(wrong, strict=True))
    second.update(*zip(right, strict=True))
    first.merge_state(second)
    assert first.compute()["AP"] == pytest.approx(51 / 101 / 2)


def test_absent_class_is_undefined_and_left_out() -> None:
    truth = strip((0, 10))
    found = strip((0, 10), (20, 30), labels=[0, 1], scores=[0.5, 0.9])
    values = scored([(found, truth)])
    assert values["AP"] == values["AP/class_0"] == 1.0
    assert math.isnan(values["AP/class_1"])
    assert math.isnan(values["AP_box/class_2"])


def test_no_detection_is_zero_and_no_truth_undefined() -> None:
    nothing = Instances.empty((1, 40))
    assert scored([(nothing, strip((0, 10)))])["AP"] == 0.0
    assert (
        all(math.isnan(v) for v in scored([(strip((0, 10)), nothing)], objects=0.5, cityscapes=True).values()) is False
    )
    undefined = scored([(strip((0, 10)), nothing)])
    assert all(math.isnan(v) for v in undefined.values())
    assert all(math.isnan(v) for v in InstanceMetric(K, **EVERYTHING).compute().values())


def test_false_positives_on_images_without_truth_count() -> None:
    """A hit at 0.5 behind a detection at 0.9 on an empty image: half precision; torchmetrics says 1."""
    values = scored(
        [(strip((0, 10), scores=[0.5]), strip((0, 10))), (strip((0, 10), scores=[0.9]), Instances.empty((1, 40)))]
    )
    assert values["AP"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("columns", "value"), [(6, 0.3), (11, 0.2), (16, 0.7), (17, 0.8)])
def test_ious_exactly_at_a_threshold_reach_it(columns: int, value: float) -> None:
    """IoU 6/10 and 11/20, 16/20, 17/20: .60 is the third threshold, ... torchmetrics' float32 misses one."""
    whole = 10 if columns == 6 else 20
    assert scored([(strip((0, columns)), strip((0, whole)))])["AP"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("hits", "value"), [(6, 0.603960396), (7, 0.693069307), (8, 0.801980198)])
def test_recall_levels_have_the_official_float_quirks(hits: int, value: float) -> None:
    spans = [(4 * i, 4 * i + 3) for i in range(10)]
    assert scored([(strip(*spans[:hits]), strip(*spans))])["AP"] == pytest.approx(value, abs=1e-8)


def test_equal_scores_keep_their_order() -> None:
    truth = strip((0, 10))
    assert scored([(strip((20, 30), (0, 10)), truth)])["AP"] == pytest.approx(0.5)
    assert scored([(strip((0, 10), (20, 30)), truth)])["AP"] == pytest.approx(1.0)


def test_area_of_the_file_decides_the_size_and_1024_is_both() -> None:
    truth = strip((0, 10), areas=[50.0**2])
    values = scored([(strip((0, 10)), truth)])
    assert math.isnan(values["APS"])
    assert values["APM"] == 1.0
    both = scored([(strip((0, 10)), strip((0, 10), areas=[1024.0]))])
    assert both["APS"] == both["APM"] == 1.0


def test_crowds_take_any_number_and_count_nowhere() -> None:
    truth = strip((0, 10), (20, 40), crowd=[False, True])
    found = strip((0, 10), (20, 25), (22, 30), (30, 40), scores=[0.5, 0.9, 0.8, 0.7])
    assert scored([(found, truth)])["AP"] == 1.0
    assert scored([(found, strip((0, 10)))])["AP"] == pytest.approx(0.25)


def test_more_objects_than_a_byte_counts() -> None:
    """Nuclei come by the hundred: run lengths of 300 objects in one image."""
    pixels = torch.eye(300).view(300, 15, 20).repeat_interleave(2, 1).repeat_interleave(2, 2)
    masks = Masks.from_rle(Masks.from_dense(pixels).rle(), (30, 40))
    found = Instances(masks, torch.zeros(300, dtype=torch.int64), torch.linspace(1, 0.5, 300))
    metric = InstanceMetric(1, max_detections=1000)
    metric.update([found], [Instances(masks, torch.zeros(300, dtype=torch.int64))])
    assert metric.compute()["AP"] == 1


def test_boxes_alone() -> None:
    truth = Instances(None, [0], boxes=[[0, 0, 10, 10]], size=(20, 20))
    found = Instances(None, [0, 0], [0.9, 0.8], boxes=[[0, 0, 10, 8], [1, 1, 3, 3]], size=(20, 20))
    values = scored([(found, truth)], boundary=0.02)
    assert_equal(values, evaluate([found], [truth], K, "bbox"))
    assert values["AP_box"] == pytest.approx(0.7)
    assert math.isnan(values["AP"])
    assert math.isnan(values["AP_boundary"])
    metric = InstanceMetric(K, masks=False)
    assert metric.main == "AP_box"
    metric.update([found], [truth])
    assert metric.compute()[metric.main] == values["AP_box"]


def test_state_of_five_thousand_images_is_small() -> None:
    """100 detections each: 26 MB, not the masks."""
    metric = InstanceMetric(80)
    found = strip(*[(0, 10)] * 100, scores=torch.rand(100), labels=(torch.arange(100) % 80).tolist())
    metric.update([found] * 5, [strip((0, 10))] * 5)
    held = sum(metric.table(name).nbytes for name in metric._row_types)
    assert held / 5 * 5000 < 30e6


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (strip((0, 4), width=8), strip((0, 4)), "image 4: the prediction is 1x8, the truth 1x40"),
        (strip((0, 4)), strip((0, 4), labels=[7]), "image 4: the truth has label 7"),
        (strip((0, 4), labels=[-1]), strip((0, 4)), "image 4: the prediction has label -1"),
        (strip((0, 4)), Semantic(np.zeros((1, 40), np.uint8)), "image 4: the truth is Semantic"),
        (strip((0, 4)), strip((0, 4), labels=[VOID]), "label 255"),
    ],
)
def test_a_refused_image_is_named_and_leaves_no_trace(prediction: Instances, truth: Any, message: str) -> None:
    metric = InstanceMetric(2)
    good = strip((0, 10))
    metric.update([good], [good], [2])
    with pytest.raises(ZooError, match=message):
        metric.update([good, prediction], [good, truth], [3, 4])
    assert metric.compute()["AP"] == 1.0
    assert metric.rows()[0].tolist() == [2]


def test_misuse_is_refused() -> None:
    with pytest.raises(ZooError, match="computes nothing"):
        InstanceMetric(2, masks=False, boxes=False)
    with pytest.raises(ZooError, match="max_detections"):
        InstanceMetric(2, max_detections=0)
    with pytest.raises(ZooError, match="boundary"):
        InstanceMetric(2, boundary=2)
    with pytest.raises(ZooError, match="sigmas"):
        InstanceMetric(2, keypoints=[0.1, 0])
    with pytest.raises(ZooError, match="object_iou"):
        InstanceMetric(2, object_iou=0)
    with pytest.raises(ZooError, match="did you mean boundary"):
        create_metric("instance", 2, boundry=0.02)
    with pytest.raises(ZooError, match="the prediction has no keypoints, the metric's 5 sigmas want"):
        scored([(strip((0, 4)), strip((0, 4)))], keypoints=SIGMAS)


def test_made_by_task_name() -> None:
    metric = create_metric("instance", ["cell", "tree"], max_detections=1000)
    assert metric.protocol["max_detections"] == [1, 10, 1000]
    metric.update([strip((0, 10))], [strip((0, 10))])
    values = metric.compute()
    assert values["AP/cell"] == values[metric.main] == values["AR@1000"] == 1.0
    assert metric.main == "AP"
