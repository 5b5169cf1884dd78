"""The stream of samples: the same for any number of workers and ranks, and when taken up in the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from zoo.data.base import Dataset
from zoo.data.loader import TrainSampler, evaluation_loader, train_loader
from zoo.data.scenes import Scenes
from zoo.data.transforms import TrainTransform
from zoo.errors import ZooError
from zoo.structures import Batch, Class, Sample, Semantic


class Ten(Dataset):
    """Ten grey images; image i shows i."""

    table = (Class("all", (0, 0, 0)),)

    def index(self) -> list[int]:
        return list(range(10))

    def read(self, record: int) -> Sample:
        if record == 7 and self.split == "val":
            raise ZooError("image 7 is broken")
        image = np.full((2, 2, 1), record, np.uint8)
        return Sample(image, Semantic(torch.zeros(2, 2, dtype=torch.uint8)), record, (2, 2))


class Workers(Ten):
    """Says how many threads its process uses."""

    def read(self, record: int) -> Sample:
        import cv2

        image = np.array([[[torch.get_num_threads(), cv2.getNumThreads()]]], np.uint8)
        assert get_worker_info() is not None
        return Sample(image, Semantic(torch.zeros(1, 1, dtype=torch.uint8)), record, (1, 1))


def scenes() -> Scenes:
    transform = TrainTransform(32, (0.5, 2), color=1, rotate=10, extra={"GaussNoise": {"p": 1}})
    return Scenes(length=5, size=32, transform=transform, seed=3)


def content(loader: Any) -> list[tuple[list[int], bytes]]:
    return [(b.ids, b.images.numpy().tobytes() + b.targets[0].labels.numpy().tobytes()) for b in loader]


def ids(**options: Any) -> list[list[int]]:
    return [batch.ids for batch in train_loader(Ten(), **options)]


def test_each_epoch_has_every_sample_once_in_a_new_order() -> None:
    flat = [i for batch in ids(batch_size=4, steps=10) for i in batch]
    epochs = [flat[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert flat != [i for batch in ids(batch_size=4, steps=10, seed=1) for i in batch]


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    batch = ids(batch_size=25, steps=1)[0]
    assert sorted(batch[:10]) == sorted(batch[10:20]) == list(range(10))


@pytest.mark.parametrize("start", [1, 2, 3, 5, 9])
def test_taken_up_at_any_step(start: int) -> None:
    assert ids(batch_size=4, steps=10, start_step=start) == ids(batch_size=4, steps=10)[start:]


def test_length_and_no_end() -> None:
    assert len(train_loader(Ten(), 4, start_step=3, steps=10)) == 7
    endless = iter(train_loader(Ten(), 4))
    assert [next(endless).ids for _ in range(10)] == ids(batch_size=4, steps=10)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_each_global_batch(world: int) -> None:
    whole = ids(batch_size=4, steps=6)
    parts = [ids(batch_size=4, steps=6, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(i for part in parts for i in part[step])
        assert {len(part[step]) for part in parts} == {4 // world}


def test_batch_that_ranks_cannot_share() -> None:
    with pytest.raises(ZooError, match="multiple of 3"):
        train_loader(Ten(), 4, world=3)


def test_workers_change_nothing_and_no_augmentation_repeats() -> None:
    alone = content(train_loader(scenes(), 2, seed=1, steps=10))
    for workers in (1, 2):
        assert content(train_loader(scenes(), 2, seed=1, steps=10, workers=workers)) == alone
    # 4 epochs of 5 scenes: without fresh random numbers per epoch and worker, crops would repeat.
    single = [x for _, x in content(train_loader(scenes(), 1, seed=1, steps=20))]
    assert len(set(single)) == 20


def test_taken_up_with_workers_the_pixels_are_the_same() -> None:
    whole = content(train_loader(scenes(), 2, seed=1, steps=8))
    assert content(train_loader(scenes(), 2, seed=1, steps=8, start_step=3, workers=2)) == whole[3:]


def test_spawned_workers_too() -> None:
    loader = train_loader(scenes(), 2, seed=1, steps=3, workers=1)
    loader.multiprocessing_context = "spawn"
    assert content(loader) == content(train_loader(scenes(), 2, seed=1, steps=3))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    content(train_loader(scenes(), 2, steps=2))
    content(evaluation_loader(scenes(), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_use_one_thread() -> None:
    for loader in (train_loader(Workers(), 2, steps=2, workers=1), evaluation_loader(Workers(), 2, workers=1)):
        for batch in loader:
            assert batch.images[:, 0].unique().tolist() == [1]
            assert batch.images[:, 1].max() <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_sees_each_image_once(world: int, batch_size: int) -> None:
    seen = [
        [i for batch in evaluation_loader(Ten(), batch_size, rank=rank, world=world) for i in batch.ids]
        for rank in range(world)
    ]
    assert seen == [list(range(rank, 10, world)) for rank in range(world)]


def test_evaluation_can_run_twice() -> None:
    loader = evaluation_loader(Ten(), 4, workers=1)
    assert [b.ids for b in loader] == [b.ids for b in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_more_ranks_than_images() -> None:
    assert list(evaluation_loader(Ten(), rank=11, world=12)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_loop_and_is_named(workers: int) -> None:
    with pytest.raises(ZooError, match=r"^Ten 7: image 7 is broken$"):
        list(evaluation_loader(Ten(split="val"), workers=workers))


def test_batches_are_batches() -> None:
    batch = next(iter(train_loader(Ten(), 3, steps=1)))
    assert isinstance(batch, Batch)
    assert batch.images[:, 0, 0, 0].tolist() == batch.ids


def test_the_order_is_a_function_of_the_step_alone() -> None:
    """A far step is reached by counting, not by drawing all that comes before."""
    far = next(iter(TrainSampler(10, 4, start_step=10**12)))
    assert {epoch for epoch, _ in far} == {4 * 10**11}
