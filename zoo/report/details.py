"""The sections of a comparison beside its leaderboard: what was measured, cost, classes, curves, configs, failures."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from zoo.report import charts
from zoo.report.board import COSTS, HEADINGS, NONE, Board, heading
from zoo.report.bootstrap import statistics
from zoo.report.charts import Series
from zoo.report.markup import Html, join, tag
from zoo.report.table import CLASS_PREFIX, COLUMNS

Curve = list[tuple[float, float]]  # (step, value)
History = dict[str, Curve]

SHADES = 10  # of the heat tables, classes h0 .. h10
CONFUSED = 20  # classes: above that only the commonest confusions are shown
OPEN = 4  # tables of confusion shown at once
POINTS = 400  # of a curve
LOG_LINES, LOG_BYTES = 12, 16384
SIZES = {"small": "APS", "medium": "APM", "large": "APL"}
PLACES = ("runs", "seed", "dataset.root", "checkpoint", "report.max_mb")  # keys that say where, or have a column


def facts(board: Board) -> Html:
    """Data, protocol and environment as one list."""
    runs = [run for row in board.rows for run in row.runs]
    whole = next((run for run in runs if run.get("protocol")), runs[0])
    data = whole.get("dataset", {})
    protocol = board.table.title.partition(" classes, ")[2] if board.table.parts else None
    spoken = protocol or ", ".join(f"{name} {value}" for name, value in (whole.get("protocol") or {}).items())
    found = {
        "data": f"{data.get('name', 'unknown')} {data.get('split', '')}".strip(),
        "images": data.get("images"),
        "classes": len(whole["classes"]) if whole.get("classes") else None,
        "fingerprint": str(data.get("origin") or data.get("fingerprint") or "")[:12] or None,
        "protocol": spoken or None,
        "weights chosen on": _several(run.get("selected_on") for run in runs if run["status"] == "ok"),
        "device": _several(run.get("cost", {}).get("device") for run in runs),
        "precision": _several(run.get("cost", {}).get("precision") for run in runs),
        "versions": _several(_versions(run) for run in runs),
        "date": _several(str(run.get("started", ""))[:10] for run in runs),
    }
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in found.items() if value]
    return tag("dl", items, class_="facts")


def _several(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _versions(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items() if version)


def costs(board: Board) -> Html | None:
    """Each score against each cost."""
    drawn = []
    for name in board.table.columns if board.table.parts else board.table.columns[:1]:
        for title, fact, unit, *_ in COSTS[:4]:
            series = [
                Series(board.places[place], board.names[place], [(row.cost(fact) / unit, 100 * mean)])
                for place, row in enumerate(board.rows)
                if not math.isnan(mean := row.metric(name)[0]) and row.cost(fact) > 0
            ]
            if len(series) > 1:
                drawn.append(charts.scatter(series, title, HEADINGS.get(name, name)))
    return tag("div", drawn, class_="charts") if drawn else None


def classes(board: Board) -> Html | None:
    """Classes down, models across, most different first; beside it what share of the data each class is."""
    prefix = CLASS_PREFIX.get(board.table.task, "")
    places = [place for place, row in enumerate(board.rows) if row.good]
    known = dict.fromkeys(name for place in places for name in board.rows[place].good[0]["metrics"])
    means = {name: [board.rows[place].metric(name)[0] for place in places] for name in known if name.startswith(prefix)}
    if not prefix or not means:
        return None
    shares = _shares(board)
    head = [heading("class", "text"), heading("share", "number") if shares else None]
    head += [heading(board.label(place), "number") for place in places]
    rows = []
    for name in sorted(means, key=lambda name: -_spread(means[name])):
        plain = name.removeprefix(prefix)
        cells = [_heat(mean, board.places[place]) for mean, place in zip(means[name], places, strict=True)]
        share = _share_cell(shares.get(plain, math.nan)) if shares else None
        rows.append(tag("tr", tag("th", plain, scope="row"), share, cells))
    what = {"IoU/": "IoU", "AP/": "AP", "PQ/": "PQ"}[prefix]
    note = tag("p", f"{what} of each class times 100, the classes models differ most in first.", class_="note")
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="heat")
    return join([tag("div", table, class_="scroll", tabindex=0), note])


def _spread(values: Sequence[float]) -> float:
    """How far apart the known values are."""
    known = [value for value in values if not math.isnan(value)]
    return max(known) - min(known) if known else -1.0


def _share_cell(share: float) -> Html:
    unknown = math.isnan(share)
    text = NONE if unknown else f"{100 * share:.2f} %"
    return tag("td", text, class_="number", data_value="" if unknown else f"{share:.6f}")


def _shares(board: Board) -> dict[str, float]:
    """Of each class the share of the labelled pixels, or of the segments, of the test images."""
    for row in board.rows:
        for run in row.good:
            rows = statistics(run).get("statistics")
            if rows is None or rows.ndim != 3 or rows.shape[1] not in (3, 10) or rows.shape[2] != len(run["classes"]):
                continue
            true = rows[:, 2 if rows.shape[1] == 3 else 9].sum(0).astype(float)
            return dict(zip(run["classes"], (true / max(true.sum(), 1)).tolist(), strict=True))
    return {}


def _heat(value: float, place: int | None = None, text: str | None = None) -> Html:
    """A cell whose shade is its value in [0, 1]."""
    if math.isnan(value):
        return tag("td", NONE, class_="number", data_value="")
    shade = f"h{round(SHADES * min(max(value, 0), 1))}"
    shown = f"{100 * value:.1f}" if text is None else text
    return tag("td", shown, class_=f"number {shade}", data_value=f"{value:.6f}", data_row=place)


def confusions(board: Board) -> Html | None:
    """Of each model what the pixels of each class are taken for."""
    drawn: list[Html] = []
    for place, row in enumerate(board.rows):
        for run in row.good[:1]:
            table = statistics(run).get("confusion")
            if table is None or table.shape != (len(run["classes"]), len(run["classes"]) + 1):
                continue
            share = table / np.maximum(table.sum(1, keepdims=True), 1)
            inside = _matrix(share, run["classes"]) if len(share) <= CONFUSED else _commonest(share, run["classes"])
            drawn.append(tag("details", tag("summary", board.label(place)), inside, open=len(drawn) < OPEN))
    return tag("div", drawn, class_="beside") if drawn else None


def _matrix(share: Any, names: Sequence[str]) -> Html:
    heads = [*names, *(["no class"] if share[:, -1].any() else [])]
    top = tag(
        "tr",
        tag("th", "truth ↓ prediction →", scope="col"),
        [tag("th", tag("span", n), scope="col", class_="slant") for n in heads],
    )
    rows = [
        tag("tr", tag("th", name, scope="row"),
            [_heat(float(v), text=f"{100 * v:.0f}" if v >= 0.005 else "") for v in share[i, : len(heads)]])
        for i, name in enumerate(names)
    ]  # fmt: skip
    note = tag("p", "Percent of the pixels of each row's class.", class_="note")
    table = tag("table", tag("thead", top), tag("tbody", rows), class_="heat matrix")
    return join([tag("div", table, class_="scroll", tabindex=0), note])


def _commonest(share: Any, names: Sequence[str]) -> Html:
    wrong = share.copy()
    wrong[np.arange(len(names)), np.arange(len(names))] = 0
    heads = [*names, "no class"]
    flat = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(flat, wrong.shape), strict=True) if wrong[i, j] > 0]
    items = [
        tag("li", f"{names[i]} is taken for {heads[j]}: {100 * wrong[i, j]:.1f} % of its pixels") for i, j in pairs
    ]
    return tag("ol", items)


def sizes(board: Board) -> Html | None:
    """AP of small, medium and large objects."""
    series = []
    for place, row in enumerate(board.rows):
        found = [
            (float(i), 100 * mean)
            for i, name in enumerate(SIZES.values())
            if not math.isnan(mean := row.metric(name)[0])
        ]
        if found:
            series.append(Series(board.places[place], board.names[place], found))
    if not series:
        return None
    return tag("div", charts.bars(list(SIZES), series, "AP by size of the object"), class_="charts")


def curves(board: Board) -> Html | None:
    """Loss and the scores that rank over steps and over minutes of training, of each row's first seed."""
    histories = {place: history(row.runs[0]) for place, row in enumerate(board.rows)}
    tasks = {str(row.runs[0].get("task")) for row in board.rows}
    scores = dict.fromkeys(names[0] for task, names in COLUMNS.items() if task in tasks)
    drawn: list[Html | None] = []
    for name in ("train/loss", *(f"val/{score}" for score in scores)):
        for over in ("step", "minutes"):
            drawn.append(_curve(board, histories, name, over))
    return tag("div", drawn, class_="charts") if any(drawn) else None


