"""Datasets of instances in their official layouts, from the tree to a training; and people's own exports."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from pycocotools.coco import COCO
from standins import register
from tiny import FAST, SGD, cpu

from zoo.data import create_dataset
from zoo.data.base import Images
from zoo.data.coco import CLASSES, IDS
from zoo.data.doctor import examine, main
from zoo.data.loader import evaluation_loader, train_loader
from zoo.data.transforms import TrainTransform
from zoo.engine import fit
from zoo.errors import ZooError
from zoo.metrics import InstanceMetric
from zoo.models import create_model
from zoo.structures import Class, Instances

WRITERS = {
    "coco": trees.coco,
    "dsb2018": trees.dsb2018,
    "coco_json": trees.coco,
    "cityscapes": trees.cityscapes,
    "yolo": trees.yolo,
    "labelme": trees.labelme,
}
NAMES = list(WRITERS)


def opened(name: str, root: Path, split: str = "train", **options: object) -> object:
    name = {"yolo": "coco_json", "labelme": "coco_json"}.get(name, name)
    return create_dataset(name, root, split, task="instance", **options)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_what_instances_need(roots: dict[str, Path], name: str) -> None:
    dataset = opened(name, roots[name])
    assert all(c.thing for c in dataset.classes)
    assert len({dataset.name(i) for i in range(len(dataset))}) == len(dataset)
    total = 0
    for i in range(len(dataset)):
        sample = dataset[i]
        truth = sample.target
        assert isinstance(truth, Instances)
        assert sample.image.shape == (*trees.SIZE, 3)
        assert truth.size == trees.SIZE
        assert (truth.labels[truth.labels != 255] < len(dataset.classes)).all()
        assert (truth.crowd | (truth.labels != 255)).all()
        assert (truth.scores == 1).all()
        total += len(truth)
    assert total > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_training_with_every_augmentation(
    roots: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    transform = TrainTransform(crop=48, fit=True, scale=(0.5, 2), copy_paste=0.5, rotate=10)
    train = opened(name, roots[name], transform=transform)
    batch = next(iter(train_loader(train, 2, steps=1)))
    assert batch.images.shape == (2, 3, 48, 48)
    for target in batch.targets:
        assert target.size == (48, 48)
        assert (target.masks.area() > 0).all()
        assert torch.equal(target.boxes, target.masks.boxes())
    torch.manual_seed(0)
    model = create_model("instance_standin", train.classes, "test_efficientnet")
    facts = fit(model, train, out=tmp_path, fabric=cpu(), optimizer=SGD, **FAST, steps=2)
    assert facts["status"] == "ok"


@pytest.mark.parametrize("name", NAMES)
def test_a_spawned_worker_reads_the_same(roots: dict[str, Path], name: str) -> None:
    dataset = opened(name, roots[name])
    again = pickle.loads(pickle.dumps(dataset))
    assert again.fingerprint() == dataset.fingerprint()
    assert torch.equal(again[0].target.masks.dense(), dataset[0].target.masks.dense())
    for batch in evaluation_loader(again):
        assert len(batch.targets) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_finds_no_error(roots: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = {"yolo": "coco_json", "labelme": "coco_json"}.get(name, name)
    assert main([kind, f"root={roots[name]}", "task=instance", "--split", "train"]) == 0
    assert f"train {len(opened(name, roots[name]))}" in capsys.readouterr().out


# ---- coco -------------------------------------------------------------------------------------------------------


def test_cocos_table_is_the_official_one(data_root: Path) -> None:
    official = json.loads((data_root / "coco_sample/panoptic_coco_categories.json").read_text())
    things = [c for c in official if c["isthing"]]
    assert [Class(c["name"], tuple(c["color"]), thing=True) for c in things] == list(CLASSES)
    assert [c["id"] for c in things] == list(IDS)


def test_coco_reads_ids_with_gaps_crowds_and_empty_images(roots: dict[str, Path], tmp_path: Path) -> None:
    train = opened("coco", roots["coco"])
    assert [train.name(i) for i in range(3)] == trees.COCO["train2017"]
    assert [train[i].target.labels.tolist() for i in range(3)] == [[0, 79], [16, 0], []]
    assert train[1].target.crowd.tolist() == [False, True]
    assert train[0].target.areas[0] == 99.5  # the file's, not the pixels
    assert train[0].target.masks.area()[0] != 99.5
    assert len(opened("coco", roots["coco"], drop_empty=True)) == 2
    val = opened("coco", roots["coco"], "val", drop_empty=True)
    assert len(val) == 2  # an evaluation leaves out nothing
    (tmp_path / "coco").symlink_to(roots["coco"])
    assert len(opened("coco", tmp_path, "val")) == 2


def test_cocos_keypoints(roots: dict[str, Path]) -> None:
    train = opened("coco", roots["coco"], keypoints=True)
    assert [c.name for c in train.classes] == ["person"]
    assert train.keypoints.names[0] == "nose"
    assert train.keypoints.skeleton[0] == (15, 13)
    assert train[0].target.keypoints.shape == (1, 17, 3)
    assert train[0].target.keypoints[0, :3].tolist() == [[4, 5, 2], [8, 4, 2], [3, 6, 1]]
    assert len(opened("coco", roots["coco"], keypoints=True, drop_empty=True)) == 1  # a crowd does not count
    flipped = opened("coco", roots["coco"], keypoints=True, transform=TrainTransform(scale=(1, 1), flip=1, color=0))
    w = trees.SIZE[1]
    assert flipped[0].target.keypoints[0, :3].tolist() == [[w - 1 - 4, 5, 2], [w - 1 - 3, 6, 1], [w - 1 - 8, 4, 2]]


@pytest.mark.parametrize(("split", "count", "crowds"), [("train", 55, 1), ("val", 69, 1)])
def test_every_annotation_of_real_coco_survives(
    data_root: Path, tmp_path: Path, split: str, count: int, crowds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fourteen photographs in COCO's layout: as many objects, in the file's order, with pycocotools' pixels."""
    tiny = data_root / "coco_tiny"
    (tmp_path / "annotations").mkdir()
    (tmp_path / f"{split}2017").symlink_to(tiny / split, target_is_directory=True)
    (tmp_path / f"annotations/instances_{split}2017.json").symlink_to(tiny / f"instances_{split}.json")
    dataset, official = opened("coco", tmp_path, split), COCO(str(tiny / f"instances_{split}.json"))
    found = [dataset[i].target for i in range(len(dataset))]
    annotations = [official.loadAnns(official.getAnnIds(int(dataset.name(i)))) for i in range(len(dataset))]
    assert sum(len(truth) for truth in found) == sum(map(len, annotations)) == count
    assert sum(int(truth.crowd.sum()) for truth in found) == crowds
    for truth, expected in zip(found, annotations, strict=True):
        assert [IDS[k] for k in truth.labels.tolist()] == [a["category_id"] for a in expected]
        assert truth.areas.tolist() == [a["area"] for a in expected]
        pixels = truth.masks.area().tolist() if len(truth) else []
        assert pixels == [int(official.annToMask(a).sum()) for a in expected]
    seen = examine("coco", tmp_path, [split], task="instance")
    assert not [f for f in seen.findings if f.severity == "error"]
    assert sum(look.objects for look in seen.looks[split]) == count - crowds
    assert [look.pixels.sum() for look in seen.looks[split]] == [int(t.masks.area().sum()) for t in found]


