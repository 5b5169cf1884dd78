"""The commands as a user types them: processes of their own, files on disk, exit codes, the table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from zoo import cli, jobs
from zoo.report import result

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "backbone=test_resnet.r160_in1k",
    "backbone.pretrained=false",
    "dataset=scenes",
    "dataset.size=48",
    "dataset.length=4",
    "debug=fast",
    "trainer.device=cpu",
]


def run(name: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder `cwd`, as from a terminal 200 columns wide."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run, and what was printed."""
    cwd = tmp_path_factory.mktemp("trained")
    done = run("train", "model=fcn", *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (out,) = (cwd / "runs").iterdir()
    return out, done


def test_a_single_run_leaves_its_files_and_ends_with_the_table(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = trained
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_fcn_scenes", out.name)
    files = {path.name for path in out.iterdir()}
    assert files == {
        "best.ckpt",
        "config.yaml",
        "last.ckpt",
        "metrics.csv",
        "pictures",
        "result.json",
        "statistics.npz",
    }
    facts = result.read(out)
    assert (facts["status"], facts["model"], facts["seed"]) == ("ok", "fcn", 0)
    assert facts["overrides"] == ["model=fcn", *TINY]
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["steps"] == 4
    assert "[1/1] fcn on scenes -> runs/" in done.stdout
    assert re.search(r"fcn .*ok", done.stdout.splitlines()[-3])
    assert done.stdout.endswith(f"pictures, checkpoints and numbers are in runs/{out.name}\n")
    assert {path.name for path in out.parent.parent.iterdir()} == {"runs"}  # nothing beside it


def test_a_multirun_with_a_crash_ends_with_the_table(tmp_path: Path) -> None:
    # PyTorch's plain step refuses numbers of that size; the fused one ends as a loss that is not finite, in a sentence.
    crash = ("optimizer.lr=1e38,1e-3", "+optimizer.fused=false")
    done = run("train", "-m", "model=fcn", *crash, *TINY, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    folders = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert folders == ["0_fcn_scenes", "1_fcn_scenes"]
    assert [result.read(sweep / folder)["status"] for folder in folders] == ["failed", "ok"]
    assert re.findall(r"^ fcn .* (ok|failed) *$", done.stdout, flags=re.MULTILINE) == ["ok", "failed"]
    assert "failed: RuntimeError" in done.stdout
    assert "error.log" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in (sweep / "0_fcn_scenes" / "error.log").read_text()
    assert f"to look at: runs/{sweep.name}/report.html" in done.stdout
    page = (sweep / "report.html").read_text()
    assert all(
        text in page for text in ("Masks side by side", "Runs that did not end well", "error.log:", "optimizer.lr")
    )


def test_evaluate_from_another_folder_on_the_dataset_of_the_training(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = trained
    odd = tmp_path / "odd [name]=1"
    odd.mkdir()
    for file in ("best.ckpt", "config.yaml"):
        (odd / file).write_bytes((out / file).read_bytes())
    (odd / "cut.ckpt").write_bytes((odd / "best.ckpt").read_bytes()[:1000])
    checkpoints = "checkpoint=odd [name]=1/best.ckpt,odd [name]=1/cut.ckpt"
    done = run("evaluate", "-m", checkpoints, "workers=0", "device=cpu", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    assert result.read(sweep / "0")["metrics"] == pytest.approx(result.read(out)["metrics"], nan_ok=True, rel=0, abs=0)
    assert re.search(r"^error: .*cut.ckpt", done.stderr, flags=re.MULTILINE)
    assert "Traceback" not in done.stderr
    rows = re.findall(r"^ (fcn|\?) .* (ok|failed) *$", done.stdout, flags=re.MULTILINE)
    assert rows == [("fcn", "ok"), ("?", "failed")]


def test_predict_pictures(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    out, _ = trained
    (tmp_path / "my pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a": (40, 60), "b": (33, 47)}.items():
        cv2.imwrite(str(tmp_path / "my pictures" / f"{name}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
    done = run("predict", f"checkpoint={out}/best.ckpt", "input=my pictures", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "runs").iterdir()
    labels = cv2.imread(str(made / "b_labels.png"), cv2.IMREAD_UNCHANGED)
    assert (labels.shape, labels.dtype) == ((33, 47), np.uint8)
    assert set(np.unique(labels)) <= set(range(10))
    assert cv2.imread(str(made / "a_overlay.png")).shape == (40, 60, 3)


def test_resume_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    """Ctrl-C saves and ends the run; `resume=` takes it up after that step."""
    long = [*TINY, "trainer.steps=40", "trainer.evaluate_every=40", "trainer.save_every=40"]
    arguments = [sys.executable, str(ROOT / "train.py"), "model=fcn", *long]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3"):
            break
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert "goes on" in stdout
    assert result.read(out)["status"] == "killed"
    done = run("train", f"resume={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 40" in done.stdout
    assert "step 2 " not in done.stdout
    assert result.read(out)["overrides"] == ["model=fcn", *long]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [out.name]


def test_a_process_that_dies_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result.start(tmp_path)
    monkeypatch.setattr(cli, "_child", _die)
    assert cli._spawn("train", {}, tmp_path, []) == 1
    facts = result.read(tmp_path)
    assert facts["status"] == "killed"
    assert "SIGKILL" in facts["reason"]
    assert "SIGKILL" in capsys.readouterr().err


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_bug_leaves_its_traceback_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setitem(jobs.JOBS, "predict", broken)
    assert jobs.run("predict", {"device": "cpu"}, tmp_path, []) == 1
    assert "KeyError: 'surprise'" in (tmp_path / "error.log").read_text()
    said = capsys.readouterr().err
    assert said.startswith("error: KeyError: 'surprise' (traceback in ")
    assert "error.log" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model=unett", "dataset=scenes"], "error: unknown model 'unett': did you mean unet?\n"),
        (["-m", "model=unet,fcm", "dataset=scenes"], "error: unknown model 'fcm': did you mean fcn?\n"),
        (
            ["model=unet", "dataset=scenes", "+seed=1"],
            "error: Could not append to config. An item is already at 'seed'.\n",
        ),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = run("train", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (2, sentence, "")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_the_job_finds_is_one_line_too(tmp_path: Path) -> None:
    done = run("train", "model=unet", *TINY, "trainer.device=gpu", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: unknown device 'gpu'.*\n", done.stderr)


def test_cfg_shows_values_and_help_shows_examples(tmp_path: Path) -> None:
    done = run("train", "model=unet", "dataset=camvid", "--cfg", "job", cwd=tmp_path, ZOO_DATA="/somewhere")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["dataset"]["root"] == "/somewhere/camvid"
    assert "$" not in done.stdout
    shown = run("train", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "python train.py -m model=unet,deeplabv3" in shown.stdout
    assert "every timm model" in shown.stdout
    assert list(tmp_path.iterdir()) == []
