"""Finished runs on disk as the engine leaves them, made in milliseconds: scenes, and predictions with stated errors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from zoo.data import Dataset, create_dataset
from zoo.evaluation import save_statistics
from zoo.metrics import create_metric
from zoo.report import maps, result
from zoo.structures import Instances, Panoptic, Sample, Semantic, Target

IMAGES, SIZE = 12, 64
COST = {
    "parameters": 2_500_000,
    "flops": 4_000_000_000,
    "latency_ms": 20.0,
    "peak_memory_mb": 900.0,
    "train_seconds": 90.0,
    "size": [SIZE, SIZE],
    "device": "cpu",
    "precision": "32-true",
}


@cache
def scenes(task: str) -> Dataset:
    return create_dataset("scenes", split="test", task=task, length=IMAGES, size=SIZE)


@cache
def samples(task: str) -> list[Sample]:
    return [scenes(task)[i] for i in range(IMAGES)]


def spoiled(target: Target, share: float, seed: int) -> Target:
    """The truth with about `share` of its columns as the first class, of its objects shifted away and unsure."""
    rng = np.random.default_rng(seed)
    if isinstance(target, Instances):
        scores = torch.from_numpy(rng.uniform(0.3, 0.99, len(target))).float()
        keep = torch.from_numpy(rng.random(len(target)) >= share / 2)
        found = target[keep]
        return Instances(found.masks, found.labels, scores[keep])
    columns = torch.from_numpy(rng.random(target.size[1]) < share)
    if isinstance(target, Semantic):
        labels = target.labels.clone()
        labels[:, columns] = 0
        return Semantic(labels)
    ids = target.ids.clone()
    ids[:, columns] = 0
    return Panoptic(ids, target.labels, torch.full((len(target.labels),), 0.9))


def finished(folder: Path, model: str, task: str = "semantic", share: float = 0.3, **facts: Any) -> Path:
    """A run that has ended: its result with real scores, statistics, maps of all images, curves and config."""
    data, seen, seed = scenes(task), samples(task), facts.get("seed", 0)
    metric = create_metric(task, data.classes)
    predictions = [spoiled(sample.target, share, 100 * seed + i) for i, sample in enumerate(seen)]
    metric.update(predictions, [sample.target for sample in seen], range(IMAGES))
    cost = COST | facts.pop("cost", {})
    described: dict[str, Any] = {
        "task": task,
        "model": model,
        "backbone": "resnet18",
        "dataset": {
            "name": "scenes",
            "split": "test",
            "fingerprint": data.fingerprint(),
            "origin": data.fingerprint(any_task=True),
            "images": len(data),
        },
        "seed": seed,
        "overrides": [f"model={model}"],
        "classes": [c.name for c in data.classes],
        "protocol": metric.protocol,
        "metrics": metric.compute(),
        "cost": cost,
        "versions": {"python": "3.12.1", "torch": "2.11"},
    }
    result.start(folder, **(described | facts))
    result.finish(folder, "ok")
    save_statistics(metric, folder / "statistics.npz")
    writer = maps.Writer(folder, data.classes)
    for i, prediction in enumerate(predictions):
        writer.add(i, data.name(i), seen[i].image, seen[i].target, prediction)
    writer.close()
    lines = [f"{step},train/loss,{share + 1 / step}\n" for step in range(1, 21)]
    lines += [f"{step},val/{metric.main},{0.02 * step}\n" for step in (10, 20)]
    lines += [f"{step},train/seconds,{3 * step}\n" for step in range(1, 21)]
    (folder / "metrics.csv").write_text("step,name,value\n" + "".join(lines))
    config = {"model": {"name": model}, "seed": seed, "optimizer": {"lr": share, "name": "adamw"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def crashed(folder: Path, model: str, reason: str = "CUDA out of memory", **facts: Any) -> Path:
    """A run that has failed in its first step, with the end of its traceback."""
    data = {"name": "scenes", "split": "test"}
    described = {"task": "semantic", "model": model, "backbone": "resnet18", "dataset": data, "seed": 0}
    result.start(folder, **(described | facts))
    result.finish(folder, "failed", reason)
    (folder / "error.log").write_text("Traceback (most recent call last):\n  in backward()\nRuntimeError: " + reason)
    return folder
