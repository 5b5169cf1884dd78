"""Checkpoint files: written so that a crash cannot destroy the last good one, read so that no file can run code.

A checkpoint is a dict of plain containers and tensors::

    {"format": "zoo", "version": 1,
     "header": {...},          # model.header: what create_model needs to rebuild the model
     "state": {...},           # its state_dict
     "training": None | {...}} # engine state; only last.ckpt has it
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.errors import ZooError

VERSION = 1
# A score kept beside the weights is often a number of NumPy's: these make one from its bytes, and nothing else.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: Any = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    codecs.encode,
]


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` (nested dicts, lists, tuples, plain values, tensors) so that `path` is always a whole file.

    A temporary file in the same folder is written, synced and renamed over `path`; then the folder is synced.
    If anything fails, the old file stays as it was and the temporary one is removed.

    Raises:
        ZooError: the disk is full or not writable, or `state` holds an object that `read` would refuse.
    """
    path = Path(path)
    plain = _plain(state, "checkpoint")
    # One name per target, not a random one: what a killed process left behind is overwritten by the next save.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise ZooError(_why_not_saved(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: str | Path, mmap: bool = True) -> dict[str, Any]:
    """Read a checkpoint, ours or foreign: safetensors, or a torch file of plain containers and tensors, onto the CPU.

    Args:
        path: the file; its kind is told by its first bytes.
        mmap: leave tensors on disk until they are used. Switch it off to keep them longer than the file.

    Raises:
        ZooError: the file is missing, damaged, no checkpoint, from a newer zoo, or holds pickled objects, which
            are never executed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise ZooError(f"checkpoint {path} {what}")
    with path.open("rb") as file:
        start = file.read(9)
    is_zip = start.startswith(b"PK")
    try:
        if start[8:] == b"{":  # safetensors: eight bytes of header length, then JSON
            content: Any = load_file(path)
        elif is_zip or start.startswith(b"\x80"):  # torch since 1.6, and the bare pickles before
            with torch.serialization.safe_globals(_NUMPY_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
        else:
            raise ZooError(f"checkpoint {path} is damaged or no checkpoint (starts with {start!r})")
    except ZooError:
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ZooError(
            f"checkpoint {path} holds more than tensors ({refused[1] if refused else 'pickled objects'}), which "
            f"could run code; it was not opened: save its state_dict alone, or as safetensors"
        ) from error
    except Exception as error:  # a damaged file can make an unpickler raise anything
        raise ZooError(f"checkpoint {path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ZooError(f"checkpoint {path} holds a {type(content).__name__}, not a dict of weights")
    if content.get("format") == "zoo" and content.get("version", 0) > VERSION:
        raise ZooError(
            f"checkpoint {path} has format version {content['version']}, this zoo reads up to {VERSION}: "
            f"update segmentation-zoo"
        )
    return content


def model_file(
    model: nn.Module, state: Mapping[str, Tensor] | None = None, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a checkpoint of `model`, with `state` in place of its own weights if given (an average, say)."""
    return {
        "format": "zoo",
        "version": VERSION,
        "header": model.header,
        "state": model.state_dict() if state is None else state,
        "training": training,
    }


def save_model(path: str | Path, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model file that `zoo.load` rebuilds the model from; raises as `save`."""
    save(path, model_file(model, state))


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Makes one sentence about `path` of an OSError inside, which says it where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ZooError(f"the disk is full: {path} could not be written") from error
        raise ZooError(f"{path} could not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, in the same folder and with the same suffix, which becomes `path` at the end.

    If anything fails, the old file stays as it was and the temporary one is removed. Unlike `save`, it does not wait
    for the disk: this is for what can be made again.

    Raises:
        ZooError: the disk is full or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp.{path.name}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, types and bytes of `state`, the same for every file format and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any, where: str) -> Any:
    """`value` with its containers rebuilt as plain ones; refuses what a safe reader would refuse."""
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple, torch.Size):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise ZooError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which no safe reader opens: "
        f"use plain containers, numbers, strings and tensors"
    )


def _why_not_saved(path: Path, error: Exception) -> str:
    existing = next(p for p in (path.parent, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**20
    old = ", the file of before is unchanged" if path.exists() else ""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"could not write {path} ({free:.1f} MiB free on its disk{old}): {reason}"


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; only POSIX can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
