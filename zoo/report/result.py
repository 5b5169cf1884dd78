"""`result.json`: the one file a run leaves for others to read.

Tables and reports are made from these files alone, so anyone can re-make them. A run starts its file with status
"running", adds facts as it learns them and ends with "ok", "failed" or "killed". Facts are plain JSON:

    schema, status, reason, process {pid, host, born}, started, finished
    task, model, backbone, dataset {name, split, fingerprint, origin, images}, classes [names], protocol {...}
    seed, overrides [..], metrics {name: fraction}, intervals {name: [low, high]}, selected_on
    cost {parameters, flops, latency_ms, peak_memory_mb, train_seconds, steps}, versions {}, weights_sha256
"""

from __future__ import annotations

import json
import math
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

SCHEMA = 1
FILE = "result.json"


def start(out: str | Path, **facts: Any) -> dict[str, Any]:
    """Begin the result of the run in folder `out` (made if absent). What an earlier start in it said is dropped."""
    Path(out).mkdir(parents=True, exist_ok=True)
    process = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
    return _write(out, {"schema": SCHEMA, "status": "running", "process": process, "started": _now(), **facts})


def update(out: str | Path, **facts: Any) -> dict[str, Any]:
    """Add `facts` to the result in `out`; a fact that is a dict is merged into the one that is there."""
    result = _load(Path(out) / FILE)
    for name, value in facts.items():
        old = result.get(name)
        result[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return _write(out, result)


def finish(out: str | Path, status: str, reason: str | None = None, **facts: Any) -> dict[str, Any]:
    """Close the result with `status` "ok", "failed" or "killed" and, unless ok, the `reason` in one line."""
    return update(out, **facts, status=status, reason=reason, finished=_now())


def read(out: str | Path) -> dict[str, Any]:
    """The result in the run folder (or file) `out`. A "running" result whose process is gone reads as "killed".

    Raises:
        ZooError: there is no result, it is not readable, or a newer release wrote it.
    """
    path = Path(out) if Path(out).name == FILE else Path(out) / FILE
    result = _load(path)
    if result["schema"] > SCHEMA:
        raise ZooError(f"{path} has schema {result['schema']}, this release reads up to {SCHEMA}: update the zoo")
    if result["status"] == "running" and not _alive(result["process"]):
        result |= {"status": "killed", "reason": "the process ended without a word (killed, or out of memory)"}
    result["metrics"] = {
        name: math.nan if value is None else value for name, value in result.get("metrics", {}).items()
    }
    return result


def _load(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ZooError(f"no {FILE} in {path.parent}: give the folder of a run") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ZooError(f"{path} cannot be read as a result: {error}") from None
    if not isinstance(result, dict) or not {"schema", "status", "process"} <= result.keys():
        raise ZooError(f"{path} is not the result of a run: it has no schema, status and process")
    return result


def _write(out: str | Path, result: dict[str, Any]) -> dict[str, Any]:
    """Replace the file in one step, so that a reader (or a crash) never sees half of it."""
    path = Path(out) / FILE
    part = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(_plain(result), file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return result


def _plain(value: Any) -> Any:
    """JSON has no nan or infinity: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _alive(process: dict[str, Any]) -> bool:
    """Whether the process that wrote the result still runs; one on another machine is taken at its word."""
    if process["host"] != socket.gethostname():
        return True
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(process["pid"]) == process["born"]


def _born(pid: int) -> str | None:
    """When a process started, in kernel ticks: process ids are used again, (id, start) pairs are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