def test_coco_says_what_is_wrong(tmp_path: Path) -> None:
    root = trees.coco(tmp_path)
    path = root / "annotations/instances_val2017.json"
    document = json.loads(path.read_text())
    document["categories"][2]["name"] = "van"
    path.write_text(json.dumps(document))
    with pytest.raises(ZooError, match=r"category 3 is van, in COCO it is car: use dataset=coco_json"):
        opened("coco", root, "val")
    (root / "train2017/000000000025.jpg").unlink()
    with pytest.raises(ZooError, match=r"1 of its 3 images are not in .*train2017 \(000000000025.jpg\)"):
        opened("coco", root)
    path.unlink()
    with pytest.raises(ZooError, match=r"instances_val2017.json is missing. Expected\ncoco/"):
        opened("coco", root, "val")
    shutil.rmtree(root / "train2017")
    with pytest.raises(ZooError, match=r"train2017 is missing. Expected\ncoco/"):
        opened("coco", root)


def test_cocos_test_images_have_no_truth(tmp_path: Path) -> None:
    root = trees.coco(tmp_path)
    (root / "val2017").rename(root / "test2017")
    document = json.loads((root / "annotations/instances_val2017.json").read_text())
    del document["annotations"]
    (root / "annotations/image_info_test2017.json").write_text(json.dumps(document))
    assert [sample.target for sample in (opened("coco", root, "test")[i] for i in range(2))] == [None, None]


