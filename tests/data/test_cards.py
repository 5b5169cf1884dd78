"""Every dataset has a card, and a card says every option of its dataset with the default of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from zoo.data import DATASETS
from zoo.data.transforms import TrainTransform

CARDS = Path(__file__).resolve().parents[2] / "conf" / "dataset"
COMMON = {"name", "root", "train", "val", "test", "transform"}


def test_one_card_for_each_dataset() -> None:
    assert {path.stem for path in CARDS.glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_a_card_lists_the_options(name: str) -> None:
    card = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    assert card["name"] == name
    parameters = inspect.signature(DATASETS[name].__init__).parameters
    own = parameters.keys() - {"self", "root", "split", "task", "transform", "seed"}
    assert card.keys() == COMMON | own
    for option in own:
        assert card[option] == parameters[option].default, option
    for split in ("train", "val", "test"):
        assert card[split] is None or not DATASETS[name].splits or card[split] in DATASETS[name].splits


@pytest.mark.parametrize("name", DATASETS)
def test_a_card_lists_the_transforms_options(name: str) -> None:
    transform = yaml.safe_load((CARDS / f"{name}.yaml").read_text())["transform"]
    assert transform.keys() == inspect.signature(TrainTransform).parameters.keys()
    TrainTransform(**transform)
