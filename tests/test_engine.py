"""The engine in one process: what a run leaves behind, what its options do, how it ends when things go wrong."""

from __future__ import annotations

import copy
import csv
import errno
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only
from tiny import FAST, SGD, Tiny, cpu, same, scenes, small_fcn, weights
from torch import nn

import zoo.evaluation
import zoo.runlog
import zoo.training
from zoo import checkpoint
from zoo.data import Dataset
from zoo.devices import Stop
from zoo.engine import create_fabric, create_tensorboard, evaluate, fit
from zoo.errors import ZooError
from zoo.evaluation import Stopped, measure, renaming
from zoo.metrics import create_metric
from zoo.models import create_model
from zoo.recipe import Recipe
from zoo.report import result
from zoo.state import Average, Progress, compile_parts, freeze_norms, is_finite
from zoo.structures import VOID, Batch, Class, Instances, Panoptic, Semantic, as_classes

ROOT = Path(__file__).parents[1]


def run(out: Path, model: Any = None, val: Dataset | None = None, **options: Any) -> dict[str, Any]:
    train = scenes()
    return fit(
        Tiny(train.classes) if model is None else model,
        train,
        val,
        out=out,
        fabric=options.pop("fabric", None) or cpu(),
        optimizer=options.pop("optimizer", SGD),
        **{**FAST, "steps": 4, **options},
    )


def rows(out: Path, name: str) -> dict[int, float]:
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}


# ---- a whole run


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    val, test = scenes("val", 3), scenes("test", 4)
    model = Tiny(val.classes)
    facts = fit(
        model, scenes(), val, test, out=tmp_path, fabric=cpu(), optimizer=SGD, **FAST, steps=4, evaluate_every=2
    )
    assert facts["status"] == "ok"
    assert facts["selected_on"] == "val"
    assert facts["dataset"] == {"name": "scenes", "split": "test", "fingerprint": test.fingerprint(), "images": 4}
    assert facts["cost"]["parameters"] == sum(p.numel() for p in model.parameters())
    # two multiply-adds each: 32*32 pixels, 3x3x3 -> 8 and 8 -> K
    assert facts["cost"]["flops"] == 2 * 32 * 32 * (27 * 8 + 8 * len(val.classes))
    assert facts["cost"]["size"] == [32, 32]
    assert facts["cost"]["steps"] == 4
    assert facts["weights_sha256"] == checkpoint.weights_sha256(weights(tmp_path, "best.ckpt"))
    assert same(model.state_dict(), weights(tmp_path, "best.ckpt"))
    assert facts["metrics"] == pytest.approx(evaluate(model, test, fabric=cpu()), nan_ok=True, abs=0)
    low, high = facts["intervals"]["mIoU"]
    assert low <= facts["metrics"]["mIoU"] <= high
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    with np.load(tmp_path / "statistics.npz") as arrays:
        assert arrays["ids"].tolist() == [0, 1, 2, 3]
        hit, predicted, truth = arrays["statistics"].sum(0)
    defined = predicted + truth - hit > 0
    assert facts["metrics"]["mIoU"] == pytest.approx((hit / np.maximum(predicted + truth - hit, 1))[defined].mean())
    assert list(rows(tmp_path, "val/mIoU")) == [2, 4]
    assert list(rows(tmp_path, "train/loss")) == [1, 2, 3, 4]


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    facts = run(tmp_path)
    assert facts["status"] == "ok"
    assert facts["selected_on"] is None
    assert same(weights(tmp_path, "best.ckpt"), weights(tmp_path))


def test_the_best_evaluation_is_kept_and_patience_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.3, float("nan"), 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(fabric: Any, model: Any, *_: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"mIoU": next(scores)}

    monkeypatch.setattr(zoo.training, "measure", scripted)
    facts = run(tmp_path, val=scenes("val", 2), steps=5, evaluate_every=1, patience=2)
    assert len(seen) == 4
    assert facts["cost"]["steps"] == 4
    assert same(weights(tmp_path, "best.ckpt"), seen[1])
    progress = checkpoint.read(tmp_path / "last.ckpt")["training"]["progress"]
    assert (progress["best"], progress["best_step"], progress["misses"]) == (0.5, 2, 2)


