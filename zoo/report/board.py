"""One comparison of the page: a table of runs that may be compared, what identifies its rows, and its leaderboard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zoo.report.bootstrap import Bootstrap, Difference, holm
from zoo.report.charts import mark, whisker
from zoo.report.markup import Html, tag
from zoo.report.table import Row, Table

HEADINGS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "boundary_IoU": "boundary",
    "AP_box": "AP box",
    "PQ_th": "PQ things",
    "PQ_st": "PQ stuff",
}
# heading, fact of `cost`, divisor, digits, whether it depends on the machine
COSTS = (
    ("params M", "parameters", 1e6, 1, False),
    ("GFLOP", "flops", 1e9, 1, False),
    ("latency ms", "latency_ms", 1.0, 1, True),
    ("memory MiB", "peak_memory_mb", 1.0, 0, True),
    ("train min", "train_seconds", 60.0, 1, True),
)
NONE = "–"


@dataclass
class Board:
    """A table with what its sections on the page share. `places` are the numbers of its rows' marks."""

    key: str
    table: Table
    places: list[int]
    names: list[str]
    bootstrap: Bootstrap = field(init=False)

    def __post_init__(self) -> None:
        self.bootstrap = Bootstrap(self.table.rows)

    @classmethod
    def of(cls, key: str, table: Table) -> Board:
        return cls(key, table, list(range(len(table.rows))), _names(table))

    @cached_property
    def parts(self) -> list[Board]:
        """The same for each task among several: marks and names stay."""
        whole = {id(row): place for place, row in enumerate(self.table.rows)}
        found = []
        for table in self.table.parts:
            places = [whole[id(row)] for row in table.rows]
            found.append(Board(f"{self.key}-{table.task}", table, places, [self.names[place] for place in places]))
        return found

    @property
    def rows(self) -> list[Row]:
        return self.table.rows

    def label(self, place: int) -> Html:
        """The mark and the name of row `place`."""
        return tag("span", mark(self.places[place]), " ", self.names[place], class_="label")


def _names(table: Table) -> list[str]:
    """The shortest names of rows that differ: model and backbone, then the task, then what was set by hand."""
    short = [row.name for row in table.rows]
    if len({str(row.runs[0].get("backbone")) for row in table.rows}) == 1:
        models = [str(row.runs[0].get("model") or "?") for row in table.rows]
        short = models if len(set(models)) == len(models) else short
    for longer in (_task, lambda row: " ".join(sorted(row.overrides - table.common))):
        counts, suffixes = Counter(short), [longer(row) for row in table.rows]
        if len(set(suffixes)) > 1:
            short = [f"{n} {s}".strip() if counts[n] > 1 else n for n, s in zip(short, suffixes, strict=True)]
    counts, seen = Counter(short), Counter[str]()
    for place, name in enumerate(short):
        if counts[name] > 1:
            seen[name] += 1
            short[place] = f"{name} ({seen[name]})"
    return short


def _task(row: Row) -> str:
    return str(row.runs[0].get("task") or "")


def leaderboard(board: Board, brief: bool = False) -> Html:
    """The table of a comparison: scores with intervals, the difference to a reference, costs, seeds, status.

    `brief` leaves out the words that explain it.
    """
    table = board.table
    if not table.columns:
        return tag("p", "No run of this comparison has ended with scores.", class_="note")
    heads: list[tuple[str, str | None]] = [("model", "text"), *([("task", "text")] if table.parts else [])]
    heads += [(HEADINGS.get(name, name), "number") for name in table.columns]
    span = None if table.parts else _span(board, table.columns[0])
    if span:
        heads.insert(2, ("95 % interval", None))
    heads += [("difference", "number")] if len(table.rows) > 1 else []
    costs = [cost for cost in COSTS if any(not math.isnan(row.cost(cost[1])) for row in table.rows)]
    heads += [(title, "number") for title, *_ in costs] + [("seeds", "number"), ("status", "text")]
    winners = {name: board.bootstrap.winner(name) for name in table.columns}
    same = len(set(_conditions(table.rows))) < 2
    rows = [
        tag(
            "tr",
            _model_cell(board, place),
            tag("td", _task(row)) if table.parts else None,
            _score_cells(board, place, winners, span),
            tag("td", class_="difference number", data_value="", data_place=place) if len(table.rows) > 1 else None,
            [_cost_cell(row, cost, same) for cost in costs],
            tag("td", f"{len(row.good)}/{len(row.runs)}" if len(row.good) < len(row.runs) else len(row.good),
                class_="number", data_value=len(row.good)),
            tag("td", _status(row), class_="" if row.status == "ok" else "bad"),
            data_row=board.places[place],
        )
        for place, row in enumerate(table.rows)
    ]  # fmt: skip
    head = tag("tr", [heading(text, kind) for text, kind in heads])
    notes = None if brief else tag("p", _caption(board, winners), class_="note")
    drawn = tag("table", tag("thead", head), tag("tbody", rows), class_="board", id=f"{board.key}-board")
    controls = _controls(board) if len(table.rows) > 1 else None
    return tag("div", controls, tag("div", drawn, class_="scroll", tabindex=0), notes)


