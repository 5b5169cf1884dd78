"""The jobs in this process: what they read, what a resume leaves alone, what they say of a mistake or a full disk."""

from __future__ import annotations

import copy
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import hydra
import numpy as np
import pytest
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from zoo import cli, jobs
from zoo.devices import create_fabric
from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.backbone import create_backbone
from zoo.overrides import CONF, check
from zoo.predict import predict_input
from zoo.report import result
from zoo.weights.catalogue import CATALOGUE

TINY = ("model=fcn", "dataset=scenes", "dataset.size=48", "dataset.length=2", "backbone=test_resnet.r160_in1k")
PUBLIC = "pspnet-resnet50s-voc-semseg"  # by hand, without a checksum
RUN = (*TINY, "debug=fast", "trainer.device=cpu", "trainer.steps=1", "backbone.pretrained=false")


@pytest.fixture(autouse=True)
def fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def composed(command: str, *overrides: str) -> dict[str, Any]:
    check(command, get_args_parser().parse_args(overrides))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(command, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    assert jobs.run("train", composed("train", *RUN), out, list(RUN)) == 0
    return out


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, its process gone."""
    for name in ("best.ckpt", "last.ckpt", "metrics.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    facts = json.loads((finished / result.FILE).read_text())
    facts["process"] |= {"born": "long ago"}
    (tmp_path / result.FILE).write_text(json.dumps(facts))
    return tmp_path


# ---- resume


@pytest.mark.parametrize(
    ("overrides", "last"),
    [
        (["trainer.device=gpu"], None),
        (["limit=0"], None),
        (["trainer.batch_size=3", "+trainer.accumulate=2"], None),
        ([], b"cut"),
    ],
)
def test_a_resume_that_cannot_work_leaves_the_finished_result_alone(
    overrides: list[str], last: bytes | None, run_folder: Path
) -> None:
    before = (run_folder / result.FILE).read_bytes()
    if last:
        (run_folder / "last.ckpt").write_bytes(last)
    config = composed("train", *RUN, *(text.lstrip("+") for text in overrides))
    assert jobs.run("resume", config, run_folder, list(RUN)) == 2
    assert (run_folder / result.FILE).read_bytes() == before


def test_a_resume_goes_on_and_keeps_the_overrides(run_folder: Path) -> None:
    config = composed("train", *RUN, "trainer.steps=2")
    assert jobs.run("resume", config, run_folder, list(RUN)) == 0
    facts = result.read(run_folder)
    assert (facts["status"], facts["cost"]["steps"], facts["overrides"]) == ("ok", 2, list(RUN))


def test_a_run_that_still_runs_is_not_resumed(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result.start(run_folder)  # by this process
    facts = json.loads((run_folder / result.FILE).read_text())
    facts["process"]["pid"], facts["process"]["host"] = 1, "elsewhere"
    (run_folder / result.FILE).write_text(json.dumps(facts))
    before = (run_folder / result.FILE).read_bytes()
    assert jobs.run("resume", composed("train", *RUN), run_folder, []) == 2
    assert "is still running: stop it first" in capsys.readouterr().err
    assert (run_folder / result.FILE).read_bytes() == before


def test_a_resume_needs_neither_pretrained_weights_nor_those_it_started_from(run_folder: Path) -> None:
    gone = composed("train", *RUN, "trainer.steps=2", "backbone.pretrained=/gone.pth", "weights=/gone.ckpt")
    assert jobs.run("resume", gone, run_folder, []) == 0
    (run_folder / "last.ckpt").unlink()
    assert jobs.run("resume", gone, run_folder, []) == 2


def test_resume_with_cfg_shows_the_saved_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("train", *RUN)
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it was resumed"))
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={tmp_path}", "trainer.steps=7", "--cfg", "job"])
    cli.train()
    config["trainer"]["steps"] = 7
    assert yaml.safe_load(capsys.readouterr().out) == config


def test_paths_are_saved_so_that_another_folder_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", lambda kind, out, config, overrides: seen.append(config) or 0)
    arguments = [*TINY, "weights=a.ckpt", "backbone.pretrained=b.pth", "dataset.root=c", "hydra.run.dir=out"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit):
        cli.train()
    saved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    for config in (saved, *seen):
        found = config["weights"], config["backbone"]["pretrained"], config["dataset"]["root"]
        assert found == tuple(str(tmp_path / name) for name in ("a.ckpt", "b.pth", "c"))
    assert len(seen) == 1


@pytest.mark.parametrize("name", [PUBLIC, "hf://owner/name@v1", "fcn-resnet50-misspelt"])
def test_names_of_weights_are_saved_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", lambda kind, out, config, overrides: seen.append(config) or 0)
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, f"weights={name}", "hydra.run.dir=out"])
    with pytest.raises(SystemExit):
        cli.train()
    saved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert [config["weights"] for config in (saved, *seen)] == [name, name]


def test_public_weights_by_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training begins with them and an evaluation takes them; a resume no longer needs them."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(finished)  # there is a config.yaml here, which is not theirs
    train, evaluation = composed("train", *RUN, f"weights={PUBLIC}"), composed("evaluate", f"checkpoint={PUBLIC}")
    (finished / "config.yaml").write_text(yaml.safe_dump(train))
    assert jobs.run("train", copy.deepcopy(train), tmp_path / "early", []) == 2
    assert "can only be downloaded by hand" in capsys.readouterr().err
    placed = tmp_path / "cache" / "semseg" / CATALOGUE[PUBLIC].file
    placed.parent.mkdir(parents=True)
    placed.write_bytes((finished / "best.ckpt").read_bytes())
    assert jobs.run("train", copy.deepcopy(train), tmp_path / "run", []) == 0
    with pytest.raises(ZooError, match="name a dataset"):
        jobs._evaluated(evaluation)
    named = composed("evaluate", f"checkpoint={PUBLIC}", "dataset=scenes", "dataset.size=48", "dataset.length=2")
    assert jobs.run("evaluate", {**named, "device": "cpu", "workers": 0}, tmp_path / "evaluated", []) == 0
    assert result.read(tmp_path / "evaluated")["checkpoint"] == PUBLIC
    placed.unlink()
    train["trainer"]["steps"] = 2
    assert jobs.run("resume", train, tmp_path / "run", []) == 0


# ---- mistakes and a full disk


def test_a_limit_below_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.run("train", composed("train", *RUN, "limit=-1"), tmp_path, []) == 2
    assert "limit=-1: of each split at least 1 image is taken" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.png"))

    result.start(tmp_path)
    monkeypatch.setitem(jobs.JOBS, "predict", full)
    assert jobs.run("predict", {"device": "cpu"}, tmp_path, []) == 1
    assert capsys.readouterr().err == f"error: the disk is full: {tmp_path / 'a.png'} could not be written\n"
    assert result.read(tmp_path)["status"] == "failed"
    monkeypatch.setattr(result, "finish", full)
    assert jobs.run("predict", {"device": "cpu"}, tmp_path, []) == 1


def test_a_bug_on_a_full_disk_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("surprise")

    (tmp_path / "error.log").mkdir()  # cannot be written either
    monkeypatch.setitem(jobs.JOBS, "predict", broken)
    assert jobs.run("predict", {"device": "cpu"}, tmp_path, []) == 1
    assert "KeyError: 'surprise' (the traceback could not be written to " in capsys.readouterr().err


# ---- predict


@pytest.mark.parametrize(
    ("saved", "options", "expected"),
    [
        (None, [], {}),
        ({"exif": "apply", "maximum": 4095}, [], {"exif": "apply", "maximum": 4095}),
        ({"exif": "apply", "maximum": 4095}, ["exif=ignore", "maximum=255"], {"exif": "ignore", "maximum": 255}),
        ({"root": "no such options"}, [], {}),
    ],
)
def test_predict_reads_pictures_as_the_training_did(
    saved: dict[str, Any] | None,
    options: list[str],
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(jobs, "load", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "predict_input", lambda *_, alpha, explain, **given: seen.update(given))
    if saved is not None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"dataset": saved}))
    config = composed("predict", f"checkpoint={tmp_path}/a.ckpt", "input=b.png", "device=cpu", *options)
    assert jobs.run("predict", config, tmp_path, []) == 0
    assert seen == expected


def test_the_16_bit_maximum_reaches_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("fcn", 2, "test_resnet.r160_in1k")
    seen = []
    monkeypatch.setattr(model, "predict", lambda batch: seen.append(batch.images.max().item()))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 32, 3), 4095, np.uint16))
    with pytest.raises(TypeError):  # the stand-in predicts nothing
        predict_input(model, tmp_path / "a.png", tmp_path, create_fabric("cpu"), maximum=4095)
    assert seen == [1.0]
    with pytest.raises(ZooError, match="unknown exif 'aply': did you mean apply"):
        predict_input(model, tmp_path / "a.png", tmp_path, create_fabric("cpu"), exif="aply")  # type: ignore[arg-type]


def test_a_video_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (32, 32))
    writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    model = create_model("fcn", 2, "test_resnet.r160_in1k")
    (tmp_path / "a_overlay.mp4").mkdir()
    with pytest.raises(ZooError, match=r"a_overlay.mp4 could not be written"):
        predict_input(model, tmp_path / "a.avi", tmp_path, create_fabric("cpu"))


# ---- weights of the backbone


def test_a_misspelt_option_of_timm_is_not_blamed_on_the_download() -> None:
    with pytest.raises(ZooError, match=r"^timm cannot build test_resnet.r160_in1k .*drop_pathrate") as caught:
        create_backbone("test_resnet.r160_in1k", pretrained=True, drop_pathrate=0.1)
    assert "network" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("no route"), r"could not be loaded \(no route\): fetch model.safetensors from https://"),
        (RuntimeError("Error(s) in loading state_dict for X:\n mismatch"), r"do not fit its options \(.*mismatch\)"),
    ],
)
def test_weights_that_do_not_come_and_weights_that_do_not_fit(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, pretrained: bool, **_: Any) -> None:
        if pretrained:
            raise error

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(ZooError, match=sentence):
        create_backbone("test_resnet.r160_in1k", pretrained=True)
