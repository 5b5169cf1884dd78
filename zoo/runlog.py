"""What a run writes while it trains: metrics.csv, the terminal, and Fabric's loggers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.checkpoint import replacing, writing
from zoo.devices import Fabric

HEADER = "step,name,value\n"


class RunLog:
    """Rows (step, name, value) in metrics.csv, one value a row because names differ from row to row.

    "train/..." holds means over the steps since the row before, "val/..." an evaluation. Rows are flushed as they are
    written. Only rank 0 writes. A terminal gets a progress bar, anything else one line a row.
    """

    def __init__(self, fabric: Fabric, out: Path, steps: int, step: int, evaluated: int) -> None:
        """Go on after `step` with the last evaluation at step `evaluated`: later rows of a killed run are dropped."""
        self._fabric = fabric
        self._active = fabric.is_global_zero
        self._bar: Progress | None = None
        if not self._active:
            return
        self._path = out / "metrics.csv"
        _truncate(self._path, step, evaluated)
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            )
            self._task = self._bar.add_task("training", total=steps, completed=step)

    def __enter__(self) -> RunLog:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._active:
            with contextlib.suppress(OSError):  # every row is flushed already, or its failure is on its way up
                self._file.close()

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def row(self, step: int, values: Mapping[str, float], shown: Mapping[str, float]) -> None:
        """Write all `values` at `step`, and `shown` where people look."""
        if not self._active:
            return
        with writing(self._path):
            self._file.writelines(f"{step},{name},{float(value)!r}\n" for name, value in values.items())
            self._file.flush()
        self._fabric.log_dict(dict(values), step)
        said = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar:
            self._bar.update(self._task, completed=step, description=said)
        else:
            print(f"step {step}  {said}", flush=True)


def _truncate(path: Path, step: int, evaluated: int) -> None:
    """Keep the rows of metrics.csv that a run at `step` has written; start the file if there is none."""
    kept = HEADER
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
            at, _, rest = line.partition(",")
            if line.endswith("\n") and int(at) <= (evaluated if rest.startswith("val/") else step):
                kept += line
    with replacing(path) as temporary:
        temporary.write_text(kept, encoding="utf-8")