def test_rows_are_means_over_their_steps(tmp_path: Path) -> None:
    run(tmp_path / "each", steps=6)
    run(tmp_path / "three", steps=6, log_every=3)
    each = rows(tmp_path / "each", "train/loss")
    assert rows(tmp_path / "three", "train/loss") == {
        3: pytest.approx(np.mean([each[i] for i in (1, 2, 3)])),
        6: pytest.approx(np.mean([each[i] for i in (4, 5, 6)])),
    }


# ---- what the options do


def test_parts_of_a_step_equal_the_whole(tmp_path: Path) -> None:
    run(tmp_path / "whole", batch_size=4, steps=3)
    run(tmp_path / "parts", batch_size=4, steps=3, accumulate=4)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    assert not same(weights(tmp_path / "whole"), Tiny(scenes().classes).state_dict())
    a, b = rows(tmp_path / "whole", "train/loss"), rows(tmp_path / "parts", "train/loss")
    assert a == pytest.approx(b, rel=1e-5)


def test_a_batch_of_one_trains(tmp_path: Path) -> None:
    train = scenes()
    model = create_model("deeplabv3", train.classes, "test_resnet", channels=16)
    assert run(tmp_path, model, batch_size=1, steps=2)["status"] == "ok"


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    start = Tiny(scenes().classes).state_dict()
    plain = {**SGD, "lr": 1.0, "momentum": 0.0}
    for clip in (None, 0.01):
        run(tmp_path / str(clip), steps=1, clip=clip, optimizer=plain)
    moved = {
        clip: float(sum((weights(tmp_path / clip)[name] - start[name]).pow(2).sum() for name in start)) ** 0.5
        for clip in ("None", "0.01")
    }
    assert moved["None"] > 0.02
    assert moved["0.01"] == pytest.approx(0.01, rel=1e-3)


def test_the_rate_follows_the_schedule(tmp_path: Path) -> None:
    run(tmp_path, steps=4, schedule="poly", warmup=2, power=1.0)
    assert rows(tmp_path, "train/lr") == pytest.approx({1: 0.05, 2: 0.1, 3: 0.1, 4: 0.05})


