"""ISBI 2012 in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import create_dataset
from zoo.errors import ZooError


@pytest.fixture
def classic(tmp_path: Path) -> Path:
    """Twelve sections, the number of each in its pixels, so that 10 after 9 and not after 1 shows."""
    for folder in ("image", "label"):
        (tmp_path / "data/membrane/train" / folder).mkdir(parents=True)
        for n in range(12):
            array = np.full((4, 2), n, np.uint8) if folder == "image" else np.array([[0, 255]] * 4, np.uint8)
            Image.fromarray(array).save(tmp_path / "data/membrane/train" / folder / f"{n}.png")
    return tmp_path


@pytest.mark.parametrize("level", ["", "data/membrane", "data/membrane/train"])
def test_classic_layout_at_any_level(classic: Path, level: str) -> None:
    train, val = (create_dataset("isbi2012", classic / level, split) for split in ("train", "val"))
    assert [int(train[i].image[0, 0, 0]) for i in range(len(train))] == [0, 1, 2, 3, 4, 5]
    assert [int(val[i].image[0, 0, 0]) for i in range(len(val))] == [6, 7, 8, 9, 10, 11]
    assert train[0].image.shape == (4, 2, 1)
    assert train[0].target.labels.tolist() == [[0, 1]] * 4


def test_a_section_without_a_number_is_refused(classic: Path) -> None:
    folder = classic / "data/membrane/train/image"
    (folder / "3.png").rename(folder / "three.png")
    with pytest.raises(ZooError, match=r"three.png: sections are named by their number"):
        create_dataset("isbi2012", classic)


def test_neither_layout(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ZooError, match=r"train.txt is missing. Expected\n(.|\n)*train/image/N.png"):
        create_dataset("isbi2012", tmp_path)


def test_there_is_no_test_truth(data_root: Path) -> None:
    with pytest.raises(ZooError, match="unknown split of ISBI2012 'test'"):
        create_dataset("isbi2012", data_root / "isbi2012", "test")


def test_real_sections(data_root: Path) -> None:
    train, val = (create_dataset("isbi2012", data_root / "isbi2012", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (24, 6)
    assert [val.name(i) for i in range(6)] == ["24", "25", "26", "27", "28", "29"]
    assert [c.name for c in train.classes] == ["membrane", "cell"]
    labels = np.stack([dataset[i].target.labels.numpy() for dataset in (train, val) for i in range(len(dataset))])
    assert labels.shape == (30, 512, 512)
    assert set(np.unique(labels)) == {0, 1}
    assert round(float(labels.mean()), 2) == 0.78  # the share the data's description gives for cells
    image = train[0].image
    assert image.shape == (512, 512, 1)
    # Membranes are dark.
    assert image[..., 0][labels[0] == 0].mean() < image[..., 0][labels[0] == 1].mean() - 20
