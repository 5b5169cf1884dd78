"""Instance and panoptic models find every door open, from data and loss to checkpoint, result and picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch

import zoo
from zoo.data import Dataset, create_dataset
from zoo.data.loader import train_loader
from zoo.data.transforms import TrainTransform
from zoo.engine import create_fabric, evaluate, fit
from zoo.metrics import SemanticMetric, create_metric
from zoo.predict import label_image, predict_image
from zoo.report import result
from zoo.report.visualize import panel
from zoo.structures import VOID, Batch, Instances, Panoptic, Semantic

TASKS = {"instance": Instances, "panoptic": Panoptic}
SIZE = 64
FEWER = ("AR@1", "AR@10")  # recalls with fewer detections than there are objects


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        standins.register(monkeypatch)
        yield
    torch.set_num_threads(threads)


def scenes(task: str, split: str = "train", **options: Any) -> Dataset:
    return create_dataset("scenes", split=split, task=task, size=SIZE, **options)


@dataclass
class Trained:
    task: str
    model: Any
    out: Path
    facts: dict[str, Any]
    val: Dataset


@pytest.fixture(scope="module", params=list(TASKS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A stand-in after a short training by the engine."""
    task, out = request.param, tmp_path_factory.mktemp(request.param)
    train = scenes(task, transform=TrainTransform(crop=SIZE, scale=(0.8, 1.25)))
    val = scenes(task, "val", length=12)
    torch.manual_seed(0)
    model = zoo.create_model(f"{task}_standin", train.classes)
    settings = {"steps": 60, "batch_size": 8, "evaluate_every": 30, "log_every": 10}
    optimizer = {"name": "adamw", "lr": 3e-3}
    fabric = create_fabric(device="cpu")
    alone = {"workers": 0, "eval_workers": 0, "eval_batch_size": 5}
    facts = fit(model, train, val, out=out, fabric=fabric, optimizer=optimizer, **settings, **alone)
    return Trained(task, model, out, facts, val)


@pytest.mark.parametrize("task", list(TASKS))
def test_forward_and_loss_keep_the_contract(task: str) -> None:
    data = scenes(task)
    model = zoo.create_model(f"{task}_standin", data.classes)
    assert f"{task}_standin" in zoo.list_models(task)
    assert model.header["classes"][0]["name"] == data.classes[0].name
    (batch,) = train_loader(data, 3, steps=1)
    outputs = {}
    for mode in (True, False):
        output = model.train(mode)(batch.images, batch.sizes)
        tensors = output if isinstance(output, tuple) else (output,)
        outputs[mode] = [(type(t), t.shape) for t in tensors]
        assert tensors[0].shape[-2:] == (SIZE, SIZE)
    assert outputs[True] == outputs[False]
    terms = model.train().loss(batch)
    sum(terms.values()).backward()
    assert all(term.ndim == 0 for term in terms.values())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("task", list(TASKS))
def test_loss_of_images_without_a_segment_is_finite(task: str) -> None:
    data = scenes(task)
    empty = Instances.empty((SIZE, SIZE)) if task == "instance" else Panoptic(np.zeros((SIZE, SIZE)), [VOID])
    model = zoo.create_model(f"{task}_standin", data.classes)
    terms = model.loss(Batch.of(torch.rand(2, 3, SIZE, SIZE), [empty, empty]))
    assert np.isfinite(sum(terms.values()).item())


@pytest.mark.parametrize("task", list(TASKS))
def test_predictions_are_at_the_original_sizes(task: str) -> None:
    data = scenes(task)
    model = zoo.create_model(f"{task}_standin", data.classes)
    samples = [replace(data[0], size=(50, 90)), replace(data[1], image=data[1].image[:40], target=None, size=(40, 64))]
    model.train()
    predictions = model.predict(Batch.collate(samples))
    assert model.training
    assert [type(p) for p in predictions] == [TASKS[task]] * 2
    assert [p.size for p in predictions] == [(50, 90), (40, 64)]


@pytest.mark.parametrize("task", list(TASKS))
def test_metric_of_truth_against_itself_is_perfect_and_merges(task: str) -> None:
    data = scenes(task, "val", length=9)
    targets = [data[i].target for i in range(9)]
    shifted = [data[(i + 1) % 9].target for i in range(9)]
    perfect = create_metric(task, data.classes)
    perfect.update(targets, targets, range(9))
    scores = perfect.compute()
    assert scores[perfect.main] == 1
    whole_lists = {k: v for k, v in scores.items() if not k.startswith(("AR@1_", "AR@10_")) and k not in FEWER}
    assert {v for v in whole_lists.values() if not np.isnan(v)} == {1.0}

    whole, first, second = (create_metric(task, data.classes) for _ in range(3))
    guesses = [t if i % 2 else s for i, (t, s) in enumerate(zip(targets, shifted, strict=True))]
    whole.update(guesses, targets, range(9))
    second.update(guesses[:4], targets[:4], range(4))
    first.update(guesses[4:][::-1], targets[4:][::-1], range(8, 3, -1))
    first.merge_state(second)
    assert 0 < whole.compute()[whole.main] < 1
    np.testing.assert_equal(first.compute(), whole.compute())


