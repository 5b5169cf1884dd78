"""How sure a table's numbers are: paired bootstrap over images, from the `statistics.npz` of the runs alone.

Each replicate draws as many images as there are, with replacement, the same ones for every run, and computes the scores
of the data set they form (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Of several seeds
the mean score counts: seeds are never pooled as images. This is the noise of the test images; that of training shows in
the spread over seeds. AP needs more than sums over images: the metric makes its replicates itself, fewer of them, from
the detections that lie beside the result. Other scores have the interval their run has noted, if any.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError
from zoo.metrics import create_metric
from zoo.metrics.panoptic import HIT, PREDICTED, TRUE, quality
from zoo.metrics.resampling import resamples
from zoo.metrics.semantic import summary
from zoo.report import maps
from zoo.report.table import Row

Floats = NDArray[np.float64]

REPLICATES, LEVEL = 2000, 0.95
SEMANTIC = ("mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU", "Dice", "precision", "recall", "F1")


@dataclass
class Difference:
    """A score less another's on the same images: with its interval and two-sided p, of one comparison alone."""

    delta: float
    low: float
    high: float
    p: float


class Bootstrap:
    """The replicates of the rows of one table."""

    def __init__(self, rows: Sequence[Row], replicates: int = REPLICATES) -> None:
        self.rows, self._count = rows, replicates

    @cached_property
    def _replicates(self) -> list[dict[str, Floats]]:
        """The replicates (R,) of each score of each row."""
        return [_of_row(row, self._ids, self._count) for row in self.rows]

    @cached_property
    def _ids(self) -> NDArray[np.int64] | None:
        """The images all runs have in common; a run over others has no replicates."""
        found = [arrays["ids"] for row in self.rows for run in row.good if (arrays := statistics(run))]
        return found[0] if found else None

    def interval(self, place: int, name: str) -> tuple[float, float] | None:
        """The percentile interval of a score of row `place`; None where it is not known."""
        values = self._replicates[place].get(name)
        if values is not None:
            return _quantiles(values)
        row = self.rows[place]
        noted = [run.get("intervals", {}).get(name) for run in row.good]
        if len(noted) == 1 and noted[0] is not None and None not in noted[0]:
            return float(noted[0][0]), float(noted[0][1])
        return None

    def difference(self, place: int, reference: int, name: str) -> Difference | None:
        """Row `place` less row `reference`; None where they have no images in common."""
        mine, theirs = (self._replicates[i].get(name) for i in (place, reference))
        if mine is None or theirs is None or place == reference:
            return None
        deltas = mine - theirs
        low, high = _quantiles(deltas)
        if math.isnan(low):
            return None
        deltas = deltas[~np.isnan(deltas)]
        beyond = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
        delta = self.rows[place].metric(name)[0] - self.rows[reference].metric(name)[0]
        return Difference(delta, low, high, min(1.0, 2 * (beyond + 1) / (len(deltas) + 1)))

    def winner(self, name: str) -> int | None:
        """The row that is better than every other one beyond doubt: each difference's interval lies above 0."""
        means = [row.metric(name)[0] for row in self.rows]
        known = [place for place, mean in enumerate(means) if not math.isnan(mean)]
        if len(known) < 2:
            return None
        best = max(known, key=lambda place: means[place])
        others = [self.difference(best, place, name) for place in known if place != best]
        return best if all(other is not None and other.low > 0 for other in others) else None


def statistics(run: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a run's statistics.npz; none where there is no such file, or no sound one."""
    try:
        with np.load(Path(run["folder"]) / "statistics.npz", allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    sound = {"ids", "statistics"} <= found.keys() and len(found["ids"]) == len(found["statistics"]) > 0
    return found if sound else {}


def image_scores(run: dict[str, Any]) -> tuple[str, dict[int, float]]:
    """The name of a run's score by image, and its value for each image id; empty where its statistics hold none."""
    arrays = statistics(run)
    name = {"semantic": "mIoU", "panoptic": "PQ"}.get(run.get("task", ""), "")
    if not arrays or not name:
        return "", {}
    scores = _scores(run, arrays["statistics"].astype(np.float64), [])
    values = scores.get(name)
    return ("", {}) if values is None else (name, dict(zip(arrays["ids"].tolist(), values.tolist(), strict=True)))


def holm(values: Sequence[float]) -> list[float]:
    """p values of several comparisons, adjusted so that any false one among them is as rare (Holm 1979)."""
    adjusted, so_far = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        so_far = max(so_far, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = so_far
    return adjusted


def _of_row(row: Row, ids: NDArray[np.int64] | None, count: int) -> dict[str, Floats]:
    """The mean over a row's seeds of each score's replicates (R,)."""
    runs: list[dict[str, Floats]] = []
    for run in row.good:
        arrays = statistics(run)
        if ids is None or not arrays or not np.array_equal(arrays["ids"], ids):
            return {}
        if run.get("task") == "instance":
            runs.append(_of_instances(run, arrays))
            continue
        things = [c.thing for c in _classes(run)]
        # The generator starts from the same seed for every run, so the images drawn are the same.
        parts = [_scores(run, totals, things) for totals in resamples(arrays["statistics"].astype(float), count, 0)]
        runs.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    if not runs:
        return {}
    return {name: np.mean([run[name] for run in runs], 0) for name in runs[0] if all(name in run for run in runs)}


def _of_instances(run: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> dict[str, Floats]:
    """The replicates of a run's AP; none where its detections are not those that its protocol keeps."""
    try:
        metric = create_metric("instance", run.get("classes") or (), **(run.get("protocol") or {}))
        metric.restore(arrays)
    except ZooError:  # of another version
        return {}
    return {name: metric.resampled(name, metric.replicates) for name in metric.measured}


def _classes(run: dict[str, Any]) -> Sequence[Any]:
    try:
        return maps.read_classes(run["folder"])
    except ZooError:  # damaged maps cost the scores of things and stuff alone
        return ()


def _scores(run: dict[str, Any], totals: Floats, things: Sequence[bool]) -> dict[str, Floats]:
    """The scores of data sets with sums (R, rows, K), each (R,)."""
    absent = (run.get("protocol") or {}).get("absent", "union")
    task, rows = run.get("task"), totals.shape[1] if totals.ndim == 3 else 0
    if task == "semantic" and rows == 3:
        scores = summary(totals, absent)
        return {name: scores[name] for name in SEMANTIC}
    if task != "panoptic" or rows <= TRUE:
        return {}
    found = {}
    for name, per_class in quality(totals).items():
        found[name] = _mean(per_class)
        if len(things) == per_class.shape[1]:
            for suffix, kind in (("_th", True), ("_st", False)):
                found[name + suffix] = _mean(per_class[:, np.array(things) == kind])
    semantic = summary(totals[:, [HIT, PREDICTED, TRUE]], absent)
    return found | {name: semantic[name] for name in SEMANTIC[:4]}


def _mean(scores: Floats) -> Floats:
    """The mean over classes (R, K) without nan; nan where nothing is left."""
    defined = ~np.isnan(scores)
    count = defined.sum(-1)
    total = np.where(defined, scores, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(len(scores), np.nan), where=count > 0)


def _quantiles(values: Floats) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
