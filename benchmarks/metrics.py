"""Evaluation against what else is used for it: python benchmarks/metrics.py [semantic] [instance] [panoptic]

Semantic metrics against torchmetrics and torch are here, instance metrics in instance_metrics.py,
panoptic ones in panoptic_metrics.py.

One thread, contenders in one process in turns of five calls, medians of CPU time; "cold" is ours after its data left
the caches. Every value is compared with ours before anything is timed. "Coherent" maps change from a pixel to its right
neighbour about as often as real ones with their predictions do (the truth of CamVid alone: 2.4 %); "ragged" ones three
times as often. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import cv2
import instance_metrics
import numpy as np
import panoptic_metrics
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor

from zoo.metrics import SemanticMetric
from zoo.ops import argmax
from zoo.structures import Semantic

Contender = Callable[[], object]
Row = tuple[str, float, float, str]

TURNS = 7


def coherent(classes: int, size: tuple[int, int], region: int) -> tuple[Tensor, Tensor]:
    """A prediction and its truth, uint8, of smooth regions about `region` pixels wide."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, classes, size[0] // region, size[1] // region, generator=generator)
    coarse[0] = coarse[1] + 0.4 * coarse[0]
    prediction, truth = F.interpolate(coarse, size, mode="bicubic").argmax(1).to(torch.uint8)
    return prediction, truth


def changes(prediction: Tensor, truth: Tensor) -> float:
    """The share of pixels whose right neighbour has another pair of labels."""
    return float(((prediction.diff() != 0) | (truth.diff() != 0)).double().mean())


def uniform(classes: int, size: tuple[int, int], seed: int) -> Tensor:
    """Noise."""
    return torch.randint(0, classes, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def milliseconds(run: Contender) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def medians(contenders: dict[str, Contender]) -> dict[str, float]:
    """Milliseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, run in contenders.items():
            times[name] += [milliseconds(run) for _ in range(5)]
    return {name: statistics.median(each) for name, each in times.items()}


def cold(run: Contender) -> float:
    """Milliseconds after 64 MiB of other data went through the caches."""
    other = np.zeros(64 << 20, np.uint8)
    times = []
    for _ in range(TURNS):
        other += 1
        times.append(milliseconds(run))
    return statistics.median(times)


def confusion(classes: int, prediction: Tensor, truth: Tensor, what: str, target: float | None) -> Iterator[Row]:
    """One image into the metric: ours on the bytes a model gives, torchmetrics on the int64 it asks for."""
    ours = SemanticMetric(classes, boundary=None)
    edges = SemanticMetric(classes)
    fast = torchmetrics.classification.MulticlassJaccardIndex(classes, ignore_index=255, validate_args=False)
    default = torchmetrics.classification.MulticlassJaccardIndex(classes, ignore_index=255)
    images, truths = [Semantic(prediction)], [Semantic(truth)]
    wide = prediction.long()[None], truth.long()[None]
    for metric in (fast, default):
        metric.update(*wide)
    ours.update(images, truths)
    assert torch.equal(ours.confusion[:, :classes], fast.confmat), "the confusion matrices differ"
    assert abs(ours.compute()["mIoU"] - float(fast.compute())) < 1e-6, "the mIoU differ"
    times = medians(
        {
            "ours": lambda: ours.update(images, truths),
            "ours with boundary IoU": lambda: edges.update(images, truths),
            "torchmetrics, validate_args=False": lambda: fast.update(*wide),
            "torchmetrics": lambda: default.update(*wide),
        }
    )
    times["ours, cold"] = cold(lambda: ours.update(images, truths))
    for name, ms in times.items():
        ratio = ms / times["ours"]
        goal = ""
        if target and "validate_args" in name:
            goal = f">= {target:g}x: {'met' if ratio >= target else 'MISSED'}"
        yield f"{what} ({changes(prediction, truth):.1%}), {classes} classes: {name}", ms, ratio, goal


def logits_to_counts(classes: int, size: tuple[int, int]) -> Iterator[Row]:
    """Float logits to counts, against torch's argmax alone."""
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(
        torch.randn(1, classes, size[0] // 8, size[1] // 8, generator=generator), size, mode="bilinear"
    )
    logits = logits[0].contiguous()
    truth = [Semantic(coherent(classes, size, 64)[1])]
    metric = SemanticMetric(classes, boundary=None)
    assert torch.equal(argmax(logits), logits.argmax(0).to(torch.uint8)), "the labels differ"
    times = medians(
        {
            "ours, argmax and metric": lambda: metric.update([Semantic(argmax(logits))], truth),
            "ours, argmax": lambda: argmax(logits),
            "torch.argmax alone": lambda: logits.argmax(0),
        }
    )
    torch_ms = times["torch.argmax alone"]
    for name, ms in times.items():
        goal = ""
        if name == "ours, argmax and metric":
            goal = f"<= 0.1x torch: {ms / torch_ms:.3f}, {'met' if ms <= 0.1 * torch_ms else 'MISSED'}"
        yield f"logits [{classes},{size[0]},{size[1]}]: {name}", ms, ms / times["ours, argmax and metric"], goal


def interval(images: int, classes: int) -> Iterator[Row]:
    """The bootstrap over images."""
    metric = SemanticMetric(classes, boundary=None)
    maps = [Semantic(uniform(classes, (8, 8), seed)) for seed in range(images + 1)]
    metric.update(maps[1:], maps[:-1])
    times = medians({"ours": lambda: metric.interval()})
    yield f"interval of mIoU, 2000 replicates of {images} images, {classes} classes: ours", times["ours"], 1.0, ""


def semantic() -> Iterator[Row]:
    """All comparisons of semantic metrics."""
    size = (512, 1024)
    for classes in (19, 150):
        yield from confusion(classes, *coherent(classes, size, 96), "coherent", 15)
        yield from confusion(classes, *coherent(classes, size, 32), "ragged", None)
        yield from confusion(classes, uniform(classes, size, 0), uniform(classes, size, 1), "noise", 5)
    yield from logits_to_counts(19, (512, 1024))
    yield from logits_to_counts(150, (512, 512))
    yield from interval(500, 19)


def main(tasks: list[str]) -> int:
    """Print the table; 1 if a target is missed."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    tables = {"semantic": semantic, "instance": instance_metrics.table, "panoptic": panoptic_metrics.table}
    rows = [row for task in tasks or tables for row in tables[task]()]
    print(
        f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, NumPy {np.__version__}, "
        f"OpenCV {cv2.__version__}, one thread of {platform.processor() or platform.machine()}\n"
    )
    print("| what | ms | ratio to ours | target |\n|---|--:|--:|---|")
    for what, ms, ratio, goal in rows:
        print(f"| {what} | {ms:.3f} | {ratio:.1f} | {goal} |")
    return int(any("MISSED" in row[3] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
