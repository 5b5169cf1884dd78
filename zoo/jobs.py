"""What runs in a job's own process: plain config -> parts -> engine.

`run(kind, config, out, overrides)` is all that `zoo.cli` calls; `config` is the composed config as plain containers.
A job that fails says so in one line and in `result.json`, and returns an exit code.
"""

from __future__ import annotations

import copy
import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from zoo.data import Dataset, create_dataset
from zoo.data.transforms import TrainTransform
from zoo.devices import Fabric, create_fabric, create_tensorboard, launch
from zoo.engine import evaluate as evaluate_model
from zoo.engine import fit
from zoo.errors import ZooError, unknown
from zoo.losses import weigh_classes
from zoo.metrics import create_metric
from zoo.models import create_model
from zoo.models.combined import Combined
from zoo.predict import predict_input
from zoo.report import result
from zoo.structures import Target
from zoo.weights import load, load_weights
from zoo.weights.download import is_path

Config = dict[str, Any]

FABRIC = ("device", "devices", "nodes", "precision")
PARTS = ("train", "val", "test")
RANK = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))  # of a process that torchrun or SLURM started


def run(kind: str, config: Config, out: Path, overrides: list[str]) -> int:
    """Run a job of `kind` ("train", "resume", "evaluate", "predict") that writes to the folder `out`.

    Returns the exit code: 0, 1 where it crashed, 2 for a mistake in the input, 130 where it was interrupted.
    """
    try:
        if RANK == 0:
            _announce(kind, config, out, overrides)
        settings = config.get("trainer", config)
        fabric_options = {name: settings.pop(name) for name in FABRIC if name in settings}
        fabric = create_fabric(**fabric_options, loggers=create_loggers(config, out))
        launch(fabric, JOBS[kind], config, out, overrides)
        killed = kind != "predict" and RANK == 0 and result.read(out)["status"] == "killed"
        return 130 if killed else 0
    except KeyboardInterrupt:
        return _failed(out, "killed", "interrupted", 130)
    except Exception as error:
        mistake = _mistake(error)
        if mistake:
            return _failed(out, "failed", mistake, 2)
        if RANK:  # the run folder is rank 0's
            traceback.print_exc()
            return 1
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"the disk is full: {error.filename or f'a file in {out}'} could not be written"
            return _failed(out, "failed", full, 1)
        last = str(error).strip().rpartition("\n")[2]
        return _failed(out, "failed", f"{type(error).__name__}: {last}", 1, _log_traceback(out))
    finally:
        if torch.distributed.is_initialized():  # processes of an outer launcher go on to the next job
            torch.distributed.destroy_process_group()


def _mistake(error: Exception) -> str | None:
    """The sentence of a `ZooError`, also of one that comes as the text of another process's traceback."""
    name = f"{ZooError.__module__}.{ZooError.__qualname__}: "
    if name in str(error):
        return str(error).rpartition(name)[2].strip()
    return str(error) if isinstance(error, ZooError) else None


def _announce(kind: str, config: Config, out: Path, overrides: list[str]) -> None:
    """Begin the result of the job. A resume has one already, which stays until the resume is known to work.

    Raises ZooError for a resume of a run that has not ended.
    """
    if kind == "resume" and (out / result.FILE).is_file():
        facts = result.read(out)
        if facts["status"] == "running":
            process = f"process {facts['process']['pid']} on {facts['process']['host']}"
            raise ZooError(f"{out} is still running: stop it first ({process}; if that is gone, delete {result.FILE})")
    elif kind != "predict":
        result.start(out, overrides=overrides, **_facts(config))


def _log_traceback(out: Path) -> str:
    """Write the traceback of the exception at hand to a file and say where it is."""
    log = out / "error.log"
    try:
        log.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f" (the traceback could not be written to {os.path.relpath(log)}: {error.strerror})"
    return f" (traceback in {os.path.relpath(log)})"