def differences(board: Board) -> dict[str, Any]:
    """For the page's script: of each score, row and reference [delta, low, high, p], or [delta], or None."""
    count = len(board.rows)
    found: dict[str, list[list[list[float] | None]]] = {}
    for name in board.table.columns:
        means = [row.metric(name)[0] for row in board.rows]
        grid: list[list[list[float] | None]] = [[None] * count for _ in range(count)]
        for reference in range(count):
            others = [i for i in range(count) if i != reference and not math.isnan(means[i] - means[reference])]
            pairs = {place: board.bootstrap.difference(place, reference, name) for place in others}
            known = {place: pair for place, pair in pairs.items() if pair is not None}
            adjusted = dict(zip(known, holm([pair.p for pair in known.values()]), strict=True))
            for place in others:
                pair = known.get(place, Difference(means[place] - means[reference], math.nan, math.nan, math.nan))
                values = [pair.delta, pair.low, pair.high, adjusted.get(place, math.nan)]
                grid[place][reference] = [round(value, 6) for value in values if not math.isnan(value)]
        found[name] = grid
    return {"names": board.names, "differences": found}


def _span(board: Board, name: str) -> tuple[float, float] | None:
    """The least and largest end of the intervals of a score, for whiskers on one scale."""
    ends = [end for place in range(len(board.rows)) for end in board.bootstrap.interval(place, name) or ()]
    ends += [mean for row in board.rows if not math.isnan(mean := row.metric(name)[0])]
    return (min(ends), max(ends)) if ends and max(ends) > min(ends) else None


def heading(text: Any, kind: str | None) -> Html:
    """The head of a column that sorts as "text" or "number", or (None) does not."""
    if kind is None:
        return tag("th", text, scope="col")
    return tag("th", tag("button", text, type="button"), scope="col", data_kind=kind, class_=kind, aria_sort="none")


def _model_cell(board: Board, place: int) -> Html:
    row = board.rows[place]
    differs = " ".join(sorted(t for t in row.overrides - board.table.common if not t.startswith("checkpoint=")))
    small = " · ".join(filter(None, [str(row.runs[0].get("backbone") or ""), differs]))
    return tag("th", board.label(place), tag("small", small, title=small), scope="row", class_="model")


def _score_cells(
    board: Board, place: int, winners: dict[str, int | None], span: tuple[float, float] | None
) -> list[Html]:
    cells = []
    for number, name in enumerate(board.table.columns):
        mean, sd = board.rows[place].metric(name)
        interval = board.bootstrap.interval(place, name)
        shown: Any = NONE if math.isnan(mean) else f"{100 * mean:.2f}"
        shown = tag("b", shown) if winners[name] == place else shown
        small = [] if math.isnan(sd) else [tag("small", f"± {100 * sd:.2f}", title="standard deviation over seeds")]
        if interval and board.table.parts:
            small.append(tag("small", _interval(interval)))
        title = f"95 % interval: {_interval(interval)}" if interval else None
        value = "" if math.isnan(mean) else f"{mean:.6f}"
        cells.append(tag("td", shown, small, class_="number", data_value=value, title=title))
        if number == 0 and span:
            drawn = None if math.isnan(mean) else whisker(mean, interval, span)
            cells.append(tag("td", drawn, tag("small", _interval(interval) if interval else NONE), class_="whisker"))
    return cells


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _cost_cell(row: Row, cost: tuple[str, str, float, int, bool], same: bool) -> Html:
    _, fact, unit, digits, machine = cost
    value = row.cost(fact) / unit
    if math.isnan(value):
        return tag("td", NONE, class_="number", data_value="")
    where = tag("small", *_conditions([row])) if machine and not same and fact == "latency_ms" else None
    return tag("td", f"{value:,.{digits}f}", where, class_="number", data_value=f"{value:.6g}")


def _conditions(rows: Sequence[Row]) -> list[str]:
    """What latency and memory of each row hold for: device, precision, size of the image."""
    found = []
    for row in rows:
        for run in row.good[:1]:
            cost = run.get("cost", {})
            size = "×".join(str(side) for side in cost.get("size") or [])
            found.append(", ".join(str(fact) for fact in (cost.get("device"), cost.get("precision"), size) if fact))
    return found


def _status(row: Row) -> str:
    return "ok" if row.status == "ok" else row.status.partition(":")[0]


def _caption(board: Board, winners: dict[str, int | None]) -> list[Any]:
    conditions = list(dict.fromkeys(_conditions(board.rows)))
    said: list[Any] = [
        "Scores times 100. Bold: better than every other row, the 95 % interval of each paired difference being above "
        "0 (bootstrap over test images, 2000 draws, 500 for AP). It says nothing about the noise of training, which "
        "needs seeds."
    ]
    if not any(winner is not None for winner in winners.values()):
        said.append(" No row is that much better here.")
    if board.table.parts:
        said.append(" Below a score stands its 95 % interval, where it has one.")
    if len(conditions) == 1:
        said.append(f" Latency of one image, post-processing included: {conditions[0]}.")
    elif conditions:
        said.append(
            " Latencies were measured under conditions that differ, which stand with them: do not compare them."
        )
    said.append(" GFLOP: 2 per multiply-add.")
    return said


def _controls(board: Board) -> Html:
    options = [tag("option", name, value=place) for place, name in enumerate(board.names)]
    scores = [tag("option", HEADINGS.get(name, name), value=name) for name in board.table.columns]
    return tag(
        "div",
        tag("label", "Filter ", tag("input", type="search", class_="filter", placeholder="model, backbone, status")),
        tag("label", "Difference in ", tag("select", scores, class_="score")),
        tag("label", "to ", tag("select", options, class_="reference")),
        class_="controls",
        data_board=board.key,
    )
