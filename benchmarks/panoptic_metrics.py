"""Panoptic evaluation against torchmetrics and panopticapi's way. Part of `python benchmarks/metrics.py`.

Images are 480x640 with about 11 segments of 133 classes. panopticapi is not on the package index, so its algorithm
stands here in its place, without reading its files: the segments of both PNGs and their pairs counted by three sorts,
then Python's dicts.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchmetrics.detection import PanopticQuality

from zoo.metrics import PanopticMetric
from zoo.structures import VOID, Class, Panoptic

Row = tuple[str, float, float, str]
Pair = tuple[Panoptic, Panoptic]

SIZE = (480, 640)
CLASSES = tuple(Class(str(k), (0, 0, 0), thing=k < 80) for k in range(133))
IMAGES = 12
SLOW = 2  # images that torchmetrics gets in each turn
SHIFT = 1 << 24


def workload(count: int) -> Iterator[Pair]:
    """Predictions and truths: smooth regions, of which some are void."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        coarse = torch.randn(2, 12, SIZE[0] // 96, SIZE[1] // 96, generator=generator)
        coarse[0] = coarse[1] + 0.35 * coarse[0]
        prediction, truth = F.interpolate(coarse, SIZE, mode="bicubic").argmax(1).int()
        prediction[prediction == 0] = 1  # torchmetrics does not count predicted void as panopticapi does
        labels = torch.cat([torch.tensor([VOID]), torch.randperm(133, generator=generator)[:11]])
        changed = labels.clone()
        changed[-2:] = labels[-2:].flip(0)
        yield Panoptic(prediction, changed, torch.rand(12, generator=generator)), Panoptic(truth, labels)


def in_three_sorts(prediction: Panoptic, truth: Panoptic, total: dict[int, NDArray[np.float64]]) -> None:
    """One image as panopticapi counts it: sum of IoU, matches, wrong and missed segments of each class."""
    mine, true = prediction.ids.numpy().astype(np.uint64), truth.ids.numpy().astype(np.uint64)
    sizes = dict(zip(*(x.tolist() for x in np.unique(mine, return_counts=True)), strict=True))
    areas = dict(zip(*(x.tolist() for x in np.unique(true, return_counts=True)), strict=True))
    codes, counts = np.unique(true * SHIFT + mine, return_counts=True)
    common = {divmod(int(code), SHIFT): int(n) for code, n in zip(codes, counts, strict=True)}
    labels, classes = prediction.labels.tolist(), truth.labels.tolist()
    matched, hit = set(), set()
    for (t, p), n in common.items():
        if t and p and labels[p] == classes[t]:
            iou = n / (sizes[p] + areas[t] - n - common.get((0, p), 0))
            if iou > 0.5:
                matched.add(t)
                hit.add(p)
                total[classes[t]] += (iou, 1, 0, 0)
    for t in areas.keys() - matched - {0}:
        total[classes[t]][3] += 1
    for p in sizes.keys() - hit - {0}:
        if common.get((0, p), 0) / sizes[p] <= 0.5:
            total[labels[p]][2] += 1


def three_sorts(pairs: list[Pair]) -> float:
    """PQ of the images."""
    total: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
    for pair in pairs:
        in_three_sorts(*pair, total)
    return float(np.mean([iou / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in total.values()]))


def channels(x: Panoptic) -> torch.Tensor:
    """(1, H, W, 2): class and segment, as torchmetrics takes them."""
    return torch.stack([x.semantic().labels.long(), x.ids.long()], -1)[None]


def table() -> Iterator[Row]:
    """All comparisons: what, milliseconds an image, ratio to ours, and whether a target is met."""
    pairs = list(workload(IMAGES))
    wide = [(channels(p), channels(t)) for p, t in pairs]
    ours = PanopticMetric(CLASSES, instances=False)
    others = {
        "ours with AP of the segments": PanopticMetric(CLASSES),
        "ours with boundary PQ": PanopticMetric(CLASSES, instances=False, boundary=0.02),
    }
    slow = PanopticQuality(set(range(80)), set(range(80, 133)), allow_unknown_preds_category=True)
    for pair, given in zip(pairs, wide, strict=True):
        ours.update(*([x] for x in pair))
        slow.update(*given)
    value = ours.compute()["PQ"]
    assert abs(value - three_sorts(pairs)) < 1e-9, "PQ of panopticapi's algorithm differs"
    assert abs(value - float(slow.compute())) < 1e-6, "PQ of torchmetrics differs"

    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(5):
        for name, metric in ({"ours": ours} | others).items():
            times[name] += [_milliseconds(lambda m=metric, q=pair: m.update([q[0]], [q[1]])) for pair in pairs]
        times["panopticapi's algorithm, without decoding"] += [
            _milliseconds(lambda q=pair: three_sorts([q])) for pair in pairs
        ]
        times["torchmetrics"] += [_milliseconds(lambda g=given: slow.update(*g)) for given in wide[:SLOW]]
    medians = {name: statistics.median(each) for name, each in times.items()}
    least = {"torchmetrics": 800, "panopticapi's algorithm, without decoding": 5}
    for name, ms in medians.items():
        ratio, goal = ms / medians["ours"], ""
        if name == "ours":
            goal = f"<= 0.6 ms: {'met' if ms <= 0.6 else 'MISSED'}"
        elif name in least:
            goal = f">= {least[name]}x: {'met' if ratio >= least[name] else 'MISSED'}"
        yield f"PQ, an image: {name}", ms, ratio, goal


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)