def _failed(out: Path, status: str, reason: str, code: int, where: str = "") -> int:
    """Say why the job ended, also in its result; that of a finished run or of another process stays as it is."""
    print(f"error: {reason}{where}", file=sys.stderr, flush=True)
    with suppress(OSError, ZooError):  # no result, or no room for it: the reason is on the screen
        facts = result.read(out)
        elsewhere = facts["status"] == "running" and facts["process"]["pid"] != os.getpid()
        if facts["status"] != "ok" and not elsewhere:
            result.finish(out, status, reason.splitlines()[0])
    return code


def train(fabric: Fabric, config: Config, out: Path, overrides: list[str], resume: bool = False) -> None:
    """Train what the config describes, evaluate it and leave everything in `out`."""
    out = _begin(fabric, config, out, overrides, resume)
    seed, task, limit = config["seed"], config["task"]["name"], config["limit"]
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ZooError(f"limit={limit}: of each split at least 1 image is taken, null takes all")
    data = create_datasets(config["dataset"], task, seed)
    for dataset in data.values():
        dataset.records = dataset.records[:limit]
    torch.manual_seed(seed)
    saved = resume and (out / "last.ckpt").is_file()  # holds all weights: those the run began with may be gone
    if saved:
        config = {**config, "backbone": {**config["backbone"], "pretrained": False}}
    model = build_model(config, data["train"])
    if config["weights"] and not saved:
        load_weights(model, config["weights"], skip_head=config["skip_head"])
    fit(
        model,
        data["train"],
        data.get("val"),
        data.get("test"),
        out=out,
        fabric=fabric,
        optimizer=config["optimizer"],
        resume=resume,
        seed=seed,
        **config["trainer"],
    )


def resume(fabric: Fabric, config: Config, out: Path, overrides: list[str]) -> None:
    """Go on with the run in `out`."""
    train(fabric, config, out, overrides, resume=True)


def evaluate(fabric: Fabric, config: Config, out: Path, overrides: list[str]) -> None:
    """Evaluate a checkpoint, or two combined, on a dataset; by default on the one the (first) was trained on."""
    out = _begin(fabric, config, out, overrides)
    model = combined(config) if config.get("combined") else load(config["checkpoint"], **config["options"])
    card = _evaluated(config)
    dataset = create_datasets(card, model.task, 0, ("test",))["test"]
    metric = create_metric(model.task, dataset.classes, **{**dataset.metric_options, **config["metric"]})
    evaluate_model(
        model,
        dataset,
        fabric=fabric,
        batch_size=config["batch_size"],
        workers=config["workers"],
        out=out,
        metric=metric,
    )


def combined(config: Config) -> Combined:
    """The panoptic model of a semantic and an instance checkpoint, with the options of `Combined`."""
    known = list(inspect.signature(Combined).parameters)[2:]
    for option in config["options"]:
        if option not in known:
            raise unknown("option of combined", option, known)
    return Combined(load(config["semantic"]), load(config["instance"]), **config["options"]).eval()


def predict(fabric: Fabric, config: Config, out: Path, overrides: list[str]) -> None:
    """Predict pictures or a video."""
    model = load(config["checkpoint"], **config["options"])
    trained = _trained_on(config["checkpoint"]) or {}
    reading = {name: trained.get(name) if config[name] is None else config[name] for name in ("exif", "maximum")}
    given = {name: value for name, value in reading.items() if value is not None}
    given |= {"alpha": config["alpha"], "explain": config["explain"]}
    predict_input(model, Path(config["input"]).expanduser(), out, fabric, **given)


JOBS: dict[str, Callable[[Any, Config, Path, list[str]], None]] = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "predict": predict,
}


def create_datasets(card: Mapping[str, Any], task: str, seed: int, parts: Sequence[str] = PARTS) -> dict[str, Dataset]:
    """The dataset of a card in those of its parts that have a split; only "train" is augmented."""
    options = {name: value for name, value in card.items() if name not in {*PARTS, "transform"}}
    return {
        part: create_dataset(
            split=card[part],
            task=task,
            transform=TrainTransform(**card["transform"]) if part == "train" else None,
            seed=seed,
            **options,
        )
        for part in parts
        if card[part]
    }


