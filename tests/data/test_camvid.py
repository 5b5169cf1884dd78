"""CamVid in both layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import create_dataset
from zoo.data.camvid import CLASSES
from zoo.errors import ZooError

LABELS = np.array([[0, 3, 11], [8, 10, 3]], np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    root = tmp_path / "CamVid"
    for split, names in (
        ("train", ["0006R0_f00930", "0001TP_006690"]),
        ("val", ["0016E5_07959"]),
        ("test", ["Seq05_1"]),
    ):
        for i, name in enumerate(names):
            save(root / split / f"{name}.png", np.full((2, 3, 3), 10 * i, np.uint8))
            save(root / f"{split}annot" / f"{name}.png", LABELS)
        lines = [f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n" for name in names]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def test_segnets_layout_has_its_order_and_its_void(segnet: Path) -> None:
    dataset = create_dataset("camvid", segnet, "train")
    assert [dataset.name(i) for i in range(2)] == ["0006R0_f00930", "0001TP_006690"]  # the list's order
    expected = torch.from_numpy(np.where(LABELS == 11, 255, LABELS).astype(np.uint8))
    assert torch.equal(dataset[0].target.labels, expected)
    assert dataset[1].image.max() == 10
    assert dataset.classes == CLASSES


def test_root_may_be_the_folder_above_and_lists_are_optional(segnet: Path) -> None:
    listed = create_dataset("camvid", segnet.parent, "train")
    (segnet / "train.txt").unlink()
    assert [create_dataset("camvid", segnet, "train").name(i) for i in range(2)] == ["0001TP_006690", "0006R0_f00930"]
    assert len(listed) == 2


def test_trainval_is_train_then_val(segnet: Path) -> None:
    dataset = create_dataset("camvid", segnet, "trainval")
    assert [dataset.name(i) for i in range(3)] == ["0006R0_f00930", "0001TP_006690", "0016E5_07959"]


def test_eleven_is_no_class_where_void_is_255(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.jpg", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "labels/train/a.png", LABELS)
    with pytest.raises(ZooError, match=r"labels/train/a.png: label 11 "):
        create_dataset("camvid", tmp_path, "train")[0]


@pytest.mark.parametrize("gone", ["trainannot", "train"])
def test_half_a_tree_shows_the_whole_one(segnet: Path, gone: str) -> None:
    (segnet / gone).rename(segnet / "elsewhere")
    (segnet / "train.txt").unlink()
    with pytest.raises(ZooError, match=rf"{gone} is missing. Expected\n(.|\n)*trainannot/(.|\n)*images/") as error:
        create_dataset("camvid", segnet, "train")
    assert str(segnet) in str(error.value)


def test_a_listed_frame_that_is_missing_is_named(segnet: Path) -> None:
    (segnet / "trainannot" / "0006R0_f00930.png").unlink()
    with pytest.raises(ZooError, match=r"1 images without labels \(0006R0_f00930\)"):
        create_dataset("camvid", segnet, "train")


def test_empty_split(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    with pytest.raises(ZooError, match="no images in split 'train'"):
        create_dataset("camvid", tmp_path, "train")


@pytest.mark.parametrize(("split", "images"), [("train", 367), ("val", 101), ("test", 233)])
def test_real_frames_have_the_published_counts(data_root: Path, split: str, images: int) -> None:
    root = data_root / "camvid"
    facts = json.loads((root / "classes.json").read_text())
    dataset = create_dataset("camvid", root, split)
    assert len(dataset) == images
    assert [c.name for c in dataset.classes] == facts["names"]
    assert [list(c.color) for c in dataset.classes] == facts["colors"]
    pixels = np.zeros(256, np.int64)
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.image.shape == (360, 480, 3)
        pixels += np.bincount(sample.target.labels.numpy().ravel(), minlength=256)
    assert [*pixels[:11], pixels[255]] == facts["pixel_counts"][split]
    assert pixels.sum() == images * 360 * 480
