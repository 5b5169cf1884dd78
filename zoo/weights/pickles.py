"""Bare pickles of NumPy arrays, read without running what they say: detectron2's model zoo, Mask2Former, Detectron.

A pickle is a program that may call any function it names. The reader below knows a handful of names, those that rebuild
NumPy arrays, and puts functions of this file in their place: not even NumPy's own are called with what a file says.

    {"model": {name: array}, "__author__": ..., "matching_heuristics": ...}        detectron2
    {"blobs": {name: array}, "cfg": ...}                                           Detectron, pickled by Python 2

Source: the protocol as `pickletools` documents it; numpy.ndarray.__reduce__ for the parts of an array.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError

# torch.save's before its 1.6 begin like this: torch reads them.
_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"
_NUMBERS = re.compile(r"[<>|=]?(?:[iu][1248]|f[248]|b1)")


def is_pickle(path: Path) -> bool:
    """Whether a file is a bare pickle, not one of torch's: by its first bytes, or (protocol 0 has no mark) its name."""
    with path.open("rb") as file:
        start = file.read(len(_TORCH))
    marked = start[:1] == b"\x80" and len(start) > 1 and start[1] <= pickle.HIGHEST_PROTOCOL and start[8:] != b"{"
    return start != _TORCH and (marked or (path.suffix == ".pkl" and not start.startswith(b"PK")))


def read(path: Path) -> dict[str, Any]:
    """The content of a pickled dict: arrays of numbers as tensors, also those of the dicts in it; the rest as it is.

    Raises:
        ZooError: the file is damaged or no dict, or it names anything but arrays, of which nothing was run.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()  # latin1: what Python 2 wrote as bytes
        if isinstance(content, Mapping):
            return {key: _tensors(value) for key, value in content.items()}
    except _RefusedError as error:
        raise ZooError(
            f"checkpoint {path} holds more than arrays ({error}), which could run code; it was not opened: save its "
            "weights alone, as safetensors"
        ) from error
    except Exception as error:  # a damaged file can make an unpickler raise anything
        raise ZooError(f"checkpoint {path} is damaged, cut short or no pickle ({type(error).__name__})") from error
    raise ZooError(f"checkpoint {path} holds a {type(content).__name__}, not a dict of weights")


class _RefusedError(Exception):
    """What a pickle named that no array needs."""


class _Type:
    """Stands for numpy.dtype: of numbers, with their byte order."""

    def __init__(self, code: str, *copying: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _RefusedError(f"numpy.dtype {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]  # (version, byte order, ...)
        if order not in ("<", ">", "=", "|"):
            raise _RefusedError(f"byte order {order!r}")
        self.code = order + self.code.lstrip("<>=|")

    def values(self, data: bytes | str, count: int = -1) -> np.ndarray:
        """The numbers in these bytes, in this machine's byte order."""
        raw = data.encode("latin1") if isinstance(data, str) else data
        kind = np.dtype(self.code)
        return np.frombuffer(raw, kind, count).astype(kind.newbyteorder("="))


class _Array:
    """Stands for numpy.ndarray, filled by the state that follows it."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        self.values = kind.values(data).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, data: bytes | str) -> Any:
    return kind.values(data, 1)[0].item()


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 spells bytes."""
    if encoding != "latin1":
        raise _RefusedError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 spells none."""
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[_core + ".multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[_core + ".multiarray", "scalar"] = _scalar
    _KNOWN[_core + ".numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle.Unpickler):
    """Knows the names above and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # an argument of _reconstruct, nothing to call
        if (module, name) not in _KNOWN:
            raise _RefusedError(f"{module}.{name}")
        function = _KNOWN[module, name]
        # A new function each time: a pickle can set attributes of what it was given.
        return lambda *arguments: function(*arguments)


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensor(entry) for key, entry in value.items()}
    return _tensor(value)


def _tensor(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    values = value.values
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:  # torch computes little with these
        values = values.astype(np.int64)
    tensor: Tensor = torch.from_numpy(np.ascontiguousarray(values).reshape(values.shape))
    return tensor