def test_averages_follow_the_formula() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = Average(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in (1, 2, 30):
        model(torch.randn(2, 1, 3, 3))
        with torch.no_grad():
            model[0].weight += step
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_averaged_weights_are_evaluated_and_kept(tmp_path: Path) -> None:
    run(tmp_path, val=scenes("val", 2), ema=0.9)
    file = checkpoint.read(tmp_path / "last.ckpt")
    assert same(weights(tmp_path, "best.ckpt"), file["training"]["average"])
    assert not same(weights(tmp_path, "best.ckpt"), file["state"])


@pytest.mark.parametrize("which", ["backbone", "all"])
def test_frozen_norms_stay_through_training_and_evaluation(tmp_path: Path, which: str) -> None:
    model = small_fcn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(tmp_path, model, scenes("val", 2), freeze_norm=which, evaluate_every=1, steps=2)
    after = weights(tmp_path)
    for owner, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            frozen = which == "all" or owner.startswith("backbone.")
            changed = {
                leaf
                for leaf in module.state_dict()
                if not torch.equal(before[f"{owner}.{leaf}"], after[f"{owner}.{leaf}"])
            }
            assert changed == (set() if frozen else set(module.state_dict())), owner
    assert not torch.equal(before["classifier.0.weight"], after["classifier.0.weight"])


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    run(tmp_path / "often", small_fcn(), scenes("val", 2), evaluate_every=1, steps=3)
    run(tmp_path / "never", small_fcn(), None, steps=3)
    assert same(weights(tmp_path / "often"), weights(tmp_path / "never"))


def test_mixed_precision_reaches_loss_and_predict(tmp_path: Path) -> None:
    seen = []

    class Watching(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            seen.append((self.training, logits.dtype))
            return logits

    train = scenes()
    run(tmp_path, Watching(train.classes), scenes("val", 1), fabric=create_fabric("cpu", precision="bf16-mixed"))
    assert {(True, torch.bfloat16), (False, torch.bfloat16)} == set(seen)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())


def test_channels_last(tmp_path: Path) -> None:
    model = small_fcn()
    run(tmp_path, model, steps=1, channels_last=True)
    assert model.classifier[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_compiled_parts_cover_the_weights_and_keep_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    original, compiled = torch.compile, []

    def eager(function: Any) -> Any:
        compiled.append(getattr(function, "__self__", model.backbone))  # a backbone's is no method
        return original(function, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    model = small_fcn(dropout=0.0)
    train = scenes()
    batch = Batch.collate([train[0], train[1]])
    expected = {name: value.item() for name, value in model.loss(batch).items()}
    compile_parts(model)
    assert {id(p) for part in compiled for p in part.parameters()} == {id(p) for p in model.parameters()}
    assert {name: value.item() for name, value in model.loss(batch).items()} == pytest.approx(expected, rel=1e-6)
    assert "loss" not in vars(model)
    twin = copy.deepcopy(model).requires_grad_(False)
    torch.nn.init.zeros_(twin.backbone.model.conv1[0].weight)  # a copy computes with its own weights
    assert sum(twin.loss(batch).values()).item() != pytest.approx(sum(expected.values()), rel=1e-3)


def test_a_tapped_backbone_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: original(function, backend="eager"))
    torch.manual_seed(0)
    train = scenes()
    model = create_model("deeplabv3", train.classes, "test_resnet", channels=16, dropout=0.0, aux_module="layer2.0")
    batch = Batch.collate([train[0], train[1]])

    def losses() -> dict[str, float]:
        torch.manual_seed(1)  # dropout
        return {name: value.item() for name, value in model.loss(batch).items()}

    expected = losses()
    compile_parts(model)
    for _ in range(2):
        assert losses() == pytest.approx(expected, rel=1e-5)
    assert len(model.predict(batch)) == 2


def test_keywords_are_those_of_the_card() -> None:
    card = yaml.safe_load((ROOT / "conf" / "trainer" / "default.yaml").read_text())
    ours = {f.name: f.default for f in fields(Recipe)}
    assert {name: card[name] for name in card if name not in ("device", "devices", "nodes", "precision")} == ours


# ---- how a run ends when things go wrong


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


# ---- what people see


def test_tensorboard_gets_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, fabric=create_fabric("cpu", loggers=[create_tensorboard(tmp_path / "events")]))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx(rows(tmp_path, "train/loss"), rel=1e-6)


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "file", steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1", "step 2"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run(tmp_path / "terminal", steps=2)
    assert "2/2" in capsys.readouterr().out


def test_deterministic_kernels_are_asked_for(tmp_path: Path) -> None:
    try:
        run(tmp_path, steps=1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_memory_is_of_this_run(tmp_path: Path) -> None:
    torch.empty(2**30, dtype=torch.uint8, device="cuda")  # 1 GiB, freed at once
    assert run(tmp_path, fabric=create_fabric("cuda"))["cost"]["peak_memory_mb"] < 1024


def test_a_run_starts_its_own_peak_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(zoo.training, "reset_peak_memory", devices.append)
    run(tmp_path, steps=1)
    assert devices == [torch.device("cpu")]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", devices.append)
    zoo.evaluation.reset_peak_memory(torch.device("cuda", 1))
    assert devices[1:] == [torch.device("cuda", 1)]


# ---- evaluation


def test_evaluation_writes_a_result_of_its_own(tmp_path: Path) -> None:
    val = scenes("val", 3)
    scores = evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path, batch_size=2)
    facts = result.read(tmp_path)
    assert facts["status"] == "ok"
    assert facts["metrics"] == pytest.approx(scores, nan_ok=True, abs=0)
    assert (tmp_path / "statistics.npz").exists()


def test_facts_of_the_caller_are_kept(tmp_path: Path) -> None:
    result.start(tmp_path, overrides=["model=tiny"], dataset={"name": "my scenes"})
    val = scenes("val", 1)
    evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path)
    facts = result.read(tmp_path)
    assert facts["overrides"] == ["model=tiny"]
    assert facts["dataset"]["images"] == 1