def test_records_are_made_when_asked_for() -> None:
    images = Images(Path("/x"), np.array([b"a/b.jpg", "ü.jpg".encode()], dtype=bytes))
    assert [*images] == [(Path("/x/a/b.jpg"), 0), (Path("/x/ü.jpg"), 1)]
    assert [*images[1:]] == [(Path("/x/ü.jpg"), 1)]
    assert images[-1][1] == 1
    with pytest.raises(IndexError):
        images[2]


# ---- dsb2018 ----------------------------------------------------------------------------------------------------


def test_kaggles_folders(roots: dict[str, Path]) -> None:
    splits = {split: opened("dsb2018", roots["dsb2018"], split) for split in ("train", "val", "test")}
    names = [dataset.name(i).split("/")[0] for dataset in splits.values() for i in range(len(dataset))]
    assert sorted(names) == sorted(path.name for path in (roots["dsb2018"] / "stage1_train").iterdir())  # each once
    for dataset in splits.values():
        for i in range(len(dataset)):
            folder = roots["dsb2018"] / "stage1_train" / dataset.name(i).split("/")[0]
            truth = dataset[i].target
            masks = [np.array(Image.open(path)) > 0 for path in sorted((folder / "masks").iterdir())]
            assert np.array_equal(truth.masks.dense(), masks)
            assert np.array_equal(dataset[i].image, np.array(Image.open(next((folder / "images").iterdir())))[..., :3])
    inside = opened("dsb2018", roots["dsb2018"] / "stage1_train")
    assert [inside.name(i) for i in range(len(inside))] == [splits["train"].name(i) for i in range(len(inside))]
    assert splits["val"].metric_options == {"max_detections": 1000}


def test_dsb2018_in_cocos_form(data_root: Path) -> None:
    counts = {split: len(opened("dsb2018", data_root / "dsb2018", split)) for split in ("train", "val", "test")}
    assert counts == {"train": 465, "val": 66, "test": 133}
    val = opened("dsb2018", data_root / "dsb2018", "val")
    assert sum(len(val[i].target) for i in range(len(val))) == 3107
    assert [c.name for c in val.classes] == ["nucleus"]


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    root = trees.dsb2018(tmp_path)
    dataset = opened("dsb2018", root)
    path = next((root / "stage1_train" / dataset.name(0).split("/")[0] / "masks").iterdir())
    trees.save(path, np.zeros((8, 9), np.uint8))
    with pytest.raises(ZooError, match=rf"{path.name}: the mask is 9x8, the image 40x32"):
        dataset[0]
    found = [f for f in examine("dsb2018", root, ["train"]).findings if f.severity == "error"]
    assert [(f.problem, f.count) for f in found] == [("broken annotations", 1)]


# ---- cityscapes -------------------------------------------------------------------------------------------------