def build_model(config: Config, dataset: Dataset) -> Any:
    """The model of a config with fresh weights, for the classes and channels of a dataset."""
    model = dict(config["model"])
    if "loss" in model:
        model["loss"] = weigh_classes(model["loss"], lambda: count_pixels(dataset))
    backbone = {name: value for name, value in config["backbone"].items() if value is not None}
    return create_model(
        model.pop("name"),
        dataset.classes,
        backbone.pop("name", None),
        pretrained=backbone.pop("pretrained", False),
        in_channels=dataset.read(dataset.records[0]).image.shape[2],
        output_stride=backbone.pop("output_stride", None),
        backbone_options=backbone,
        **model,
    )


def count_pixels(dataset: Dataset) -> NDArray[np.int64]:
    """Pixels (N, K) of each class in each image as stored, without transform; void does not count."""
    plain = copy.copy(dataset)
    plain.transform = None
    targets = ((plain.name(i), plain[i].target) for i in range(len(plain)))
    return np.array([_count(name, target, len(plain.classes)) for name, target in targets])


def _count(name: str, target: Target | None, classes: int) -> NDArray[np.int64]:
    if target is None:
        raise ZooError(f"image {name} has no truth to count for class_weights")
    return np.bincount(target.semantic().labels.numpy().ravel(), minlength=256)[:classes]


def _begin(fabric: Fabric, config: Config, out: Path, overrides: list[str], resume: bool = False) -> Path:
    """The run folder of rank 0 (processes of an outer launcher may have read another clock), its result begun there."""
    out = Path(fabric.broadcast(str(out)))
    if fabric.world_size > 1 and fabric.is_global_zero and not resume:
        result.start(out, overrides=overrides, **_facts(config))
    return out


def _facts(config: Config) -> dict[str, Any]:
    """What `result.json` says of a run before anything of it is built."""
    if "checkpoint" in config:
        card = _evaluated(config)
        parts = ("semantic", "instance") if config.get("combined") else ("checkpoint",)
        return {
            "checkpoint": " + ".join(config[part] for part in parts),
            "dataset": {"name": card["name"], "split": card["test"]},
        }
    card = config["dataset"]
    return {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "backbone": config["backbone"]["name"],
        "dataset": {"name": card["name"], "split": card["test"] or card["val"]},
        "seed": config["seed"],
    }


def _evaluated(config: Config) -> Config:
    """The dataset card of an evaluation, "test" being the split to evaluate: the named one or that of the training.

    Raises ZooError where neither is known.
    """
    first = config["semantic"] if config.get("combined") else config["checkpoint"]
    card = config.get("dataset") or _trained_on(first)
    if not card:
        raise ZooError(f"no config.yaml of a training is beside {first}: name a dataset, dataset=camvid")
    return {**card, "test": config["split"] or card["test"] or card["val"]}


def _trained_on(checkpoint: str) -> Config | None:
    """The dataset card of a checkpoint's training, None where that left no config.yaml beside it."""
    saved = Path(checkpoint).expanduser().parent / "config.yaml"
    if not (is_path(checkpoint) and saved.is_file()):  # a name has no folder: its parent is the current one
        return None
    try:
        card = yaml.safe_load(saved.read_text(encoding="utf-8"))["dataset"]
    except (yaml.YAMLError, KeyError, TypeError):  # another program's
        return None
    return card if isinstance(card, dict) else None


def create_loggers(config: Config, out: Path) -> list[Any]:
    """Fabric loggers beside metrics.csv."""
    wanted = "logger" in config and config["logger"]["name"] == "tensorboard"
    return [create_tensorboard(out / "tensorboard")] if wanted else []
