"""Several processes give what one gives: evaluation to the bit, training up to rounding."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAST, SGD, Tiny, cpu, scenes, small_fcn, weights
from torch import Tensor

from zoo import checkpoint
from zoo.devices import Stop, gather, launch
from zoo.engine import create_fabric, evaluate, fit
from zoo.errors import ZooError
from zoo.evaluation import Stopped, measure
from zoo.metrics import create_metric
from zoo.report import result
from zoo.structures import Batch, Sample

LENGTHS = (5, 4, 1)  # odd, even, fewer than processes


def test_two_processes_equal_one(tmp_path: Path) -> None:
    two = launch(create_fabric("cpu", devices=2), on_each, tmp_path / "two")
    assert two["world"] == 2
    assert two["stopped"] == [True, True]
    for length in LENGTHS:
        val = scenes("val", length)
        metric = create_metric("semantic", val.classes)
        scores = evaluate(small_fcn(), val, fabric=cpu(), metric=metric)
        assert two[length]["scores"] == pytest.approx(scores, nan_ok=True, abs=0)
        assert two[length]["rows"] == [table.tolist() for table in metric.rows()]
        assert sorted(i for part in two[length]["ids"] for i in part) == list(range(length))
        assert abs(len(two[length]["ids"][0]) - len(two[length]["ids"][1])) <= 1

    facts = train_both(cpu(), tmp_path / "one")
    assert two["facts"]["metrics"].keys() == facts["metrics"].keys()
    for name in ("train", "accumulated"):
        one, other = weights(tmp_path / "one" / name), weights(tmp_path / "two" / name)
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5)
    assert not torch.equal(one["head.weight"], Tiny(scenes().classes).head.weight)
    assert len(checkpoint.read(tmp_path / "two" / "train" / "last.ckpt")["training"]["random"]) == 2
    # Norms that are not synchronised differ between processes in training; all evaluate with those of rank 0.
    best = small_fcn()
    best.load_state_dict(weights(tmp_path / "two" / "norms", "best.ckpt"))
    alone = evaluate(best, scenes("val", 3), fabric=cpu())
    assert two["norms"]["metrics"] == pytest.approx(alone, nan_ok=True, abs=0)


def on_each(fabric: Any, out: Path) -> dict[Any, Any]:
    """Everything that the test compares, on every process at once."""
    found: dict[Any, Any] = {"world": fabric.world_size}
    for length in LENGTHS:
        val = scenes("val", length)
        metric = create_metric("semantic", val.classes)
        scores = evaluate(small_fcn(), val, fabric=fabric, metric=metric)
        ids = gather(fabric, [i for part in metric.ids for i in part.reshape(-1).tolist()])
        found[length] = {"scores": scores, "rows": [table.tolist() for table in metric.rows()], "ids": ids}
    found["stopped"] = gather(fabric, stops(fabric))
    found["facts"] = train_both(fabric, out)
    norms = {**FAST, "fabric": fabric, "out": out / "norms", "steps": 2, "ema": 0.5}
    found["norms"] = fit(small_fcn(), scenes(), scenes("val", 3), **norms)
    return found


def stops(fabric: Any) -> bool:
    """Whether evaluation stops here when another process alone is asked to."""
    val, stop = scenes("val", 4), Stop()
    stop.requested = fabric.global_rank == 1
    try:
        measure(fabric, Tiny(val.classes), val, create_metric("semantic", val.classes), stop=stop)
    except Stopped:
        return True
    return False


def train_both(fabric: Any, out: Path) -> dict[str, Any]:
    """Train with and without accumulation; the truth has no void, so each process's mean is over as many pixels."""
    train, options = scenes(), {**FAST, "fabric": fabric, "optimizer": SGD, "batch_size": 4, "steps": 3}
    facts = fit(Tiny(train.classes), train, scenes("val", 2), out=out / "train", **options)
    fit(Tiny(train.classes), train, out=out / "accumulated", **options, accumulate=2)
    return facts


class FailsOnRankOne(Tiny):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        if torch.distributed.get_rank() == 1:
            losses["half"] = losses["half"] * float("nan")
        return losses


def test_a_loss_that_is_not_finite_on_one_process_stops_all_and_names_all_images(tmp_path: Path) -> None:
    train = scenes()
    with pytest.raises(
        ZooError, match=r"^the loss is not finite at step 1: half nan, .*images (\d+ .*){4}no checkpoint"
    ):
        fit(
            FailsOnRankOne(train.classes),
            train,
            out=tmp_path,
            fabric=create_fabric("cpu", devices=2),
            **{**FAST, "steps": 3, "batch_size": 4},
        )
    facts = result.read(tmp_path)
    assert facts["status"] == "failed"
    assert facts["reason"].startswith("the loss is not finite")
    assert not (tmp_path / "last.ckpt").exists()


def as_float(sample: Sample, rng: np.random.Generator) -> Sample:
    """Every pixel a number that bfloat16 does not have."""
    return replace(sample, image=np.full(sample.image.shape, 0.123456789, np.float32))


class Slow(Tiny):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        time.sleep(0.05)
        assert batch.images.dtype == torch.float32
        assert (batch.images == np.float32(0.123456789)).all()
        return super().loss(batch)


def test_mixed_precision_spares_images_and_a_request_to_stop_reaches_all_processes(tmp_path: Path) -> None:
    def ask_once_it_trains() -> None:
        while not (tmp_path / "last.ckpt").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask_once_it_trains, daemon=True).start()
    train = scenes(transform=as_float)
    options = {**FAST, "optimizer": SGD, "batch_size": 4, "save_every": 1, "out": tmp_path}
    fabric = create_fabric("cpu", devices=2, precision="bf16-mixed")
    facts = fit(Slow(train.classes), train, **options, fabric=fabric, steps=4000)
    assert facts["status"] == "killed"
    progress = checkpoint.read(tmp_path / "last.ckpt")["training"]["progress"]
    assert 0 < progress["step"] < 4000
