"""The table: what may be compared stands together, seeds are one row, crashed runs stay in it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zoo.data import create_dataset
from zoo.metrics import create_metric
from zoo.report import result
from zoo.report.__main__ import main
from zoo.report.table import across_tasks, collect, print_table, tabulate, to_csv, to_markdown

DATA = {"name": "camvid", "split": "test", "fingerprint": "f00d", "images": 233}


def run(folder: Path, model: str, miou: float, *, status: str = "ok", **facts: Any) -> Path:
    """A finished run on disk."""
    standard = {
        "task": "semantic",
        "model": model,
        "backbone": "resnet18",
        "dataset": DATA,
        "classes": ["sky", "road"],
        "protocol": {"absent": "union"},
        "seed": 0,
        "overrides": [f"model={model}"],
        "metrics": {"mIoU": miou, "Dice": miou + 0.1, "IoU/sky": miou, "IoU/road": 1 - miou},
        "cost": {"parameters": 2_500_000, "flops": None},
    }
    result.start(folder, **(standard | facts))
    result.finish(folder, status, None if status == "ok" else "CUDA out of memory")
    return folder


def test_best_first_and_bold(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / "a", "fcn", 0.4),
        run(tmp_path / "b", "unet", 0.5),
        run(tmp_path / "c", "deeplabv3", math.nan),
    ]
    (table,) = tabulate(collect(paths))
    assert [row.runs[0]["model"] for row in table.rows] == ["unet", "fcn", "deeplabv3"]
    text = to_markdown(table, classes=True)
    assert "camvid test, 233 images, 2 classes, absent union" in text
    assert "| unet | resnet18 | **50.00** | **60.00** | 2.5 |" in text
    assert "| fcn | resnet18 | 40.00 | 50.00 |" in text
    assert "| deeplabv3 | resnet18 | – | – |" in text
    assert "| road | 50.00 | **60.00** | – |" in text  # the table of classes keeps the order of the models


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": DATA | {"fingerprint": "beef"}},
        {"dataset": DATA | {"split": "val"}},
        {"classes": ["sky", "way"]},
        {"protocol": {"absent": "zero"}},
        {"task": "panoptic"},
    ],
)
def test_what_differs_is_not_mixed(tmp_path: Path, other: dict[str, Any]) -> None:
    run(tmp_path / "a", "fcn", 0.4)
    run(tmp_path / "b", "unet", 0.5, **other)
    assert [len(table.rows) for table in tabulate(collect([tmp_path]))] == [1, 1]


def test_columns_of_instances(tmp_path: Path) -> None:
    """AP ranks, in percent, with its details; a size without objects keeps its column, what is missing has none."""
    metrics = {"AP": 0.3715, "AP50": 0.6, "AP75": 0.4, "APS": math.nan, "APM": 0.35, "APL": 0.5, "AP/cell": 0.3715}
    facts = {"task": "instance", "metrics": metrics, "classes": ["cell"]}
    run(tmp_path / "a", "mask_rcnn", 0, **facts)
    run(tmp_path / "b", "keypoint_rcnn", 0, **facts | {"metrics": metrics | {"AP": 0.38, "APS": 0.1}})
    (table,) = tabulate(collect([tmp_path]))
    text = to_markdown(table, classes=True)
    assert "| model | backbone | AP | AP50 | AP75 | APS | APM | APL | params M |" in text
    first, second = text.splitlines()[4:6]
    assert first.startswith("| keypoint_rcnn | resnet18 | **38.00** | **60.00** | **40.00** | **10.00** |")
    assert second.startswith("| mask_rcnn | resnet18 | 37.15 | **60.00** | **40.00** | – |")
    assert "| cell | **37.15** | **37.15** |" in text


def test_seeds_become_one_row(tmp_path: Path) -> None:
    for seed, miou in enumerate((0.4, 0.5, 0.6)):
        run(tmp_path / str(seed), "unet", miou, seed=seed, overrides=["model=unet", f"seed={seed}"])
    run(tmp_path / "wide", "unet", 0.7, overrides=["model=unet", "backbone=resnet50"])
    (table,) = tabulate(collect([tmp_path]))
    assert [len(row.runs) for row in table.rows] == [1, 3]
    assert table.rows[1].metric("mIoU") == (pytest.approx(0.5), pytest.approx(0.1))
    assert "50.00 ± 10.00" in to_markdown(table)


def test_crashed_runs_stay(tmp_path: Path) -> None:
    run(tmp_path / "a", "fcn", 0.4)
    early = {"protocol": None, "dataset": {"name": "camvid", "split": "test"}, "metrics": {}}
    run(tmp_path / "b", "unet", math.nan, status="failed", **early)
    (table,) = tabulate(collect([tmp_path]))
    assert [row.status for row in table.rows] == ["ok", "failed: CUDA out of memory"]
    assert "failed: CUDA out of memory" in to_markdown(table)


def test_only_crashed_runs(tmp_path: Path) -> None:
    run(tmp_path / "a", "unet", math.nan, status="failed", protocol=None, metrics={})
    text = io.StringIO()
    print_table([tmp_path], Console(file=text, width=200))
    assert "CUDA out of memory" in text.getvalue()


def test_the_same_seed_twice_is_two_rows(tmp_path: Path) -> None:
    run(tmp_path / "a", "unet", 0.5)
    run(tmp_path / "b", "unet", 0.6)
    (table,) = tabulate(collect([tmp_path]))
    assert [row.metric("mIoU")[0] for row in table.rows] == [0.6, 0.5]
    assert "±" not in to_markdown(table)


def test_an_unreadable_result_is_a_failed_run(tmp_path: Path) -> None:
    run(tmp_path / "a", "unet", 0.5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "result.json").write_text("{")
    text = io.StringIO()
    print_table([tmp_path], Console(file=text, width=200))
    assert "50.00" in text.getvalue()
    assert "b/result.json cannot be read" in text.getvalue()


def test_csv_holds_every_number(tmp_path: Path) -> None:
    run(tmp_path / "a", "fcn", 0.4)
    run(tmp_path / "b", "unet", 0.123456789012345)
    rows = list(csv.DictReader(io.StringIO(to_csv(tabulate(collect([tmp_path]))))))
    assert {row["model"]: float(row["mIoU"]) for row in rows} == {"fcn": 0.4, "unet": 0.123456789012345}
    assert rows[0]["overrides"] == "model=fcn"


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    run(tmp_path / "a", "a|b\n<script>", 0.4)
    (table,) = tabulate(collect([tmp_path]))
    row = to_markdown(table).splitlines()[4]
    assert row.count("|") - row.count("\\|") == row.count(" | ") + 2
    assert "<script>" not in row


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "runs" / "a", "fcn", 0.4)
    files = tmp_path / "t.md", tmp_path / "t.csv"
    assert main([str(tmp_path / "runs"), "--markdown", str(files[0]), "--csv", str(files[1])]) == 0
    assert "fcn" in capsys.readouterr().out
    assert all("fcn" in file.read_text() for file in files)
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1


def test_what_sets_two_runs_apart_is_a_column(tmp_path: Path) -> None:
    for lr in ("0.1", "0.01"):
        run(tmp_path / lr, "unet", float(lr), overrides=["model=unet", "dataset=camvid", f"optimizer.lr={lr}"])
    (table,) = tabulate(collect([tmp_path]))
    text = to_markdown(table)
    assert "| unet | resnet18 | optimizer.lr=0.1 | **10.00** |" in text
    assert "dataset=camvid" not in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_drops_columns_not_letters(tmp_path: Path, width: int) -> None:
    run(tmp_path / "a", "deeplabv3", 0.5, cost={"parameters": 1e6, "flops": 2e9, "latency_ms": 3, "train_seconds": 4})
    run(tmp_path / "b", "unet", math.nan, status="failed")
    text = io.StringIO()
    print_table([tmp_path], Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert "…" not in text.getvalue()
    assert any("deeplabv3" in line and "50.00" in line and "ok" in line for line in lines)
    heading = next(line for line in lines if line.strip().startswith("model"))
    assert ("train s" in heading) == ("Left out" not in text.getvalue()) == (width >= 120)
    assert "unet resnet18: failed: CUDA out of memory" in text.getvalue()


def test_where_the_folder_is_sets_no_runs_apart(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / str(seed), "unet", 0.5, seed=seed, overrides=["model=unet", f"runs=somewhere/{seed}"])
        for seed in (0, 1)
    ]
    (table,) = tabulate(collect(paths))
    assert len(table.rows) == 1
    assert "overrides" not in to_markdown(table)


THREE: dict[str, dict[str, Any]] = {
    "unet": {"task": "semantic", "protocol": {"absent": "union"}, "metrics": {"mIoU": 0.8, "Dice": 0.9}},
    "mask_rcnn": {
        "task": "instance",
        "classes": ["car"],
        "protocol": {"boxes": True, "max_detections": [1, 100]},
        "metrics": {"AP": 0.5, "AP50": 0.7},
    },
    "mask2former": {
        "task": "panoptic",
        "protocol": {"absent": "union", "nuclei": False, "max_detections": [1, 100]},
        "metrics": {"PQ": 0.6, "SQ": 0.8, "mIoU": 0.7, "AP": 0.55, "AP50": 0.6},
    },
}


def three_tasks(folder: Path, **other: dict[str, Any]) -> list[Path]:
    """Runs on the same images, whose fingerprints, protocols and classes are those of their tasks."""
    paths = []
    for number, (model, facts) in enumerate(THREE.items()):
        data = DATA | {"fingerprint": model, "origin": "0123"}
        facts = {"classes": ["road", "car"], "dataset": data} | facts | other.get(model, {})
        paths.append(run(folder / str(number), model, 0, **facts))
    return paths


def test_three_tasks_on_the_same_images_are_one_table(tmp_path: Path) -> None:
    parts = tabulate(collect(three_tasks(tmp_path)))
    assert [table.task for table in parts] == ["semantic", "instance", "panoptic"]
    (table,) = across_tasks(parts)
    lines = to_markdown(table).splitlines()
    assert lines[0] == "**camvid test, 233 images, 2 classes, absent union, max_detections [1, 100]**"
    assert lines[2].startswith("| model | backbone | task | mIoU | AP | PQ | params M |")
    assert lines[4].startswith("| unet | resnet18 | semantic | **80.00** | – | – | 2.5 |")
    assert lines[5].startswith("| mask_rcnn | resnet18 | instance | – | 50.00 | – | 2.5 |")
    assert lines[6].startswith("| mask2former | resnet18 | panoptic | 70.00 | **55.00** | **60.00** | 2.5 |")
    assert "| model | backbone | AP | AP50 | params M |" in "\n".join(lines)  # each task's own table follows
    text = io.StringIO()
    (printed,) = print_table([tmp_path], Console(file=text, width=200))
    assert sum("mask2former" in line for line in text.getvalue().splitlines()) == 1
    assert "Several tables" not in text.getvalue()
    rows = list(csv.DictReader(io.StringIO(to_csv([printed]))))
    assert [row["AP50"] for row in rows] == ["", "0.7", "0.6"]


@pytest.mark.parametrize(
    "other",
    [
        {"unet": {"protocol": {"absent": "zero"}}},
        {"unet": {"classes": ["way", "car"]}},
        {"mask_rcnn": {"protocol": {"max_detections": [1, 1000]}}},
        {"mask_rcnn": {"classes": ["bus"]}},
    ],
)
def test_tasks_with_other_rules_or_classes_stay_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    assert len(across_tasks(tabulate(collect(three_tasks(tmp_path, **other))))) == 3


def test_tasks_on_other_images_stay_apart(tmp_path: Path) -> None:
    data = {"dataset": DATA | {"fingerprint": "elsewhere", "origin": "4567"}}
    tables = across_tasks(tabulate(collect(three_tasks(tmp_path, mask_rcnn=data))))
    assert [(table.task, len(table.rows)) for table in tables] == [("several", 2), ("instance", 1)]


def test_a_crash_stands_with_the_other_tasks(tmp_path: Path) -> None:
    early = {"protocol": None, "dataset": {"name": "camvid", "split": "test"}, "metrics": {}, "status": "failed"}
    (table,) = across_tasks(tabulate(collect(three_tasks(tmp_path, mask_rcnn=early))))
    assert [row.status for row in table.rows] == ["ok", "failed: CUDA out of memory", "ok"]


def test_the_tasks_of_a_dataset_stand_together(tmp_path: Path) -> None:
    """What datasets and metrics themselves say of a task fits the others'."""
    for number, (task, best) in enumerate({"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}.items()):
        dataset = create_dataset("scenes", split="test", task=task, length=2)
        data = DATA | {"fingerprint": dataset.fingerprint(), "origin": dataset.fingerprint(any_task=True)}
        protocol = create_metric(task, dataset.classes, **dataset.metric_options).protocol
        classes = [c.name for c in dataset.classes]
        facts = {"task": task, "dataset": data, "protocol": protocol, "classes": classes, "metrics": {best: 0.5}}
        run(tmp_path / str(number), task, 0, **facts)
    (table,) = across_tasks(tabulate(collect([tmp_path])))
    assert table.columns == ("mIoU", "AP", "PQ")
    assert table.title == "camvid test, 233 images, 10 classes, absent union, max_detections [1, 10, 100]"
