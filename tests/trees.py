"""Small datasets in their official layouts: each function writes one below `root` and returns the folder to open."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (32, 40)
CITYSCAPES = {"train": ["aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019"]} | {
    "val": ["lindau_000000_000019", "munster_000000_000019"],
    "test": ["berlin_000000_000019"],
    "train_extra": ["augsburg_000000_000000"],
}
ADE20K = {
    "training": ["ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"],
    "validation": ["ADE_val_00000001", "ADE_val_00000002"],
}
COCO = {"train2017": ["000000000009", "000000000025", "000000000030"], "val2017": ["000000000139", "000000000285"]}
PETS = ["Abyssinian", "american_bulldog", "yorkshire_terrier"]


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photograph(name: str) -> np.ndarray:
    """A smooth picture, (H, W, 3) uint8, another one for each name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] / 8
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.3, 2, (3, 3))]
    return np.uint8(127 + 120 * np.stack(waves, axis=2))


def blocks(values: np.ndarray, shift: int = 0) -> np.ndarray:
    """A label map (H, W) that holds each of `values`, in squares of 2x2 pixels."""
    squares = np.resize(np.roll(values, shift), (SIZE[0] // 2, SIZE[1] // 2))
    return squares.repeat(2, axis=0).repeat(2, axis=1)


def cityscapes(root: Path) -> Path:
    """Every id 0..33; objects of things, one group of persons and one of cars."""
    objects = np.array([*range(34), 24000, 24001, 25000, 26000, 26001, 26017, 29000, 30000, 33002], np.uint16)
    for split, names in CITYSCAPES.items():
        for i, name in enumerate(names):
            city = name.split("_")[0]
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", photograph(name))
            kind = "gtCoarse" if split == "train_extra" else "gtFine"
            to = root / kind / split / city / f"{name}_{kind}"
            instances = np.zeros(SIZE, np.uint16) if split == "test" else blocks(objects, i)
            labels = np.where(instances < 1000, instances, instances // 1000).astype(np.uint8)
            save(Path(f"{to}_labelIds.png"), labels)
            save(Path(f"{to}_instanceIds.png"), instances)
            save(Path(f"{to}_color.png"), photograph(name))
            Path(f"{to}_polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    root = root / "ADEChallengeData2016"
    for folder, names in ADE20K.items():
        for i, name in enumerate(names):
            save(root / "images" / folder / f"{name}.jpg", photograph(name), quality=95)
            save(root / "annotations" / folder / f"{name}.png", blocks(np.arange(151, dtype=np.uint8), i))
            (root / "annotations" / folder / f"._{name}.png").write_bytes(b"\x00\x05\x16\x07 of macOS")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return root


def coco_stuff(root: Path) -> Path:
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]  # in COCO's numbers, which begin with 1
    values = np.array([c - 1 for c in range(1, 183) if c not in unused] + [255], np.uint8)
    for folder, names in COCO.items():
        for i, name in enumerate(names):
            save(root / "images" / folder / f"{name}.jpg", photograph(name), quality=95)
            save(root / "annotations" / folder / f"{name}.png", blocks(values, i))
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    return root


def oxford_pet(root: Path) -> Path:
    """Three breeds; of each seven images in trainval.txt and two in test.txt."""
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for i in range(9):
        for breed in PETS:
            name = f"{breed}_{i + 100}"
            save(root / "images" / f"{name}.jpg", photograph(name), quality=95)
            save(root / "annotations" / "trimaps" / f"{name}.png", blocks(np.array([1, 2, 3], np.uint8), i))
            (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\x00\x05\x16\x07 of macOS")
            species = 1 if breed[0].isupper() else 2
            line = f"{name} {[1, 2, 37][PETS.index(breed)]} {species} {i}\n"
            lists["trainval" if i < 7 else "test"].append(line)
    for split, lines in lists.items():
        (root / "annotations" / f"{split}.txt").write_text("".join(sorted(lines, key=str.lower)))
    return root
