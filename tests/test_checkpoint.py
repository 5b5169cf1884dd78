"""Checkpoints survive full disks and kills, and reading one never runs code."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo import checkpoint
from zoo.errors import ZooError


class Tiny(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.header = {"name": "tiny", "classes": [["road", [0, 0, 0], False]]}


def state() -> dict:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "nested": [{"b": torch.tensor(3, dtype=torch.int64)}, None, "text", 1.5],
    }


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    checkpoint.save(path, state())
    read = checkpoint.read(path)
    torch.testing.assert_close(read["a"], state()["a"], rtol=0, atol=0)
    assert read["nested"][1:] == [None, "text", 1.5]
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_permissions_follow_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    checkpoint.save(tmp_path / "x.ckpt", state())
    assert (tmp_path / "x.ckpt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_model_file_keeps_header_and_other_weights(tmp_path: Path) -> None:
    model = Tiny()
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    checkpoint.save_model(tmp_path / "best.ckpt", model, average)
    file = checkpoint.read(tmp_path / "best.ckpt")
    assert file["header"] == model.header
    assert file["training"] is None
    assert not file["state"]["weight"].any()


def test_saving_reaches_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    checkpoint.save(tmp_path / "x.ckpt", state())
    assert calls == ["fsync", "replace", "fsync"]


def test_an_object_no_reader_opens_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"checkpoint\.header\.root is a .*Path"):
        checkpoint.save(tmp_path / "x.ckpt", {"header": {"root": tmp_path}})
    assert not list(tmp_path.iterdir())


def test_writing_over_a_file_of_a_folder_name_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ZooError, match="could not write"):
        checkpoint.save(tmp_path / "run" / "x.ckpt", state())


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real disk of 1 MiB, where this machine allows mounting one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    old = {"a": torch.ones(100_000)}
    checkpoint.save(path, old)
    with pytest.raises(ZooError, match=r"last\.ckpt \(0\.\d MiB free on its disk, the file of before is unchanged\)"):
        checkpoint.save(path, {"a": torch.zeros(200_000)})
    assert torch.equal(checkpoint.read(path)["a"], old["a"])
    assert os.listdir(small_disk) == ["last.ckpt"]


def test_a_write_cut_short_keeps_the_old_file(tmp_path: Path) -> None:
    """The same through a limit on the size of a file, which every Unix has."""
    pytest.importorskip("resource")
    script = """
import resource, sys, torch
from zoo import checkpoint
from zoo.errors import ZooError
path = sys.argv[1]
checkpoint.save(path, {"a": torch.ones(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(path, {"a": torch.zeros(100_000)})
except ZooError as error:
    print(error)
"""
    path = tmp_path / "last.ckpt"
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=100)
    assert f"could not write {path}" in run.stdout, run.stderr
    assert torch.equal(checkpoint.read(path)["a"], torch.ones(1000))
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_killed_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    script = """
import sys, torch
from zoo import checkpoint
n = 0
while True:
    checkpoint.save(sys.argv[1], {"a": torch.full((300_000,), float(n)), "n": n})
    if n == 0: print("ready", flush=True)
    n += 1
"""
    path = tmp_path / "last.ckpt"
    for delay in (0.0, 0.013, 0.041):
        process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        file = checkpoint.read(path)
        assert (file["a"] == file["n"]).all()


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (os.system, (f"touch {self.flag}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    flag = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"state": {"w": torch.ones(2)}, "x": Evil(flag)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ZooError, match=r"posix\.system.*could run code; it was not opened"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps({"x": Evil(flag)}))
    with pytest.raises(ZooError, match="not opened"):
        checkpoint.read(path)
    assert not flag.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ZooError, match="save its state_dict alone"):
        checkpoint.read(tmp_path / "module.pt")


@pytest.mark.parametrize("keep", [0, 1, 8, 40, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / "cut"
    weights = {"a": torch.arange(5000.0)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ZooError, match="cut is damaged or no checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(50)]
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "what"
    path.write_bytes(content)
    with pytest.raises(ZooError, match="what"):
        checkpoint.read(path)


def test_missing_folder_newer_and_not_a_dict(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="does not exist"):
        checkpoint.read(tmp_path / "none.ckpt")
    with pytest.raises(ZooError, match="is a folder"):
        checkpoint.read(tmp_path)
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(ZooError, match="holds a Tensor"):
        checkpoint.read(tmp_path / "tensor.pt")
    checkpoint.save(tmp_path / "new.ckpt", {"format": "zoo", "version": 99})
    with pytest.raises(ZooError, match="format version 99"):
        checkpoint.read(tmp_path / "new.ckpt")


def test_foreign_kinds_are_read(tmp_path: Path) -> None:
    weights = OrderedDict(a=torch.arange(4.0), b=torch.ones(2, dtype=torch.bfloat16))
    save_file(weights, tmp_path / "no_suffix")
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("no_suffix", "zip.pth", "legacy.pth"):
        read = checkpoint.read(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in weights.items())


def test_weights_survive_the_replacement_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    checkpoint.save(path, {"a": torch.ones(100_000)})
    mapped = checkpoint.read(path)["a"]
    checkpoint.save(path, {"a": torch.zeros(10)})
    assert mapped.sum() == 100_000


def test_hash_tells_weights_apart_not_their_storage() -> None:
    a = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(1), "h": torch.ones(2, dtype=torch.bfloat16)}
    b = {"h": a["h"].clone(), "n": a["n"], "w": torch.arange(6.0).reshape(3, 2).T.contiguous().T.reshape(2, 3)}
    assert checkpoint.weights_sha256(a) == checkpoint.weights_sha256(b)
    b["w"] = b["w"].clone()
    b["w"][0, 0] = -0.0
    assert checkpoint.weights_sha256(a) != checkpoint.weights_sha256(b)
    assert checkpoint.weights_sha256({}) != checkpoint.weights_sha256({"e": torch.empty(0)})
