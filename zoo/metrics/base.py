"""What every metric shares: lists of structures in, a flat dict of fractions out, exact merging in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError
from zoo.metrics.resampling import percentiles
from zoo.structures import Class, Target, as_classes

ANONYMOUS = -1  # the id of images that came without one


def image_name(number: int) -> str:
    """How messages call the image with an id."""
    return "an image (no id given)" if number == ANONYMOUS else f"image {number}"


class Metric(torchmetrics.Metric):
    """Accumulates over (prediction, truth) pairs; the same on one process and on many.

    A subclass names its `main` column, adds its states, and writes `update`, `compute` and `protocol`. States
    are either additive integer tensors (`add_state(..., dist_reduce_fx="sum")`) or tables that grow by rows
    (`add_rows`). Both merge exactly, so a result does not depend on how the images were split over batches and
    processes. Every metric fills two tables with one row an image: `ids` and `statistics`, which `rows` gives. From
    them, or from all that `kept` gives, `resampled` makes intervals and paired comparisons.

    An id is the index of the image in its dataset, >= 0. Images without ids are kept in order of arrival.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    main: str
    measured: tuple[str, ...]
    """The scores that a result states with an interval, `main` first if it is one of them."""
    replicates = 2000
    """Of which an interval is made where nothing else is said."""
    classes: tuple[Class, ...]

    def __init__(self, classes: int | Sequence[str] | Sequence[Class]) -> None:
        super().__init__()
        self.classes = as_classes(classes)
        self._row_types: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.add_rows("ids")

    @abstractmethod
    def update(
        self, predictions: Sequence[Target], targets: Sequence[Target], ids: Sequence[int] | None = None
    ) -> None:
        """Add images: equally many predictions and targets, and their ids."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The values by name, fractions in [0, 1]; what is undefined is nan."""

    @abstractmethod
    def resampled(self, key: str, replicates: int, seed: int = 0) -> NDArray[np.float64]:
        """The score `key` of each of as many bootstrap replicates over images, (replicates,); empty without images.

        Replicate r is of the same images for every metric with as many of them: the difference of two models'
        replicates is that of paired resamples. On several processes every one must call it.
        """

    def interval(
        self, key: str | None = None, replicates: int | None = None, level: float = 0.95, seed: int = 0
    ) -> tuple[float, float]:
        """The bootstrap percentile interval (low, high) of the score `key` (by default `main`), at confidence `level`.

        Each replicate draws as many images as there are, with replacement, and computes the score of the data set they
        form (`zoo.metrics.resampling`); by default there are `replicates` of them. Those in which it is undefined are
        left out; (nan, nan) without images. On several processes every one must call it.
        """
        return percentiles(self.resampled(key or self.main, replicates or self.replicates, seed), level)

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """The choices that decide the values, as plain data: results are comparable only where it is equal."""

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Add a state `name`: a list of tensors (n, *shape) that are concatenated across batches and processes."""
        self._row_types[name] = (shape, dtype)
        self.add_state(name, default=[], dist_reduce_fx="cat")

    def table(self, name: str) -> Tensor:
        """All rows of the state `name` in order of arrival, (n, *shape)."""
        rows = getattr(self, name)
        if isinstance(rows, Tensor):  # gathered from several processes
            return rows
        shape, dtype = self._row_types[name]
        return torch.cat([torch.empty((0, *shape), dtype=dtype, device=self.device), *rows])

    def rows(self) -> tuple[Tensor, Tensor]:
        """Per-image sufficient statistics in the order of ids: ids int64 (N,), statistics (N, ...).

        On several processes, of the images of all; then every process must call it, as with `compute`.
        Raises ZooError if an image was evaluated twice.
        """
        with self.gathered():
            order = self.order()
            return self.table("ids")[order], self.table("statistics")[order]

    def kept(self) -> dict[str, Tensor]:
        """What is written beside a result: tables from which `resampled` can be made again, see `restore`.

        `ids` and `statistics` as `rows` gives them, and what else a metric needs. Collective, as `rows`.
        """
        ids, statistics = self.rows()
        return {"ids": ids, "statistics": statistics}

    def restore(self, tables: Mapping[str, NDArray[Any]]) -> None:
        """Forget all images and take those of another metric's `kept`; then `resampled` gives what it gave there.

        Sums over all images, of which no replicate is made, are left alone. Raises ZooError for tables that are not
        those of a metric with this one's classes and options.
        """
        self.reset()
        wanted = {name: (list(rows.shape[1:]), rows.dtype) for name, rows in self.kept().items()}
        sums = self._defaults.keys() - self._row_types.keys()
        given = {name: torch.from_numpy(np.asarray(rows)) for name, rows in tables.items() if name not in sums}
        if {name: (list(rows.shape[1:]), rows.dtype) for name, rows in given.items()} != wanted:
            raise ZooError(
                f"the tables {', '.join(tables) or '(none)'} are not those of this {type(self).__name__} "
                f"({', '.join(wanted)}): build it with the classes and the protocol of the result they lie beside"
            )
        for name, rows in given.items():
            setattr(self, name, [rows.to(self.device)])
        self._update_count += 1

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it the states are those of all processes; it changes nothing where they already are."""
        inner = self._is_synced
        with self.sync_context(self.dist_sync_fn, should_sync=not inner, should_unsync=not inner):
            yield

    def order(self) -> Tensor:
        """The permutation int64 (N,) that sorts the per-image tables by id; ZooError names an id that repeats."""
        ids, order = torch.sort(self.table("ids"), stable=True)
        repeated = ids[1:][(ids[1:] == ids[:-1]) & (ids[1:] != ANONYMOUS)]
        if len(repeated):
            raise ZooError(
                f"image {int(repeated[0])} was evaluated twice: give each image once, or call reset() in between"
            )
        return order

    def pairs(
        self, predictions: Sequence[Target], targets: Sequence[Target], ids: Sequence[int] | None
    ) -> Iterator[tuple[int, Target, Target]]:
        """(id, prediction, target) of each image, after checking that there are equally many of all three."""
        if ids is None:
            ids = [ANONYMOUS] * len(targets)
        elif min(ids, default=0) < 0:
            raise ZooError(f"image id {min(ids)} is negative: ids are indices into the dataset")
        if not len(predictions) == len(targets) == len(ids):
            raise ZooError(
                f"{len(predictions)} predictions, {len(targets)} targets and {len(ids)} ids: give one of each per image"
            )
        return zip(ids, predictions, targets, strict=True)

    def merge_state(self, incoming_state: Mapping[str, Any] | torchmetrics.Metric) -> None:
        """Add another metric's images to this one's: a metric of the same class, classes and protocol, or its
        `metric_state`.

        The method of torchmetrics keeps a value computed before the merge, and puts the incoming rows first.
        """
        updates = 1
        states: Any = incoming_state
        if isinstance(incoming_state, torchmetrics.Metric):
            self._check_same(incoming_state)
            states, updates = incoming_state.metric_state, incoming_state.update_count
        for name in self._defaults:
            mine, theirs = getattr(self, name), states[name]
            if name in self._row_types:
                rows = [theirs] if isinstance(theirs, Tensor) else theirs
                setattr(self, name, [self.table(name), *(row.to(self.device) for row in rows)])
            else:
                setattr(self, name, mine + theirs.to(self.device))
        self._update_count += updates
        self._computed = None

    def _check_same(self, other: torchmetrics.Metric) -> None:
        if type(other) is not type(self):
            raise ZooError(f"a {type(other).__name__} cannot be merged into a {type(self).__name__}")
        assert isinstance(other, Metric)
        if other.classes != self.classes or other.protocol != self.protocol:
            raise ZooError(
                f"a {type(self).__name__} with other classes or protocol ({other.protocol} against {self.protocol}) "
                "cannot be merged: build both alike"
            )

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A process without images must offer tables of the right rank and type, or the gathering aborts.
        for name in self._row_types:
            setattr(self, name, [self.table(name)])
        super()._sync_dist(*args, **kwargs)
