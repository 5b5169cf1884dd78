"""Measuring a model on a dataset: its scores, what it costs, what it looks like. Task-blind, like the engine."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo import checkpoint
from zoo.data.base import Dataset
from zoo.data.loader import evaluation_loader
from zoo.devices import Fabric, Stop, gather
from zoo.errors import ZooError
from zoo.metrics import Metric, SemanticMetric
from zoo.models.semantic import evaluating
from zoo.report import maps
from zoo.report.visualize import panel, save_png
from zoo.state import own_randomness
from zoo.structures import VOID, Batch, Class, Instances, Panoptic, Semantic

Prediction = Semantic | Instances | Panoptic
PICTURES, MAPS = 8, 24
LATENCY_REPEATS = 5


class Stopped(Exception):
    """Evaluation was asked to stop."""


def measure(
    fabric: Fabric,
    model: Any,
    dataset: Dataset,
    metric: Metric,
    batch_size: int = 1,
    workers: int = 0,
    stop: Stop | None = None,
) -> dict[str, float]:
    """The scores of `model` (bare, on the fabric's device) on every image of `dataset`, each exactly once.

    Collective: every process takes its share of the images and gets the scores of all; `metric` is left filled, for
    `metric.rows()`. Training is not disturbed: modes and random numbers are afterwards what they were.

    Raises:
        ZooError: the model and the dataset have no class in common, or an image has no truth.
        Stopped: `stop` was requested on any process; raised on all of them.
    """
    rename = renaming(model.classes, dataset.classes)
    metric.to(fabric.device).reset()
    loader = evaluation_loader(dataset, batch_size, workers, fabric.global_rank, fabric.world_size)
    with evaluating(model), own_randomness(fabric.device):
        for batch in loader:
            if batch.targets is None:
                raise ZooError(f"{dataset.title} {dataset.split} has no truth to evaluate against")
            batch = batch.to(fabric.device)
            with fabric.autocast():
                predictions = model.predict(batch)
            metric.update([rename(p) for p in predictions], batch.targets, batch.ids)
            if stop is not None and stop.requested:
                break
    # All or none: a process that left alone would leave the others waiting for its share of the metric.
    if stop is not None and any(gather(fabric, stop.requested)):
        raise Stopped
    scores = metric.compute()
    seen = metric.rows()[0].tolist()
    if seen != list(range(len(dataset))):
        raise RuntimeError(f"evaluation saw {len(seen)} images of {len(dataset)}, or some twice")
    return scores


def renaming(own: Sequence[Class], wanted: Sequence[Class]) -> Callable[[Any], Any]:
    """A function from predictions in classes `own` to predictions in classes `wanted`, matched by name.

    What is predicted as a class that is not wanted becomes void (semantic, panoptic) or is dropped (instance).
    ZooError if no name is common.
    """
    names = [c.name for c in wanted]
    if [c.name for c in own] == names:
        return lambda prediction: prediction
    lookup = [names.index(c.name) if c.name in names else -1 for c in own]
    if max(lookup) < 0:
        raise ZooError(
            f"the model and the dataset have no class in common: {_some(own)} against {_some(wanted)}; "
            f"train with classes=dataset.classes, or rename the dataset's (dataset.classes)"
        )

    def rename(prediction: Prediction) -> Prediction:
        labels = prediction.labels
        if isinstance(prediction, Instances):
            new = torch.tensor(lookup, device=labels.device)[labels]
            return replace(prediction[new >= 0], labels=new[new >= 0])
        table = torch.full((VOID + 1,), VOID, device=labels.device)
        table[: len(lookup)] = torch.tensor([VOID if i < 0 else i for i in lookup], device=labels.device)
        new = table[labels.long()]
        if isinstance(prediction, Semantic):
            return replace(prediction, labels=new.to(labels.dtype))
        return _without_void_segments(prediction, new)

    return rename


def _without_void_segments(prediction: Panoptic, labels: Tensor) -> Panoptic:
    """`prediction` with new labels (S,), its segments that are void now merged into segment 0."""
    keep = labels != VOID
    keep[0] = True
    ids = torch.where(keep, keep.cumsum(0) - 1, 0)[prediction.ids.long()]
    areas = None if prediction.areas is None else prediction.areas[keep]
    return Panoptic(ids, labels[keep], prediction.scores[keep], prediction.crowd[keep], areas)


def _some(classes: Sequence[Class]) -> str:
    names = [c.name for c in classes]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def cost(fabric: Fabric, model: Any, dataset: Dataset) -> dict[str, Any]:
    """What predicting the first image of `dataset` alone costs, all windows and views of the model included.

    "parameters"; "flops" of one predict (2 per multiply-add; matrix products and convolutions as torch's
    FlopCounterMode counts them); "latency_ms", the median of 5 after a warm-up; and what they hold for: "size",
    "device", "precision".
    """
    batch = Batch.collate([dataset[0]]).to(fabric.device)

    def predict() -> float:
        start = time.perf_counter()
        with fabric.autocast():
            model.predict(batch)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        return 1000 * (time.perf_counter() - start)

    with evaluating(model), own_randomness(fabric.device):
        # Compiled parts would hide their operations from the counter.
        with torch.compiler.set_stance("force_eager"), frozen(model), FlopCounterMode(display=False) as counter:
            predict()
        predict()
        latency = statistics.median(predict() for _ in range(LATENCY_REPEATS))
    is_cuda = fabric.device.type == "cuda"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": counter.get_total_flops(),
        "latency_ms": latency,
        "size": list(batch.sizes[0]),
        "device": torch.cuda.get_device_name(fabric.device) if is_cuda else fabric.device.type,
        "precision": getattr(fabric.strategy.precision, "precision", "32-true"),
    }


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: views of those that do still ask in no_grad mode, where they have no history,
    and the counter of operations stops at modules that are given one (learned queries, for a batch)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def save_pictures(fabric: Fabric, model: Any, dataset: Dataset, out: Path) -> None:
    """What one can look at, in ``out/pictures``: panels of up to 8 images as PNG, maps of up to 24 (`zoo.report.maps`).

    The images are evenly spaced over `dataset` and so the same for every model.
    """
    rename = renaming(model.classes, dataset.classes)
    drawn, kept = _spaced(len(dataset), PICTURES), _spaced(len(dataset), MAPS)
    writer = maps.Writer(out, dataset.classes)
    with evaluating(model), own_randomness(fabric.device):
        for index in sorted(drawn | kept):
            sample = dataset[index]
            assert sample.target is not None  # or measure() would have refused
            with fabric.autocast():
                prediction = rename(model.predict(Batch.collate([sample]).to(fabric.device))[0]).to("cpu")
            name = dataset.name(index)
            if index in drawn:
                picture = panel(sample.image, sample.target, prediction, dataset.classes, name)
                save_png(out / "pictures" / f"{index:06d}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png", picture)
            if index in kept:
                writer.add(index, name, sample.image, sample.target, prediction)
    writer.close()


def _spaced(images: int, most: int) -> set[int]:
    """Up to `most` of the indices below `images`, evenly spaced."""
    return set(np.linspace(0, images - 1, most).round().astype(int).tolist())


def save_statistics(metric: Metric, path: Path) -> None:
    """What `metric` keeps, the arrays "ids" (N,), "statistics" (N, ...) and others; collective, rank 0 writes.

    Of a metric that has one also "confusion" (K, K + 1): pixels of all images, truth by prediction.
    """
    arrays = metric.kept()
    if isinstance(metric, SemanticMetric):
        with metric.gathered():
            arrays["confusion"] = metric.confusion
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        with checkpoint.replacing(path) as temporary, temporary.open("wb") as file:
            found: dict[str, Any] = {name: array.cpu().numpy() for name, array in arrays.items()}
            np.savez_compressed(file, **found)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` of a GPU start from here; a process on the CPU has one peak for good."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory so far in MiB: of torch on a GPU since its last reset, of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
