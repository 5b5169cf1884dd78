"""Peak memory of a process, for benchmarks that give each contender one of its own (Linux)."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

# What a child is started with: freed blocks go back to the system at once, else glibc keeps now more, now less of them.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> float:
    """VmRSS, memory now, or VmHWM, its peak since the last `restart`, in MiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def restart() -> float:
    """What is not needed is given back, the peak starts anew; MiB now."""
    gc.collect()
    with suppress(OSError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    RESET.write_text("5")
    return resident("VmRSS")
