"""The README's way from one's own annotations to a trained model: its commands, word for word, on a small export."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import trees
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from zoo import jobs
from zoo.data.doctor import main as zoo_data
from zoo.overrides import CONF, check, quote_paths
from zoo.report import result

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = {
    "train": [
        *("backbone=test_resnet.r160_in1k", "backbone.pretrained=false", "debug=fast", "dataset.transform.crop=64"),
        *("model.channels=16", "model.box_width=16", "model.mask_channels=8", "model.roi_samples=16"),
        *("trainer.device=cpu", "trainer.steps=2", "trainer.batch_size=1"),
    ],
    "evaluate": ["device=cpu", "workers=0"],
    "predict": ["device=cpu"],
}


def commands() -> list[list[str]]:
    """The words of each command of the block that begins with zoo-data coco_json."""
    (block,) = re.findall(r"```\n(zoo-data coco_json .*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]


def exported(root: Path) -> Path:
    """COCO's JSONs and images, where the README shows them."""
    trees.coco(root)
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}2017.json").rename(root / f"annotations/instances_{split}.json")
        (root / f"{split}2017").rename(root / split)
    return root


@pytest.fixture(autouse=True)
def fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def composed(command: str, words: list[str]) -> dict[str, Any]:
    words = [*quote_paths(words), *SMALL[command]]
    check(command, get_args_parser().parse_args(words))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(command, words), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_the_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "mydata")
    doctor, *runs = commands()
    assert doctor[0] == "zoo-data"
    assert zoo_data(doctor[1:]) == 0
    assert "train 3, val 2" in capsys.readouterr().out
    best = None
    for number, (python, script, *words) in enumerate(runs):
        assert python == "python"
        command, out = script.removesuffix(".py"), tmp_path / f"out{number}"
        out.mkdir()
        words = [f"checkpoint={best}" if word.startswith("checkpoint=runs/") else word for word in words]
        assert jobs.run(command, composed(command, words), out, words) == 0, capsys.readouterr().err
        if command == "predict":
            assert len(list(out.glob("*_overlay.png"))) == 2  # the pictures of val
        else:
            assert result.read(out)["status"] == "ok"
            assert {"AP", "AP50", "AP_box"} <= result.read(out)["metrics"].keys()
            best = best or out / "best.ckpt"
    assert best is not None
    assert len(runs) >= 2
