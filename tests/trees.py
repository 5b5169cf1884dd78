"""Small datasets in their official layouts: each function writes one below `root` and returns the folder to open."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from zoo.data.ade20k import CLASSES as ADE20K_CLASSES
from zoo.data.annotations import COCO_NAMES
from zoo.data.coco import CLASSES as COCO_CLASSES
from zoo.data.coco import IDS as COCO_IDS
from zoo.data.coco_panoptic import CLASSES as PANOPTIC_CLASSES
from zoo.data.coco_panoptic import IDS as PANOPTIC_IDS

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


def segments_png(path: Path, ids: np.ndarray) -> Path:
    """Ids (H, W) as COCO's panoptic format stores them."""
    return save(path, np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8))


def panoptic_json(path: Path, images: dict[str, list[dict[str, Any]]], categories: list[dict[str, Any]]) -> Path:
    """COCO's panoptic JSON of photographs NAME.jpg with their segments."""
    numbers = {name: int(name) if name.isdecimal() else name for name in images}
    listed = [{"id": n, "file_name": f"{x}.jpg", "height": SIZE[0], "width": SIZE[1]} for x, n in numbers.items()]
    truth = [
        {"image_id": numbers[name], "file_name": f"{name}.png", "segments_info": info} for name, info in images.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": truth[::-1], "categories": categories}))
    return path


def segment(ids: np.ndarray, id: int, category: int, crowd: int = 0) -> dict[str, Any]:
    area = int((ids == id).sum())
    return {"id": id, "category_id": category, "iscrowd": crowd, "area": area, "bbox": [0, 0, 9, 9]}


def ade20k_panoptic(root: Path, split: str, names: list[str]) -> None:
    """A wall, which a sky that is listed hides under a bed; two beds and void."""
    things = [c.thing for c in ADE20K_CLASSES]
    categories = [{"id": k, "name": f"name {k}", "isthing": int(t), "color": [k, 0, 0]} for k, t in enumerate(things)]
    images = {}
    for name in names:
        ids = np.full(SIZE, 70000)
        ids[4:10], ids[10:20], ids[20:24] = 5, 600, 0
        info = [segment(ids, 70000, 0), segment(ids, 5, 7), segment(ids, 600, 7), segment(ids, 9, 2)]
        info[0]["area"], info[3]["area"] = SIZE[0] * SIZE[1], 40
        segments_png(root / f"ade20k_panoptic_{split}" / f"{name}.png", ids)
        images[name] = info
    panoptic_json(root / f"ade20k_panoptic_{split}.json", images, categories)


def coco_panoptic(root: Path) -> Path:
    """A person on grass (id 193) under the sky (187), a crowd of cars, and void."""
    root = root / "coco"
    categories = [
        {"id": id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
        for id, c in zip(PANOPTIC_IDS, PANOPTIC_CLASSES, strict=True)
    ]
    for split, names in COCO.items():
        images = {}
        for i, name in enumerate(names):
            save(root / split / f"{name}.jpg", photograph(name), quality=95)
            ids = np.full(SIZE, 66051)
            ids[:10], ids[5:20, 4 : 12 + i], ids[24:], ids[:2, :2] = 8000000, 7, 300, 0
            listed = [(300, 3, 1), (8000000, 187, 0), (7, 1, 0), (66051, 193, 0)]
            images[name] = [segment(ids, *each) for each in listed]
            segments_png(root / "annotations" / f"panoptic_{split}" / f"{name}.png", ids)
        panoptic_json(root / "annotations" / f"panoptic_{split}.json", images, categories)
    return root


def ade20k(root: Path) -> Path:
    root = root / "ADEChallengeData2016"
    for folder, names in ADE20K.items():
        for i, name in enumerate(names):
            save(root / "images" / folder / f"{name}.jpg", photograph(name), quality=95)
            save(root / "annotations" / folder / f"{name}.png", blocks(np.arange(151, dtype=np.uint8), i))
            (root / "annotations" / folder / f"._{name}.png").write_bytes(b"\x00\x05\x16\x07 of macOS")
    for split, folder in (("train", "training"), ("val", "validation")):
        ade20k_panoptic(root, split, ADE20K[folder])
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


def coco(root: Path) -> Path:
    """Official names and ids; three images in train, two in val, the last of each without objects.

    Image 0 has a polygon of two parts, image 1 of train a crowd and an overlapping polygon beside it; every category id
    of the official files is listed. Persons have keypoints in the other two files.
    """
    categories = [
        {"id": id, "name": c.name, "supercategory": "x"} for id, c in zip(COCO_IDS, COCO_CLASSES, strict=True)
    ]
    names = COCO_NAMES
    for split, stems in COCO.items():
        for stem in stems:
            save(root / split / f"{stem}.jpg", photograph(stem), quality=95)
        height, width = SIZE
        images = [{"id": int(s), "file_name": f"{s}.jpg", "height": height, "width": width} for s in stems]
        crowd = {"size": [height, width], "counts": [10 * height, 3 * height, (width - 13) * height]}
        objects = [
            annotation(1, images[0], 1, [[2, 2, 12, 2, 12, 10, 2, 10], [20, 20, 28, 20, 28, 28]], area=99.5),
            annotation(2, images[0], 90, [[15, 3, 30, 3, 30, 9]]),
        ]
        if split == "train2017":
            objects.append(annotation(3, images[1], 18, [[8, 4, 20, 4, 20, 20, 8, 20]]))
            objects.append(annotation(900100000025, images[1], 1, crowd, iscrowd=1))
        folder = root / "annotations"
        folder.mkdir(exist_ok=True)
        kinds = [{"id": 1, "name": "person", "supercategory": "x", "keypoints": names, "skeleton": [[16, 14], [1, 2]]}]
        persons = [
            a | {"keypoints": points(k), "num_keypoints": 3} for k, a in enumerate(objects) if a["category_id"] == 1
        ]
        for name, found, listed in (("instances", objects, categories), ("person_keypoints", persons, kinds)):
            text = json.dumps({"info": {}, "images": images, "annotations": found, "categories": listed})
            (folder / f"{name}_{split}.json").write_text(text)
    return root


def annotation(id: int, image: dict[str, Any], category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    """One of COCO's annotations, its box and area those of the mask."""
    size = image["height"], image["width"]
    forms = segmentation if isinstance(segmentation, list) else [segmentation]
    rle = mask_api.merge(mask_api.frPyObjects(forms, *size))
    fields = {"id": id, "image_id": image["id"], "category_id": category, "segmentation": segmentation, "iscrowd": 0}
    return fields | {"bbox": mask_api.toBbox(rle).tolist(), "area": float(mask_api.area(rle))} | more


def points(seed: int) -> list[int]:
    """17 keypoints, three of them labelled: nose, left_eye, right_eye."""
    flat = [0] * 51
    flat[:9] = [4 + seed, 5, 2, 8 + seed, 4, 2, 3 + seed, 6, 1]
    return flat


def dsb2018(root: Path, count: int = 24) -> Path:
    """Kaggle's folders: RGBA images, a mask of 0 and 255 for each of two or three nuclei."""
    for k in range(count):
        id = hashlib.sha256(str(k).encode()).hexdigest()
        folder = root / "stage1_train" / id
        save(folder / "images" / f"{id}.png", np.dstack([photograph(id), np.full(SIZE, 255, np.uint8)]))
        for n in range(2 + k % 2):
            mask = np.zeros(SIZE, np.uint8)
            mask[4 + n : 10 + n, 3 + 11 * n : 9 + 11 * n] = 255
            save(folder / "masks" / f"{n}{id[:20]}.png", mask)
    return root


def yolo(root: Path) -> Path:
    """Two images in train (one without a text file's content), one in val; outlines of squares."""
    card = "path: ../somewhere/else\ntrain: ../images/train\nval: images/val\nnames: {0: cell, 1: dust}\n"
    for name, lines in {
        "train/a": "1 .25 .25 .5 .25 .5 .5 .25 .5\n0 0 0 .1 0 .1 .5\n",
        "train/b": "",
        "val/c": "0 0 0 1 0 1 1",
    }.items():
        save(root / "images" / f"{name}.jpg", photograph(name), quality=95)
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)
    (root / "data.yaml").write_text(card)
    return root


def labelme(root: Path) -> Path:
    """Every kind of shape in train, a polygon in val; images beside their JSONs."""
    bits = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(bits, "PNG")
    shapes = [
        {"label": "cell", "points": [[2, 2], [8, 2], [8, 8], [2, 8]], "group_id": 1, "shape_type": "polygon"},
        {"label": "cell", "points": [[12, 2], [18, 8]], "group_id": 1, "shape_type": "rectangle"},
        {"label": "dust", "points": [[30, 20], [30, 24]], "group_id": None, "shape_type": "circle"},
        {
            "label": "cell",
            "points": [[5, 20], [6, 21]],
            "shape_type": "mask",
            "mask": base64.b64encode(bits.getvalue()).decode(),
        },
        {"label": "dust", "points": [[5, 20]], "group_id": None, "shape_type": "point"},
    ]
    for name, some in {"train/a": shapes, "train/b": [], "val/c": shapes[:1]}.items():
        save(root / f"{name}.jpg", photograph(name), quality=95)
        document = {"version": "5.5.0", "flags": {}, "shapes": some, "imagePath": f"{name[-1]}.jpg"}
        document |= {
            "imageData": base64.b64encode(bits.getvalue()).decode(),
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
        }
        (root / f"{name}.json").write_text(json.dumps(document))
    return root
