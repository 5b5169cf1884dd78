"""The cards: every combination composes and is built, keys are the keywords they become, mistakes are named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from zoo import jobs
from zoo.data import DATASETS, create_dataset, list_datasets
from zoo.data.transforms import TrainTransform
from zoo.devices import create_fabric
from zoo.errors import ZooError
from zoo.losses import median_frequency_weights
from zoo.models import MODELS, list_models
from zoo.optim import create_optimizer
from zoo.overrides import CONF, check, quote_paths, saved_run
from zoo.recipe import Recipe
from zoo.report import result
from zoo.structures import TASKS, Batch

TINY = ["backbone=test_resnet.r160_in1k", "backbone.pretrained=false"]


def cards(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def card(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


@pytest.fixture(autouse=True)
def fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def checked(command: str, *arguments: str) -> int:
    return check(command, get_args_parser().parse_args(quote_paths(arguments)))


def composed(command: str, *overrides: str) -> dict[str, Any]:
    """The config of one job; `check` comes first, as on the command line, and gives backbones their cards."""
    checked(command, *overrides)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(command, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_every_model_and_dataset_has_a_card_and_every_card_a_model_or_dataset() -> None:
    assert cards("model") == list_models()
    assert cards("dataset") == list_datasets()
    assert cards("task") == sorted(TASKS)


FITTING = {"semantic": "camvid", "instance": "scenes", "panoptic": "scenes"}
PAIRS = [
    *((model, FITTING[MODELS[model].task]) for model in cards("model")),
    *(("unet", dataset) for dataset in cards("dataset")),
]


@pytest.mark.parametrize(("model", "dataset"), PAIRS)
def test_every_model_and_every_dataset_composes(model: str, dataset: str) -> None:
    config = composed("train", f"model={model}", f"dataset={dataset}", *TINY)
    assert (config["model"]["name"], config["dataset"]["name"]) == (model, dataset)
    assert config["backbone"]["name"] == "test_resnet.r160_in1k"
    assert config["task"]["name"] == MODELS[model].task


@pytest.mark.parametrize("model", cards("model"))
def test_every_model_card_is_built_and_trains(model: str) -> None:
    config = composed("train", f"model={model}", "dataset=scenes", "dataset.size=48", "dataset.length=2", *TINY)
    data = jobs.create_datasets(config["dataset"], MODELS[model].task, seed=0)
    built = jobs.build_model(config, data["train"])
    assert built.header["name"] == model
    batch = Batch.collate([data["train"][0], data["train"][1]])
    for target in (batch.targets or []) if model == "keypoint_rcnn" else []:
        target.keypoints = torch.ones(len(target), 17, 3)  # scenes have none
    losses = built.loss(batch)
    assert losses.keys() >= {"cross_entropy" if built.task == "semantic" else "classification"}
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("dataset", cards("dataset"))
def test_dataset_cards_list_options_of_the_dataset_and_of_the_transform(dataset: str) -> None:
    options = card("dataset", dataset)
    TrainTransform(**options.pop("transform"))
    base = {"name", "root", "train", "val", "test"}
    assert base <= options.keys()
    for option in options.keys() - base:
        with pytest.raises(ZooError, match=r"^(?!unknown option)"):  # about the root, not about the option
            create_dataset(dataset, root="/nowhere", split="nonsense", **{option: options[option]})
    splits = {options[part] for part in ("train", "val", "test")} - {None}
    assert splits <= set(DATASETS[dataset].splits or splits)


@pytest.mark.parametrize("backbone", cards("backbone"))
def test_backbone_cards_are_built(backbone: str) -> None:
    config = composed("train", "model=unet", "dataset=scenes", f"backbone={backbone}", "backbone.pretrained=false")
    data = jobs.create_datasets(config["dataset"], "semantic", 0, ["train"])
    assert jobs.build_model(config, data["train"]).backbone.channels


@pytest.mark.parametrize("logger", cards("logger"))
def test_logger_cards_are_built(logger: str, tmp_path: Path) -> None:
    assert len(jobs.create_loggers({"logger": card("logger", logger)}, tmp_path)) == (logger != "csv")


def test_trainer_keys_are_the_keywords_of_fit_and_of_the_fabric() -> None:
    fabric = inspect.signature(create_fabric).parameters.keys() - {"strategy", "loggers"}
    assert fabric == set(jobs.FABRIC)
    for name in cards("trainer"):
        assert card("trainer", name).keys() == {field.name for field in fields(Recipe)} | fabric
    defaults = {field.name: field.default for field in fields(Recipe)}
    assert {key: value for key, value in card("trainer", "default").items() if key not in fabric} == defaults


@pytest.mark.parametrize("name", cards("optimizer"))
def test_optimizer_cards_make_an_optimizer(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    options = card("optimizer", name)
    group = create_optimizer(model, **options).param_groups[0]
    keywords = inspect.signature(create_optimizer).parameters.keys() - {"model", "options"}
    assert keywords - {"momentum"} <= options.keys()
    assert group["lr"] == options["lr"]
    assert group["weight_decay"] == options["weight_decay"]


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("experiment", "debug") for name in cards(group)]
)
def test_experiments_and_debug_modes_compose(group: str, name: str) -> None:
    choices = {"model=unet", "dataset=scenes", *TINY} if group == "debug" else {"model=unet"}
    config = composed("train", *choices, f"{group}={name}")
    Recipe.of({key: value for key, value in config["trainer"].items() if key not in jobs.FABRIC})


def test_the_command_line_wins_over_the_card_and_the_card_over_the_default() -> None:
    assert composed("train", "model=fcn", "dataset=scenes")["backbone"]["name"] == "resnet50"
    assert composed("train", "model=fcn", "dataset=scenes", "backbone=resnet18")["backbone"]["name"] == "resnet18"
    demo = ["model=fcn", "experiment=demo"]
    assert composed("train", *demo)["backbone"]["name"] == "resnet18"
    assert composed("train", *demo, "backbone=vgg16_bn.tv_in1k")["backbone"]["name"] == "vgg16_bn.tv_in1k"
    assert composed("train", *demo, "trainer.steps=7")["trainer"]["steps"] == 7


def test_overfitting_scores_the_few_images_it_trains_on() -> None:
    config = composed("train", *GOOD, *TINY, "debug=overfit")
    assert {config["dataset"][part] for part in ("train", "val", "test")} == {"train"}
    assert config["limit"] == config["trainer"]["batch_size"]


@pytest.mark.parametrize("dataset", cards("dataset"))
def test_overfitting_changes_no_image(dataset: str) -> None:
    transform = TrainTransform(
        **composed("train", "model=unet", f"dataset={dataset}", "debug=overfit")["dataset"]["transform"]
    )
    sample = create_dataset("scenes", size=[48, 64])[0]
    for seed in range(3):
        changed = transform(sample, np.random.default_rng(seed))
        np.testing.assert_array_equal(changed.image, sample.image)
        assert torch.equal(changed.target.labels, sample.target.labels)


def test_a_recipe_is_taken_for_its_model_and_dataset_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "fcn_camvid.yaml").write_text("# @package _global_\ntrainer: {steps: 123}\n")
    mine = ["--config-dir", str(tmp_path)]
    assert checked("train", *mine, "-m", "model=fcn,unet", "dataset=camvid,scenes") == 4
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        search = f"hydra.searchpath=['file://{tmp_path}']"
        steps = {
            (model, dataset): hydra.compose("train", [f"model={model}", f"dataset={dataset}", search]).trainer.steps
            for model, dataset in product(("fcn", "unet"), ("camvid", "scenes"))
        }
    assert steps.pop(("fcn", "camvid")) == 123
    assert set(steps.values()) == {40_000}


def test_own_cards_join_the_groups(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "meadows.yaml").write_text("defaults: [scenes]\nworld: 7\n")
    assert checked("train", "--config-dir", str(tmp_path), "model=unet", "dataset=meadows", "dataset.world=8") == 1
    with pytest.raises(ZooError, match=r"^unknown dataset 'meadow': did you mean meadows\?"):
        checked("train", "--config-dir", str(tmp_path), "model=unet", "dataset=meadow")


def test_terms_are_added_to_the_loss_with_a_plus() -> None:
    loss = composed("train", "model=unet", "dataset=scenes", "+model.loss.dice=0.5")["model"]["loss"]
    assert loss == {"cross_entropy": 1.0, "dice": 0.5}


GOOD = ("model=unet", "dataset=scenes")
MISTAKES = [
    (("model=unett", "dataset=scenes"), r"^unknown model 'unett': did you mean unet\?$"),
    (("model=unet", "dataset=camvit"), r"^unknown dataset 'camvit': did you mean camvid\?$"),
    ((*GOOD, "backbone=resnet5O"), r"^unknown backbone 'resnet5O': did you mean .*resnet50"),
    ((*GOOD, "optimizer=adamm"), r"^unknown optimizer 'adamm': did you mean adamw\?$"),
    ((*GOOD, "experiment=demoo"), r"^unknown experiment 'demoo': did you mean demo\?$"),
    ((*GOOD, "trainer.stepz=3"), r"^unknown option 'trainer.stepz': did you mean trainer.steps\?$"),
    ((*GOOD, "steps=3"), r"^unknown option 'steps': did you mean trainer.steps\?$"),
    ((*GOOD, "modell=fcn"), r"^unknown option 'modell': did you mean model\?$"),
    ((*GOOD, "trainer.zebra=3"), r"^unknown option 'trainer.zebra': .*trainer\."),
    ((*GOOD, "model.name.x=3"), r"^unknown option 'model.name.x'"),
    ((*GOOD, "model.loss.dice=1"), r"a new key needs a plus, \+model.loss.dice=1$"),
    ((*GOOD, "trainer.steps=abc"), r"^trainer.steps takes a number, not abc$"),
    ((*GOOD, "trainer.steps=true"), r"^trainer.steps takes a number, not True$"),
    ((*GOOD, "trainer.compile=7"), r"^trainer.compile takes true or false, not 7$"),
    ((*GOOD, "optimizer.lrr=3"), r"^unknown option 'optimizer.lrr': did you mean optimizer.lr\?$"),
    ((*GOOD, "optimizer.eps=0.001"), r"^optimizer.eps is no key of the card: .* a plus, \+optimizer.eps=0.001$"),
    ((*GOOD, "backbone.drop_path_rate=0.1"), r"an option of timm needs a plus, \+backbone.drop_path_rate=0.1$"),
    ((*GOOD, "+sede=3"), r"^unknown option 'sede': did you mean seed\b"),
    ((*GOOD, "+trainr.steps=3"), r"^unknown option 'trainr': did you mean trainer\b"),
    ((*GOOD, "++modle.loss.dice=1.0"), r"^unknown option 'modle': did you mean model\b"),
    ((*GOOD, "+steps=3"), r"^unknown option 'steps': did you mean trainer.steps\?$"),
    ((*GOOD, "seed=[1"), r"^cannot read 'seed=\[1': "),
    ((*GOOD, "seed"), r"^cannot read 'seed': "),
    (("model=unet,fcn", "dataset=scenes"), r"^model=unet,fcn names several values: add -m"),
    (("-m", "model=fcn,unett", "dataset=scenes"), r"^unknown model 'unett': did you mean unet\?$"),
    (("-m", *GOOD, "trainer.stepz=3,4"), r"^unknown option 'trainer.stepz': did you mean trainer.steps\?$"),
    (("-m", *GOOD, "backbone=resnet18,resnet5O"), r"^unknown backbone 'resnet5O': did you mean .*resnet50"),
    (("dataset=scenes",), r"^choose a model: model=NAME with one of .*unet"),
    (("model=unet",), r"^choose a dataset: dataset=NAME with one of .*camvid"),
    (("-m", "--cfg", "job", *GOOD), r"^--cfg shows the config of one job"),
    (("--config-dir", "/nowhere", *GOOD), r"^--config-dir /nowhere is not a folder$"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_named_before_anything_starts(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence) as caught:
        checked("train", *arguments)
    assert "\n" not in str(caught.value)


def test_options_of_timm_are_added_with_a_plus() -> None:
    config = composed(
        "train", "model=fcn", "dataset=scenes", "+backbone.drop_path_rate=0.1", "+optimizer.eps=1e-6", *TINY
    )
    assert (config["backbone"]["drop_path_rate"], config["optimizer"]["eps"]) == (0.1, 1e-6)


def test_words_where_a_flag_is_usual() -> None:
    assert checked("train", *GOOD, "trainer.freeze_norm=all", "backbone.pretrained=my weights.pth") == 1
    assert (
        checked("train", *GOOD, "trainer.clip=1.0", "dataset.size=[48,64]", "optimizer.lr=1", "trainer.ema=null") == 1
    )


def test_what_evaluate_and_predict_need() -> None:
    with pytest.raises(ZooError, match=r"^evaluate needs checkpoint=runs/"):
        checked("evaluate")
    with pytest.raises(ZooError, match=r"^predict needs input="):
        checked("predict", "checkpoint=a.ckpt")
    assert checked("evaluate", "-m", "checkpoint=a.ckpt,b.ckpt") == 2


def test_two_models_are_combined() -> None:
    both = ("model=combined", "semantic=a.ckpt", "instance=b.ckpt")
    assert checked("evaluate", *both, "dataset=scenes") == 1
    assert checked("evaluate", "-m", "model=combined", "semantic=a.ckpt,c.ckpt", "instance=b.ckpt") == 2
    with pytest.raises(ZooError, match=r"^evaluate needs instance=runs/"):
        checked("evaluate", *both[:2])
    with pytest.raises(ZooError, match=r"^semantic= goes with model=combined"):
        checked("evaluate", "checkpoint=a.ckpt", "semantic=b.ckpt")


NASTY = [
    "a b.ckpt",
    "a=1,b(2)[3]{4}.ckpt",
    "it's.ckpt",
    'say "no".ckpt',
    "~odd#.ckpt",
    "back\\slash.ckpt",
    "end\\",
    "a:b",
]


@pytest.mark.parametrize("path", NASTY)
def test_paths_survive_hydras_grammar(path: str) -> None:
    assert composed("evaluate", *quote_paths([f"checkpoint={path}"]))["checkpoint"] == path


def test_commas_separate_paths_in_a_multirun_unless_they_are_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked("evaluate", "-m", "checkpoint=a 1.ckpt,b=2.ckpt") == 2
    Path("a 1.ckpt,b=2.ckpt").touch()
    assert checked("evaluate", "-m", "checkpoint=a 1.ckpt,b=2.ckpt") == 1
    assert quote_paths(["weights=null", "weights='mine'", "seed=1"]) == ["weights=null", "weights='mine'", "seed=1"]


def resumed(*arguments: str) -> tuple[Path, dict[str, Any], list[str]]:
    return saved_run(get_args_parser().parse_args(quote_paths(arguments)))


def test_resume_takes_the_saved_config_with_new_values(tmp_path: Path) -> None:
    config = composed("train", *GOOD, *TINY)
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    result.start(tmp_path, overrides=["model=unet"])
    out, saved, started = resumed(f"resume={tmp_path}", "trainer.workers=1", "dataset.root=/new place")
    assert (out, started) == (tmp_path, ["model=unet"])
    config["trainer"]["workers"], config["dataset"]["root"] = 1, "/new place"
    assert saved == config
    for arguments, sentence in {
        ("model=fcn",): "resume goes on with the saved model: leave out model=fcn",
        ("trainer.stepz=1",): "unknown option 'trainer.stepz': did you mean trainer.steps",
        ("-m",): "resume goes on with one run",
    }.items():
        with pytest.raises(ZooError, match=sentence):
            resumed(f"resume={tmp_path}", *arguments)
    with pytest.raises(ZooError, match="there is no run to resume in"):
        resumed(f"resume={tmp_path / 'nothing'}")


def test_class_weights_are_counted_from_the_training_set() -> None:
    dataset = create_dataset("scenes", length=3, size=32, transform=lambda *_: pytest.fail("augmented"))
    config = {
        "model": {"name": "fcn", "loss": {"cross_entropy": {"class_weights": "median_frequency"}}},
        "backbone": {"name": "test_resnet"},
    }
    model = jobs.build_model(config, dataset)
    samples = [create_dataset("scenes", length=3, size=32)[i].target.labels.numpy() for i in range(3)]
    pixels = [[int((labels == k).sum()) for k in range(len(dataset.classes))] for labels in samples]
    expected = median_frequency_weights(pixels).tolist()
    assert model.criterion.terms["cross_entropy"] == (1.0, {"class_weights": expected})
    assert model.header["options"]["loss"]["cross_entropy"]["class_weights"] == expected  # a checkpoint has numbers