def test_evaluation_equals_a_plain_loop_for_any_batch_size() -> None:
    val = scenes("val", 5)
    model = small_fcn()
    metric = create_metric("semantic", val.classes)
    model.eval()
    for i in range(len(val)):
        metric.update(model.predict(Batch.collate([val[i]])), [val[i].target], [i])
    for batch_size in (1, 2):
        assert evaluate(model, val, fabric=cpu(), batch_size=batch_size) == pytest.approx(
            metric.compute(), nan_ok=True, abs=0
        )


def test_evaluation_leaves_modes_and_random_numbers_alone() -> None:
    model = small_fcn().train()
    freeze_norms(model, "backbone")
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    evaluate(model, scenes("val", 2), fabric=cpu())
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == modes


def test_classes_are_matched_by_name() -> None:
    val = scenes("val", 2)
    table = list(reversed(val.classes))
    own = (Class("unicorn", (1, 2, 3)), *table)
    model, plain = Tiny(own), Tiny(val.classes)
    with torch.no_grad():  # the same predictions under other numbers; unicorns are never predicted
        plain.head.weight.copy_(model.head.weight[1:].flip(0))
        plain.head.bias.copy_(model.head.bias[1:].flip(0))
        model.head.bias[0] = -1e9
    assert evaluate(model, val, fabric=cpu()) == pytest.approx(evaluate(plain, val, fabric=cpu()), nan_ok=True, abs=0)
    with pytest.raises(ZooError, match=r"no class in common: class_0, .* against "):
        evaluate(Tiny(as_classes(3)), val, fabric=cpu())
    with pytest.raises(ZooError, match="other classes than the dataset"):
        evaluate(plain, val, fabric=cpu(), metric=create_metric("semantic", 3))


def test_renaming_each_structure() -> None:
    rename = renaming(as_classes(["a", "b", "c"]), as_classes(["c", "a"]))
    labels = rename(Semantic(torch.tensor([[0, 1, 2, VOID]], dtype=torch.uint8))).labels
    assert labels.tolist() == [[1, VOID, 0, VOID]]
    assert labels.dtype == torch.uint8
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]])
    instances = rename(
        Instances(
            None,
            torch.tensor([2, 1, 0]),
            torch.tensor([0.9, 0.8, 0.7]),
            torch.zeros(3, dtype=torch.bool),
            boxes,
            size=(4, 4),
        )
    )
    assert instances.labels.tolist() == [0, 1]
    assert instances.boxes.tolist() == boxes[[0, 2]].tolist()
    panoptic = rename(
        Panoptic(
            torch.tensor([[0, 1, 2, 3]], dtype=torch.int32),
            torch.tensor([VOID, 1, 2, 0]),
            torch.ones(4),
            torch.zeros(4, dtype=torch.bool),
        )
    )
    assert panoptic.ids.tolist() == [[0, 0, 1, 2]]
    assert panoptic.labels.tolist() == [VOID, 0, 1]
    same_classes = as_classes(["a"])
    prediction = Semantic(torch.zeros(1, 1, dtype=torch.uint8))
    assert renaming(same_classes, same_classes)(prediction) is prediction


def test_progress_counts_misses_and_nan_is_worst() -> None:
    progress = Progress(step=1)
    assert progress.judge(float("nan"))
    assert progress.judge(0.0)
    assert not progress.judge(0.0)
    assert not progress.judge(float("nan"))
    assert progress.misses == 2
