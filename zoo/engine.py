"""The engine: `fit` trains a model, `evaluate` measures one. The loop itself is `zoo.training.Run.train`.

A run's folder holds `last.ckpt` (everything needed to go on), `best.ckpt` (a model file with the weights that
scored best), `metrics.csv`, `result.json`, `statistics.npz` and `pictures/`, with `maps/` for the page in it
(`zoo.report.maps`). A run that is killed at any step and resumed ends with the same bits as one that was not: data
depend on (seed, epoch, index) alone, the learning rate on the step, and everything else that changes is in last.ckpt.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from zoo import checkpoint
from zoo.data import DATASETS, Dataset
from zoo.devices import Fabric, Stop, create_fabric, create_tensorboard, launch
from zoo.errors import ZooError
from zoo.evaluation import Stopped, cost, measure, save_pictures, save_statistics
from zoo.metrics import Metric, create_metric
from zoo.recipe import Recipe
from zoo.report import result
from zoo.training import Run

__all__ = ["create_fabric", "create_tensorboard", "evaluate", "fit"]


def fit(
    model: Any,
    train: Dataset,
    val: Dataset | None = None,
    test: Dataset | None = None,
    *,
    out: str | Path,
    fabric: Fabric | None = None,
    optimizer: Mapping[str, Any] | None = None,
    resume: bool = False,
    seed: int = 0,
    **recipe: Any,
) -> dict[str, Any]:
    """Train `model` on `train` and return the result that is also in ``out/result.json``.

    The best weights are chosen on `val` by the metric's main column and measured on `test` (None: on `val`); without
    `val` they are the last ones. In a single process `model` holds them afterwards; elsewhere `zoo.load` them.
    SIGTERM or Ctrl-C ends the run after the step at hand, with last.ckpt saved and status "killed".

    Args:
        model: a model of the zoo, or any module with `classes`, `task`, `loss`, `predict` and `header`.
        out: folder of the run.
        fabric: of `zoo.engine.create_fabric`; None is one device, a GPU where there is one.
        optimizer: keywords of `zoo.optim.create_optimizer`.
        resume: go on with the run in `out`; starts anew if it was killed before its first save.
        seed: of the order of the data and of dropout.
        recipe: see `zoo.recipe.Recipe`.

    Raises:
        ZooError: a setting that makes no sense, a loss that is not finite, no memory left, a disk that is full. The
            result then says "failed", and no checkpoint was overwritten by a bad one.
    """
    fabric = fabric or create_fabric()
    Recipe.of(recipe)  # mistakes come before processes
    if not resume and (Path(out) / "last.ckpt").exists():
        raise ZooError(f"{out} holds a run already: resume it, or give another folder")
    parts = (model, train, val, test, Path(out), dict(optimizer or {}), resume, seed, recipe)
    with _failures_noted(fabric, Path(out)):
        return launch(fabric, _fit, *parts)


def evaluate(
    model: Any,
    dataset: Dataset,
    *,
    fabric: Fabric | None = None,
    batch_size: int = 1,
    workers: int = 0,
    out: str | Path | None = None,
    metric: Metric | None = None,
) -> dict[str, float]:
    """The scores of `model` on `dataset`, every image counted exactly once on any number of processes.

    Classes are matched by name where the model's and the dataset's differ.

    Args:
        batch_size: images predicted at a time by each process.
        out: folder for result.json (one that is there is replaced), statistics.npz and pictures; None writes nothing.
        metric: a metric over the dataset's classes; None is the task's, as the dataset asks for it.

    Raises:
        ZooError: no class in common, no truth, or a metric over other classes.
    """
    fabric = fabric or create_fabric()
    folder = None if out is None else Path(out)
    with _failures_noted(fabric, folder):
        return launch(fabric, _evaluate, model, dataset, batch_size, workers, folder, metric)


@contextmanager
def _failures_noted(fabric: Fabric, out: Path | None) -> Iterator[None]:
    """Write into the result of the run why it ended. Mistakes found in another process become plain ones here."""
    try:
        yield
    except BaseException as error:
        name = f"{ZooError.__module__}.{ZooError.__qualname__}: "
        elsewhere = name in str(error)
        reason = str(error).rpartition(name)[2].strip() or type(error).__name__
        if out is not None and fabric.is_global_zero and (out / result.FILE).is_file():
            with suppress(OSError, ZooError):  # a full disk is not the reason unless it was one before
                if result.read(out)["status"] != "ok":  # a finished run that could not be resumed stays one
                    result.finish(out, "failed" if isinstance(error, Exception) else "killed", reason.splitlines()[-1])
        if elsewhere:
            raise ZooError(reason) from error
        raise


def _evaluate(
    fabric: Fabric,
    model: Any,
    dataset: Dataset,
    batch_size: int,
    workers: int,
    out: Path | None,
    metric: Metric | None,
) -> dict[str, float]:
    metric = metric or create_metric(model.task, dataset.classes, **dataset.metric_options)
    if [c.name for c in metric.classes] != [c.name for c in dataset.classes]:
        raise ZooError("the metric has other classes than the dataset: build it with dataset.classes")
    if out is not None and fabric.is_global_zero:
        _begin(out, **_facts(model, dataset))
    model = fabric.to_device(model)
    scores = measure(fabric, model, dataset, metric, batch_size, workers)
    if out is not None:
        facts = _report(fabric, model, dataset, metric, scores, out)
        if fabric.is_global_zero:
            _finish(out, "ok", **facts)
    return scores


def _fit(
    fabric: Fabric,
    model: Any,
    train: Dataset,
    val: Dataset | None,
    test: Dataset | None,
    out: Path,
    optimizer: dict[str, Any],
    resume: bool,
    seed: int,
    keywords: dict[str, Any],
) -> dict[str, Any]:
    recipe = Recipe.of(keywords)
    _check(fabric, model, train, out, recipe)
    final = test or val
    run = Run(fabric, model, train, val, out, optimizer, seed, recipe)
    if resume:
        run.restore()
    if fabric.is_global_zero:  # not before the resume is known to work: the result may be a finished run's
        keep = ("overrides",) if resume else ()
        _begin(out, keep, **_facts(model, final or train), seed=seed, selected_on=val.split if val else None)
    fabric.barrier()
    with Stop() as stop:
        try:
            run.train(stop)
            facts: dict[str, Any] = {"cost": run.cost()}
            if final is not None:
                run.model.load_state_dict(checkpoint.read(out / "best.ckpt")["state"])
                metric = create_metric(model.task, final.classes, **final.metric_options)
                scores = measure(fabric, run.model, final, metric, recipe.eval_batch_size, recipe.eval_workers, stop)
                reported = _report(fabric, run.model, final, metric, scores, out)
                facts = reported | {"cost": reported["cost"] | facts["cost"]}
        except Stopped:
            if fabric.is_global_zero:
                _finish(out, "killed", f"asked to stop at step {run.progress.step}; resume=True goes on")
        else:
            if fabric.is_global_zero:
                _finish(out, "ok", **facts)
    fabric.barrier()
    return result.read(out)


def _check(fabric: Fabric, model: Any, train: Dataset, out: Path, recipe: Recipe) -> None:
    """Refuse what would fail later, or worse, would not."""
    own, wanted = [c.name for c in model.classes], [c.name for c in train.classes]
    if own != wanted:
        raise ZooError(
            f"the model's {len(own)} classes are not the dataset's {len(wanted)} ({', '.join(wanted[:4])}, ...): "
            f"create the model with classes=dataset.classes"
        )
    parts = recipe.accumulate * fabric.world_size
    if recipe.batch_size % parts:
        raise ZooError(
            f"batch_size={recipe.batch_size} cannot be split over {fabric.world_size} processes with "
            f"accumulate={recipe.accumulate}: take a multiple of {parts}"
        )
    if recipe.sync_batchnorm and fabric.world_size > 1 and fabric.device.type != "cuda":
        raise ZooError(f"sync_batchnorm needs CUDA devices, not {fabric.device.type}: set trainer.sync_batchnorm=false")
    out.mkdir(parents=True, exist_ok=True)


def _begin(out: Path, keep: Sequence[str] = (), **facts: Any) -> None:
    """Start the result of the run, or add to it where the caller of this process has started it.

    Of what an earlier process said, the facts that `keep` names remain.
    """
    try:
        before = result.read(out)
    except ZooError:
        before = {}
    started_here = before.get("process", {}).get("pid") == os.getpid()
    kept = {name: before[name] for name in keep if name in before}
    with checkpoint.writing(out / result.FILE):
        if started_here:
            result.update(out, status="running", reason=None, **facts)
        else:
            result.start(out, **kept, **facts)


def _finish(out: Path, status: str, reason: str | None = None, **facts: Any) -> None:
    with checkpoint.writing(out / result.FILE):
        result.finish(out, status, reason, **facts)


def _facts(model: Any, dataset: Dataset) -> dict[str, Any]:
    """What a result says of a model and the dataset it is measured on."""
    names = {kind: name for name, kind in DATASETS.items()}
    return {
        "task": model.task,
        "model": model.header["name"],
        "backbone": model.header["backbone"]["name"],
        "dataset": {
            "name": names.get(type(dataset), type(dataset).__name__),
            "split": dataset.split,
            "fingerprint": dataset.fingerprint(),
            "origin": dataset.fingerprint(any_task=True),
            "images": len(dataset),
        },
        "classes": [c.name for c in dataset.classes],
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    packages = {"zoo": "segmentation-zoo", "torch": "torch", "torchvision": "torchvision", "timm": "timm"}
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name, package in packages.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _report(
    fabric: Fabric, model: Any, dataset: Dataset, metric: Metric, scores: dict[str, float], out: Path
) -> dict[str, Any]:
    """Write statistics and pictures of an evaluation, and return its facts; collective, rank 0 writes."""
    facts: dict[str, Any] = {
        "metrics": scores,
        "intervals": {name: list(metric.interval(name)) for name in metric.measured},
        "protocol": metric.protocol,
    }
    save_statistics(metric, out / "statistics.npz")
    if fabric.is_global_zero:
        save_pictures(fabric, model, dataset, out)
        facts["cost"] = cost(fabric, model, dataset)
        facts["weights_sha256"] = checkpoint.weights_sha256(model.state_dict())
    fabric.barrier()
    return {"cost": {}} | facts
