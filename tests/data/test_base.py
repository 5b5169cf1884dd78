"""What every dataset gets from its base: requests checked, truth checked, conversions, transforms, fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.data import create_dataset, list_datasets
from zoo.data.base import Dataset
from zoo.errors import ZooError
from zoo.structures import Class, Instances, Panoptic, Sample, Semantic

TABLE = (
    Class("sky", (0, 0, 255)),
    Class("car", (255, 0, 0), thing=True),
    Class("road", (99, 99, 99)),
    Class("dog", (0, 255, 0), thing=True),
)


class Files(Dataset):
    """One .npy of labels per image."""

    layout = "ROOT/\n  train/*.npy"
    table = TABLE

    def index(self) -> list[Path]:
        return sorted(self.path(self.split).glob("*.npy"))

    def read(self, record: Path) -> Sample:
        labels = np.load(record)
        image = np.zeros((4, 6, 3), np.uint8)
        return Sample(image, Semantic(torch.from_numpy(labels)), 0, (4, 6))


class Drawn(Dataset):
    """Three panoptic images without files; the dog occurs in the last one only."""

    tasks = ("semantic", "instance", "panoptic")
    table = TABLE

    def index(self) -> list[int]:
        return [0, 1, 2]

    def read(self, record: int) -> Sample:
        ids = torch.tensor([[0, 1, 1], [2, 2, 3]], dtype=torch.int32)
        target = Panoptic(ids, torch.tensor([255, 0, 1, 3 if record == 2 else 1]))
        return Sample(np.zeros((2, 3, 1), np.uint8), target, record, (2, 3))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    for name in "ba":
        np.save(tmp_path / "train" / f"{name}.npy", np.zeros((4, 6), np.uint8))
    return tmp_path


def test_samples_in_order_with_their_ids(root: Path) -> None:
    dataset = Files(root)
    assert len(dataset) == 2
    assert [dataset.name(i) for i in range(2)] == ["a", "b"]
    assert [sample.id for sample in dataset] == [0, 1]
    assert dataset[-1].id == 1
    with pytest.raises(IndexError):
        dataset[2]


def test_truth_goes_downhill_to_the_task() -> None:
    semantic = Drawn(task="semantic")[2].target
    assert isinstance(semantic, Semantic)
    assert semantic.labels.tolist() == [[255, 0, 0], [1, 1, 3]]
    dataset = Drawn(task="instance")
    instances = dataset[2].target
    assert isinstance(instances, Instances)
    assert [dataset.classes[k].name for k in instances.labels] == ["car", "dog"]
    assert instances.masks is not None
    assert instances.masks.area().tolist() == [2, 1]
    assert isinstance(Drawn(task="panoptic")[0].target, Panoptic)


def test_classes_of_the_task() -> None:
    assert Drawn(task="semantic").classes == TABLE
    assert [c.name for c in Drawn(task="instance").classes] == ["car", "dog"]


def test_classes_are_merged_dropped_renamed() -> None:
    dataset = Drawn(classes={"animal": "dog", "ground": ["road", "car"]})
    assert [c.name for c in dataset.classes] == ["animal", "ground"]
    target = dataset[2].target
    assert isinstance(target, Semantic)
    assert target.labels.tolist() == [[255, 255, 255], [1, 1, 0]]


@pytest.mark.parametrize(
    ("classes", "says"),
    [({"a": "cat"}, "car"), ({"a": ["car", "sky"], "b": "sky"}, "'sky' .* taken twice"), ({"a": []}, "no class")],
)
def test_bad_class_mappings(classes: dict[str, Any], says: str) -> None:
    with pytest.raises(ZooError, match=says):
        Drawn(classes=classes)


def test_bad_requests(root: Path) -> None:
    with pytest.raises(ZooError, match="Files has no panoptic truth; it offers task=semantic"):
        Files(root, task="panoptic")
    with pytest.raises(ZooError, match="semantic"):
        Files(root, task="semantics")
    with pytest.raises(ZooError, match="val"):
        Files(root, split="vall")
    with pytest.raises(ZooError, match="task=semantic only"):
        Drawn(task="instance", classes={"a": "car"})


def test_wrong_roots_show_the_expected_tree(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half"
    (half / "val").mkdir(parents=True)
    cases = [
        (None, "no root given"),
        (tmp_path / "missing", "missing"),
        (tmp_path / "empty", "empty"),
        (half, "train is missing"),
    ]
    for path, says in cases:
        with pytest.raises(ZooError, match=says) as caught:
            Files(path)
        assert "train/*.npy" in str(caught.value)


def test_empty_split(root: Path) -> None:
    with pytest.raises(ZooError, match="no images in split 'val'"):
        Files(root, split="val")


def test_mask_of_another_size_than_the_image(root: Path) -> None:
    np.save(root / "train" / "b.npy", np.zeros((6, 4), np.uint8))
    with pytest.raises(ZooError, match=r"b\.npy"):
        Files(root)[1]


def test_label_outside_the_classes(root: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[0, :3], labels[1] = 4, 255
    np.save(root / "train" / "b.npy", labels)
    with pytest.raises(ZooError, match=r"b\.npy: label 4 \(3 pixels\) is outside the 4 classes"):
        Files(root)[1]


def test_transform_gets_a_generator_of_seed_epoch_and_index() -> None:
    drawn: list[float] = []

    def record(sample: Sample, rng: np.random.Generator) -> Sample:
        drawn.append(rng.random())
        return sample

    dataset = Drawn(transform=record, seed=7)
    for key in (1, 1, (0, 1), (1, 1), (0, 2)):
        dataset[key]
    Drawn(transform=record, seed=8)[1]
    assert drawn[0] == drawn[1] == drawn[2] == np.random.default_rng([7, 0, 1]).random()
    assert len(set(drawn[2:])) == 4


def test_fingerprint_changes_with_what_matters(root: Path) -> None:
    first = Files(root).fingerprint()
    assert first == Files(root, seed=3, transform=lambda s, rng: s).fingerprint()
    changed = [Files(root, classes={"a": "sky"}).fingerprint(), Files(root, classes={"a": "car"}).fingerprint()]
    np.save(root / "train" / "b.npy", np.zeros((4, 7), np.uint8))
    changed.append(Files(root).fingerprint())
    (root / "train" / "b.npy").rename(root / "train" / "c.npy")
    changed.append(Files(root).fingerprint())
    assert len({first, *changed}) == 5
    assert len({Drawn(task=task).fingerprint(any_task=True) for task in Drawn.tasks}) == 1
    assert Drawn().fingerprint(any_task=True) != Drawn(split="val").fingerprint(any_task=True)
    tasks = {Drawn(task=task).fingerprint() for task in Drawn.tasks}
    assert len(tasks | {Drawn(split="val").fingerprint()}) == 4


def test_fingerprint_does_not_depend_on_where_the_files_are(root: Path, tmp_path: Path) -> None:
    before = Files(root).fingerprint()
    (root / "train").rename(tmp_path / "moved")
    (tmp_path / "other").mkdir()
    (tmp_path / "moved").rename(tmp_path / "other" / "train")
    assert Files(tmp_path / "other").fingerprint() == before


def test_registry() -> None:
    assert "scenes" in list_datasets()
    assert "scenes" in list_datasets("panoptic")
    assert "camvid" not in list_datasets("panoptic")
    with pytest.raises(ZooError, match="did you mean scenes"):
        create_dataset("scene")
    with pytest.raises(ZooError, match="did you mean length"):
        create_dataset("scenes", lenght=3)
