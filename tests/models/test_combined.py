"""Panoptic from parts: the paper's rule worked by hand and written plainly, and the whole way by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch
from torch import nn

import zoo
from zoo import checkpoint
from zoo.data import create_dataset
from zoo.errors import ZooError
from zoo.models.combined import Combined, combine
from zoo.structures import VOID, Batch, Class, Instances, Masks, Panoptic, Semantic

STUFF = np.full(256, VOID)
STUFF[[0, 2]] = 5, 6  # of the semantic labels 0 and 2 are stuff, 1 is a thing


def strip(*spans: tuple[int, int], scores: list[float], labels: list[int] | None = None, width: int = 20) -> Instances:
    masks = np.zeros((len(spans), 1, width), bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return Instances(Masks.from_dense(masks), labels or list(range(len(spans))), scores)


def row(*parts: tuple[int, int]) -> Semantic:
    """Runs of (label, pixels)."""
    return Semantic(np.array([[label for label, count in parts for _ in range(count)]], np.uint8))


def parts_of(x: Panoptic) -> list[tuple[int, int]]:
    """(label, pixels) of each run of ids, 255 for void."""
    ids = x.ids[0].tolist()
    edges = [i for i in range(1, len(ids)) if ids[i] != ids[i - 1]]
    return [(int(x.labels[ids[a]]), b - a) for a, b in zip([0, *edges], [*edges, len(ids)], strict=True)]


@pytest.mark.parametrize(
    ("instances", "semantic", "expected"),
    [
        # The surer is above; the other keeps the rest, since half of it is hidden and no more.
        (strip((0, 8), (4, 12), scores=[0.6, 0.9]), row((0, 20)), [(0, 4), (1, 8), (5, 8)]),
        # More than half is hidden: dropped, and what it would have covered is stuff again.
        (strip((0, 8), (3, 12), scores=[0.6, 0.9]), row((0, 20)), [(5, 3), (1, 9), (5, 8)]),
        # One that is dropped hides nothing of the next.
        (strip((0, 8), (3, 12), (0, 3), scores=[0.6, 0.9, 0.5]), row((0, 20)), [(2, 3), (1, 9), (5, 8)]),
        # Not sure enough; equal scores as they come.
        (strip((0, 8), (5, 9), scores=[0.4, 0.8]), row((0, 20)), [(5, 5), (1, 4), (5, 11)]),
        (strip((0, 8), (4, 12), scores=[0.8, 0.8]), row((0, 20)), [(0, 8), (1, 4), (5, 8)]),
        # Small stuff, things that the semantic model sees, and its void are void.
        (strip((0, 4), scores=[0.8]), row((0, 7), (1, 4), (2, 4), (VOID, 5)), [(0, 4), (VOID, 7), (6, 4), (VOID, 5)]),
        # An empty mask is no object.
        (strip((3, 3), scores=[0.9]), row((0, 20)), [(5, 20)]),
    ],
)
def test_worked_by_hand(instances: Instances, semantic: Semantic, expected: list[tuple[int, int]]) -> None:
    assert parts_of(combine(semantic, instances, STUFF, stuff_area=4)) == expected


def plainly(
    semantic: Semantic, instances: Instances, score: float, overlap: float, stuff_area: int
) -> list[tuple[int, np.ndarray]]:
    """The rule on whole masks: (label, mask) of each segment."""
    masks = instances.masks.dense().numpy()
    used = np.zeros(semantic.size, bool)
    segments = []
    for i in sorted(range(len(masks)), key=lambda i: -float(instances.scores[i])):
        if instances.scores[i] < score or not masks[i].any():
            continue
        if (used & masks[i]).sum() / masks[i].sum() > overlap or not (masks[i] & ~used).any():
            continue
        segments.append((int(instances.labels[i]), masks[i] & ~used))
        used |= masks[i]
    for label in (0, 2):
        left = (semantic.labels.numpy() == label) & ~used
        if left.any() and left.sum() >= stuff_area:
            segments.append((int(STUFF[label]), left))
    return segments


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_rule_written_plainly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, count = (30, 40), int(rng.integers(0, 12))
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x, h, w = rng.integers(0, 25, 4)
        mask[y : y + h, x : x + w] = rng.random() < 0.9
    scores = rng.choice([0.3, 0.5, 0.7, 0.7, 0.9], count)
    instances = Instances(Masks.from_dense(masks), rng.integers(0, 5, count), scores)
    if seed % 2:
        instances.masks = Masks.from_rle(instances.masks.rle(), size)
    labels = np.kron(rng.choice([0, 1, 2, VOID], (6, 8)), np.ones((5, 5))).astype(np.uint8)
    options = (0.5, [0.5, 0.2, 1.0][seed % 3], [0, 100, 300][seed % 3])
    found = combine(Semantic(labels), instances, STUFF, *options)
    expected = plainly(Semantic(labels), instances, *options)
    assert found.labels.tolist() == [VOID, *(label for label, _ in expected)]
    for i, (_, mask) in enumerate(expected, 1):
        assert np.array_equal(found.ids.numpy() == i, mask)


class Fixed(nn.Module):
    """A model that always says the same."""

    def __init__(self, task: str, classes: list[Class], answer: Any) -> None:
        super().__init__()
        self.task, self.classes, self.answer = task, tuple(classes), answer
        self.header = {"name": f"fixed_{task}", "backbone": {"name": "none"}}

    def predict(self, batch: Batch) -> list[Any]:
        return [self.answer] * len(batch)


def test_classes_are_matched_by_what_they_are() -> None:
    sky, tree, road = Class("sky", (1, 1, 1)), Class("tree", (2, 2, 2), thing=True), Class("road", (3, 3, 3))
    ball = Class("ball", (4, 4, 4))
    semantic = Fixed("semantic", [sky, tree, road, ball], row((0, 5), (1, 5), (2, 5), (3, 5)))
    model = Combined(semantic, Fixed("instance", [ball, tree], strip((0, 2), scores=[0.9])), stuff_area=0)
    assert [(c.name, c.thing) for c in model.classes] == [
        ("ball", True), ("tree", True), ("sky", False), ("road", False)
    ]  # fmt: skip
    assert model.header["backbone"]["name"] == "fixed_semantic none + fixed_instance none"
    (found,) = model.predict(Batch.of(torch.zeros(1, 3, 1, 20)))
    assert parts_of(found) == [(0, 2), (2, 3), (VOID, 5), (3, 5), (VOID, 5)]
    assert found.scores.tolist() == pytest.approx([1, 0.9, 1, 1])
    with pytest.raises(ZooError, match="instance=fixed_semantic is a model for task=semantic: give one for instance"):
        Combined(semantic, semantic)
    with pytest.raises(ZooError, match="has no class of stuff"):
        Combined(Fixed("semantic", [tree], None), model.instance)
    with pytest.raises(ZooError, match=r"overlap=2"):
        Combined(semantic, model.instance, overlap=2)
    boxes = Instances(None, [0], boxes=[[0, 0, 1, 1]], size=(1, 20))
    with pytest.raises(ZooError, match="objects without masks"):
        combine(row((0, 20)), boxes, STUFF)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints to one row of the table, through the job."""
    from zoo import jobs
    from zoo.report import result
    from zoo.report.table import tabulate

    standins.register(monkeypatch)
    torch.manual_seed(0)
    for task, name in (("semantic", "fcn"), ("instance", "instance_standin")):
        data = create_dataset("scenes", task=task, size=48, length=2)
        model = zoo.create_model(name, data.classes, "test_resnet")
        checkpoint.save_model(tmp_path / f"{task}.ckpt", model)
    card = {"name": "scenes", "size": 48, "length": 2, "train": "train", "val": "val", "test": "test", "transform": {}}
    config = {
        "combined": True,
        "checkpoint": "???",
        **{task: str(tmp_path / f"{task}.ckpt") for task in ("semantic", "instance")},
        "dataset": card,
        "options": {"stuff_area": 20, "score": 0.0},
        "split": None,
        "metric": {},
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
    }
    out = tmp_path / "out"
    assert jobs.run("evaluate", dict(config), out, ["model=combined"]) == 0
    facts = result.read(out)
    assert (facts["model"], facts["task"], facts["status"]) == ("combined", "panoptic", "ok")
    assert facts["backbone"] == "fcn test_resnet + instance_standin test_resnet"
    assert 0 <= facts["metrics"]["PQ"] < 1
    assert facts["metrics"]["mIoU"] > 0
    (table,) = tabulate([facts | {"folder": str(out)}])
    assert table.columns[0] == "PQ"
    assert len(list((out / "pictures").glob("*.png"))) == 2
    wrong = {**config, "options": {"overlapp": 1}}
    assert jobs.run("evaluate", wrong, tmp_path / "wrong", []) == 2
    assert "did you mean overlap" in result.read(tmp_path / "wrong")["reason"]
