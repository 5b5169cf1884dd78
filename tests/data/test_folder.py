"""People's own data: layouts, encodings, classes, and what is said when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import Dataset, create_dataset
from zoo.errors import ZooError

NAMES = ["background", "road", "car"]
LABELS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def palette(path: Path, indices: np.ndarray, colors: list[int]) -> None:
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.ravel().tolist())
    image.putpalette(colors)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def tree(root: Path, *pairs: tuple[str, str]) -> Path:
    for image, mask in pairs:
        save(root / image, IMAGE)
        save(root / mask, LABELS)
    return root


def names(dataset: Dataset) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]


def folder(root: Path, split: str = "train", **options: Any) -> Dataset:
    return create_dataset("folder", root, split, **{"classes": NAMES} | options)


# Layouts


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/train/a.png", "masks/train/a.png"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/train/a.png", "masks/train/a_mask.png"),
        ("images/train/day/a.b.tif", "masks/train/day/a.b_gt.png"),
    ],
)
def test_a_split_of_its_own_folder(tmp_path: Path, image: str, mask: str) -> None:
    dataset = folder(tree(tmp_path, (image, mask)))
    assert names(dataset) == [image.rpartition(".")[0]]
    assert np.array_equal(dataset[0].image, IMAGE)
    assert torch.equal(dataset[0].target.labels, torch.from_numpy(LABELS))


def test_lists(tmp_path: Path) -> None:
    tree(tmp_path, *[(f"images/{d}/{n}.png", f"masks/{d}/{n}.png") for d in "xy" for n in ("1", "2 b")])
    (tmp_path / "train.txt").write_text("y/1\n/home/me/images/x/1.png /home/me/masks/x/1.png\n\n")
    (tmp_path / "val.txt").write_text("x/2 b.png\n")
    assert names(folder(tmp_path)) == ["images/y/1", "images/x/1"]
    assert names(folder(tmp_path, "val")) == ["images/x/2 b"]
    (tmp_path / "val.txt").write_text("x/3.png\n")
    with pytest.raises(ZooError, match=r"1 listed names with neither \(x/3\)"):
        folder(tmp_path, "val")


def test_fractions_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    tree(tmp_path, *[(f"images/{i:02d}.png", f"masks/{i:02d}.png") for i in range(20)])
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    parts = {split: names(folder(tmp_path, split, fractions=shares)) for split in shares}
    assert [len(part) for part in parts.values()] == [14, 4, 2]
    assert sorted(name for part in parts.values() for name in part) == [f"images/{i:02d}" for i in range(20)]
    assert parts["val"] == names(folder(tmp_path, "val", fractions=shares, seed=7))  # of the transform
    assert parts["val"] != names(folder(tmp_path, "val", fractions=shares, split_seed=7))
    tree(tmp_path, ("images/new.png", "masks/new.png"))
    moved = set(names(folder(tmp_path, "train", fractions=shares))) ^ set(parts["train"])
    assert len(moved) <= 3
    for wrong in ({"train": 0.9, "val": 0.2}, {"train": 1.0, "val": 0.0}):
        with pytest.raises(ZooError, match="together they are at most 1"):
            folder(tmp_path, "train", fractions=wrong)
    with pytest.raises(ZooError, match="unknown split 'vall': did you mean val"):
        folder(tmp_path, "vall", fractions=shares)


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    tree(tmp_path, ("tiles/1_sat.jpg", "tiles/1_mask.png"), ("tiles/2_sat.jpg", "tiles/2_mask.png"))
    (tmp_path / "train.txt").write_text("1\n2\n")
    dataset = folder(tmp_path, images="tiles", masks="tiles", image_suffix="_sat")
    assert names(dataset) == ["tiles/1_sat", "tiles/2_sat"]
    plain = tree(tmp_path / "plain", ("train/all/1.jpg", "train/all/1_mask.png"))
    assert names(folder(plain, images="all", masks="all")) == ["train/all/1"]


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    (tmp_path / "images/train/._a.png").touch()
    (tmp_path / "images/train/Thumbs.db").touch()
    assert names(folder(tmp_path)) == ["images/train/a"]


# Encodings


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", np.uint8),
        (".tif", np.uint8),
        (".png", np.uint16),
        (".tif", np.uint16),
        (".npy", np.uint16),
        (".npy", np.int64),
    ],
)
def test_numbers_in_any_file_and_type(tmp_path: Path, suffix: str, dtype: type) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    save(tmp_path / f"masks/train/a{suffix}", LABELS.astype(dtype) * (100 if dtype is np.uint16 else 1))
    numbers = {name: i * (100 if dtype is np.uint16 else 1) for i, name in enumerate(NAMES)}
    dataset = folder(tmp_path, classes=numbers, void=25500 if dtype is np.uint16 else 255)
    assert torch.equal(dataset[0].target.labels, torch.from_numpy(LABELS))


def test_numbers_are_mapped_and_merged(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    save(tmp_path / "masks/train/a.png", np.array([[7, 11, 12], [0, 24, 255]], np.uint8))
    dataset = folder(tmp_path, classes={"road": 7, "wall": [11, 12], "rest": 255}, void=[0, 24])
    assert dataset[0].target.labels.tolist() == [[0, 1, 1], [255, 255, 2]]
    assert [c.name for c in dataset.classes] == ["road", "wall", "rest"]


@pytest.mark.parametrize("encoding", ["index", "palette"])
def test_palette_files_give_their_indices(tmp_path: Path, encoding: str) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    palette(tmp_path / "masks/train/a.png", LABELS, [9, 9, 9] * 256)
    dataset = folder(tmp_path, encoding=encoding)
    assert torch.equal(dataset[0].target.labels, torch.from_numpy(LABELS))


COLORS = {"background": "#000000", "road": [128, 64, 128], "car": [[0, 0, 142], [0, 0, 143]]}
PAINTED = np.array([[[0, 0, 0], [128, 64, 128], [0, 0, 142]], [[0, 0, 143], [255, 255, 255], [0, 0, 0]]], np.uint8)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
def test_colours(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    mask = tmp_path / "masks/train/a.png"
    if kind == "palette":
        palette(mask, np.array([[4, 0, 1], [2, 3, 4]]), [128, 64, 128, 0, 0, 142, 0, 0, 143, 255, 255, 255, 0, 0, 0])
    else:
        alpha = np.full((2, 3, 1), 200, np.uint8)
        save(mask, PAINTED if kind == "rgb" else np.concatenate([PAINTED, alpha], 2))
    dataset = folder(tmp_path, classes=COLORS, encoding="color", void="#ffffff")
    assert dataset[0].target.labels.tolist() == [[0, 1, 2], [2, 255, 0]]
    assert [c.color for c in dataset.classes] == [(0, 0, 0), (128, 64, 128), (0, 0, 142)]


def test_a_colour_nobody_named(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    save(tmp_path / "masks/train/a.png", PAINTED)
    with pytest.raises(ZooError, match=r"masks/train/a.png: colour #ffffff \(1 pixels\) is in none of the 3 classes"):
        folder(tmp_path, classes=COLORS, encoding="color")[0]
    save(tmp_path / "masks/train/a.jpg", PAINTED)
    (tmp_path / "masks/train/a.png").unlink()
    with pytest.raises(ZooError, match=r"a.jpg: the colours of a JPEG are blurred"):
        folder(tmp_path, classes=COLORS, encoding="color")[0]


BINARY = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("a.png", BINARY),
        ("a.png", BINARY > 0),
        ("a.png", BINARY // 255),
        ("a.png", np.stack([BINARY] * 3, 2)),
        ("a.png", np.stack([BINARY] * 3 + [np.full_like(BINARY, 255)], 2)),
        ("a.tif", BINARY),
        ("a.jpg", np.array([[0, 0], [255, 255]], np.uint8).repeat(8, 0).repeat(8, 1)),
        ("a.npy", BINARY.astype(np.int64)),
        ("a.npy", BINARY > 0),
    ],
)
def test_binary_masks(tmp_path: Path, name: str, mask: np.ndarray) -> None:
    save(tmp_path / "images/train/a.png", np.zeros((*mask.shape[:2], 3), np.uint8))
    save(tmp_path / "masks/train" / name, mask)
    dataset = create_dataset("folder", tmp_path, encoding="binary")
    expected = mask if mask.ndim == 2 else mask[..., 0]
    assert np.array_equal(dataset[0].target.labels.numpy(), expected > 0)
    assert [c.name for c in dataset.classes] == ["background", "foreground"]


def test_binary_masks_with_a_palette_are_told_by_their_indices(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    palette(tmp_path / "masks/train/a.png", BINARY // 255, [40, 0, 60, 0, 0, 0])  # index 1 is the black one
    dataset = create_dataset("folder", tmp_path, encoding="binary")
    assert np.array_equal(dataset[0].target.labels.numpy(), BINARY > 0)


def test_binary_masks_taken_for_numbers_are_explained(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.png", IMAGE)
    save(tmp_path / "masks/train/a.png", BINARY)
    with pytest.raises(ZooError, match=r"masks/train/a.png: holds 255 and no 1 .* set encoding=binary \(or void=255"):
        folder(tmp_path, classes=["background", "cell"])[0]
    assert folder(tmp_path, classes=["background", "cell"], void=255)[0].target.labels.unique().tolist() == [0, 255]
    assert folder(tmp_path, classes={"background": 0, "cell": 255})[0].target.labels.unique().tolist() == [0, 1]
    turned = folder(tmp_path, classes={"cell": 255, "background": 0}, encoding="binary")
    assert turned[0].target.labels.tolist() == [[1, 0, 0], [1, 1, 0]]
    with pytest.raises(ZooError, match="encoding=binary has 2 classes, not 3"):
        folder(tmp_path, encoding="binary")


# Classes beside the data


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("background\nroad sign\n", [0, 1]),
        ("# mine\nbackground 3\nroad sign 4\n", [3, 4]),
        ("3: background\n4: road sign\n", [3, 4]),
        ("background,1,2,3\nroad sign,4,5,6\n", [0, 1]),
        ("1 2 3\tbackground\n4 5 6\troad sign\n", [0, 1]),
    ],
)
def test_classes_txt(tmp_path: Path, text: str, numbers: list[int]) -> None:
    save(tmp_path / "images/train/a.png", np.zeros((1, 2, 3), np.uint8))
    save(tmp_path / "masks/train/a.png", np.array([numbers], np.uint8))
    (tmp_path / "classes.txt").write_text(text)
    dataset = create_dataset("folder", tmp_path)
    assert [c.name for c in dataset.classes] == ["background", "road sign"]
    assert dataset[0].target.labels.tolist() == [[0, 1]]
    if "5" in text:
        assert [c.color for c in dataset.classes] == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a", "b"], "colors": [[1, 2, 3], [4, 5, 6]], "ignore_index": 9},
        ["a", "b"],
        {"a": 0, "b": 1},
    ],
)
def test_classes_json(tmp_path: Path, content: Any) -> None:
    void = 9 if "names" in content else 255
    save(tmp_path / "images/train/a.png", np.zeros((1, 3, 3), np.uint8))
    save(tmp_path / "masks/train/a.png", np.array([[0, 1, void]], np.uint8))
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert create_dataset("folder", tmp_path)[0].target.labels.tolist() == [[0, 1, 255]]


def test_a_real_folder_with_its_classes_json(data_root: Path) -> None:
    options: dict[str, Any] = {"masks": "labels", "split": "val"}
    mine = create_dataset("folder", data_root / "camvid", **options)
    official = create_dataset("camvid", data_root / "camvid", "val")
    assert len(mine) == len(official) == 101
    assert mine.classes == official.classes
    assert torch.equal(mine[5].target.labels, official[5].target.labels)
    lists = create_dataset("folder", data_root / "isbi2012", masks="labels", split="val", channels=1)
    assert torch.equal(
        lists[2].target.labels, create_dataset("isbi2012", data_root / "isbi2012", "val")[2].target.labels
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": None}, "no classes. Name them in the order of their numbers"),
        ({"classes": {"a": 0, "b": 0}}, "a and b both claim 0"),
        ({"classes": {"a": "#000000", "b": [0, 0, 0]}, "encoding": "color"}, "a and b both claim #000000"),
        ({"classes": ["a", "b"], "encoding": "color"}, "needs the colour of each class"),
        ({"classes": {"a": "black"}, "encoding": "color"}, "a: encoding=color wants a colour"),
        ({"classes": {"a": "zero"}}, "a: encoding=index wants a number"),
        ({"classes": {"a": -1}}, r"store numbers 0..65535, not -1"),
        ({"classes": ["a", "a"]}, "class names must differ"),
        ({"encoding": "colour"}, "unknown encoding 'colour': did you mean color"),
        ({"exif": "aply"}, "unknown exif 'aply': did you mean apply"),
        ({"encoding": "binary", "classes": ["a", "b"], "void": 3}, "encoding=binary has no void"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    with pytest.raises(ZooError, match=says):
        folder(tmp_path, **options)


# Files that do not fit


def test_labels_outside_the_classes_name_file_and_values(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    save(tmp_path / "masks/train/a.png", np.array([[0, 7, 7], [9, 1, 0]], np.uint8))
    with pytest.raises(ZooError, match=r"masks/train/a.png: label 7 \(2 pixels\), 9 \(1 pixels\) is in none of the 3"):
        folder(tmp_path)[0]
    (tmp_path / "masks/train/a.png").unlink()
    save(tmp_path / "masks/train/a.npy", np.array([[0, -1, 70000], [0, 1, 0]]))
    with pytest.raises(ZooError, match=r"a.npy: label -1 \(1 pixels\), 70000 \(1 pixels\) is in none"):
        folder(tmp_path)[0]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    save(tmp_path / "masks/train/a.png", LABELS.T)
    with pytest.raises(ZooError, match=r"masks/train/a.png: the labels are 2x3, the image 3x2"):
        folder(tmp_path)[0]


def test_a_missing_partner_either_way(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a_mask.png"), ("images/train/b.png", "masks/train/c_mask.png"))
    says = r"train: 1 images without labels \(b\); 1 label files without an image \(c\); .* looked for as a_mask.png"
    with pytest.raises(ZooError, match=says):
        folder(tmp_path)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    tree(tmp_path, ("images/a.png", "masks/a.png"))
    with pytest.raises(
        ZooError,
        match=r"there is no split 'train': no folder images/train/, no train.txt, .*\n(.|\n)*images/train/a.jpg",
    ):
        folder(tmp_path)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "masks" / "val").mkdir()
    with pytest.raises(ZooError, match="Folder has no images in split 'val'"):
        folder(tmp_path, "val")
    with pytest.raises(ZooError, match=r"there is no such folder. Expected"):
        folder(tmp_path / "nowhere")


def test_two_images_of_one_name(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"), ("images/train/a.jpg", "masks/train/a.png"))
    with pytest.raises(ZooError, match=r"a.jpg and a.png share a name"):
        folder(tmp_path)


def test_a_truncated_jpeg(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path / "images/train/a.jpg", rng.integers(0, 255, (64, 64, 3), np.uint8))
    save(tmp_path / "masks/train/a.png", np.zeros((64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ZooError, match=r"images/train/a.jpg: truncated or damaged"):
        folder(tmp_path)[0]


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 3)), (3, (2, 3, 3)), (None, (2, 3, 4)), (6, (2, 3, 6))])
def test_any_number_of_channels(tmp_path: Path, channels: int | None, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    save(tmp_path / f"images/train/a.{'npy' if shape[-1] == 6 else 'png'}", array)
    save(tmp_path / "masks/train/a.png", LABELS)
    assert np.array_equal(folder(tmp_path, channels=channels)[0].image, array.reshape(2, 3, -1))


def test_sixteen_bits_are_divided_by_the_stated_maximum(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.tif", np.full((2, 3), 1023, np.uint16))
    save(tmp_path / "masks/train/a.png", LABELS)
    image = folder(tmp_path, channels=1, maximum=4092)[0].image
    assert image.dtype == np.float32
    assert np.allclose(image, 0.25)


def test_exif_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    save(tmp_path / "images/train/a.jpg", np.zeros((2, 3, 3), np.uint8), exif=exif)
    save(tmp_path / "masks/train/a.png", LABELS)
    assert folder(tmp_path)[0].image.shape == (2, 3, 3)
    with pytest.raises(ZooError, match="the labels are 3x2, the image 2x3"):
        folder(tmp_path, exif="apply")[0]
    save(tmp_path / "masks/train/a.png", np.rot90(LABELS, -1))
    sample = folder(tmp_path, exif="apply")[0]
    assert sample.image.shape == (3, 2, 3)
    assert sample.size == (3, 2)


def test_the_fingerprint_knows_what_the_masks_mean(tmp_path: Path) -> None:
    tree(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    one = folder(tmp_path).fingerprint()
    assert one == folder(tmp_path).fingerprint()
    assert one != folder(tmp_path, classes={"background": 0, "road": 2, "car": 1}).fingerprint()
    assert one != folder(tmp_path, void=[255, 254]).fingerprint()
