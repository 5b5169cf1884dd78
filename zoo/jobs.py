"""What runs in a job's own process: plain config -> parts -> engine.

`run(kind, config, out, overrides)` is all that `zoo.cli` calls; `config` is the composed config as plain containers.
A job that fails says so in one line and in `result.json`, and returns an exit code.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

import zoo.weights
from zoo import engine
from zoo.data import Dataset, create_dataset
from zoo.data.transforms import TrainTransform
from zoo.errors import ZooError
from zoo.metrics import create_metric
from zoo.models import create_model
from zoo.predict import predict_input
from zoo.report import result

Config = dict[str, Any]

FABRIC = ("device", "devices", "nodes", "precision")
PARTS = ("train", "val", "test")


def run(kind: str, config: Config, out: Path, overrides: list[str]) -> int:
    """Run a job of `kind` ("train", "resume", "evaluate", "predict") that writes to the folder `out`.

    Returns the exit code: 0, 1 where it crashed, 2 for a mistake in the input, 130 where it was interrupted.
    """
    try:
        fabric_options = {name: config[name] for name in FABRIC if name in config} or {
            name: config["trainer"].pop(name) for name in FABRIC
        }
        loggers = _loggers(config, out)
        fabric = engine.create_fabric(**fabric_options, loggers=loggers)
        fabric.launch(JOBS[kind], config, out, overrides)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():  # the other ranks
            process.terminate()
        return _failed(out, "killed", "interrupted", 130)
    except Exception as error:
        mistake = _mistake(error)
        if mistake:
            return _failed(out, "failed", mistake, 2)
        log = out / "error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        last = str(error).strip().rpartition("\n")[2]
        return _failed(out, "failed", f"{type(error).__name__}: {last} (traceback in {os.path.relpath(log)})", 1)
    return 0


def _mistake(error: Exception) -> str | None:
    """The sentence of a `ZooError`, also of one that comes as the text of another process's traceback."""
    name = f"{ZooError.__module__}.{ZooError.__qualname__}: "
    if name in str(error):
        return str(error).rpartition(name)[2].strip()
    return str(error) if isinstance(error, ZooError) else None


def _failed(out: Path, status: str, reason: str, code: int) -> int:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    if (out / result.FILE).is_file():
        result.finish(out, status, reason.splitlines()[0])
    return code


def train(fabric: Any, config: Config, out: Path, overrides: list[str], resume: bool = False) -> None:
    """Train what the config describes, evaluate it and leave everything in `out`."""
    out = Path(fabric.broadcast(str(out)))  # processes of an outer launcher may have read another clock
    if fabric.is_global_zero:
        result.start(out, overrides=overrides, **_facts(config))
    seed, task = config["seed"], config["task"]["name"]
    datasets = create_datasets(config["dataset"], task, seed)
    torch.manual_seed(seed)
    model = build_model(config, datasets["train"])
    if config["weights"] and not resume:
        zoo.weights.load_weights(model, config["weights"], skip_head=config["skip_head"])
    engine.fit(
        model,
        **datasets,
        out=out,
        fabric=fabric,
        optimizer=config["optimizer"],
        resume=resume,
        seed=seed,
        **config["trainer"],
    )


def resume(fabric: Any, config: Config, out: Path, overrides: list[str]) -> None:
    """Go on with the run in `out`."""
    train(fabric, config, out, overrides, resume=True)


def evaluate(fabric: Any, config: Config, out: Path, overrides: list[str]) -> None:
    """Evaluate a checkpoint on a dataset, by default on the one that it was trained on."""
    out = Path(fabric.broadcast(str(out)))
    checkpoint = Path(config["checkpoint"]).expanduser()
    card = dict(config["dataset"] or _trained_on(checkpoint))
    split = config["split"] or card["test"]
    if fabric.is_global_zero:
        result.start(out, overrides=overrides, checkpoint=str(checkpoint), dataset={"name": card["name"], "split": split})
    model = zoo.weights.load(checkpoint, **config["options"])
    dataset = create_datasets(card | {"test": split}, model.task, 0, ("test",))["test"]
    metric = create_metric(model.task, model.classes, **config["metric"])
    engine.evaluate(
        model,
        dataset,
        fabric=fabric,
        batch_size=config["batch_size"],
        workers=config["workers"],
        out=out,
        metric=metric,
    )


def predict(fabric: Any, config: Config, out: Path, overrides: list[str]) -> None:
    """Predict pictures or a video."""
    model = zoo.weights.load(Path(config["checkpoint"]).expanduser(), **config["options"])
    predict_input(model, Path(config["input"]).expanduser(), out, fabric, alpha=config["alpha"])


JOBS: dict[str, Callable[[Any, Config, Path, list[str]], None]] = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "predict": predict,
}


def create_datasets(
    card: Mapping[str, Any], task: str, seed: int, parts: tuple[str, ...] = PARTS
) -> dict[str, Dataset | None]:
    """The dataset of a card in its parts; only "train" is augmented. A part without a split is None."""
    options = {name: value for name, value in card.items() if name not in {*PARTS, "transform"}}
    datasets: dict[str, Dataset | None] = {}
    for part in parts:
        transform = TrainTransform(**card["transform"]) if part == "train" else None
        split = card.get(part)
        datasets[part] = (
            create_dataset(split=split, task=task, transform=transform, seed=seed, **options) if split else None
        )
    return datasets


def build_model(config: Config, dataset: Dataset) -> Any:
    """The model of a config with fresh weights, for the classes and channels of a dataset."""
    model, backbone = dict(config["model"]), dict(config["backbone"])
    return create_model(
        model.pop("name"),
        dataset.classes,
        backbone.pop("name"),
        pretrained=backbone.pop("pretrained"),
        in_channels=config["dataset"].get("channels") or 3,
        output_stride=backbone.pop("output_stride"),
        backbone_options=backbone,
        **model,
    )


def _facts(config: Config) -> dict[str, Any]:
    """What `result.json` says of a run before anything of it is built."""
    return {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "backbone": config["backbone"]["name"],
        "dataset": {"name": config["dataset"]["name"], "split": config["dataset"]["test"] or config["dataset"]["val"]},
        "seed": config["seed"],
    }


def _loggers(config: Config, out: Path) -> list[Any]:
    """Fabric loggers beside metrics.csv."""
    if config.get("logger", {"name": "csv"})["name"] == "csv":
        return []
    from lightning.fabric.loggers import TensorBoardLogger

    return [TensorBoardLogger(root_dir=out, name="tensorboard", version="")]


def _trained_on(checkpoint: Path) -> Config:
    """The dataset card in the config beside a checkpoint."""
    config = checkpoint.parent / "config.yaml"
    if not config.is_file():
        raise ZooError(f"there is no config.yaml beside {checkpoint}: name the dataset, such as dataset=camvid")
    return dict(yaml.safe_load(config.read_text(encoding="utf-8"))["dataset"])
