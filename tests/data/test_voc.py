"""VOC 2012 and SBD on generated trees in their official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from zoo.data import create_dataset
from zoo.data.voc import CLASSES, segments
from zoo.errors import ZooError

TRAIN, VAL, SBD_ONLY = ["2007_000032", "2007_000039"], ["2007_000033"], ["2008_000002"]
DOG, PERSON = 12, 15
# A dog (object 2), two persons (1, 3) side by side, the border between them, background.
CLASS = np.array([[0, 12, 255, 15, 15], [0, 12, 255, 15, 255], [0, 0, 255, 255, 15]], np.uint8)
OBJECT = np.array([[0, 2, 255, 1, 1], [0, 2, 255, 1, 255], [0, 0, 255, 255, 3]], np.uint8)


def colormap() -> list[int]:
    """The devkit's palette: bit i of each index's r, g, b triples, from the top."""
    colors = []
    for index in range(256):
        r = g = b = 0
        for bit in range(8):
            r |= (index >> 3 * bit & 1) << 7 - bit
            g |= (index >> 3 * bit + 1 & 1) << 7 - bit
            b |= (index >> 3 * bit + 2 & 1) << 7 - bit
        colors += [r, g, b]
    return colors


def save_palette(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P", (array.shape[1], array.shape[0]))
    image.putdata(array.ravel().tolist())
    image.putpalette(colormap())
    image.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in TRAIN + VAL + SBD_ONLY:
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    for name in TRAIN + VAL:
        save_palette(root / "SegmentationClass" / f"{name}.png", CLASS)
        save_palette(root / "SegmentationObject" / f"{name}.png", OBJECT)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", sorted(TRAIN + VAL))):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture
def sbd(voc: Path) -> Path:
    """SBD as downloaded, with an image of VOC's val and one of its train in it."""
    root = voc.parent.parent / "benchmark_RELEASE" / "dataset"
    no_border = np.where(CLASS == 255, 0, CLASS)
    for kind, field, labels in (("cls", "GTcls", no_border), ("inst", "GTinst", np.where(OBJECT == 255, 0, OBJECT))):
        (root / kind).mkdir(parents=True)
        for name in SBD_ONLY + VAL + TRAIN[:1]:
            content = {"Segmentation": labels, "Boundaries": np.zeros((20, 1)), "Categories": np.array([15, 12, 15])}
            savemat(root / kind / f"{name}.mat", {field: content})
    return root


def names_of(dataset: object) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]  # type: ignore[attr-defined,arg-type]


@pytest.mark.parametrize("level", [".", "..", "../.."])
def test_palette_files_stay_indices_at_any_level_of_root(voc: Path, level: str) -> None:
    dataset = create_dataset("voc", (voc / level).resolve(), "train")
    assert names_of(dataset) == TRAIN
    assert torch.equal(dataset[0].target.labels, torch.from_numpy(CLASS))
    assert dataset[0].image.shape == (3, 5, 3)


def test_table_is_the_devkits() -> None:
    assert len(CLASSES) == 21
    assert [channel for c in CLASSES for channel in c.color] == colormap()[: 3 * 21]
    assert [c.name for c in CLASSES if not c.thing] == ["background"]
    assert (CLASSES[DOG].name, CLASSES[PERSON].name) == ("dog", "person")


def test_trainval(voc: Path) -> None:
    assert names_of(create_dataset("voc", voc, "trainval")) == sorted(TRAIN + VAL)


def test_objects_become_things_on_a_background(voc: Path) -> None:
    truth = create_dataset("voc", voc, "train", task="panoptic")[0].target
    assert truth.labels.tolist() == [255, 0, PERSON, DOG, PERSON]
    expected = torch.tensor([[1, 3, 0, 2, 2], [1, 3, 0, 2, 0], [1, 1, 0, 0, 4]], dtype=torch.int32)
    assert torch.equal(truth.ids, expected)
    assert torch.equal(truth.semantic().labels, torch.from_numpy(CLASS))


def test_instances_are_the_things_renumbered(voc: Path) -> None:
    dataset = create_dataset("voc", voc, "val", task="instance")
    target = dataset[0].target
    assert len(dataset.classes) == 20
    assert [dataset.classes[i].name for i in target.labels.tolist()] == ["person", "dog", "person"]
    assert target.masks.area().tolist() == [3, 2, 1]


def test_pixels_on_which_the_two_files_disagree_are_void() -> None:
    classes = np.array([[15, 15, 12, 0, 15]], np.uint8)
    objects = np.array([[1, 1, 1, 2, 0]], np.uint8)  # object 1 is mostly a person; object 2 and a person without number
    truth = segments(classes, objects)
    assert truth.ids.tolist() == [[1, 1, 0, 0, 0]]
    assert truth.labels.tolist() == [255, 15]


