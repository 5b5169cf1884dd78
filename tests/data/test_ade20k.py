"""ADE20K with 150 classes: numbers, names, the benchmark's score."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import trees

from zoo.data import create_dataset
from zoo.data.ade20k import CLASSES
from zoo.metrics import SemanticMetric
from zoo.structures import VOID, Semantic


def test_table_is_the_official_one() -> None:
    """Hashes of the first names in objectInfo150.txt and of color150.mat; one name there is another than everywhere."""
    names = ["television" if c.name == "television receiver" else c.name for c in CLASSES]
    assert sha256("\n".join(names).encode()) == "ffd47f2fcbad6c484a3e320702ff1278dae14e78d443d81987142210b70c5032"
    assert (
        sha256(np.array([c.color for c in CLASSES], np.uint8).tobytes())
        == "ce475c9151035eff51f4cf27fd7d906959b1480f6d15b9423ae2417c1b23a0ed"
    )
    assert (CLASSES[0].name, CLASSES[12].name, CLASSES[149].name) == ("wall", "person", "flag")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_number_becomes_its_class(tmp_path: Path) -> None:
    root = trees.ade20k(tmp_path)
    numbers = np.resize(np.arange(151, dtype=np.uint8), trees.SIZE)
    trees.save(root / "annotations/training/ADE_train_00000001.png", numbers)
    labels = create_dataset("ade20k", root, "train")[0].target.labels.numpy()
    assert np.array_equal(labels, np.where(numbers == 0, VOID, numbers.astype(int) - 1))


def devkit(truth: list[np.ndarray], said: list[np.ndarray]) -> tuple[float, float]:
    """Mean IoU and pixel accuracy of the benchmark's code, on numbers 0..150."""
    hits, unions, right, labelled = np.zeros(150), np.zeros(150), 0, 0
    for t, s in zip(truth, said, strict=True):
        s = s * (t > 0)
        for k in range(1, 151):
            hits[k - 1] += np.sum((s == k) & (t == k))
            unions[k - 1] += np.sum((s == k) | (t == k))
        right, labelled = right + np.sum((s == t) & (t > 0)), labelled + np.sum(t > 0)
    return float(np.mean(hits / (np.spacing(1) + unions))), right / labelled


@pytest.mark.parametrize(("present", "absent"), [(151, "union"), (100, "zero")])
def test_score_is_the_official_one(tmp_path: Path, present: int, absent: str) -> None:
    """With all classes in the truth, as in val, by default; with some in neither, by absent="zero"."""
    root = trees.ade20k(tmp_path)
    rng = np.random.default_rng(0)
    dataset = create_dataset("ade20k", root, "val")
    truth, said = [], []
    metric = SemanticMetric(dataset.classes, absent=absent)
    for i in range(2):
        numbers = trees.blocks(rng.permutation(present).astype(np.uint8))
        trees.save(dataset.records[i][1], numbers)
        guess = np.where(rng.random(trees.SIZE) < 0.6, np.maximum(numbers, 1), rng.integers(1, present, trees.SIZE))
        truth, said = [*truth, numbers.astype(int)], [*said, guess]
        metric.update([Semantic(torch.from_numpy(guess - 1))], [dataset[i].target], [i])
    scores = metric.compute()
    assert (scores["mIoU"], scores["pixel_accuracy"]) == pytest.approx(devkit(truth, said), abs=1e-12)


def test_grey_photographs_have_three_channels(tmp_path: Path) -> None:
    root = trees.ade20k(tmp_path)
    trees.save(root / "images/training/ADE_train_00000001.jpg", trees.photograph("grey")[..., 0])
    assert create_dataset("ade20k", root, "train")[0].image.shape == (*trees.SIZE, 3)
