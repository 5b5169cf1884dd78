"""result.json: atomic, plain, and honest about runs that died."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import ZooError
from zoo.report import result


def test_a_run_from_start_to_finish(tmp_path: Path) -> None:
    result.start(tmp_path / "run", model="unet", cost={"parameters": 10})
    assert result.read(tmp_path / "run")["status"] == "running"
    result.update(tmp_path / "run", metrics={"mIoU": 0.5, "IoU/car": math.nan}, cost={"flops": 3})
    result.finish(tmp_path / "run", "ok", metrics={"Dice": 0.6})
    read = result.read(tmp_path / "run" / "result.json")
    assert read["status"] == "ok"
    assert read["reason"] is None
    assert read["metrics"]["mIoU"] == 0.5
    assert read["metrics"]["Dice"] == 0.6
    assert math.isnan(read["metrics"]["IoU/car"])
    assert read["cost"] == {"parameters": 10, "flops": 3}
    assert '"IoU/car": null' in (tmp_path / "run" / "result.json").read_text()


def test_a_dead_process_reads_as_killed(tmp_path: Path) -> None:
    code = f"from zoo.report import result; result.start({str(tmp_path)!r}, model='unet')"
    subprocess.run([sys.executable, "-c", code], check=True)
    read = result.read(tmp_path)
    assert read["status"] == "killed"
    assert "out of memory" in read["reason"]


def test_a_recycled_process_id_is_not_the_run(tmp_path: Path) -> None:
    """The id lives again, but as another process: one that started at another time."""
    result.start(tmp_path)
    text = json.loads((tmp_path / "result.json").read_text())
    text["process"]["born"] = "1"
    (tmp_path / "result.json").write_text(json.dumps(text))
    assert text["process"]["pid"] == os.getpid()
    assert result.read(tmp_path)["status"] == "killed"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model": "unet"}', "\x00\xff"])
def test_not_a_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="latin-1")
    with pytest.raises(ZooError, match=r"result\.json"):
        result.read(tmp_path)


def test_no_result_and_newer_schema(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"no result\.json"):
        result.read(tmp_path)
    result.start(tmp_path)
    result.update(tmp_path, schema=result.SCHEMA + 1)
    with pytest.raises(ZooError, match="update the zoo"):
        result.read(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    result.start(tmp_path, model="unet")
    with pytest.raises(TypeError):
        result.update(tmp_path, model={1, 2})  # a set is not JSON
    assert result.read(tmp_path)["model"] == "unet"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
