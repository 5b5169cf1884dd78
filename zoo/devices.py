"""Devices and processes: the one file that imports Lightning Fabric."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from zoo.errors import ZooError, unknown

if TYPE_CHECKING or importlib.util.find_spec("lightning_fabric"):
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import Logger, TensorBoardLogger
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.environments import LightningEnvironment
else:  # the package `lightning` carries the same code under another name
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import Logger, TensorBoardLogger
    from lightning.fabric.plugins import MixedPrecision
    from lightning.fabric.plugins.environments import LightningEnvironment

__all__ = ["Fabric", "Stop", "create_fabric", "create_tensorboard", "gather", "launch", "share_buffers"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class _Autocast(MixedPrecision):
    """Mixed precision by autocast alone: Fabric's also rounds inputs, so 16-bit images would lose half their bits."""

    def convert_input(self, data: Any) -> Any:
        return data


def create_fabric(
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "32-true",
    strategy: str | None = None,
    loggers: Sequence[Logger] = (),
) -> Fabric:
    """A Fabric on `devices` devices of each of `nodes` machines.

    Several devices of one machine are served by processes that `launch` spawns. Where torchrun or SLURM has started
    the processes, their number is taken from there and `devices` and `nodes` are ignored.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "mps".
        precision: "32-true", "bf16-mixed" or "16-mixed" (autocast; weights stay float32).
        strategy: Fabric's name of a data-parallel strategy, None for the fitting one. Sharded ones (FSDP) are not
            supported: checkpoints and averages need whole weights.
        loggers: Fabric loggers besides metrics.csv.

    Raises:
        ZooError: a device, number of devices, precision or strategy that is not there; the sentence says what is.
    """
    device = _available(device, devices)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    outer = _outer_processes()
    if outer:
        devices, nodes = outer
    elif nodes > 1:
        raise ZooError(f"nodes={nodes}: start one process per device with torchrun or SLURM, this process cannot")
    many = devices * nodes > 1
    strategies = ("ddp",) if outer else ("ddp_spawn", "ddp_fork")
    if many and strategy is not None and strategy not in strategies:
        raise unknown("strategy", strategy, strategies)
    plugins: list[Any] = (
        [] if precision == "32-true" else [_Autocast(cast(Literal["bf16-mixed", "16-mixed"], precision), device)]
    )
    if many and not outer:
        plugins.append(LightningEnvironment())  # an interactive SLURM shell must not be taken for its launcher
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=(strategy or strategies[0]) if many else "auto",
        plugins=plugins,
        loggers=list(loggers),
    )


def create_tensorboard(folder: str | Path) -> Logger:
    """A logger that writes TensorBoard events into `folder`; ZooError without the package tensorboard."""
    try:
        return TensorBoardLogger(root_dir=folder, name="", version="")
    except ModuleNotFoundError as error:
        raise ZooError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error


def _available(device: str, devices: int) -> str:
    """`device` with "auto" resolved, after checking that there are `devices` of it."""
    here = {"cpu": os.cpu_count() or 1}
    if torch.cuda.is_available():
        here["cuda"] = torch.cuda.device_count()
    if torch.backends.mps.is_available():
        here["mps"] = 1
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if name in here)
    listed = ", ".join(name if name == "cpu" else f"{name} ({count})" for name, count in here.items())
    if device not in ("cpu", "cuda", "mps"):
        raise ZooError(f"unknown device {device!r}: this machine has {listed}; auto takes the best")
    if device not in here:
        raise ZooError(f"device {device} is not available to torch {torch.__version__}: this machine has {listed}")
    if devices < 1:
        raise ZooError(f"devices={devices}: at least one is needed")
    if device != "cpu" and devices > here[device]:
        raise ZooError(f"devices={devices} of {device}: this machine has {listed}")
    return device


def _outer_processes() -> tuple[int, int] | None:
    """(devices per node, nodes) if torchrun or SLURM has started several processes already."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= env.keys():
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        nodes = int(env.get("SLURM_NNODES", 1))
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return None


def launch(fabric: Fabric, function: Callable[..., Any], *args: Any) -> Any:
    """`function(fabric, *args)` on every process of `fabric`, started here if need be; returns rank 0's value."""
    if torch.distributed.is_initialized():  # already inside
        return function(fabric, *args)
    if fabric.world_size == 1 or _outer_processes():
        return fabric.launch(function, *args)
    with _forwarding_signals():
        return fabric.launch(function, *args)


@contextlib.contextmanager
def _forwarding_signals() -> Iterator[None]:
    """A request to stop goes on to the spawned processes, which finish their step and save."""

    def forward(signum: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    before = _handle((signal.SIGTERM, signal.SIGINT), forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """SIGTERM or Ctrl-C as a request to stop after the current step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self._before = _handle((signal.SIGTERM, signal.SIGINT), self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def _handle(signals: Sequence[signal.Signals], handler: Callable[..., None]) -> dict[signal.Signals, Any]:
    """Install `handler` and return the old ones; ignored signals stay ignored, and threads cannot install any."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    return before


def gather(fabric: Fabric, value: Any) -> list[Any]:
    """`value` (anything that pickles) of every process, in the order of ranks; collective."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def share_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the buffers of rank 0: unsynchronised batch norms differ between processes; collective."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
