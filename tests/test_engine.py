"""The engine in one process: what a run leaves behind, what its options do, what people see."""

from __future__ import annotations

import copy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import FAST, SGD, Tiny, cpu, rows, run, same, scenes, small_fcn, weights
from torch import nn

import zoo.evaluation
import zoo.runlog
import zoo.training
from zoo import checkpoint
from zoo.engine import create_fabric, create_tensorboard, evaluate, fit
from zoo.models import create_model
from zoo.recipe import Recipe
from zoo.state import Average, compile_parts
from zoo.structures import Batch

ROOT = Path(__file__).parents[1]


# ---- a whole run


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    val, test = scenes("val", 3), scenes("test", 4)
    model = Tiny(val.classes)
    facts = fit(
        model, scenes(), val, test, out=tmp_path, fabric=cpu(), optimizer=SGD, **FAST, steps=4, evaluate_every=2
    )
    assert facts["status"] == "ok"
    assert facts["selected_on"] == "val"
    assert facts["dataset"] == {
        "name": "scenes",
        "split": "test",
        "fingerprint": test.fingerprint(),
        "origin": test.fingerprint(any_task=True),
        "images": 4,
    }
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
