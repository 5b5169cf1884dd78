"""From `result.json` files to one honest table: terminal, Markdown and CSV.

Runs are put into one table only where data, classes, task and protocol are the same; runs that differ in the seed
alone become one row with mean and standard deviation; a run that crashed keeps its row, with the reason. Tables of
several tasks on the same images are shown as one, with the metrics that mean the same in each of them.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from zoo.errors import ZooError
from zoo.report import result as results

# What each task's table shows beside the cost; the first is the one that ranks.
COLUMNS = {
    "semantic": ("mIoU", "pixel_accuracy", "mean_accuracy", "Dice", "boundary_IoU"),
    "instance": ("AP", "AP50", "AP75", "APS", "APM", "APL", "AP_box"),
    "panoptic": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU"),
}
CLASS_PREFIX = {"semantic": "IoU/", "instance": "AP/", "panoptic": "PQ/"}  # of the score of one class
# What a table of several tasks shows, and the choice of the protocol that decides each.
SEVERAL = "several"
SHARED = {"mIoU": "absent", "AP": "max_detections", "PQ": None}
COST = {  # heading -> (fact, divisor)
    "params M": ("parameters", 1e6),
    "GFLOP": ("flops", 1e9),
    "ms": ("latency_ms", 1.0),
    "train s": ("train_seconds", 1.0),
}

SHORT = {"pixel_accuracy": "pixel acc", "mean_accuracy": "mean acc", "boundary_IoU": "boundary"}  # terminal headings
WORDS = ("model", "backbone", "task", "overrides", "status")
WIDE = 200  # columns of a "terminal" that is a pipe or a file


@dataclass
class Row:
    """One line: the runs of one model that differ in the seed alone."""

    runs: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The model and its backbone."""
        return f"{self.runs[0].get('model') or '?'} {self.runs[0].get('backbone') or ''}".strip()

    @property
    def overrides(self) -> set[str]:
        """What was set on the command line, but for what other columns show and where the folder is."""
        shown = ("model=", "backbone=", "seed=", "runs=")
        return {text for text in self.runs[0].get("overrides", []) if not text.lstrip("+").startswith(shown)}

    @property
    def good(self) -> list[dict[str, Any]]:
        return [run for run in self.runs if run["status"] == "ok"]

    @property
    def status(self) -> str:
        """ "ok", or what happened to the runs that are not."""
        bad = [run for run in self.runs if run["status"] != "ok"]
        reasons = dict.fromkeys(f"{run['status']}: {run.get('reason') or 'no reason given'}" for run in bad)
        if bad and self.good:
            return f"{len(bad)} of {len(self.runs)} seeds {'; '.join(reasons)}".replace(": no reason given", "")
        return "; ".join(reasons).replace(": no reason given", "") or "ok"

    def metric(self, name: str) -> tuple[float, float]:
        """Mean over the seeds and their standard deviation (nan where there is one seed)."""
        return _mean_sd([run["metrics"].get(name, math.nan) for run in self.good])

    def cost(self, fact: str) -> float:
        values = [run.get("cost", {}).get(fact) for run in self.good]
        return _mean_sd([math.nan if value is None else value for value in values])[0]


@dataclass
class Table:
    """Rows that may be compared, best first, and the line that says what was measured."""

    title: str
    task: str
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    parts: list[Table] = field(default_factory=list)  # of several tasks: the table of each

    @property
    def common(self) -> set[str]:
        """The overrides that all runs share."""
        return set.intersection(*(row.overrides for row in self.rows)) if self.rows else set()

    def best(self, name: str) -> float:
        """The highest mean of a metric, rounded as it is shown (equal as shown means equal)."""
        return max(
            (round(mean, 4) for row in self.rows if not math.isnan(mean := row.metric(name)[0])), default=math.nan
        )


