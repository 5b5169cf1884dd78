"""What holds for every dataset with an official layout, from the tree to a training: see trees.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from tiny import FAST, SGD, cpu

from zoo.data import DATASETS, create_dataset
from zoo.data.doctor import examine, main
from zoo.data.loader import evaluation_loader, train_loader
from zoo.data.transforms import TrainTransform
from zoo.engine import evaluate, fit
from zoo.errors import ZooError
from zoo.metrics import create_metric
from zoo.models import create_model
from zoo.structures import VOID, Semantic


@dataclass(frozen=True)
class Official:
    """A dataset: its tree, images of train and val, classes, a label file of train, and an id it cannot hold."""

    write: Callable[[Path], Path]
    train: int
    val: int
    classes: int
    label: str
    wrong: int
    needed: str
    archive: str


CASES = {
    "cityscapes": Official(
        trees.cityscapes,
        3,
        2,
        19,
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        34,
        "gtFine",
        "gtFine_trainvaltest.zip",
    ),
    "ade20k": Official(
        trees.ade20k,
        3,
        2,
        150,
        "annotations/training/ADE_train_00000001.png",
        151,
        "annotations",
        "annotations.zip",
    ),
    "oxford_pet": Official(
        trees.oxford_pet,
        18,
        3,
        2,
        "annotations/trimaps/Abyssinian_101.png",
        0,
        "annotations",
        "annotations.tar.gz",
    ),
    "coco_stuff": Official(
        trees.coco_stuff,
        3,
        2,
        171,
        "annotations/train2017/000000000009.png",
        182,
        "annotations",
        "stuffthingmaps_trainval2017.zip",
    ),
}
NAMES = list(CASES)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tree of each dataset, only to be read."""
    return {name: case.write(tmp_path_factory.mktemp(name)) for name, case in CASES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_counts_classes_and_truth(roots: dict[str, Path], name: str) -> None:
    case = CASES[name]
    for split, images in (("train", case.train), ("val", case.val)):
        dataset = create_dataset(name, roots[name], split)
        assert len(dataset) == images
        assert len(dataset.classes) == case.classes
        seen = np.zeros(256, np.int64)
        for i in range(images):
            sample = dataset[i]
            assert sample.image.shape == (*trees.SIZE, 3)
            assert sample.image.std() > 20  # the picture, not a blank
            seen += np.bincount(sample.target.labels.numpy().ravel(), minlength=256)
        assert np.flatnonzero(seen).tolist() == [*range(case.classes), VOID]
    assert len({dataset.name(i) for i in range(len(dataset))}) == len(dataset)


@pytest.mark.parametrize("name", NAMES)
def test_root_may_be_the_folder_above(roots: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = {"cityscapes": "cityscapes", "oxford_pet": "oxford-iiit-pet", "coco_stuff": "coco"}.get(name)
    above = roots[name].parent
    if folder:
        above = tmp_path
        (above / folder).symlink_to(roots[name])
    assert len(create_dataset(name, above, "val")) == CASES[name].val


@pytest.mark.parametrize("name", NAMES)
def test_truth_scores_one_through_the_loader(roots: dict[str, Path], name: str) -> None:
    dataset = create_dataset(name, roots[name], "val")
    metric = create_metric("semantic", dataset.classes)
    for batch in evaluation_loader(dataset, batch_size=2):
        metric.update(batch.targets, batch.targets, batch.ids)
    scores = metric.compute()
    assert scores["mIoU"] == scores["pixel_accuracy"] == 1
    assert {scores[f"IoU/{c.name}"] for c in dataset.classes} == {1.0}


@pytest.mark.parametrize("name", NAMES)
def test_training_transform_keeps_image_and_truth_together(roots: dict[str, Path], name: str) -> None:
    plain = create_dataset(name, roots[name], "train")
    mirrored = create_dataset(name, roots[name], "train", transform=TrainTransform(scale=(1, 1), flip=1, color=0))
    assert np.array_equal(mirrored[0].image, plain[0].image[:, ::-1])
    assert torch.equal(mirrored[0].target.labels, plain[0].target.labels.flip(1))
    cropped = create_dataset(name, roots[name], "train", transform=TrainTransform(crop=(16, 24)))
    batch = next(iter(train_loader(cropped, 2, steps=1)))
    assert batch.images.shape == (2, 3, 16, 24)
    assert {target.size for target in batch.targets} == {(16, 24)}
    allowed = {*range(CASES[name].classes), VOID}
    assert all(set(target.labels.unique().tolist()) <= allowed for target in batch.targets)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_that_is_no_class_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    root = case.write(tmp_path)
    path = root / case.label
    labels = np.array(Image.open(path))
    labels[3, 4] = case.wrong
    trees.save(path, labels)
    dataset = create_dataset(name, root, "train")
    with pytest.raises(ZooError, match=rf"{path.name}: id {case.wrong} is none of the dataset's"):
        dataset[0]
    found = [f for f in examine(name, root, ["train"]).findings if f.severity == "error"]
    assert [(f.problem, f.count) for f in found] == [("labels that are no class", 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_label_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    root = case.write(tmp_path)
    (root / case.label).unlink()
    stem = Path(case.label).stem.removesuffix("_gtFine_labelIds")
    with pytest.raises(ZooError, match=rf"1 images without labels \({stem}\)"):
        create_dataset(name, root, "train")
    found = examine(name, root)
    assert [(f.problem, f.count) for f in found.findings if f.severity == "error"] == [("images without labels", 1)]
    assert len(found.looks["train"]) == case.train - 1  # the others were looked at


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    root = CASES[name].write(tmp_path)
    path = create_dataset(name, root, "train").records[0][0]
    path.unlink()
    with pytest.raises(ZooError, match=rf"1 label files without an image \({path.stem.removesuffix('_leftImg8bit')}\)"):
        create_dataset(name, root, "train")


@pytest.mark.parametrize("name", NAMES)
def test_a_half_downloaded_tree_says_what_to_unpack(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    root = case.write(tmp_path)
    (root / case.needed).rename(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match=rf"{case.needed}\S* is missing. Expected\n"):
        create_dataset(name, root, "train")
    (root / case.archive).write_bytes(b"PK")
    with pytest.raises(ZooError, match=rf"{case.needed}\S* is missing; {case.archive} must be unpacked. Expected\n"):
        create_dataset(name, root, "train")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_shows_the_layout(name: str, tmp_path: Path) -> None:
    first = DATASETS[name].layout.strip().splitlines()[0]
    with pytest.raises(ZooError, match=rf"is empty or not a folder. Expected\n{first.split()[0]}"):
        create_dataset(name, tmp_path)


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "coco_stuff"])
def test_an_index_asks_nothing_of_single_files(
    roots: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stat = os.stat

    def counted(path: Any, *args: Any, **options: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", counted)
    create_dataset(name, roots[name], "train")
    assert asked, "stat is not what pathlib calls: the test sees nothing"
    assert [path for path in asked if path.endswith((".png", ".jpg"))] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_finds_nothing_wrong(roots: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, f"root={roots[name]}"]) == 0
    out = capsys.readouterr().out
    assert f"train {CASES[name].train}, val {CASES[name].val}" in out
    assert "error" not in out.replace("0 error(s)", "")


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_a_training(roots: dict[str, Path], name: str, tmp_path: Path) -> None:
    train = create_dataset(name, roots[name], "train", transform=TrainTransform(crop=32))
    val = create_dataset(name, roots[name], "val")
    torch.manual_seed(0)
    model = create_model("unet", train.classes, "test_efficientnet")
    facts = fit(model, train, val, out=tmp_path, fabric=cpu(), optimizer=SGD, **FAST, steps=2)
    assert facts["status"] == "ok"
    # What becomes of a class that a part of val lacks, as the official code of each has it.
    rule = {"ade20k": "zero", "coco_stuff": "truth"}.get(name, "union")
    assert facts["protocol"]["absent"] == rule
    assert facts["dataset"] == {
        "name": name,
        "split": "val",
        "fingerprint": val.fingerprint(),
        "origin": val.fingerprint(any_task=True),
        "images": len(val),
    }
    assert 0 <= facts["metrics"]["mIoU"] < 0.5
    assert evaluate(Oracle(val), val, fabric=cpu())["mIoU"] == 1
    evaluate(model, val, fabric=cpu(), out=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "result.json").read_text())["protocol"]["absent"] == rule


class Oracle(torch.nn.Module):
    """Predicts the truth of the images it is given."""

    task = "semantic"

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset, self.classes = dataset, dataset.classes

    def predict(self, batch: Any) -> list[Semantic]:
        return [self.dataset[i].target for i in batch.ids]
