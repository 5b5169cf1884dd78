"""Intervals and differences from files: those of the metric itself, paired as a loop over images says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from finished import IMAGES, finished, scenes, spoiled

from zoo.metrics import create_metric
from zoo.report.board import Board
from zoo.report.bootstrap import Bootstrap, holm, image_scores, statistics
from zoo.report.table import collect, tabulate


@pytest.mark.parametrize(
    ("task", "name"), [("semantic", "mIoU"), ("instance", "AP"), ("panoptic", "PQ"), ("panoptic", "PQ_th")]
)
def test_the_interval_is_the_metrics_own(tmp_path: Path, task: str, name: str) -> None:
    finished(tmp_path, "one", task)
    (table,) = tabulate(collect([tmp_path]))
    data = scenes(task)
    metric = create_metric(task, data.classes)
    for i in range(IMAGES):
        metric.update([spoiled(data[i].target, 0.3, i)], [data[i].target], [i])
    assert Bootstrap(table.rows).interval(0, name) == pytest.approx(metric.interval(name), abs=1e-12)


def test_differences_are_paired(tmp_path: Path) -> None:
    """Against a loop that draws images and adds up both models' counts for the same draw."""
    for name, share in (("a", 0.2), ("b", 0.25)):
        finished(tmp_path / name, name, share=share)
    (table,) = tabulate(collect([tmp_path]))
    bootstrap = Bootstrap(table.rows)
    found = bootstrap.difference(0, 1, "mIoU")
    assert found is not None

    counts = [statistics(row.runs[0])["statistics"].astype(float) for row in table.rows]
    rng = np.random.default_rng(1)
    deltas = []
    for _ in range(4000):
        draw = rng.integers(IMAGES, size=IMAGES)
        scores = []
        for each in counts:
            hit, predicted, truth = each[draw].sum(0)
            union = predicted + truth - hit
            scores.append((hit[union > 0] / union[union > 0]).mean())
        deltas.append(scores[0] - scores[1])
    low, high = np.quantile(deltas, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.1 * width)
    assert found.high == pytest.approx(high, abs=0.1 * width)
    assert found.delta == table.rows[0].metric("mIoU")[0] - table.rows[1].metric("mIoU")[0]
    # unpaired intervals of one model are wider than that of the difference
    alone = bootstrap.interval(0, "mIoU")
    assert alone is not None
    assert alone[1] - alone[0] > width
    opposite = bootstrap.difference(1, 0, "mIoU")
    assert opposite is not None
    assert (opposite.low, opposite.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_a_winner_beats_every_other_row(tmp_path: Path) -> None:
    for name, share in (("best", 0.0), ("middle", 0.3), ("last", 0.6)):
        finished(tmp_path / name, name, share=share)
    (table,) = tabulate(collect([tmp_path]))
    assert Bootstrap(table.rows).winner("mIoU") == 0


def test_equal_rows_have_no_winner_and_one_row_neither(tmp_path: Path) -> None:
    finished(tmp_path / "a", "one")
    (table,) = tabulate(collect([tmp_path]))
    assert Bootstrap(table.rows).winner("mIoU") is None
    finished(tmp_path / "b", "two")
    (table,) = tabulate(collect([tmp_path]))
    bootstrap = Bootstrap(table.rows)
    assert bootstrap.winner("mIoU") is None
    same = bootstrap.difference(0, 1, "mIoU")
    assert same is not None
    assert (same.delta, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_seeds_are_averaged_not_pooled(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path / str(seed), "one", seed=seed)
    (table,) = tabulate(collect([tmp_path]))
    assert len(table.rows) == 1
    both = Bootstrap(table.rows)._replicates[0]["mIoU"]
    single = []
    for seed in (0, 1):
        (alone,) = tabulate(collect([tmp_path / str(seed)]))
        single.append(Bootstrap(alone.rows)._replicates[0]["mIoU"])
    assert both == pytest.approx((single[0] + single[1]) / 2)


def test_without_the_detections_ap_has_what_the_run_has_noted(tmp_path: Path) -> None:
    for name, share, noted in (("a", 0.3, [0.25, 0.5]), ("b", 0.5, [None, None])):
        folder = finished(tmp_path / name, name, "instance", share=share, intervals={"AP": noted})
        with np.load(folder / "statistics.npz") as arrays:
            kept = {table: arrays[table] for table in ("ids", "statistics")}
        np.savez(folder / "statistics.npz", **kept)
    (table,) = tabulate(collect([tmp_path]))
    bootstrap = Bootstrap(table.rows)
    assert bootstrap.interval(0, "AP") == (0.25, 0.5)
    assert bootstrap.interval(1, "AP") is None
    assert bootstrap.interval(0, "AP50") is None
    assert bootstrap.difference(0, 1, "AP") is None
    assert bootstrap.winner("AP") is None


def test_differences_of_ap_are_paired(tmp_path: Path) -> None:
    for name, share in (("a", 0.2), ("b", 0.6)):
        finished(tmp_path / name, name, "instance", share=share)
    (table,) = tabulate(collect([tmp_path]))
    bootstrap = Bootstrap(table.rows)
    found, alone = bootstrap.difference(0, 1, "AP"), bootstrap.interval(0, "AP")
    assert found is not None
    assert alone is not None
    assert found.low < found.delta < found.high
    assert found.delta == table.rows[0].metric("AP")[0] - table.rows[1].metric("AP")[0]
    assert alone[0] < table.rows[0].metric("AP")[0] < alone[1]


def test_damaged_statistics_cost_the_interval_alone(tmp_path: Path) -> None:
    finished(tmp_path / "a", "one")
    finished(tmp_path / "b", "two", share=0.5)
    path = tmp_path / "b" / "statistics.npz"
    path.write_bytes(path.read_bytes()[:300])
    (table,) = tabulate(collect([tmp_path]))
    bootstrap = Bootstrap(table.rows)
    assert bootstrap.interval(0, "mIoU") is not None
    assert bootstrap.interval(1, "mIoU") is None
    assert bootstrap.winner("mIoU") is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_scores_of_single_images(tmp_path: Path) -> None:
    run = collect([finished(tmp_path, "one")])[0]
    name, values = image_scores(run)
    data = scenes("semantic")
    for i in (0, 7):
        metric = create_metric("semantic", data.classes)
        metric.update([spoiled(data[i].target, 0.3, i)], [data[i].target], [i])
        assert values[i] == pytest.approx(metric.compute()["mIoU"])
    assert name == "mIoU"


def test_names_of_rows_differ(tmp_path: Path) -> None:
    finished(tmp_path / "a", "unet")
    finished(tmp_path / "b", "unet", share=0.4, overrides=["model=unet", "optimizer.lr=0.4"])
    finished(tmp_path / "c", "fcn", share=0.5, backbone="resnet50")
    (table,) = tabulate(collect([tmp_path]))
    assert Board.of("c1", table).names == ["unet resnet18", "unet resnet18 optimizer.lr=0.4", "fcn resnet50"]
    assert not math.isnan(table.rows[0].metric("mIoU")[0])
