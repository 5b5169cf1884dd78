"""How a run ends when things go wrong: what is said, what is kept, what can be resumed."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from tiny import SGD, Tiny, cpu, rows, run, same, scenes, small_fcn, weights
from torch import nn

import zoo.evaluation
import zoo.runlog
import zoo.training
from zoo import checkpoint
from zoo.data import Dataset
from zoo.devices import Stop
from zoo.engine import create_fabric, evaluate, fit
from zoo.errors import ZooError
from zoo.evaluation import Stopped, measure
from zoo.metrics import create_metric
from zoo.report import result
from zoo.state import is_finite
from zoo.structures import Batch, as_classes

ROOT = Path(__file__).parents[1]


class Failing(Tiny):
    """Calls `trouble(loss)` instead of its loss at the given call."""

    def __init__(self, classes: Any, at: int, trouble: Any) -> None:
        super().__init__(classes)
        self.calls, self.at, self.trouble = 0, at, trouble

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.calls += 1
        losses = super().loss(batch)
        return self.trouble(losses) if self.calls == self.at else losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_images_and_spares_the_checkpoints(tmp_path: Path, value: float) -> None:
    train = scenes()
    model = Failing(train.classes, 3, lambda losses: {**losses, "half": losses["half"] * value})
    with pytest.raises(ZooError, match=r"not finite at step 3: half (nan|inf), other_half") as error:
        run(tmp_path, model, save_every=1)
    from zoo.data.loader import TrainSampler

    for _, index in list(TrainSampler(len(train), 2, steps=4))[2]:
        assert f"{index} ({train.name(index)})" in str(error.value)
    assert checkpoint.read(tmp_path / "last.ckpt")["training"]["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    facts = result.read(tmp_path)
    assert facts["status"] == "failed"
    assert "not finite" in facts["reason"]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_gradient_that_is_not_finite_spares_the_checkpoints(tmp_path: Path, ema: float | None) -> None:
    val = scenes("val", 1)
    model: Any = None

    def trouble(losses: Any) -> Any:  # the root of zero is zero, its slope is not finite
        return {**losses, "half": losses["half"] + (0 * model.head.weight.sum()).sqrt()}

    model = Failing(val.classes, 3, trouble)
    with pytest.raises(ZooError, match=r"^the weights are not finite after step 3; last\.ckpt was not overwritten"):
        run(tmp_path, model, val, save_every=1, evaluate_every=1, ema=ema)
    assert checkpoint.read(tmp_path / "last.ckpt")["training"]["progress"]["step"] == 2
    for name in ("last.ckpt", "best.ckpt"):
        assert all(value.isfinite().all() for value in weights(tmp_path, name).values())


def test_finite_is_told_from_not_finite() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Embedding(0, 1))
    torch.nn.init.constant_(model[0].weight, 3e38)  # its square overflows
    assert is_finite(model)
    for tensor in (model[0].bias.data, model[1].running_var):
        for value in (float("nan"), float("-inf")):
            tensor.fill_(value)
            assert not is_finite(model)
        tensor.fill_(1.0)
    assert is_finite(nn.ReLU())


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    def trouble(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(
        ZooError, match=r"out of memory on cpu at step 0 with 2 image.*raise trainer\.accumulate \(now 1\)"
    ):
        run(tmp_path, Failing(scenes().classes, 1, trouble))


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def trouble(_: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        run(tmp_path, Failing(scenes().classes, 1, trouble))
    assert result.read(tmp_path)["status"] == "failed"


def test_a_full_disk_ends_the_run_and_leaves_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, saves = torch.save, []

    def fails_later(*args: Any) -> None:
        saves.append(1)
        if len(saves) > 2:
            raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
        original(*args)

    monkeypatch.setattr(torch, "save", fails_later)
    with pytest.raises(ZooError, match=r"could not write .*last\.ckpt"):
        run(tmp_path, save_every=1)
    assert checkpoint.read(tmp_path / "last.ckpt")["training"]["progress"]["step"] == 2
    monkeypatch.setattr(torch, "save", original)
    assert run(tmp_path, resume=True)["status"] == "ok"


@pytest.fixture
def full() -> str:
    if not os.path.exists("/dev/full"):
        pytest.skip("only Linux has a file that is always full")
    return "/dev/full"


FIRST_PICTURE = f"000000_{scenes('val', 1).name(0)}.png"


@pytest.mark.parametrize("name", ["statistics.npz", f"pictures/{FIRST_PICTURE}"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, full: str, name: str) -> None:
    val = scenes("val", 1)
    evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path)
    path = tmp_path / name
    before = path.read_bytes()
    path.with_name(f".tmp.{path.name}").symlink_to(full)
    with pytest.raises(ZooError, match=rf"^the disk is full: .*{path.name} could not be written$"):
        evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path)
    assert path.read_bytes() == before
    assert result.read(tmp_path)["status"] == "failed"
    assert "disk is full" in result.read(tmp_path)["reason"]
    assert not list(tmp_path.rglob(".tmp.*"))


def test_a_full_disk_is_told_by_the_rows(tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.runlog, "_truncate", lambda path, *_: path.symlink_to(full))
    with pytest.raises(ZooError, match=r"^the disk is full: .*metrics\.csv could not be written$"):
        run(tmp_path)


def test_a_full_disk_is_told_by_the_result(tmp_path: Path, full: str) -> None:
    (tmp_path / f"result.{os.getpid()}.tmp").symlink_to(full)
    with pytest.raises(ZooError, match=r"^the disk is full: .*result\.json could not be written$"):
        run(tmp_path)


def test_a_result_that_cannot_be_written_does_not_hide_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result, "finish", no_space)
    with pytest.raises(ZooError, match="the loss is not finite at step 1"):
        run(tmp_path, Failing(scenes().classes, 1, lambda losses: {**losses, "half": losses["half"] * float("nan")}))


def test_a_request_to_stop_in_another_process_stops_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    val = scenes("val", 2)
    metric = create_metric("semantic", val.classes)
    monkeypatch.setattr(zoo.evaluation, "gather", lambda fabric, value: [value, True])
    with pytest.raises(Stopped):
        measure(cpu(), Tiny(val.classes), val, metric, stop=Stop())


def test_a_request_to_stop_saves_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def ask(losses: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return losses

    handler = signal.getsignal(signal.SIGTERM)
    val = scenes("val", 2)
    facts = run(tmp_path / "asked", Failing(val.classes, 3, ask), val, steps=5)
    assert facts["status"] == "killed"
    assert "step 3" in facts["reason"]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert run(tmp_path / "asked", val=val, steps=5, resume=True)["status"] == "ok"
    run(tmp_path / "alone", val=val, steps=5)
    assert same(weights(tmp_path / "asked"), weights(tmp_path / "alone"))
    assert rows(tmp_path / "asked", "train/loss") == rows(tmp_path / "alone", "train/loss")


def test_rows_after_the_saved_step_are_dropped_on_resume(tmp_path: Path) -> None:
    val = scenes("val", 1)
    run(tmp_path / "a", val=val, steps=4, evaluate_every=2)
    before = (tmp_path / "a" / "metrics.csv").read_text()
    with (tmp_path / "a" / "metrics.csv").open("a") as file:
        file.write("5,train/loss,1.0\n5,val/mIoU,0.5\n6,train/lo")
    run(tmp_path / "a", val=val, steps=4, evaluate_every=2, resume=True)
    assert (tmp_path / "a" / "metrics.csv").read_text() == before


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    with pytest.raises(ZooError, match="holds a run already: resume it"):
        run(tmp_path, steps=1)
    assert result.read(tmp_path)["status"] == "ok"


def test_a_model_file_cannot_be_resumed(tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path / "last.ckpt", Tiny(scenes().classes))
    with pytest.raises(ZooError, match="without training state"):
        run(tmp_path, resume=True)


def test_a_run_of_another_model_cannot_be_resumed(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    with pytest.raises(ZooError, match=r"of another model or optimizer .*resume with the settings"):
        run(tmp_path, small_fcn(), resume=True)
    with pytest.raises(ZooError, match="of another model or optimizer"):
        run(tmp_path, optimizer={**SGD, "backbone_lr_factor": 0.1}, resume=True)


def test_a_mistake_in_a_worker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ZooError) as error:
        fit(Tiny(scenes().classes), Broken(length=4), out=tmp_path, fabric=cpu(), steps=1, batch_size=2, workers=1)
    assert str(error.value) == "broken.png is truncated"
    assert result.read(tmp_path)["reason"] == "broken.png is truncated"


def Broken(**options: Any) -> Dataset:
    return scenes(transform=_broken, **options)


def _broken(*_: Any) -> None:
    raise ZooError("broken.png is truncated")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 3}, "unknown keyword of fit 'step': did you mean steps"),
        ({"steps": 0}, "steps=0: at least 1"),
        ({"batch_size": 3, "accumulate": 2}, "take a multiple of 2"),
        ({"freeze_norm": "head"}, "choose false, backbone or all"),
        ({"ema": 1.5}, r"a decay lies in \[0, 1\)"),
        ({"patience": 0}, "patience=0: at least 1 evaluation, or null"),
        ({"clip": 0}, "clip=0: a norm above 0, or null"),
        ({"clip": float("nan")}, "clip=nan: a norm above 0"),
        ({"clip": "norm"}, "clip=norm: a norm above 0"),
        ({"workers": -1}, "^workers=-1: at least 0"),
        ({"eval_workers": -1}, "eval_workers=-1: at least 0"),
        ({"warmup": -5}, "warmup=-5: at least 0"),
        ({"schedule": "poli"}, "did you mean poly"),
        ({"optimizer": {"name": "adamx"}}, "unknown optimizer 'adamx'"),
        ({"model": Tiny(as_classes(3))}, "the model's 3 classes are not the dataset's 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ZooError, match=said):
        run(tmp_path, **options)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': this machine has cpu"),
        ({"device": "cpu", "precision": "bf16"}, "unknown precision 'bf16': did you mean bf16-mixed"),
        ({"device": "cpu", "devices": 0}, "at least one"),
        ({"device": "cpu", "nodes": 2}, "torchrun or SLURM"),
        ({"device": "cpu", "devices": 2, "strategy": "fsdp"}, "unknown strategy 'fsdp'"),
        pytest.param(
            {"device": "cuda"},
            "device cuda is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)
def test_devices_that_are_not_there(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ZooError, match=said):
        create_fabric(**options)


def test_torchrun_decides_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Fabric sets it for good
    for name, value in {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fabric = create_fabric("cpu", devices=1)
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank) == (4, 3, 1)
    assert type(fabric.strategy.launcher).__name__ != "_MultiProcessingLauncher"


def test_a_second_interrupt_stops_at_once_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGINT) is before
