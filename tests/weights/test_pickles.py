"""Bare pickles: arrays come out as they went in, by every protocol; everything else is refused and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.weights import pickles

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "by_columns": np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
    "big_endian": np.arange(5, dtype=">i4"),
    "half": np.linspace(0, 1, 7, dtype=np.float16),
    "flags": np.array([True, False]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "unsigned": np.array([2**31], np.uint32),
}


def written(folder: Path, content: Any, protocol: int = 2, name: str = "model_final.pkl") -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_out_as_they_went_in(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "Ünal", "matching_heuristics": True, "x": np.float64(0.25)}
    path = written(tmp_path, content, protocol)
    assert pickles.is_pickle(path)
    read = pickles.read(path)
    assert {key: read[key] for key in content if key != "model"} == {
        "__author__": "Ünal",
        "matching_heuristics": True,
        "x": 0.25,
    }
    assert list(read["model"]) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert tuple(read["model"][key].shape) == array.shape
        np.testing.assert_array_equal(read["model"][key].numpy(), array)
    assert read["model"]["matrix"].dtype == torch.float32
    read["model"]["matrix"] += 1  # nobody else's memory


def test_bytes_of_python_2(tmp_path: Path) -> None:
    """There `str` is bytes: Detectron's files hold their arrays' numbers as text of 8-bit characters."""
    array = np.array([1.5, -2, 1e9], "<f4")
    data = array.tobytes()
    program = b"\x80\x02}U\x05blobs}U\x07conv1_w"
    program += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    program += b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
    program += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    program += b"U" + bytes([len(data)]) + data + b"tbss."
    path = tmp_path / "R-50.pkl"
    path.write_bytes(program)
    assert pickles.read(path)["blobs"]["conv1_w"].tolist() == array.tolist()


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


ran: list[str] = []


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (_Call(os.system, "true"), r"\w+\.system"),
        (_Call(ran.append, "x"), r"_*builtin(s|__)\.getattr"),
        (_Call(eval, "1"), r"_*builtin(s|__)\.eval"),
        (np.array([_Call(os.system, "true")], dtype=object), r"numpy\.dtype 'O8'"),
        (np.array([1], dtype=object), r"numpy\.dtype 'O8'"),
        (np.array(["text"]), r"numpy\.dtype 'U4'"),
        (np.zeros(2, [("a", "f4"), ("b", "i8")]), r"numpy\.dtype 'V12'"),
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
        (np.float32, r"numpy\.float32"),
        (_Call(np.lib.format.open_memmap, "x"), r"numpy\.lib"),
        (Path("x"), r"pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_could_run_is_refused_by_name(tmp_path: Path, harm: Any, named: str, protocol: int) -> None:
    path = written(tmp_path, {"model": {"weight": ARRAYS["matrix"], "x": harm}}, protocol)
    with pytest.raises(ZooError, match=rf"model_final\.pkl holds more than arrays \({named}.*could run code") as error:
        zoo.load(path)
    assert "\n" not in str(error.value)
    assert ran == []


def test_a_file_cannot_change_what_reads_the_next(tmp_path: Path) -> None:
    """A state of two dicts sets attributes of whatever it is for."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02cnumpy\ndtype\nN}U\x06harmed\x88s\x86b0}.")
    pickles.read(tmp_path / "a.pkl")
    assert not any(hasattr(known, "harmed") for known in pickles._KNOWN.values())


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": ARRAYS}, 2)
    path = tmp_path / "cut.pkl"
    huge = b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."
    wrong = whole.replace(b"K\x03K\x04\x86", b"K\x03K\x05\x86")
    assert wrong != whole
    for content in (
        *(whole[:n] for n in range(1, len(whole) - 1, 37)),
        b"",
        huge,
        wrong,
        b"no pickle",
        whole[:-9] + b"]" * 9,
    ):
        path.write_bytes(content)
        with pytest.raises(ZooError, match=r"cut\.pkl is damaged") as error:
            zoo.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ZooError, match=r"holds a list, not a dict of weights"):
        zoo.load(path)


def test_torch_s_own_files_are_left_to_torch(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save({"a": torch.zeros(2)}, tmp_path / "x.pkl", _use_new_zipfile_serialization=new)
        assert not pickles.is_pickle(tmp_path / "x.pkl")
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer, 0)
    (tmp_path / "old.pth").write_bytes(buffer.getvalue())
    assert not pickles.is_pickle(tmp_path / "old.pth")
