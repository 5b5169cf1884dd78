"""A run that is killed again and again ends with the bits of one that was left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import FAST, cpu, same, scenes, small_fcn, weights

from zoo import checkpoint
from zoo.engine import fit

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "resume.py"


def test_killed_and_resumed_equals_left_alone() -> None:
    """Four SIGKILLs (in a loss, in a prediction, before two renames), one and two loader workers, against none."""
    command = [sys.executable, str(BENCHMARK), "--kills", "4", "--workers", "1", "2", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert "every bit is equal" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("forget", [None, "random", "optimizer", "average"])
def test_each_part_of_the_state_is_needed(tmp_path: Path, forget: str | None) -> None:
    """The comparison notices a checkpoint that lacks a part."""
    options = {**FAST, "fabric": cpu(), "optimizer": {"name": "adamw", "lr": 1e-3}, "ema": 0.9, "save_every": 2}
    fit(small_fcn(), scenes(), out=tmp_path / "alone", **options, steps=4)
    out = tmp_path / "resumed"
    with pytest.raises(InterruptedError):
        fit(_interrupted(small_fcn(), after=3), scenes(), out=out, **options, steps=4)
    file = checkpoint.read(out / "last.ckpt", mmap=False)
    assert file["training"]["progress"]["step"] == 2
    if forget == "random":
        file["training"]["random"] = [{"cpu": torch.Generator().manual_seed(1).get_state()}]
    elif forget == "optimizer":
        file["training"]["optimizer"]["state"] = {}
    elif forget == "average":
        file["training"]["average"] = None
    checkpoint.save(out / "last.ckpt", file)
    fit(small_fcn(), scenes(), out=out, resume=True, **options, steps=4)
    equal = all(same(weights(out, name), weights(tmp_path / "alone", name)) for name in ("last.ckpt", "best.ckpt"))
    assert equal == (forget is None)


def _interrupted(model, after: int):
    """`model`, whose loss fails at the call `after`."""

    class Interrupted(type(model)):
        calls = 0

        def loss(self, batch):
            Interrupted.calls += 1
            if Interrupted.calls == after:
                raise InterruptedError
            return super().loss(batch)

    model.__class__ = Interrupted
    return model


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    options = {**FAST, "fabric": cpu(), "steps": 2, "out": tmp_path}
    first = fit(small_fcn(), scenes(), scenes("val", 2), **options)
    again = fit(small_fcn(), scenes(), scenes("val", 2), resume=True, **options)
    assert again["metrics"] == pytest.approx(first["metrics"], nan_ok=True, abs=0)
    assert again["weights_sha256"] == first["weights_sha256"]


def test_resume_before_the_first_save_starts_anew(tmp_path: Path) -> None:
    assert fit(small_fcn(), scenes(), out=tmp_path, fabric=cpu(), resume=True, **FAST, steps=1)["status"] == "ok"


def test_statistics_of_the_input_are_restored(tmp_path: Path) -> None:
    """Imported weights bring their own mean and std; a run that is resumed without importing again keeps them."""
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    model = small_fcn()
    model.backbone.set_statistics(mean, std)
    options = {**FAST, "fabric": cpu(), "out": tmp_path, "ema": 0.9}
    fit(model, scenes(), **options, steps=1)
    resumed = small_fcn()
    fit(resumed, scenes(), resume=True, **options, steps=2)
    assert resumed.backbone.mean.flatten().tolist() == pytest.approx(mean)
    assert resumed.backbone.std.flatten().tolist() == pytest.approx(std)
    for name in ("last.ckpt", "best.ckpt"):
        backbone = checkpoint.read(tmp_path / name)["header"]["backbone"]
        assert (backbone["mean"], backbone["std"]) == (mean, std)


def test_another_rate_and_decay_take_effect(tmp_path: Path) -> None:
    options = {**FAST, "fabric": cpu(), "out": tmp_path}
    fit(small_fcn(), scenes(), **options, steps=1, optimizer={"name": "adamw", "lr": 1e-2, "weight_decay": 0.1})
    fit(
        small_fcn(),
        scenes(),
        resume=True,
        **options,
        steps=2,
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.2},
    )
    groups = checkpoint.read(tmp_path / "last.ckpt")["training"]["optimizer"]["param_groups"]
    assert {group["lr"] for group in groups} == {group["initial_lr"] for group in groups} == {1e-3}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}


def test_an_average_that_is_new_starts_from_the_restored_weights(tmp_path: Path) -> None:
    options = {**FAST, "fabric": cpu(), "out": tmp_path}
    fit(small_fcn(), scenes(), **options, steps=2)
    before = weights(tmp_path)
    fit(small_fcn(), scenes(), resume=True, ema=0.9, **options, steps=3)
    file = checkpoint.read(tmp_path / "last.ckpt")
    decay = min(0.9, 4 / 13)
    for name, value in file["training"]["average"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, decay * before[name] + (1 - decay) * file["state"][name])
