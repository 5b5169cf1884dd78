"""What a run keeps of its images comes back as it was drawn, whatever the task and the size."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zoo.data import create_dataset
from zoo.errors import ZooError
from zoo.masks import Masks
from zoo.report import maps
from zoo.report.visualize import as_segments
from zoo.structures import Class, Instances, Semantic

TABLE = (Class("sky", (70, 130, 180)), Class("car", (0, 0, 142), thing=True))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_maps_come_back(tmp_path: Path, task: str) -> None:
    data = create_dataset("scenes", split="test", task=task, length=3, size=64)
    writer = maps.Writer(tmp_path, data.classes)
    for i in (0, 2):
        writer.add(i, data.name(i), data[i].image, data[i].target, data[2 - i].target)
    writer.close()
    classes, seen = maps.read(tmp_path)
    assert classes == tuple(data.classes)
    assert {index: image.name for index, image in seen.items()} == {0: data.name(0), 2: data.name(2)}
    for i, image in seen.items():
        for mine, target in ((image.truth, data[i].target), (image.prediction, data[2 - i].target)):
            wanted = as_segments(target, data.classes, 0.5)
            assert np.array_equal(mine.class_map, wanted.class_map)
            assert np.array_equal(mine.ids, wanted.ids)
            assert np.array_equal(mine.things, wanted.things)
            assert np.array_equal(mine.striped_map, wanted.striped_map)
        assert cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)


def test_large_images_are_shrunk_and_many_segments_kept(tmp_path: Path) -> None:
    """300 objects need more than 8 bits; ids are picked, never mixed."""
    side = 2048
    masks = torch.zeros(300, 20, side, dtype=torch.bool)
    for i in range(300):
        masks[i, :, 6 * i : 6 * i + 6] = True
    objects = Instances(Masks.from_dense(masks), torch.ones(300, dtype=torch.int64), torch.linspace(0.01, 1, 300))
    writer = maps.Writer(tmp_path, TABLE)
    writer.add(7, "many", np.zeros((20, side, 3), np.uint8), objects, objects)
    writer.close()
    _, seen = maps.read(tmp_path)
    got = seen[7].prediction
    assert got.ids.shape == (10, 1024)
    kept = 300 - int((np.linspace(0.01, 1, 300) < maps.LEAST_SCORE).sum())
    assert len(np.unique(got.ids)) == kept + 1
    assert got.scores[1:] == pytest.approx(np.linspace(0.01, 1, 300)[-kept:], abs=1e-4)
    # surest last: the object at the right end of the row of strips
    assert got.ids[5, 299 * 3 + 1] == kept


def test_a_run_without_maps_has_none(tmp_path: Path) -> None:
    assert maps.read(tmp_path) == ((), {})


def test_damaged_maps_are_told(tmp_path: Path) -> None:
    labels = Semantic(torch.zeros(8, 8, dtype=torch.uint8))
    writer = maps.Writer(tmp_path, TABLE)
    writer.add(0, "a", np.zeros((8, 8, 3), np.uint8), labels, labels)
    writer.close()
    (tmp_path / maps.FOLDER / "000000_truth.png").write_bytes(b"no picture")
    with pytest.raises(ZooError, match=r"maps cannot be read back"):
        maps.read(tmp_path)
    index = tmp_path / maps.FOLDER / "index.json"
    index.write_text(json.dumps({"classes": [["sky", [1, 2, 3], False]], "images": [{"index": 0}]}))
    with pytest.raises(ZooError, match=r"maps cannot be read back"):
        maps.read(tmp_path)
    index.write_text("{")
    with pytest.raises(ZooError, match=r"index\.json cannot be read"):
        maps.read(tmp_path)