def test_cityscapes_objects_and_groups(roots: dict[str, Path]) -> None:
    dataset = opened("cityscapes", roots["cityscapes"])
    assert [c.name for c in dataset.classes] == [
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ]
    truth = dataset[0].target
    ids = np.array(Image.open(dataset.records[0][1]))
    table = {24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}  # labels.py of cityscapesScripts
    expected = {
        id: (table[id if id < 1000 else id // 1000], id < 1000)
        for id in np.unique(ids).tolist()
        if (id if id < 1000 else id // 1000) in table
    }
    assert (truth.labels[-1], truth.crowd[-1]) == (255, True)  # what counts for nothing
    void = [*range(7), 9, 10, 14, 15, 16, 18, 29, 30]  # labels.py: ignoreInEval
    assert np.array_equal(truth.masks.dense()[-1], np.isin(ids, void))
    truth = truth[:-1]
    assert len(truth) == len(expected)
    for mask, label, crowd in zip(truth.masks.dense(), truth.labels.tolist(), truth.crowd.tolist(), strict=True):
        (id,) = np.unique(ids[mask.numpy()]).tolist()
        assert expected.pop(id) == (label, crowd)
        assert (ids == id).sum() == int(mask.sum())


# ---- coco_json: where tools put things --------------------------------------------------------------------------


def moved(root: Path, tmp_path: Path, places: dict[str, str]) -> Path:
    """The tree of COCO with its files elsewhere."""
    for source, target in places.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (root / source).is_dir() else shutil.copy
        copy(root / source, tmp_path / target)
    return tmp_path


INSTANCES, PICTURES = "annotations/instances_train2017.json", "train2017"
LAYOUTS = {
    "roboflow": {INSTANCES: "train/_annotations.coco.json", PICTURES: "train/images"},
    "json beside images": {PICTURES: "train", INSTANCES: "train/labels.json"},
    "train.json": {INSTANCES: "train.json", PICTURES: "images"},
    "annotations/train.json": {INSTANCES: "annotations/train.json", PICTURES: "images/train"},
    "instances_train.json": {INSTANCES: "instances_train.json", PICTURES: "images"},
    "several, one of instances": {
        INSTANCES: "annotations/instances_train.json",
        "annotations/person_keypoints_train2017.json": "annotations/person_keypoints_train.json",
        PICTURES: "images",
    },
    "official": {INSTANCES: INSTANCES, PICTURES: PICTURES},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tools(roots: dict[str, Path], layout: str, tmp_path: Path) -> None:
    dataset = opened("coco_json", moved(roots["coco"], tmp_path, LAYOUTS[layout]))
    assert len(dataset) == 3
    assert dataset[0].target.labels.tolist() == [0, 79]
    assert dataset.classes == tuple(Class(c.name, d.color, True) for c, d in zip(CLASSES, dataset.classes, strict=True))


def test_one_file_for_all_is_split_by_name(roots: dict[str, Path], tmp_path: Path) -> None:
    """CVAT's annotations/instances_default.json."""
    root = moved(roots["coco"], tmp_path, {INSTANCES: "annotations/instances_default.json", PICTURES: "images"})
    with pytest.raises(ZooError, match=r"no split 'train'.*instances_default.json is of no split: set fractions="):
        opened("coco_json", root)
    fractions = {"train": 0.67, "val": 0.33}
    train, val = (opened("coco_json", root, split, fractions=fractions) for split in fractions)
    assert (len(train), len(val)) == (2, 1)
    assert {train.name(i) for i in range(2)} | {val.name(0)} == set(trees.COCO["train2017"])
    assert train.classes == val.classes
    named = opened("coco_json", root, "val", annotations="annotations/instances_default.json", images="images")
    assert len(named) == 3


WRITTEN = ["C:\\Users\\me\\data\\{}", "/home/me/data/{}", "../../upload/1/{}", "file:///tmp/{}"]


@pytest.mark.parametrize("form", WRITTEN)
def test_paths_of_another_machine_are_found_by_their_last_part(
    roots: dict[str, Path], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = moved(roots["coco"], tmp_path, {INSTANCES: "instances_train.json", PICTURES: "images"})
    path = root / "instances_train.json"
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["file_name"] = form.format(image["file_name"])
    path.write_text(json.dumps(document))
    plain = opened("coco_json", roots["coco"], annotations=INSTANCES, images=PICTURES)
    for options in ({}, {"images": "images"}):
        dataset = opened("coco_json", root, **options)
        assert "paths of images that are not there (3, first: " in capsys.readouterr().err
        assert [dataset.name(i) for i in range(3)] == [plain.name(i) for i in range(3)]
        assert np.array_equal(dataset[0].image, plain[0].image)
    document["images"][0]["file_name"] = document["images"][1]["file_name"].replace("me/", "you/")
    path.write_text(json.dumps(document))
    with pytest.raises(ZooError):  # two of one name, or none of that name
        opened("coco_json", root)


def test_what_is_missing_is_said(roots: dict[str, Path], tmp_path: Path) -> None:
    root = moved(roots["coco"], tmp_path, {INSTANCES: "instances_train.json"})
    with pytest.raises(ZooError, match=r"its images, as 000000000009.jpg, are in none of .*: set images="):
        opened("coco_json", root)
    shutil.copytree(roots["coco"] / PICTURES, root / "train")
    assert len(opened("coco_json", root)) == 3
    (root / "train/000000000030.jpg").unlink()
    with pytest.raises(ZooError, match=r"1 of its 3 images are not in .*train \(000000000030.jpg\)"):
        opened("coco_json", root)
    with pytest.raises(ZooError, match="there is no split 'val'"):
        opened("coco_json", root, "val")
    shutil.copy(root / "instances_train.json", root / "instances_train_2.json")
    with pytest.raises(ZooError, match=r"2 files may be the annotations .*annotations="):
        opened("coco_json", root)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "note.txt").write_text("")
    with pytest.raises(ZooError, match="holds no COCO JSON, no YOLO labels and no labelme files"):
        opened("coco_json", empty)


def test_what_no_detection_can_find_still_counts(roots: dict[str, Path], tmp_path: Path) -> None:
    """In an evaluation a mask outside the image and a box without area are objects that were missed, not dropped."""
    root = moved(roots["coco"], tmp_path, {INSTANCES: "instances_train.json", PICTURES: "train"})
    path = root / "instances_train.json"
    document = json.loads(path.read_text())
    image, kind = document["images"][0]["id"], document["categories"][0]["id"]
    square = {"segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]], "bbox": [4, 4, 10, 10], "area": 100}
    outside = {"segmentation": [[45, 4, 55, 4, 55, 14]], "bbox": [45, 4, 10, 10], "area": 70}
    flat = {"segmentation": [[4, 4, 4, 14, 4, 8]], "bbox": [4, 4, 0, 10], "area": 0}
    common = {"image_id": image, "category_id": kind, "iscrowd": 0}
    document["annotations"] = [{"id": k, **common, **each} for k, each in enumerate((square, outside, flat), 1)]
    path.write_text(json.dumps(document))
    dataset = opened("coco_json", root)
    assert sorted((note.problem, note.count) for note in dataset.notes) == [
        ("boxes outside of their image", 1),
        ("boxes without area", 1),
    ]
    metric = InstanceMetric(dataset.classes)
    truths = [dataset[i].target for i in range(len(dataset))]
    metric.update([truth[:1] for truth in truths], truths, list(range(len(truths))))
    assert metric.rows()[1][:, 1].sum() == 3
    assert metric.compute()["AR@100"] == metric.compute()["AR@100_box"] == pytest.approx(1 / 3)


def test_the_doctor_counts_what_is_odd(roots: dict[str, Path], tmp_path: Path) -> None:
    root = moved(roots["coco"], tmp_path, {INSTANCES: "instances_train.json", PICTURES: "train"})
    path = root / "instances_train.json"
    document = json.loads(path.read_text())
    outside = [[45, 2, 55, 2, 55, 9]]
    document["annotations"][1]["segmentation"] = outside
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(document))
    found = {f.problem: f for f in examine("coco_json", root, ["train"], max_detections=1).findings}
    assert found["objects without a pixel"].count == 1
    assert found["of 4 annotations nearly all are crowds (iscrowd=1)"].count == 4
    assert "more objects than are scored" not in found
    found = {
        f.problem: f for f in examine("coco_json", root, ["train"], max_detections=1, crowd_as_object=True).findings
    }
    assert found["more objects than are scored"].count == 2
    document["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    path.write_text(json.dumps(document))
    found = {f.problem: f for f in examine("coco_json", root, ["train"]).findings}
    assert found["broken annotations"].count == 1
    assert "instances_train.json: annotation 1: an RLE of size [5, 5]" in found["broken annotations"].example


# ---- yolo and labelme -------------------------------------------------------------------------------------------


def test_yolos_outlines(roots: dict[str, Path]) -> None:
    train, val = (opened("yolo", roots["yolo"], split) for split in ("train", "val"))
    assert [c.name for c in train.classes] == [c.name for c in val.classes] == ["cell", "dust"]
    h, w = trees.SIZE
    truth = train[0].target
    assert truth.labels.tolist() == [1, 0]
    square = np.zeros(trees.SIZE, bool)
    square[h // 4 : h // 2, w // 4 : w // 2] = True
    assert np.array_equal(truth.masks.dense()[0], square)
    assert len(train[1].target) == 0
    assert val[0].target.labels.tolist() == [0]
    assert len(opened("yolo", roots["yolo"], drop_empty=True)) == 1


LINES = {
    "2 0 0 0 1 1 1": "line 1: class 2 is none of the 2",
    "0 .5 .5 .2 .2": "line 1: a box, not an outline",
    "\n0 0 0 1 0 1": "line 2: an outline is 3 or more x, y pairs, this line has 5 numbers",
    "0 0 0 30 0 30 20": "line 1: coordinates are fractions of the sides, these reach 30",
    "cell 0 0 1 0 1 1": "line 1: is not `class x y",
    "0 0 0 nan 0 1 1": "line 1: coordinates",
}


@pytest.mark.parametrize("line", LINES)
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    root = trees.yolo(tmp_path)
    (root / "labels/train/a.txt").write_text(line)
    with pytest.raises(ZooError, match=rf"a.txt: {LINES[line]}"):
        opened("yolo", root)[0]


def test_yolo_without_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.yolo(tmp_path)
    (root / "labels/train/b.txt").unlink()
    dataset = opened("yolo", root)
    assert len(dataset[1].target) == 0
    assert "images without a text file (1, first: b.jpg)" in capsys.readouterr().err
    (root / "labels/train/a.txt").unlink()
    with pytest.raises(ZooError, match="none of its 2 images has a text file"):
        opened("yolo", root)
    (root / "data.yaml").write_text("nc: 2")
    with pytest.raises(ZooError, match="nothing names the classes"):
        opened("yolo", root)


def test_labelmes_shapes(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    train, val = (opened("labelme", roots["labelme"], split) for split in ("train", "val"))
    assert "points and lines, which have no area, are no objects (1, first: a.json)" in capsys.readouterr().err
    assert [c.name for c in train.classes] == [c.name for c in val.classes] == ["cell", "dust"]
    truth = train[0].target
    assert truth.labels.tolist() == [0, 1, 0]
    dense = truth.masks.dense().numpy()
    group = np.zeros(trees.SIZE, bool)
    group[2:8, 2:8] = group[2:8, 12:18] = True  # two shapes, one object
    assert np.array_equal(dense[0], group)
    assert abs(int(dense[1].sum()) - np.pi * 16) < 6
    assert np.argwhere(dense[2]).tolist() == [[20, 5], [21, 5], [21, 6]]
    assert len(train[1].target) == 0
    assert len(opened("labelme", roots["labelme"], "train", drop_empty=True)) == 1
    assert val.name(0) == "c"


def test_broken_labelme_files_are_named(tmp_path: Path) -> None:
    root = trees.labelme(tmp_path)
    (root / "labels.txt").write_text("__ignore__\n_background_\ndust\n")
    with pytest.raises(ZooError, match=r"a.json: shape 1 \(cell\): the label is none of dust"):
        opened("labelme", root)[0]
    path = root / "train/a.json"
    document = json.loads(path.read_text()) | {"imageHeight": 7}
    path.write_text(json.dumps(document))
    with pytest.raises(ZooError, match=r"a.json: says 40x7, the image is 40x32"):
        opened("labelme", root)[0]
    path.write_text(path.read_text()[:400])
    with pytest.raises(ZooError, match=r"a.json: is no JSON, or cut short"):
        opened("labelme", root)
    (root / "train/b.jpg").unlink()
    path.unlink()
    with pytest.raises(ZooError, match=r"1 files have no image beside them \(b.json\)"):
        opened("labelme", root)


def test_options_have_to_fit(roots: dict[str, Path]) -> None:
    with pytest.raises(ZooError, match="unknown format 'cocoo': did you mean coco"):
        opened("coco_json", roots["coco"], format="cocoo")
    with pytest.raises(ZooError, match="keypoints=true needs COCO's JSON"):
        opened("yolo", roots["yolo"], keypoints=True)
    with pytest.raises(ZooError, match=r"has no semantic truth; it offers task=instance"):
        create_dataset("coco", roots["coco"])
    with pytest.raises(ZooError, match="keypoints=true needs categories that share"):
        opened("coco_json", roots["coco"], keypoints=True, annotations=INSTANCES)
