"""Oxford-IIIT Pet: trimaps, splits, files that are not what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from zoo.data import create_dataset
from zoo.data.oxford_pet import BREEDS
from zoo.errors import ZooError
from zoo.structures import VOID

CATS = (
    *("Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau", "Maine_Coon", "Persian"),
    *("Ragdoll", "Russian_Blue", "Siamese", "Sphynx"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.oxford_pet(tmp_path)


def test_breeds_are_in_the_order_of_the_lists() -> None:
    assert len(BREEDS) == 37
    assert list(BREEDS) == sorted(BREEDS, key=str.lower)
    assert [breed for breed in BREEDS if breed[0].isupper()] == list(CATS)


def test_splits(root: Path) -> None:
    listed = [line.split()[0] for line in (root / "annotations/trainval.txt").read_text().splitlines()]
    names = {}
    for split in ("train", "val", "test", "trainval"):
        dataset = create_dataset("oxford_pet", root, split)
        names[split] = [dataset.name(i) for i in range(len(dataset))]
    assert names["val"] == [listed[0], listed[10], listed[20]]
    assert names["train"] == [*listed[1:10], *listed[11:20]]
    assert names["trainval"] == listed
    assert len(names["test"]) == 6
    assert not set(names["test"]) & set(listed)


def test_splits_are_those_of_segmentation_models_pytorch(root: Path) -> None:
    peer = pytest.importorskip("segmentation_models_pytorch.datasets")
    for mode, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        theirs = peer.OxfordPetDataset(str(root), mode)
        ours = create_dataset("oxford_pet", root, split, border="pet")
        assert [ours.name(i) for i in range(len(ours))] == theirs.filenames
        assert np.array_equal(ours[0].target.labels.numpy(), theirs[0]["mask"])
        assert np.array_equal(ours[0].image, theirs[0]["image"])


@pytest.mark.parametrize(
    ("border", "three"), [("void", VOID), ("pet", 1), ("background", 0)], ids=["void", "pet", "background"]
)
def test_trimaps(root: Path, border: str, three: int) -> None:
    path = root / "annotations/trimaps/Abyssinian_101.png"
    trimap = np.resize(np.array([1, 2, 3], np.uint8), trees.SIZE)
    trees.save(path, trimap)
    labels = create_dataset("oxford_pet", root, "train", border=border)[0].target.labels.numpy()
    assert np.array_equal(labels, np.array([9, 1, 0, three])[trimap])


def test_species_and_breeds(root: Path) -> None:
    rows = [line.split() for line in (root / "annotations/trainval.txt").read_text().splitlines()]
    species = create_dataset("oxford_pet", root, "trainval", label="species")
    breed = create_dataset("oxford_pet", root, "trainval", label="breed")
    assert [c.name for c in species.classes] == ["background", "cat", "dog"]
    assert [c.name for c in breed.classes] == ["background", *BREEDS]
    for i, (name, number, kind, _) in enumerate(rows):
        assert name.startswith(breed.classes[int(number)].name)
        assert species[i].target.labels.unique().tolist() == [0, int(kind), VOID]
        assert breed[i].target.labels.unique().tolist() == [0, int(number), VOID]


def test_another_truth_is_another_dataset(root: Path) -> None:
    options = [{}, {"border": "pet"}, {"label": "species"}]
    prints = {create_dataset("oxford_pet", root, "val", **o).fingerprint() for o in options}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("GIF", "P"), ("GIF", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("BMP", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")],
)
def test_files_that_are_not_what_their_name_says(root: Path, kind: str, mode: str) -> None:
    path = root / "images/Abyssinian_101.jpg"
    picture = Image.fromarray(trees.photograph("other")).convert(mode)
    picture.save(path, format=kind)
    sample = create_dataset("oxford_pet", root, "train")[0]
    expected = np.array(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(sample.image - expected).max() <= 1  # the way from CMYK rounds
    assert sample.image.dtype == np.uint8


def test_stray_bytes_before_the_end_of_a_jpeg_are_overlooked(root: Path) -> None:
    path = root / "images/Abyssinian_101.jpg"
    plain = create_dataset("oxford_pet", root, "train")[0].image
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes(245) + data[-2:])  # as in beagle_116
    assert np.array_equal(create_dataset("oxford_pet", root, "train")[0].image, plain)


@pytest.mark.parametrize("option", ["label", "border"])
def test_options_are_checked(root: Path, option: str) -> None:
    with pytest.raises(ZooError, match=f"{option} of oxford_pet 'pett'.*pet"):
        create_dataset("oxford_pet", root, **{option: "pett"})


def test_a_name_of_no_breed(root: Path) -> None:
    lines = (root / "annotations/trainval.txt").read_text()
    (root / "annotations/trainval.txt").write_text(lines.replace("Abyssinian_101", "Tabby_101"))
    for folder, suffix in (("images", "jpg"), ("annotations/trimaps", "png")):
        (root / folder / f"Abyssinian_101.{suffix}").rename(root / folder / f"Tabby_101.{suffix}")
    with pytest.raises(ZooError, match=r"Tabby_101.png: Tabby_101: .* no breed 'Tabby'"):
        create_dataset("oxford_pet", root, "train", label="breed")[0]
    assert create_dataset("oxford_pet", root, "train")[0].target is not None
