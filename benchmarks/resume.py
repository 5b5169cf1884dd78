"""Kill a training run again and again, and compare what it ends with, bit by bit, with a run that was left alone.

    python benchmarks/resume.py --kills 20 --workers 1 2

An FCN with dropout, AdamW and averaged weights trains on drawn scenes. Each process dies by SIGKILL at a random moment:
while it computes a loss, while it predicts for the validation metric, or between writing a checkpoint and renaming it.
The next process resumes in the same folder. At the end last.ckpt (weights, averages, optimizer, random state),
best.ckpt, metrics.csv, the statistics of each image and the pixels that each step has seen must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo import checkpoint
from zoo.data import create_dataset
from zoo.data.transforms import TrainTransform
from zoo.engine import create_fabric, fit
from zoo.models import create_model

STEPS_A_KILL = 6
KINDS = ("loss", "predict", "replace")


def train(out: Path, steps: int, workers: int, kind: str | None = None, calls: int = 0) -> None:
    """Train in `out`, resuming what is there; die at the given call of "loss", "predict" or "replace" (a rename)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scenes = create_dataset("scenes", split="train", size=48, length=22, transform=TrainTransform(crop=33))
    val = create_dataset("scenes", split="val", size=40, length=5)
    model = create_model("fcn", scenes.classes, "test_resnet", dropout=0.5)
    _record(type(model), out)
    if kind:
        _die_at(os if kind == "replace" else type(model), kind, calls)
    fit(
        model,
        scenes,
        val,
        out=out,
        fabric=create_fabric("cpu"),
        optimizer={"name": "adamw", "lr": 1e-3},
        resume=True,
        steps=steps,
        batch_size=4,
        accumulate=2,
        workers=workers,
        eval_workers=0,
        evaluate_every=8,
        save_every=3,
        log_every=4,
        warmup=5,
        clip=1.0,
        ema=0.9,
    )


def _die_at(owner: Any, name: str, calls: int) -> None:
    """Make the given call of `owner.name` the last thing this process does."""
    function = getattr(owner, name)
    left = calls

    def mortal(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    setattr(owner, name, mortal)


def _record(model: Any, out: Path) -> None:
    """Make models of this class write which images with which pixels go into each part of a step, to seen.jsonl."""
    last = out / "last.ckpt"
    number = 2 * checkpoint.read(last)["training"]["progress"]["step"] if last.exists() else 0
    loss = model.loss

    def recorded(self: Any, batch: Any) -> Any:
        nonlocal number
        pixels = hashlib.sha256(batch.images.numpy().tobytes())
        for target in batch.targets:
            pixels.update(target.labels.numpy().tobytes())
        with (out / "seen.jsonl").open("a") as file:
            print(json.dumps([number, batch.ids, pixels.hexdigest()]), file=file)
        number += 1
        return loss(self, batch)

    model.loss = recorded


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two nested containers of tensors and values are not equal in type and bits."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [d for key in one for d in differences(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, type(one)) and len(one) == len(two):
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.numpy().tobytes() == two.numpy().tobytes()
    else:
        same = type(one) is type(two) and one == two
    return [] if same else [where]


def contents(out: Path) -> dict[str, Any]:
    """All a run has left behind, without the time it took."""
    last = checkpoint.read(out / "last.ckpt")
    last["training"]["progress"].pop("seconds")
    rows = [row for row in (out / "metrics.csv").read_text().splitlines() if ",train/seconds," not in row]
    seen: dict[str, list[Any]] = {}
    for line in (out / "seen.jsonl").read_text().splitlines():
        number, *what = json.loads(line)
        if seen.setdefault(str(number), what) != what:
            raise SystemExit(f"{out}: part {number} was done again with other data")
    with np.load(out / "statistics.npz") as arrays:
        statistics = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    result = json.loads((out / "result.json").read_text())
    return {
        "last": last,
        "best": checkpoint.read(out / "best.ckpt"),
        "rows": rows,
        "seen": seen,
        "statistics": statistics,
        "result": {key: result[key] for key in ("status", "metrics", "weights_sha256")},
    }


def kill_and_resume(out: Path, steps: int, workers: list[int], kills: int, seed: int) -> list[str]:
    """Train in `out`, resuming after each of `kills` deaths with any of `workers` loader workers; what killed it."""
    context = multiprocessing.get_context("spawn")
    rng = random.Random(seed)
    deaths: list[str] = []
    while True:
        kind, calls = (KINDS[len(deaths) % 3], rng.randint(1, 9)) if len(deaths) < kills else (None, 0)
        process = context.Process(target=train, args=(out, steps, rng.choice(workers), kind, calls))
        process.start()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            deaths.append(f"{kind} {calls}")
        elif process.exitcode:
            raise SystemExit(f"the process after {deaths or 'no death'} ended with {process.exitcode}")
        else:
            return deaths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps = 12 + STEPS_A_KILL * args.kills  # enough that the run does not end before its last death
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        for out in (alone, killed):
            out.mkdir()
        undisturbed = multiprocessing.get_context("spawn").Process(target=train, args=(alone, steps, 0))
        undisturbed.start()
        deaths = kill_and_resume(killed, steps, args.workers, args.kills, args.seed)
        undisturbed.join()
        wrong = differences(contents(alone), contents(killed))
        repeated = len((killed / "seen.jsonl").read_text().splitlines()) - 2 * steps
    print(f"{len(deaths)} kills ({', '.join(deaths)}), workers {args.workers}, {repeated} parts of steps done again")
    print("every bit is equal" if not wrong else f"not equal: {wrong}")
    return 1 if wrong or len(deaths) < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
