"""Drawn scenes: reproducible, complete truth, overlapping things, more to them than colour."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from zoo.data.scenes import Scenes, draw_scene
from zoo.errors import ZooError
from zoo.structures import VOID, Instances, Panoptic, Semantic


def digest(split: str, i: int) -> str:
    sample = Scenes(split=split, task="panoptic")[i]
    assert isinstance(sample.target, Panoptic)
    parts = sample.image, sample.target.ids.numpy(), sample.target.labels.numpy()
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_a_scene_is_the_same_in_another_process() -> None:
    code = "from tests.data.test_scenes import digest; print(digest('val', 41))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == digest("val", 41)


def test_no_scene_occurs_twice_in_any_split_or_world() -> None:
    images = [
        Scenes(split=split, length=30, world=world, size=32)[i].image.tobytes()
        for split in Scenes.splits
        for world in (0, 1)
        for i in range(30)
    ]
    assert len(set(images)) == len(images)


def test_the_seed_of_the_run_does_not_change_the_scenes() -> None:
    np.testing.assert_array_equal(Scenes(seed=1)[3].image, Scenes(seed=2)[3].image)
    assert Scenes(seed=1).fingerprint() == Scenes(seed=2).fingerprint()
    others = {Scenes(world=1).fingerprint(), Scenes(size=64).fingerprint(), Scenes(length=7).fingerprint()}
    assert len(others | {Scenes().fingerprint()}) == 4


def test_truth_is_complete() -> None:
    dataset = Scenes(task="panoptic", length=50)
    for sample in dataset:
        target = sample.target
        assert isinstance(target, Panoptic)
        assert (target.ids > 0).all()
        assert target.labels[0] == VOID
        assert sorted(target.ids.unique().tolist()) == list(range(1, len(target.labels)))
        stuff = [k for k in target.labels[1:].tolist() if not dataset.classes[k].thing]
        assert len(stuff) == len(set(stuff))


def test_table_has_stuff_and_things() -> None:
    assert sum(not c.thing for c in Scenes.table) >= 3
    assert sum(c.thing for c in Scenes.table) >= 5


def test_every_class_is_common_and_no_thing_is_a_speck() -> None:
    dataset = Scenes(task="panoptic", length=200)
    pixels, images = np.zeros(10), np.zeros(10)
    for sample in dataset:
        assert isinstance(sample.target, Panoptic)
        areas = np.bincount(sample.target.ids.numpy().ravel(), minlength=len(sample.target.labels))[1:]
        for label, area in zip(sample.target.labels[1:].tolist(), areas, strict=True):
            pixels[label] += area
            assert area >= 0.015 * sample.image[..., 0].size or not dataset.classes[label].thing
        images[np.unique(sample.target.labels[1:])] += 1
    assert (images >= 0.3 * len(dataset)).all()
    assert (pixels >= 0.02 * pixels.sum()).all()


def test_things_hide_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In many scenes a thing covers part of another: drawn alone it would show more."""
    from zoo.data import scenes

    drawn: list[tuple[int, int]] = []  # pixels claimed by all things together, pixels of their union

    def spy(covers: list[scenes._Cover], size: tuple[int, int]) -> list[int]:
        kept = visible(covers, size)
        masks = np.stack([scenes._truth(covers[k], size) for k in kept] or [np.zeros(size, bool)])
        drawn.append((int(masks.sum()), int(masks.any(0).sum())))
        return kept

    visible = scenes._visible
    monkeypatch.setattr(scenes, "_visible", spy)
    for i in range(100):
        draw_scene(np.random.default_rng(i), (64, 64))
    hidden = np.array([1 - union / total for total, union in drawn if total])
    assert (hidden > 0.02).mean() > 0.3


@pytest.mark.parametrize("size", [(33, 97), (200, 64), 256])
def test_any_size(size: int | tuple[int, int]) -> None:
    sample = Scenes(size=size, length=3, task="instance")[2]
    expected = (size, size) if isinstance(size, int) else size
    assert sample.image.shape == (*expected, 3)
    assert isinstance(sample.target, Instances)
    assert sample.target.size == sample.size == expected


def test_tasks_agree() -> None:
    for i in range(10):
        panoptic = Scenes(task="panoptic", length=10)[i].target
        semantic = Scenes(task="semantic", length=10)[i].target
        dataset = Scenes(task="instance", length=10)
        instances = dataset[i].target
        assert isinstance(panoptic, Panoptic)
        assert isinstance(semantic, Semantic)
        assert isinstance(instances, Instances)
        assert torch.equal(panoptic.semantic().labels, semantic.labels)
        assert instances.masks is not None
        for mask, label in zip(instances.masks.dense(), instances.labels, strict=True):
            name = dataset.classes[int(label)].name
            assert {Scenes.table[k].name for k in semantic.labels[mask].tolist()} == {name}


def test_lengths_and_bad_options() -> None:
    assert [len(Scenes(split=split)) for split in Scenes.splits] == [2000, 100, 200]
    with pytest.raises(ZooError, match="size=16 is too small"):
        Scenes(size=16)
    for size in ("big", [64], 0, [64, 64, 3]):
        with pytest.raises(ZooError, match=r"scenes: size=.* is a number of pixels or \[height, width\]"):
            Scenes(size=size)  # type: ignore[arg-type]
    with pytest.raises(ZooError, match=r"^Scenes has no images in split 'train'$"):
        Scenes(length=0)


def test_colour_alone_does_not_tell_the_classes_apart() -> None:
    """The best classifier of single pixels by their colour (4096 bins) stays below 0.55 mIoU; a U-Net passes 0.85."""

    def pixels(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        samples = list(Scenes(split=split, length=count))
        colours = np.stack([s.image.reshape(-1, 3) >> 4 for s in samples]).reshape(-1, 3)
        labels = [s.target.labels.flatten() for s in samples if isinstance(s.target, Semantic)]
        return colours.astype(np.int64) @ [1, 16, 256], torch.cat(labels).numpy()

    colours, labels = pixels("train", 200)
    histogram = np.bincount(colours * 10 + labels, minlength=40960).reshape(4096, 10)
    colours, labels = pixels("test", 100)
    confusion = np.bincount(labels * 10 + histogram.argmax(1)[colours], minlength=100).reshape(10, 10)
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert 0.2 < iou.mean() < 0.55