def test_trainaug_reads_sbd_as_downloaded(voc: Path, sbd: Path) -> None:
    dataset = create_dataset("voc", voc.parent.parent, "trainaug")
    assert names_of(dataset) == sorted(TRAIN + SBD_ONLY)  # not the image of val
    by_name = {name: dataset[i].target.labels for i, name in enumerate(names_of(dataset))}
    assert torch.equal(by_name[TRAIN[0]], torch.from_numpy(CLASS))  # VOC's own where there is one: it has a border
    assert torch.equal(by_name[SBD_ONLY[0]], torch.from_numpy(np.where(CLASS == 255, 0, CLASS)))


def test_trainaug_from_elsewhere(voc: Path, sbd: Path) -> None:
    elsewhere = sbd.rename(voc.parent.parent / "sbd")
    for spelling in (elsewhere, str(elsewhere / "cls")):
        assert len(create_dataset("voc", voc, "trainaug", sbd=spelling)) == 3


def test_trainaug_has_objects_too(voc: Path, sbd: Path) -> None:
    dataset = create_dataset("voc", voc.parent, "trainaug", task="instance", sbd=sbd)
    assert names_of(dataset)[-1] == SBD_ONLY[0]
    assert dataset[2].target.masks.area().tolist() == [3, 2, 1]


def test_trainaug_from_ready_files(voc: Path) -> None:
    folder = voc / "SegmentationClassAug"
    folder.mkdir()
    for name in TRAIN + VAL + SBD_ONLY:
        Image.fromarray(np.full((3, 5), 7, np.uint8)).save(folder / f"{name}.png")
    dataset = create_dataset("voc", voc, "trainaug")
    assert names_of(dataset) == sorted(TRAIN + SBD_ONLY)
    assert dataset[2].target.labels.unique().tolist() == [7]
    with pytest.raises(ZooError, match=r"task=instance needs SBD's cls/\*.mat and inst/\*.mat"):
        create_dataset("voc", voc, "trainaug", task="instance")


def test_a_list_of_trainaug_that_holds_val_is_refused(voc: Path, sbd: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    path.write_text("".join(f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in TRAIN + SBD_ONLY))
    assert names_of(create_dataset("voc", voc.parent.parent, "trainaug")) == TRAIN + SBD_ONLY
    path.write_text("".join(f"{n}\n" for n in TRAIN + VAL))
    with pytest.raises(ZooError, match=rf"train_aug.txt: 1 images are in val.txt too \({VAL[0]}\)"):
        create_dataset("voc", voc.parent.parent, "trainaug")


def test_trainaug_without_sbd_says_what_is_needed(voc: Path) -> None:
    with pytest.raises(
        ZooError, match=r"needs SegmentationClassAug or SBD's cls/\*.mat. Expected\n(.|\n)*benchmark_RELEASE"
    ):
        create_dataset("voc", voc, "trainaug")


@pytest.mark.parametrize("damage", ["cut", "flipped", "of MATLAB 7.3"])
def test_a_damaged_mat_file_is_named(voc: Path, sbd: Path, damage: str) -> None:
    path = sbd / "cls" / f"{SBD_ONLY[0]}.mat"
    if damage == "flipped":
        savemat(path, {"GTcls": {"Segmentation": np.eye(50, dtype=np.uint8)}}, do_compression=True)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[150:160] = bytes(10)
    elif damage == "of MATLAB 7.3":
        data[124:128] = b"\x00\x02IM"
    path.write_bytes(data[:200] if damage == "cut" else data)
    dataset = create_dataset("voc", voc.parent.parent, "trainaug")
    with pytest.raises(ZooError, match=rf"{SBD_ONLY[0]}.mat: not one of SBD's .mat files, or damaged"):
        dataset[2]


@pytest.mark.parametrize("gone", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_half_a_tree(voc: Path, gone: str) -> None:
    (voc / gone).rename(voc / "x")
    with pytest.raises(ZooError, match=rf"{gone}\S* is missing. Expected\nVOCdevkit"):
        create_dataset("voc", voc)


def test_objects_are_needed_for_instances_alone(voc: Path) -> None:
    (voc / "SegmentationObject").rename(voc / "x")
    assert len(create_dataset("voc", voc)) == 2
    with pytest.raises(ZooError, match="SegmentationObject is missing"):
        create_dataset("voc", voc, task="instance")


def test_listed_image_without_a_file(voc: Path) -> None:
    (voc / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    with pytest.raises(ZooError, match=rf"1 label files without an image \({TRAIN[0]}\)"):
        create_dataset("voc", voc)
