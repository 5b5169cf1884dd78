"""The registry, its cards, and headers that rebuild a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zoo
from zoo.errors import ZooError
from zoo.models import MODELS, create_model, list_models, model_options
from zoo.models.backbone import create_backbone
from zoo.structures import Class

CARDS = Path(__file__).resolve().parents[2] / "conf" / "model"
TINY = "test_efficientnet"


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_every_card_has_a_model_and_every_model_a_card() -> None:
    assert {card.stem for card in CARDS.glob("*.yaml")} == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_card_lists_every_option_with_its_default(name: str) -> None:
    text = (CARDS / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    card = yaml.safe_load(text)
    assert set(card) == {"defaults", "model"}  # a card sets model.* alone and chooses groups by override
    overrides = {key: value for entry in card["defaults"] for key, value in entry.items()}
    assert overrides["override /backbone"] == MODELS[name].natural_backbone
    assert overrides["override /task"] in (getattr(MODELS[name], "tasks", None) or (MODELS[name].task,))
    options = {key: plain(value) for key, value in model_options(name).items()}
    if "loss" in options:
        options["loss"] = {"cross_entropy": 1.0}  # what None means, spelled out so that terms can be added
    if len(getattr(MODELS[name], "tasks", ())) > 1:
        options["task"] = "${task.name}"  # chosen like that of the dataset
    assert card["model"] == {"name": name, **options}


def test_list_models_by_task() -> None:
    assert {"deeplabv3", "fcn", "unet"} <= set(list_models("semantic"))
    assert set(list_models()) == set(MODELS)
    assert "unet" not in list_models("panoptic")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "unett"}, r"unknown model 'unett': did you mean unet"),
        ({"name": "fcn", "dropuot": 0.1}, r"unknown option of fcn 'dropuot': did you mean dropout"),
        ({"name": "fcn", "backbone": "resnet5"}, r"resnet5"),
        ({"name": "unet", "classes": 256}, r"1 to 255 classes, not 256"),
        ({"name": "unet", "scales": ()}, r"scales"),
        ({"name": "unet", "overlap": 1.0}, r"overlap"),
    ],
)
def test_mistakes_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        create_model(**{"classes": 3, "backbone": TINY, **arguments})


def test_a_built_backbone_comes_with_its_own_arguments() -> None:
    backbone = create_backbone(TINY, in_channels=5, levels=5)
    assert create_model("unet", 3, backbone).backbone is backbone
    with pytest.raises(ZooError, match="create_backbone"):
        create_model("unet", 3, backbone, in_channels=5)


@pytest.mark.parametrize(
    ("name", "backbone", "options"),
    [
        ("unet", TINY, {"decoder_channels": (32, 16, 16, 8, 8), "scales": (0.5, 1.0), "flip": True}),
        ("unet", "unet", {"padding": "valid", "in_channels": 1}),
        ("fcn", TINY, {"output_stride": 16, "loss": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}}),
        ("deeplabv3", TINY, {"rates": (2, 4), "window": (64, 96), "backbone_options": {"dilation": "full"}}),
    ],
)
def test_header_rebuilds_the_model(name: str, backbone: str, options: dict[str, Any]) -> None:
    classes = [Class("road", (1, 2, 3)), Class("car", (4, 5, 6), thing=True)]
    model = create_model(name, classes, backbone, **options).eval()
    header = json.loads(json.dumps(model.header))
    assert set(header["options"]) == set(model_options(name))  # defaults too: they may change in a later version
    again = zoo.load({"format": "zoo", "header": header, "state": model.state_dict()}).eval()
    assert again.classes == tuple(classes)
    assert again.header == model.header
    images = torch.rand(1, options.get("in_channels", 3), 40, 56)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
