"""Cityscapes: ids, objects, hidden truth, coarse truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import trees
from PIL import Image
from tiny import cpu

from zoo.data import create_dataset
from zoo.data.cityscapes import CLASSES, IDS, segments
from zoo.data.loader import evaluation_loader
from zoo.data.panoptic_file import PanopticFile, read_numbers
from zoo.engine import evaluate
from zoo.errors import ZooError
from zoo.metrics import PanopticMetric, SemanticMetric
from zoo.models import create_model
from zoo.structures import VOID, Semantic

OFFICIAL = torchvision.datasets.Cityscapes.classes
V = VOID
TRAIN_IDS = [
    V,
    V,
    V,
    V,
    V,
    V,
    V,
    0,
    1,
    V,
    V,
    2,
    3,
    4,
    V,
    V,
    V,
    5,
    V,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    V,
    V,
    16,
    17,
    18,
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.cityscapes(tmp_path)


def test_table_is_the_official_one() -> None:
    official = sorted((c for c in OFFICIAL if 0 <= c.train_id < 19), key=lambda c: c.train_id)
    assert [(c.name, c.color, c.has_instances) for c in official] == [(c.name, c.color, c.thing) for c in CLASSES]
    assert [c.id for c in official] == list(IDS)
    assert sum(c.thing for c in CLASSES) == 8


def test_every_id_becomes_its_class(root: Path) -> None:
    assert [c.train_id for c in OFFICIAL[:34]] == TRAIN_IDS
    path = root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    ids = np.resize(np.append(np.arange(34), 255), trees.SIZE).astype(np.uint8)  # 255: a licence plate's -1
    trees.save(path, ids)
    expected = np.array([*TRAIN_IDS, VOID])[np.resize(np.arange(35), trees.SIZE)]
    assert np.array_equal(create_dataset("cityscapes", root, "val")[0].target.labels, expected)


def test_splits(root: Path) -> None:
    names = {
        split: [create_dataset("cityscapes", root, split).name(i) for i in range(count)]
        for split, count in (("train", 3), ("val", 2), ("test", 1), ("trainval", 5), ("train_extra", 1))
    }
    for split, listed in trees.CITYSCAPES.items():
        assert names[split] == [f"{name}_leftImg8bit" for name in listed]
    assert names["trainval"] == names["train"] + names["val"]
    assert len(create_dataset("cityscapes", root, "train_extra")[0].target.labels.unique()) == 20


def test_truth_of_test_is_hidden(root: Path) -> None:
    dataset = create_dataset("cityscapes", root, "test")
    assert dataset[0].target is None
    assert next(iter(evaluation_loader(dataset))).targets is None
    torch.manual_seed(0)
    with pytest.raises(ZooError, match="Cityscapes test has no truth to evaluate against"):
        evaluate(create_model("unet", dataset.classes, "test_efficientnet"), dataset, fabric=cpu())


def test_a_city_that_was_not_unpacked_is_noticed(root: Path) -> None:
    (root / "gtFine/train/zurich").rename(root / "zurich")
    with pytest.raises(ZooError, match=r"1 images without labels \(zurich_000000_000019\); unpack gtFine and leftImg8"):
        create_dataset("cityscapes", root, "train")


def test_objects_and_groups(root: Path) -> None:
    # road, two cars, a group of cars, a person, a trailer, the ego vehicle, a rider without number
    ids = np.array([[7, 7, 26000, 26001, 26], [24007, 30000, 1, 25, 26]], np.uint16)
    truth = segments(ids, Path("a.png"))
    road, car, person, rider = 0, 13, 11, 12
    assert truth.ids.tolist() == [[1, 1, 5, 6, 3], [4, 0, 0, 2, 3]]
    assert truth.labels.tolist() == [VOID, road, rider, car, person, car, car]
    assert truth.crowd.tolist() == [False, False, True, True, False, False, False]


def test_panoptic_truth_agrees_with_the_labels(root: Path) -> None:
    semantic = create_dataset("cityscapes", root, "train")
    panoptic = create_dataset("cityscapes", root, "train", task="panoptic")
    for i in range(3):
        truth = panoptic[i].target
        assert torch.equal(truth.semantic().labels, semantic[i].target.labels)
        # one segment for each of 19 ids below 1000 and 7 objects; caravans and trailers are void
        assert len(truth.labels) == 1 + 19 + 7
        assert int(truth.crowd.sum()) == 8


def converted(root: Path, split: str) -> Path:
    """The official conversion by its rules: a JSON and PNGs NAME_gtFine_panoptic.png in gtFine.

    The id of a segment is that of its label, or 1000 times it and the object's number; red is the lowest byte. Things
    without a number are crowds; what is not evaluated is left out.
    """
    to = root / "gtFine" / f"cityscapes_panoptic_{split}"
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for label in OFFICIAL:
        if not label.ignore_in_eval:
            entry = {"id": label.id, "name": label.name, "color": label.color, "isthing": int(label.has_instances)}
            content["categories"].append(entry)
    for path in sorted((root / "gtFine" / split).glob("*/*_instanceIds.png")):
        ids, colors = np.array(Image.open(path)), np.zeros((*trees.SIZE, 3), np.uint8)
        name, segments_info = path.name.removesuffix("_gtFine_instanceIds.png"), []
        for id in np.unique(ids).tolist():
            label = next(label for label in OFFICIAL if label.id == (id if id < 1000 else id // 1000))
            if label.ignore_in_eval:
                continue
            crowd = int(label.has_instances and id < 1000)
            area = int((ids == id).sum())
            segments_info.append({"id": id, "category_id": label.id, "iscrowd": crowd, "area": area})
            colors[ids == id] = id % 256, id // 256 % 256, id // 65536
        trees.save(to / f"{name}_gtFine_panoptic.png", colors)
        content["images"].append({"id": name, "file_name": f"{name}_gtFine_leftImg8bit.png"})
        annotation = {"image_id": name, "file_name": f"{name}_gtFine_panoptic.png", "segments_info": segments_info}
        content["annotations"].append(annotation)
    json_path = to.with_suffix(".json")
    json_path.write_text(json.dumps(content))
    return json_path


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_truth_is_that_of_the_official_json_and_pngs(root: Path, split: str) -> None:
    official = PanopticFile(converted(root, split))
    dataset = create_dataset("cityscapes", root, split, task="panoptic")
    assert [(c.name, c.color, c.thing) for c in official.classes] == [(c.name, c.color, c.thing) for c in CLASSES]
    assert list(official.category_ids) == list(IDS)
    assert len(official) == len(dataset)
    metric = PanopticMetric(CLASSES, instances=False)
    for i in range(len(dataset)):
        assert dataset.name(i) == f"{official.image_ids[i]}_leftImg8bit"
        wanted, found = official.panoptic(i), dataset[i].target
        numbers = read_numbers(official.png(i))
        assert {26, 26001, 33002} <= set(np.unique(numbers).tolist())
        assert torch.equal(found.ids, wanted.ids)  # both in the order of ids
        assert torch.equal(found.labels, wanted.labels)
        assert torch.equal(found.crowd, wanted.crowd)
        assert wanted.areas[1:].tolist() == torch.bincount(found.ids.flatten())[1:].tolist()
        metric.update([replace(found, crowd=torch.zeros_like(found.crowd))], [wanted], [i])
    assert metric.compute()["PQ"] == 1.0


def test_instances_are_the_eight_kinds_of_things(root: Path) -> None:
    dataset = create_dataset("cityscapes", root, "train", task="instance")
    assert [c.name for c in dataset.classes] == [c.name for c in OFFICIAL if c.has_instances and not c.ignore_in_eval]
    target = dataset[0].target
    objects = [dataset.classes[k].name for k in target.labels[~target.crowd].tolist()]
    assert objects == ["person", "person", "rider", "car", "car", "car", "bicycle"]


@pytest.mark.parametrize("wrong", [34000, 34, 65535])
def test_instance_ids_of_no_class_are_refused(wrong: int) -> None:
    with pytest.raises(ZooError, match=rf"^a.png: (instance ids 7..{wrong}|id {wrong}) "):
        segments(np.array([[7, wrong]], np.uint16), Path("a.png"))


def test_semantic_truth_needs_no_instances(root: Path) -> None:
    for path in root.glob("gtFine/*/*/*_instanceIds.png"):
        path.unlink()
    assert len(create_dataset("cityscapes", root, "train")) == 3
    with pytest.raises(ZooError, match=r"3 images without labels \(aachen_000000_000019"):
        create_dataset("cityscapes", root, "train", task="panoptic")


def official_scores(confusion: np.ndarray) -> float:
    """The mean IoU of cityscapesScripts, from a confusion matrix over ids (34, 34)."""
    evaluated = [c.id for c in OFFICIAL if c.id >= 0 and not c.ignore_in_eval]
    scores = []
    for label in evaluated:
        hit = confusion[label, label]
        missed = confusion[label].sum() - hit
        false = sum(confusion[other, label] for other in evaluated if other != label)
        if hit + missed + false:
            scores.append(hit / (hit + missed + false))
    return float(np.mean(scores))


@pytest.mark.parametrize("absent", [[], [31, 32]])
def test_score_is_the_official_one(root: Path, absent: list[int]) -> None:
    rng = np.random.default_rng(0)
    dataset = create_dataset("cityscapes", root, "val")
    confusion = np.zeros((34, 34), np.int64)
    metric = SemanticMetric(dataset.classes)
    table = np.array(TRAIN_IDS, np.uint8)
    for i in range(2):
        path = dataset.records[i][1]
        truth = rng.choice(np.setdiff1d(np.arange(34), absent), trees.SIZE).astype(np.uint8)
        trees.save(path, truth)
        guess = rng.choice(np.setdiff1d(np.arange(34), absent), trees.SIZE)
        said = np.where(rng.random(trees.SIZE) < 0.6, truth, guess)  # ids that are not evaluated too
        np.add.at(confusion, (truth, said), 1)
        metric.update([Semantic(torch.from_numpy(table[said]))], [dataset[i].target], [i])
    assert metric.compute()["mIoU"] == pytest.approx(official_scores(confusion), abs=1e-12)
