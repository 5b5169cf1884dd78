"""Loaders whose order is arithmetic: which sample comes when depends on (seed, position), never on workers or ranks.

Global sample n of a training run is sample ``permutation(seed, epoch)[n % length]`` of epoch ``n // length``. Step k
takes samples ``k * batch_size`` to ``(k + 1) * batch_size - 1``; rank r of w takes every w-th of them. So a run goes on
at any step by counting alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from zoo.data.base import Dataset
from zoo.errors import ZooError
from zoo.structures import Batch

TIMEOUT = 300
"""Seconds without a batch after which a stuck worker is an error instead of a silent wait."""


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one rank, from `start_step` up to `steps` (without end where `steps` is None)."""

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ZooError(
                f"batch_size={batch_size} is the batch of all {world} process(es); use a multiple of {world}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.steps, self.rank, self.world = start_step, steps, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, np.int64)
        step = self.start_step
        while self.steps is None or step < self.steps:
            batch = []
            for n in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world):
                if n // self.length != epoch:
                    epoch = n // self.length
                    order = permutation(self.seed, epoch, self.length)
                batch.append((epoch, int(order[n % self.length])))
            yield batch
            step += 1

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("a sampler without `steps` has no length")
        return max(0, self.steps - self.start_step)


def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of an epoch, (length,) int64."""
    # `length` is no index, so these numbers are not those of any sample's transform.
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def train_loader(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Batches of this rank for the steps `start_step` up to `steps`; `batch_size` is that of all ranks together.

    Raises:
        ZooError: `batch_size` is no multiple of `world`.
    """
    sampler = TrainSampler(len(dataset), batch_size, seed, start_step, steps, rank, world)
    return _Loader(dataset, batch_sampler=sampler, **_shared(workers, seed))  # type: ignore[arg-type]


def evaluation_loader(
    dataset: Dataset, batch_size: int = 1, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Batches of images rank, rank + world, ...: over all ranks each image exactly once, none repeated to fill up."""
    order = range(rank, len(dataset), world)
    return _Loader(dataset, batch_size, sampler=order, **_shared(workers, seed=0))  # type: ignore[arg-type]


class _Loader(DataLoader[Batch]):
    """A DataLoader whose workers' `ZooError`s arrive as the sentence that was raised, without a traceback around it."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except ZooError as error:
            # A worker's traceback ends with "zoo.errors.ZooError: the sentence".
            _, in_worker, raised = str(error).rpartition("\nzoo.")
            if not in_worker:
                raise
            raise ZooError(raised.partition(": ")[2].strip()) from error


def _shared(workers: int, seed: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "collate_fn": Batch.collate,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _one_thread,
        "persistent_workers": workers > 0,
        "timeout": TIMEOUT if workers else 0,
        # An iterator draws its base seed at creation: from the global generator, resuming would shift all that follows.
        "generator": torch.Generator().manual_seed(seed),
    }


def _one_thread(worker: int) -> None:
    """Workers are the parallelism; threads of OpenCV and torch inside them only fight (and may not survive a fork)."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