def collect(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The results in the given files, run folders, or folders of runs (searched downwards), each once."""
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        found = [path] if path.name == results.FILE else sorted(path.rglob(results.FILE))
        files |= dict.fromkeys(file.resolve() for file in found)
    return [_read(file) | {"folder": str(file.parent)} for file in files]


def _read(file: Path) -> dict[str, Any]:
    """The result in `file`; one that cannot be read is a failed run, not the end of the table."""
    try:
        return results.read(file)
    except ZooError as error:
        return {"status": "failed", "reason": str(error), "metrics": {}}


def tabulate(runs: Sequence[dict[str, Any]]) -> list[Table]:
    """Group results into tables of runs that may be compared, and seeds into rows."""
    tables: dict[str, Table] = {}
    members: dict[str, dict[str, Row]] = {}
    complete = [run for run in runs if run.get("protocol") and run.get("dataset", {}).get("fingerprint")]
    for run in [*complete, *(run for run in runs if run not in complete)]:
        key = _key(run) if run in complete else _home(run, complete)
        task = run.get("task") or "semantic"
        table = tables.setdefault(key, Table(_title(run), task, COLUMNS.get(task, ())))
        recipe, rows = _recipe(run), members.setdefault(key, {})
        while recipe in rows and any(other.get("seed") == run.get("seed") for other in rows[recipe].runs):
            recipe += " again"  # the same seed twice is no second seed
        rows.setdefault(recipe, Row([])).runs.append(run)
        table.rows = list(members[key].values())
    for table in tables.values():
        shown = {name for row in table.rows for run in row.good for name in run["metrics"]}
        table.columns = tuple(name for name in table.columns if name in shown)
        if table.columns:
            table.rows.sort(key=lambda row: _descending(row.metric(table.columns[0])[0]))
    return list(tables.values())


def across_tasks(tables: Sequence[Table]) -> list[Table]:
    """One table in place of those of several tasks on the same images; all others as they are.

    It shows what means the same whatever the task: a panoptic prediction has its mIoU and its AP too, over the same
    classes and by the same rules as those of semantic and instance models.
    """
    groups: dict[str, list[Table]] = {}
    for table in tables:
        groups.setdefault(_images(table, tables), []).append(table)
    return [table for group in groups.values() for table in ([_joined(group)] if _alike(group) else group)]


def _complete(table: Table) -> dict[str, Any]:
    """A run of the table that knew images, classes and protocol; what is known of one that crashed if there is none."""
    runs = [run for row in table.rows for run in row.runs]
    return next((run for run in runs if run.get("protocol")), runs[0])


def _images(table: Table, tables: Sequence[Table]) -> str:
    """The images of a table, whatever its task; of runs that crashed before they knew, those of the same name."""
    run = _complete(table)
    data = run.get("dataset", {})
    if not run.get("protocol"):
        named = [other["dataset"] for t in tables if (other := _complete(t)).get("protocol")]
        data = next((other for other in named if other["name"] == data.get("name")), data)
    return str(data.get("origin") or id(table))


def _alike(group: Sequence[Table]) -> bool:
    """Whether tables on the same images are of several tasks, one each, with the same classes and rules."""
    runs = [run for run in map(_complete, group) if run.get("protocol")]
    if len(group) < 2 or not runs or len({table.task for table in group} & COLUMNS.keys()) < len(group):
        return False
    for choice in filter(None, SHARED.values()):
        if len({repr(run["protocol"].get(choice)) for run in runs} - {"None"}) > 1:
            return False
    whole = max((run["classes"] for run in runs), key=len)
    return all(run["classes"] == whole or (run["task"] == "instance" and {*run["classes"]} < {*whole}) for run in runs)


def _joined(group: Sequence[Table]) -> Table:
    """Tables of several tasks as one, in the order of `COLUMNS`."""
    parts = sorted(group, key=lambda table: list(COLUMNS).index(table.task))
    runs = [run for run in map(_complete, parts) if run.get("protocol")]
    rules = {rule: run["protocol"][rule] for rule in SHARED.values() for run in runs if rule in run["protocol"]}
    widest = max(runs, key=lambda run: len(run["classes"]))
    rows = [row for table in parts for row in table.rows]
    shown = {name for row in rows for run in row.good for name in run["metrics"]}
    columns = tuple(name for name in SHARED if name in shown)
    return Table(_title(widest | {"protocol": rules}), SEVERAL, columns, rows, parts)


def print_table(paths: Iterable[str | Path], console: Console | None = None) -> list[Table]:
    """Print the tables of the results below `paths`, those of several tasks as one, and return them."""
    console = console or (Console() if sys.stdout.isatty() else Console(width=WIDE))
    tables = across_tasks(tabulate(collect(paths)))
    if not tables:
        console.print(f"no {results.FILE} there")
    for table in tables:
        _print(table, console)
    if len(tables) > 1:
        console.print("Several tables: these runs differ in data, classes or protocol and cannot be compared.")
    return tables


def _print(table: Table, console: Console) -> None:
    """One table, as many columns of it as fit the console, and below it why runs failed."""
    headings = _headings(table)
    drawn = _draw(table, headings)
    dropped: list[str] = []
    optional = [*table.columns[1:], *COST]  # the last is the first to go
    unbounded = console.options.update(width=10_000)
    while optional and Measurement.get(console, unbounded, drawn).maximum > console.width:
        dropped.append(optional.pop())
        drawn = _draw(table, [heading for heading in headings if heading not in dropped])
    console.print(Text(table.title, style="italic"))
    console.print(drawn)
    if dropped:
        console.print(f"Left out for want of room: {', '.join(dropped)}. A wider terminal or --markdown shows them.")
    if table.parts:
        console.print("Each task's own table, with all its columns, is what python -m zoo.report --markdown writes.")
    for row in table.rows:
        if row.status != "ok":
            console.print(Text(f"{row.name}: {row.status}"))


def _draw(table: Table, headings: Sequence[str]) -> RichTable:
    """For the terminal; the best of each metric is bold."""
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")
    for heading in headings:
        text = heading in WORDS
        drawn.add_column(
            SHORT.get(heading, heading), justify="left" if text else "right", no_wrap=heading != "overrides"
        )
    for row in table.rows:
        cells = dict(zip(_headings(table), _cells(table, row), strict=True))
        cells["status"] = ("ok" if row.status == "ok" else row.status.partition(":")[0], False)
        drawn.add_row(*(Text(cells[heading][0], style="bold" if cells[heading][1] else "") for heading in headings))
    return drawn


def to_markdown(table: Table, classes: bool = False) -> str:
    """A GitHub table with its title; `classes` adds a second one with a line per class.

    Below one of several tasks stand those of each.
    """
    heads = _headings(table)
    lines = [f"**{_escape(table.title)}**", "", _line(heads), _line("---" for _ in heads)]
    for row in table.rows:
        lines.append(_line(f"**{_escape(text)}**" if bold else _escape(text) for text, bold in _cells(table, row)))
    if table.parts:
        return "\n\n".join(["\n".join(lines), *(to_markdown(part, classes) for part in table.parts)])
    if classes:
        lines += ["", *_class_lines(table)]
    return "\n".join(lines) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """Every run with every metric (fractions) and cost, one line each."""
    single = [part for table in tables for part in table.parts or [table]]
    runs = [(table.title, run) for table in single for row in table.rows for run in row.runs]
    metrics = list(dict.fromkeys(name for _, run in runs for name in run["metrics"]))
    costs = list(dict.fromkeys(name for _, run in runs for name in run.get("cost", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "model", "backbone", "seed", "overrides", "status", "reason", *metrics, *costs, "folder"])
    for title, run in runs:
        facts = [run.get(name) for name in ("model", "backbone", "seed")]
        facts += [" ".join(run.get("overrides", [])), run["status"], run.get("reason")]
        values = [run["metrics"].get(name) for name in metrics] + [run.get("cost", {}).get(name) for name in costs]
        writer.writerow([title, *facts, *values, run.get("folder")])
    return text.getvalue()


def _key(run: dict[str, Any]) -> str:
    """What must be equal for two numbers to be comparable."""
    data = run["dataset"]
    return repr(
        (run["task"], data["name"], data["split"], data["fingerprint"], run["classes"], sorted(run["protocol"].items()))
    )


def _home(run: dict[str, Any], complete: Sequence[dict[str, Any]]) -> str:
    """A run that crashed before it knew its protocol stands with the others of its dataset and task."""
    name, task = run.get("dataset", {}).get("name"), run.get("task")
    for other in complete:
        if other["dataset"]["name"] == name and other["task"] == task:
            return _key(other)
    return repr((name, task))


def _recipe(run: dict[str, Any]) -> str:
    """What makes two runs the same but for the seed."""
    overrides = [text for text in run.get("overrides", []) if not text.lstrip("+").startswith(("seed=", "runs="))]
    return repr((run.get("model"), run.get("backbone"), sorted(overrides), run.get("seed") is None and run["folder"]))


def _title(run: dict[str, Any]) -> str:
    data = run.get("dataset", {})
    parts = [f"{data.get('name', 'unknown data')} {data.get('split', '')}".strip()]
    if data.get("images"):
        parts.append(f"{data['images']} images")
    if run.get("classes"):
        parts.append(f"{len(run['classes'])} classes")
    parts += [f"{name} {value}" for name, value in (run.get("protocol") or {}).items()]
    return ", ".join(parts)


def _headings(table: Table) -> list[str]:
    seeds = ["seeds"] if any(len(row.runs) > 1 for row in table.rows) else []
    differ = ["overrides"] if any(row.overrides - table.common for row in table.rows) else []
    task = ["task"] if table.parts else []
    return ["model", "backbone", *task, *differ, *table.columns, *COST, *seeds, "status"]


def _cells(table: Table, row: Row) -> list[tuple[str, bool]]:
    """(text, bold) for each heading."""
    first = row.runs[0]
    cells = [(str(first.get("model") or "?"), False), (str(first.get("backbone") or ""), False)]
    if table.parts:
        cells.append((str(first.get("task") or ""), False))
    if any(other.overrides - table.common for other in table.rows):
        cells.append((" ".join(sorted(row.overrides - table.common)), False))
    for name in table.columns:
        mean, sd = row.metric(name)
        cells.append((_percent(mean, sd), round(mean, 4) == table.best(name)))
    for fact, unit in COST.values():
        value = row.cost(fact) / unit
        cells.append(("" if math.isnan(value) else f"{value:.1f}", False))
    if any(len(other.runs) > 1 for other in table.rows):
        cells.append((str(len(row.good)), False))
    return [*cells, (row.status, False)]


def _class_lines(table: Table) -> list[str]:
    """Classes down, models across: the metric that ranks, for each class ("IoU/road", "AP/person", ...)."""
    prefix = CLASS_PREFIX.get(table.task, "/")
    rows = [row for row in table.rows if row.good]
    names = list(dict.fromkeys(name for row in rows for name in row.good[0]["metrics"] if name.startswith(prefix)))
    heads = [prefix.rstrip("/"), *(row.name for row in rows)]
    lines = [_line(map(_escape, heads)), _line("---" for _ in heads)]
    for name in names:
        means = [row.metric(name) for row in rows]
        best = max((round(mean, 4) for mean, _ in means if not math.isnan(mean)), default=math.nan)
        cells = [f"**{_percent(*pair)}**" if round(pair[0], 4) == best else _percent(*pair) for pair in means]
        lines.append(_line([_escape(name.removeprefix(prefix)), *cells]))
    return lines


def _percent(mean: float, sd: float) -> str:
    """Fractions are shown times 100."""
    if math.isnan(mean):
        return "–"
    return f"{100 * mean:.2f}" if math.isnan(sd) else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(known) if known else math.nan
    return mean, statistics.stdev(known) if len(known) > 1 else math.nan


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Keep a name or a reason inside its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("*", "\\*")
