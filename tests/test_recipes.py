"""The recipes of papers: every setting exists and is taken; one of them trains from end to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import trees
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from zoo import jobs
from zoo.data.transforms import TrainTransform
from zoo.losses import weigh_classes
from zoo.models import MODELS, create_model
from zoo.optim import create_optimizer, create_schedule
from zoo.overrides import CONF, check, quote_paths
from zoo.recipe import Recipe
from zoo.report import result
from zoo.structures import VOID, Batch, Class, Instances, Masks, Panoptic, Sample, Semantic

RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# Backbones that take the same settings and are built faster.
SMALLER = {"vgg16": "test_resnet", "resnet101.tv_in1k": "resnet50"}
FREE = ("model.loss", "dataset.transform.extra")  # mappings whose keys are names of losses and of pixel transforms


@pytest.fixture(autouse=True)
def fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def composed(*overrides: str) -> dict[str, Any]:
    """The config of one job, checked first as on the command line."""
    check("train", get_args_parser().parse_args(quote_paths(overrides)))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def card(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())


def chosen(name: str) -> dict[str, str]:
    """What a recipe picks of each group."""
    groups = dict(item for entry in card(name).get("defaults", []) for item in entry.items())
    return {"model": "unet", **{group.removeprefix("override /"): pick for group, pick in groups.items()}}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in FREE:
            yield from leaves(value, f"{name}.")
        else:
            yield name


# What belongs to a model and a dataset, and what a model changes in an experiment.
PAIRS = {
    **dict.fromkeys(sorted((CONF / "recipe").glob("*.yaml")), "recipe"),
    **dict.fromkeys(sorted((CONF / "experiment" / "model").glob("*.yaml")), "experiment"),
}


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_settings_of_a_pair_are_found_and_taken(path: Path) -> None:
    """Its name is that of its two parts, its keys are the cards', and the composed config has its values."""
    if PAIRS[path] == "recipe":
        datasets = [card.stem for card in (CONF / "dataset").glob("*.yaml")]
        pairs = [(f"dataset={name}", model) for name in datasets for model in MODELS if f"{model}_{name}" == path.stem]
    else:
        pairs = [
            (f"experiment={name}", model) for name in RECIPES for model in MODELS if f"{name}_{model}" == path.stem
        ]
    ((first, model),) = pairs
    text = path.read_text()
    settings = yaml.safe_load(text)
    assert text.startswith("# @package _global_\n")
    config = composed(f"model={model}", first)
    cards = {"model": model, "trainer": "default", "optimizer": config["optimizer"]["name"]}
    for part, values in settings.items():
        known = yaml.safe_load((CONF / part / f"{cards[part]}.yaml").read_text())
        assert values.keys() <= known.get(part, known).keys()
        assert {key: config[part][key] for key in values} == values


def test_the_demo_is_of_three_tasks() -> None:
    """Of the one command in the Makefile, which the recipe and the README repeat."""
    root = CONF.parent
    (line,) = (line for line in (root / "Makefile").read_text().splitlines() if "experiment=demo" in line)
    command = line.partition(" train.py ")[2]
    assert command in (CONF / "experiment" / "demo.yaml").read_text()
    assert command in (root / "README.md").read_text()
    assert check("train", get_args_parser().parse_args(command.split())) == 4
    models = command.split()[1].removeprefix("model=").split(",")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        configs = [hydra.compose("train", [f"model={model}", "experiment=demo"]) for model in models]
    assert [config.task.name for config in configs] == ["semantic", "semantic", "instance", "panoptic"]


