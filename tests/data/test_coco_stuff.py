"""COCO-Stuff: numbers, names, where the maps may lie, the official score."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trees

from zoo.data import create_dataset
from zoo.data.coco_stuff import CLASSES, IDS
from zoo.errors import ZooError
from zoo.metrics import SemanticMetric
from zoo.structures import VOID, Semantic

UNUSED = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
"""COCO's category ids without any annotation (they begin with 1)."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.coco_stuff(tmp_path)


def test_table_is_the_official_one() -> None:
    """Hashes of labels.txt, of the colours of things in COCO's panoptic categories and of stuff in getCMap."""
    listed = "\n".join(f"{i + 1}: {c.name}" for i, c in zip(IDS, CLASSES, strict=True))
    assert (
        hashlib.sha256(listed.encode()).hexdigest()
        == "da948e7fba08b3cabbe8a2b5e0b0cfc23e5d5e1b17b1fadad4bf5cb0849c8f07"
    )
    colors = np.array([c.color for c in CLASSES], np.uint8)
    assert (
        hashlib.sha256(colors.tobytes()).hexdigest()
        == "2ed010466f2046c372ee8bc0f5c4d87f22f21ce8a48a057c0e5011029180c6c6"
    )
    assert [c.thing for c in CLASSES] == [True] * 80 + [False] * 91


def test_things_have_cocos_names_and_colors(data_root: Path) -> None:
    listed = json.loads((data_root / "coco_sample" / "panoptic_coco_categories.json").read_text())
    things = [(c["id"], c["name"], tuple(c["color"])) for c in listed if c["isthing"]]
    assert things == [(i + 1, c.name, c.color) for i, c in zip(IDS, CLASSES, strict=True) if c.thing]


def test_every_number_becomes_its_class(root: Path) -> None:
    assert [i for i in range(182) if i + 1 not in UNUSED] == list(IDS)
    by_hand = {0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 89: 79, 91: 80, 181: 170, 255: VOID}
    numbers = np.resize(np.array([*IDS, 255], np.uint8), trees.SIZE)
    trees.save(root / "annotations/train2017/000000000009.png", numbers)
    labels = create_dataset("coco_stuff", root, "train")[0].target.labels.numpy()
    assert np.array_equal(labels.ravel()[:172], [*range(171), VOID])
    assert {int(n): int(labels[numbers == n][0]) for n in by_hand} == by_hand


@pytest.mark.parametrize("number", [c - 1 for c in UNUSED])
def test_numbers_without_annotations_are_no_class(root: Path, number: int) -> None:
    trees.save(root / "annotations/train2017/000000000009.png", np.full(trees.SIZE, number, np.uint8))
    with pytest.raises(ZooError, match=f"id {number} is none"):
        create_dataset("coco_stuff", root, "train")[0]


@pytest.mark.parametrize("place", ["stuffthingmaps_trainval2017", "stuffthingmaps"])
def test_maps_beside_cocos_own_files(root: Path, place: str) -> None:
    for split in ("train2017", "val2017"):
        (root / place).mkdir(exist_ok=True)
        (root / "annotations" / split).rename(root / place / split)
        (root / "images" / split).rename(root / split)
    (root / "images").rmdir()
    assert [len(create_dataset("coco_stuff", root, split)) for split in ("train", "val")] == [3, 2]


def test_files_of_a_converter_are_left_alone(root: Path) -> None:
    for path in list(root.glob("annotations/*/*.png")):
        trees.save(path.with_name(f"{path.stem}_labelTrainIds.png"), np.zeros(trees.SIZE, np.uint8))
    dataset = create_dataset("coco_stuff", root, "val")
    assert [dataset.name(i) for i in range(2)] == trees.COCO["val2017"]
    assert len(dataset[0].target.labels.unique()) == 172


def official_score(truth: np.ndarray, said: np.ndarray) -> float:
    """The mean IoU of evaluate_performance.py, on numbers 0..181 and 255."""
    valid = truth < 182
    confusion = np.zeros((182, 182))
    np.add.at(confusion, (truth[valid], said[valid]), 1)
    hit, wanted, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return float(np.mean((hit / np.maximum(wanted + found - hit, 1))[wanted > 0]))


@pytest.mark.parametrize(("present", "absent"), [(171, "union"), (120, "truth")])
def test_score_is_the_official_one(root: Path, present: int, absent: str) -> None:
    """With all classes in the truth by default; with some only predicted by absent="truth"."""
    rng = np.random.default_rng(0)
    dataset = create_dataset("coco_stuff", root, "val")
    ids = np.array(IDS)
    metric = SemanticMetric(dataset.classes, absent=absent)
    truth, said = [], []
    for i in range(2):
        numbers = trees.blocks(rng.permutation(np.append(ids[:present], 255)).astype(np.uint8))
        trees.save(dataset.records[i][1], numbers)
        labels = rng.integers(0, 171, trees.SIZE)
        right = (rng.random(trees.SIZE) < 0.6) & (numbers != 255)
        labels[right] = np.searchsorted(ids, numbers[right])
        truth, said = [*truth, numbers], [*said, ids[labels]]
        metric.update([Semantic(torch.from_numpy(labels))], [dataset[i].target], [i])
    assert metric.compute()["mIoU"] == pytest.approx(official_score(np.array(truth), np.array(said)), abs=1e-12)