def _curve(board: Board, histories: dict[int, History], name: str, over: str) -> Html | None:
    """One value of all runs; None where no run has two of them."""
    loss = name == "train/loss"
    series = []
    for place, found in histories.items():
        clock = found.get("train/seconds", [])
        points = found.get(name, []) if over == "step" else _timed(found.get(name, []), clock)
        if points:
            shown = [(x, y if loss else 100 * y) for x, y in _thinned(points)]
            series.append(Series(board.places[place], board.names[place], shown))
    if not any(len(s.points) > 1 for s in series):
        return None
    log = loss and all(y > 0 for s in series for _, y in s.points)
    title = f"training loss{', log' if log else ''}" if loss else f"{name.removeprefix('val/')} on validation"
    return charts.curves(series, over if over == "step" else "minutes of training", title, log)


def _timed(points: Curve, clock: Curve) -> Curve:
    """Values over minutes instead of steps, by the run's clock (step, seconds)."""
    if not points or not clock:
        return []
    steps, seconds = zip(*clock, strict=True)
    minutes = np.interp([step for step, _ in points], steps, seconds) / 60
    return [(float(x), y) for x, (_, y) in zip(minutes, points, strict=True)]


def history(run: dict[str, Any]) -> History:
    """The finite values of metrics.csv by name, (step, value); nothing where there is no such file."""
    found: History = {}
    try:
        with (Path(run["folder"]) / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for step, name, value in csv.reader(file):
                if name != "name" and math.isfinite(float(value)):
                    found.setdefault(name, []).append((float(step), float(value)))
    except (OSError, KeyError, ValueError):  # cut short: what came before counts
        pass
    return found


def _thinned(points: Curve) -> Curve:
    """At most `POINTS` means of neighbours."""
    size = -(-len(points) // POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def configs(board: Board) -> Html | None:
    """The keys of the configs in which the rows differ, and nothing else."""
    flat = [_flat(row.runs[0]) for row in board.rows]
    known = [place for place, config in enumerate(flat) if config]
    keys = sorted({key for config in flat for key in config})
    differing = [key for key in keys if key not in PLACES and len({repr(flat[p].get(key)) for p in known}) > 1]
    if len(known) < 2 or not differing:
        return None
    shared = [key for key in differing if all(key in flat[place] for place in known)]
    own = [key for key in differing if key not in shared]
    head = tag("tr", tag("th", "key", scope="col"), [tag("th", board.label(place), scope="col") for place in known])

    def drawn(keys: list[str]) -> Html:
        cells = [[tag("td", flat[place].get(key, NONE)) for place in known] for key in keys]
        rows = [tag("tr", tag("th", key, scope="row"), row) for key, row in zip(keys, cells, strict=True)]
        table = tag("table", tag("thead", head), tag("tbody", rows), class_="config")
        return tag("div", table, class_="scroll", tabindex=0)

    rest = (
        tag("details", tag("summary", f"options that not all of them have ({len(own)})"), drawn(own)) if own else None
    )
    return tag("div", drawn(shared) if shared else None, rest)


def _flat(run: dict[str, Any]) -> dict[str, str]:
    """config.yaml of a run by dotted keys; nothing where there is none."""
    try:
        with (Path(run["folder"]) / "config.yaml").open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, KeyError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif prefix:
            found[prefix] = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    walk("", content)
    return found


def failures(board: Board) -> Html | None:
    """The runs that did not end well: why, and the last lines they left."""
    items = []
    for place, row in enumerate(board.rows):
        for run in row.runs:
            if run["status"] == "ok":
                continue
            seed = f", seed {run['seed']}" if len(row.runs) > 1 and run.get("seed") is not None else ""
            what = [board.label(place), f"{seed}: {run['status']}. {run.get('reason') or ''}"]
            log = _last_lines(run)
            items.append(tag("li", tag("p", what), tag("pre", log, tabindex=0) if log else None))
    return tag("ul", items, class_="failures") if items else None


def _last_lines(run: dict[str, Any]) -> str:
    """The end of error.log, or of metrics.csv where the run left no traceback."""
    for name in ("error.log", "metrics.csv"):
        try:
            with (Path(run["folder"]) / name).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - LOG_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except (OSError, KeyError):
            continue
        if len(lines) > 1:
            return "\n".join([f"{name}:", *lines[-LOG_LINES:]])
    return ""