def test_the_papers_have_their_recipes() -> None:
    papers = {"fcn32s_voc", "fcn16s_voc", "fcn8s_voc", "unet_isbi2012", "deeplabv3_voc", "refinenet_voc"}
    assert papers | {"pspnet_cityscapes", "pspnet_ade20k"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_is_one_of_the_cards(name: str) -> None:
    plain = set(leaves(composed(*(f"{group}={pick}" for group, pick in chosen(name).items()))))
    settings = card(name)
    settings.pop("defaults")
    assert set(leaves(settings)) <= plain


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_and_what_to_expect(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# @package _global_"
    assert any("python train.py" in line and f"experiment={name}" in line for line in head)
    if name != "demo":
        assert any(line.startswith("# Expected: ") for line in head)
        assert any(line.startswith("# Hardware: ") for line in head)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_set_is_taken(name: str) -> None:
    """By the model, the losses, the optimizer, the schedule and the augmentation: the loss of one image of noise."""
    compared = ("demo", "camvid_cpu")  # whose models the command line names
    choice = [f"model={chosen(name)['model']}"] if name in compared else []
    config = composed(f"experiment={name}", *choice)
    recipe = Recipe.of({key: value for key, value in config["trainer"].items() if key not in jobs.FABRIC})
    create_schedule(recipe.schedule, recipe.steps, recipe.warmup, recipe.power)

    channels = 1 if config["dataset"]["name"] == "isbi2012" else 3
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 56, channels), dtype=np.uint8)
    labels = torch.from_numpy(rng.integers(0, 2, (48, 56), dtype=np.uint8))
    task, classes = config["task"]["name"], [Class("thing", (1, 2, 3), thing=True), Class("stuff", (4, 5, 6))]
    truth: Any = Semantic(labels)
    if task == "instance":
        truth = Instances(Masks.from_dense(torch.stack([labels == 0, labels == 1])), [0, 1])
    elif task == "panoptic":
        truth = Panoptic(labels.int() + 1, [VOID, 0, 1])
    crop = 4 if config["model"].get("padding") == "valid" else 40  # a network without padding extends it to 188 or more
    transform = TrainTransform(**config["dataset"]["transform"] | {"crop": crop})
    sample = transform(Sample(image, truth, 0, (48, 56)), rng)

    options = dict(config["model"])
    if "loss" in options:
        options["loss"] = weigh_classes(options["loss"], lambda: np.array([[3, 1]]))
    backbone = {key: value for key, value in config["backbone"].items() if value is not None} | {
        "in_channels": channels
    }
    backbone.pop("pretrained")
    built = backbone.pop("name", None)
    model = create_model(
        options.pop("name"),
        classes,
        SMALLER.get(str(built), built),
        in_channels=channels,
        output_stride=backbone.pop("output_stride", None),
        backbone_options=backbone,
        **options,
    )
    create_optimizer(model, **config["optimizer"])
    with torch.no_grad():
        losses = model.train().loss(Batch.collate([sample]))
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())


@pytest.mark.parametrize("name", ["deeplabv3_voc", "refinenet_voc"])
def test_a_recipe_says_which_weights_of_resnet101_it_begins_with(name: str) -> None:
    """timm's default tag is another training, and may change."""
    assert composed(f"experiment={name}")["backbone"]["name"] == "resnet101.tv_in1k"


def test_the_rates_of_a_recipe_reach_their_parameters() -> None:
    config = composed("experiment=fcn8s_voc")
    model = create_model("fcn8s", 2, "test_resnet")
    rates = {group["lr"] for group in create_optimizer(model, **config["optimizer"]).param_groups}
    assert rates == {1e-14, 2 * 1e-14}
    config = composed("experiment=pspnet_cityscapes")
    model = create_model("pspnet", 2, "test_resnet")
    groups = create_optimizer(model, **config["optimizer"]).param_groups
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.1 * 0.1, 1e-4), (0.1, 1e-4)}


def test_a_recipe_trains_on_files_of_the_official_layout(tmp_path: Path) -> None:
    root = trees.cityscapes(tmp_path / "cityscapes")
    config = composed(
        "experiment=pspnet_cityscapes",
        f"dataset.root={root}",
        "backbone=test_resnet.r160_in1k",
        "backbone.pretrained=false",
        "dataset.transform.crop=32",
        "model.window=24",
        "model.channels=16",
        "debug=fast",
        "trainer.steps=2",
        "trainer.device=cpu",
    )
    assert config["trainer"]["batch_size"] == 2
    assert jobs.run("train", config, tmp_path / "run", []) == 0
    found = result.read(tmp_path / "run")
    assert found["status"] == "ok"
    assert 0 <= found["metrics"]["mIoU"] <= 1
