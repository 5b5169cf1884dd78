"""Panoptic files: COCO's and ADE20K's layouts end to end, what is refused, writing and reading back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from zoo.data import Dataset, create_dataset
from zoo.data.ade20k import CLASSES as ADE20K
from zoo.data.coco import CLASSES as THINGS
from zoo.data.coco_panoptic import CLASSES, IDS
from zoo.data.loader import evaluation_loader, train_loader
from zoo.data.panoptic_file import PanopticFile, PanopticWriter, read_numbers
from zoo.data.scenes import Scenes
from zoo.data.transforms import TrainTransform
from zoo.devices import create_fabric
from zoo.errors import ZooError
from zoo.metrics import PanopticMetric
from zoo.predict import predict_input
from zoo.report.visualize import draw
from zoo.structures import VOID, Batch, Instances, Panoptic


def opened(root: Path, split: str = "train", task: str = "panoptic", **options: Any) -> Dataset:
    return create_dataset("coco_panoptic", root, split, task, **options)


def test_cocos_table_is_the_official_one(data_root: Path) -> None:
    official = json.loads((data_root / "coco_sample/panoptic_coco_categories.json").read_text())
    assert [(c["id"], c["name"], tuple(c["color"]), bool(c["isthing"])) for c in official] == [
        (id, c.name, c.color, c.thing) for id, c in zip(IDS, CLASSES, strict=True)
    ]
    assert (len(CLASSES), sum(c.thing for c in CLASSES)) == (133, 80)


def test_coco_end_to_end(tmp_path: Path) -> None:
    root = trees.coco_panoptic(tmp_path)
    train = opened(tmp_path)
    assert [train.name(i) for i in range(3)] == trees.COCO["train2017"]
    truth = train[1].target
    names = [None, "car", "sky-other-merged", "person", "grass-merged"]
    assert [None if k == VOID else CLASSES[k].name for k in truth.labels.tolist()] == names
    assert truth.crowd.tolist() == [False, True, False, False, False]
    assert truth.areas.tolist()[1:] == torch.bincount(truth.ids.flatten()).tolist()[1:]
    assert truth.ids[0, 0] == 0
    assert truth.ids[12, 5] == 3
    assert len(opened(root, "val")) == 2
    semantic, instances = (opened(root, task=task)[1].target for task in ("semantic", "instance"))
    assert torch.equal(semantic.labels, truth.semantic().labels)
    assert isinstance(instances, Instances)
    assert [c.name for c in opened(root, task="instance").classes] == [c.name for c in THINGS]
    assert instances.labels.tolist() == [2, 0]
    again = pickle.loads(pickle.dumps(train))
    assert again.fingerprint() == train.fingerprint() != opened(root, "val").fingerprint()
    (batch,) = evaluation_loader(again, 3)
    metric = PanopticMetric(train.classes)
    metric.update(batch.targets, batch.targets, batch.ids)
    assert metric.compute()["PQ"] == 1.0
    crops = opened(root, transform=TrainTransform(crop=24, scale=(0.5, 2.0)))
    (batch,) = train_loader(crops, 3, steps=1)
    assert all(t.size == size for t, size in zip(batch.targets, batch.sizes, strict=True))


def test_ade20k_end_to_end(tmp_path: Path) -> None:
    assert (len(ADE20K), sum(c.thing for c in ADE20K)) == (150, 100)
    root = trees.ade20k(tmp_path)
    for split, count in (("train", 3), ("val", 2)):
        dataset = create_dataset("ade20k", root, split, "panoptic")
        assert len(dataset) == count
        truth = dataset[0].target
        assert truth.labels.tolist() == [VOID, 0, 7, 7, 2]
        assert torch.bincount(truth.ids.flatten(), minlength=5).tolist()[4] == 0  # a sky that beds hide
        assert truth.areas.tolist()[1] == 32 * 40  # before the beds were drawn
        assert truth.ids[[0, 4, 10, 20], 0].tolist() == [1, 2, 3, 0]
    assert (
        create_dataset("ade20k", root, "val", "instance")[0].target.labels.tolist()
        == [[c.name for c in ADE20K if c.thing].index("bed")] * 2
    )
    (root / "ade20k_panoptic_val.json").unlink()
    with pytest.raises(ZooError, match=r"ade20k_panoptic_val.json is missing\. Expected\nADEChallengeData2016/"):
        create_dataset("ade20k", root, "val", "panoptic")


def edited(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop_segment(x: Any) -> None:
    del next(a for a in x["annotations"] if a["image_id"] == 9)["segments_info"][2]


def add_segment(x: Any) -> None:
    new = {"id": 77, "category_id": 18, "area": 4, "iscrowd": 0}
    next(a for a in x["annotations"] if a["image_id"] == 9)["segments_info"].append(new)


def test_the_png_and_the_json_hold_the_same_segments(tmp_path: Path) -> None:
    path = trees.coco_panoptic(tmp_path) / "annotations/panoptic_train2017.json"
    kept = path.read_text()
    edited(path, drop_segment)
    with pytest.raises(ZooError, match=r"000000000009.png: segment 7 \(120 pixels\) is not in .*train2017.json"):
        opened(tmp_path)[0]
    path.write_text(kept)
    edited(path, add_segment)
    with pytest.raises(ZooError, match=r"000000000009.png: segment 77 \(dog\) of .*train2017.json has no pixel"):
        opened(tmp_path)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x["images"][1].update(id=9), "two images have the id 9"),
        (lambda x: x["annotations"][0].update(image_id=9), "two annotations of the image have the id 9"),
        (lambda x: x["annotations"][0].update(image_id=5), "an annotation of image 5, which is not listed"),
        (lambda x: x["annotations"].pop(), r"image 9 has no annotation \(1 such images\)"),
        (lambda x: x["annotations"][2]["segments_info"][0].update(id=7), "has segment 7 twice: segments that share a"),
        (lambda x: x["annotations"][2]["segments_info"][0].update(id=1 << 24), "segment 16777216 which no PNG can"),
        (lambda x: x["annotations"][2]["segments_info"][0].update(category_id=12), "has category 12, which is not li"),
        (lambda x: x["annotations"][2].pop("segments_info"), "number 3 of its annotations has not all of image_id, f"),
        (lambda x: x["categories"][0].update(isthing=0), r"category 1 \(person, stuff\) is none of the dataset's"),
        (lambda x: x["categories"][0].pop("isthing"), "category person does not say isthing"),
        (lambda x: x["categories"].pop(10), "has category|1 of the dataset's 133 categories are missing"),
        (lambda x: x.pop("categories"), "a panoptic file lists categories, this one has none"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: Callable[[Any], None], said: str) -> None:
    path = trees.coco_panoptic(tmp_path) / "annotations/panoptic_train2017.json"
    edited(path, change)
    with pytest.raises(ZooError, match=said):
        opened(tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    root = trees.coco_panoptic(tmp_path)
    (root / "train2017/000000000009.jpg").unlink()
    with pytest.raises(ZooError, match=r"1 of its 3 images are not in .*train2017 \(000000000009.jpg\)"):
        opened(tmp_path)
    (root / "annotations/panoptic_val2017").rename(root / "elsewhere")
    with pytest.raises(ZooError, match=r"the PNGs of panoptic_val2017.json, in panoptic_val2017/ beside it, are miss"):
        opened(tmp_path, "val")
    path = root / "annotations/panoptic_train2017.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ZooError, match="no JSON, or cut short"):
        opened(tmp_path)
    grey = trees.save(tmp_path / "grey.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(ZooError, match="a panoptic PNG has three channels of 8 bits"):
        read_numbers(grey)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    scenes = Scenes(task="panoptic", split="val", length=3)
    rng = np.random.default_rng(0)
    with PanopticWriter(tmp_path / "panoptic.json", scenes.classes) as out:
        for i in range(3):
            target = scenes[i].target
            scores = torch.from_numpy(rng.random(len(target.labels))).float()
            out.add(Panoptic(target.ids, target.labels, scores), f"{i:03d}.png")
            trees.save(tmp_path / "images" / f"{i:03d}.png", scenes[i].image)
    back = opened(tmp_path, "val", annotations="panoptic.json", images="images")
    assert back.classes == scenes.classes
    metric, official = (
        PanopticMetric(back.classes, instances=False),
        json.loads((tmp_path / "panoptic.json").read_text()),
    )
    for i in range(3):
        metric.update([back[i].target], [scenes[i].target], [i])
        assert back.file.image_ids[i] == i
        assert torch.equal(back[i].target.semantic().labels, scenes[i].target.semantic().labels)
        numbers = np.array(Image.open(tmp_path / "panoptic" / f"{i:03d}.png")).astype(int) @ [1, 256, 65536]
        info = {x["id"]: x for x in official["annotations"][i]["segments_info"]}
        assert set(info) == set(np.unique(numbers)) - {0}
        for id, x in info.items():
            rows, columns = np.nonzero(numbers == id)
            assert x["area"] == len(rows)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert x["bbox"] == box
    assert metric.compute()["PQ"] == 1.0
    assert 0 < float(back[0].target.scores[1]) < 1


def test_what_is_not_written(tmp_path: Path) -> None:
    hidden = Panoptic(np.array([[0, 1, 3]]), [VOID, 4, 4, VOID])  # one without pixels, one void
    with PanopticWriter(tmp_path / "a.json", CLASSES, IDS) as out:
        out.add(hidden, "000000000139.jpg")
        with pytest.raises(ZooError, match="two images have the id 139"):
            out.add(hidden, "139.png")
    content = json.loads((tmp_path / "a.json").read_text())
    (info,) = content["annotations"][0]["segments_info"]
    assert (info["category_id"], info["area"]) == (5, 1)
    assert read_numbers(tmp_path / "a/000000000139.png").tolist() == [[0, 1, 0]]
    with pytest.raises(RuntimeError, match="stop"), PanopticWriter(tmp_path / "b.json", CLASSES) as out:
        raise RuntimeError("stop")
    assert not (tmp_path / "b.json").exists()


class Sky(torch.nn.Module):
    """Sees a person in the upper left corner of grass."""

    task, classes = "panoptic", CLASSES
    header: ClassVar[dict[str, Any]] = {"backbone": {}}

    def predict(self, batch: Batch) -> list[Panoptic]:
        ids = np.full(batch.original_sizes[0], 2)
        ids[:5, :6] = 1
        return [Panoptic(ids, [VOID, 0, 125], [1, 0.75, 1])]


def test_predicted_pictures_are_written_for_submission(tmp_path: Path) -> None:
    for name in ("000000000139", "000000000285"):
        trees.save(tmp_path / "pictures" / f"{name}.png", trees.photograph(name))
    predict_input(Sky(), tmp_path / "pictures", tmp_path, create_fabric(device="cpu"))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == [139, 285]
    segments = content["annotations"][0]["segments_info"]
    assert [(x["category_id"], x["area"], x["score"]) for x in segments] == [(1, 30, 0.75), (IDS[125], 1250, 1)]
    back = opened(tmp_path, "val", annotations="panoptic.json", images="pictures")
    assert back.classes == CLASSES
    assert back[1].target.labels.tolist() == [VOID, 0, 125]


def test_the_two_real_images(data_root: Path) -> None:
    root = data_root / "coco_sample"
    dataset = opened(root, "val", annotations="panoptic_examples.json", images="input_images")
    assert dataset.classes == CLASSES
    official = json.loads((root / "panoptic_examples.json").read_text())
    assert sum(len(dataset[i].target.labels) - 1 for i in range(2)) == 50
    assert sum(int(dataset[i].target.crowd.sum()) for i in range(2)) == 3
    for i in range(2):
        sample = dataset[i]
        info = next(a for a in official["annotations"] if a["file_name"] == f"{dataset.name(i)}.png")["segments_info"]
        pixels = torch.bincount(sample.target.ids.flatten()).tolist()
        assert pixels[1:] == [x["area"] for x in info]
        assert [IDS[k] for k in sample.target.labels[1:].tolist()] == [x["category_id"] for x in info]
        picture = draw(sample.image, sample.target, CLASSES)
        assert picture.shape == sample.image.shape
    file = PanopticFile(root / "panoptic_examples.json")
    assert file.panoptic(0).size == dataset[0].size