def test_training_lowers_the_loss_and_scores(trained: Trained) -> None:
    rows = [line.split(",") for line in (trained.out / "metrics.csv").read_text().splitlines()[1:]]
    losses = [float(value) for _, name, value in rows if name == "train/loss"]
    main = create_metric(trained.task, trained.val.classes).main
    assert len(losses) == 6
    assert losses[-1] < 0.75 * losses[0]
    assert trained.facts["metrics"][main] > {"instance": 0.03, "panoptic": 0.08}[trained.task]
    assert max(float(v) for _, name, v in rows if name == f"val/{main}") == trained.facts["metrics"][main]


def test_result_holds_the_run(trained: Trained) -> None:
    facts = result.read(trained.out)
    assert facts["status"] == "ok"
    assert facts["task"] == trained.task
    assert facts["model"] == f"{trained.task}_standin"
    assert facts["dataset"]["images"] == 12
    assert facts["classes"] == [c.name for c in trained.val.classes]
    assert facts["protocol"] == create_metric(trained.task, trained.val.classes).protocol
    assert facts["cost"]["parameters"] > 0
    assert facts["cost"]["flops"] > 0
    with np.load(trained.out / "statistics.npz") as rows:
        assert rows["ids"].tolist() == list(range(12))
        assert rows["statistics"].shape[:2] == (12, {"instance": 3, "panoptic": 10}[trained.task])
    intervals = {"instance": ["AP", "AP_box"], "panoptic": ["PQ"]}[trained.task]
    assert list(facts["intervals"]) == intervals
    assert all(0 <= low <= high <= 1 for low, high in facts["intervals"].values())
    assert len(list((trained.out / "pictures").glob("*.png"))) == 8


@pytest.mark.parametrize("trained", ["instance"], indirect=True)
def test_the_dataset_says_how_it_is_scored(trained: Trained, tmp_path: Path) -> None:
    data = scenes("instance", "val", length=2)
    data.metric_options = {"max_detections": 1000, "objects": 0.5}
    scores = evaluate(trained.model, data, fabric=create_fabric(device="cpu"), out=tmp_path)
    assert {"AR@1000", "AJI"} <= scores.keys()
    assert result.read(tmp_path)["protocol"]["max_detections"] == [1, 10, 1000]


def test_checkpoint_rebuilds_the_model_and_its_scores(trained: Trained) -> None:
    model = zoo.load(trained.out / "best.ckpt")
    assert type(model) is type(trained.model)
    assert model.classes == trained.model.classes
    scores = evaluate(model, trained.val, fabric=create_fabric(device="cpu"), batch_size=5)
    assert scores.keys() == trained.facts["metrics"].keys()
    np.testing.assert_equal(scores, trained.facts["metrics"])


def test_a_run_stopped_half_way_resumes_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    data = scenes(trained.task, length=16)
    weights = []
    for stops in ([4], [2, 4]):
        out = tmp_path / str(len(stops))
        for steps in stops:
            torch.manual_seed(0)
            model = zoo.create_model(f"{trained.task}_standin", data.classes)
            settings = {"steps": steps, "batch_size": 2, "workers": 0, "schedule": "constant"}
            fit(model, data, out=out, fabric=create_fabric(device="cpu"), resume=steps > stops[0], **settings)
        weights.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_predictions_are_drawn_and_written(trained: Trained) -> None:
    sample = trained.val[0]
    prediction = predict_image(trained.model, sample.image, create_fabric(device="cpu"))
    assert sample.target is not None
    picture = panel(sample.image, sample.target, prediction, trained.val.classes, "0")
    assert picture.dtype == np.uint8
    assert label_image(prediction).shape == (SIZE, SIZE)


@pytest.mark.parametrize("trained", ["panoptic"], indirect=True)
def test_a_panoptic_prediction_is_scored_in_all_three_ways(trained: Trained) -> None:
    samples = [trained.val[i] for i in range(4)]
    predictions = trained.model.predict(Batch.collate(samples))
    targets = [sample.target for sample in samples]
    classes = trained.val.classes
    semantic = SemanticMetric(classes)
    semantic.update(predictions, targets)
    assert semantic.compute()["mIoU"] > 0.1
    panoptic = create_metric("panoptic", classes)
    panoptic.update(predictions, targets)
    assert panoptic.compute()["mIoU"] == pytest.approx(semantic.compute()["mIoU"], abs=1e-12)
    assert {"PQ", "mIoU", "AP"} <= trained.facts["metrics"].keys()
    instance = create_metric("instance", [c for c in classes if c.thing])
    instance.update([p.instances(classes) for p in predictions], [t.instances(classes) for t in targets])
    assert 0 <= instance.compute()[instance.main] <= 1
    assert isinstance(predictions[0].semantic(), Semantic)
