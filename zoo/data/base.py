"""The base of every dataset: what is common between files (or a drawing) and a training sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.annotations import Keypoints, Note
from zoo.data.files import incomplete
from zoo.errors import ZooError, unknown
from zoo.structures import TASKS, VOID, Class, Instances, Sample, Semantic, Target

Transform = Callable[[Sample, np.random.Generator], Sample]
"""One with a true attribute `takes_dataset` is called with the dataset as a third argument: to mix in other samples."""
Index = int | tuple[int, int]


class Dataset(torch.utils.data.Dataset[Sample]):
    """Images and their truth, in a fixed order.

    A subclass names what it offers in the class attributes below, sets `table` (there, or in its own
    ``__init__`` before calling this one) and writes two methods:

    - ``index()`` lists the records of ``self.split`` under ``self.root``. A record is whatever `read` needs; a path or
      a tuple that begins with the image's path gives `name` and `fingerprint` for free. A sequence that makes its
      records when asked (`Images`) stays one. ``self.path("a", "b.txt")`` is a file or folder that must exist.
    - ``read(record)`` returns the `Sample` with the finest truth its files hold (or ``target=None``).

    Args:
        root: folder with the official layout as downloaded.
        split: one of `splits`.
        task: one of `tasks`; finer truth is converted downhill.
        transform: ``transform(sample, rng) -> Sample``; the generator depends on (seed, epoch, index) alone.
        seed: of the transform.
        classes: for the semantic task, new classes by the old ones they take in, as
            ``{"road": ["road", "pavement"], "sky": "sky"}``; classes not named become void.

    ``ds[i]`` is sample i of epoch 0, ``ds[epoch, i]`` that of another epoch.

    Raises:
        ZooError: a task, split or class it does not offer; a root that is missing, empty or half there; an empty split.
    """

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    """The splits; empty where the user's folders name them."""
    layout: ClassVar[str] = ""
    """The expected tree, shown when `root` is not it; empty for a dataset without files."""
    table: tuple[Class, ...] = ()
    """The classes with the ids of the dataset's own files."""
    facts: str = ""
    """What the truth depends on beside names and sizes (options, a version); part of the fingerprint."""
    notes: Sequence[Note] = ()
    """What is odd about its annotations, counted when it was opened."""
    keypoints: Keypoints | None = None
    """Of its objects, where their truth has any."""
    metric_options: Mapping[str, Any] = MappingProxyType({})
    """Options of its task's metric that its official score asks for: {"absent": "zero"}, {"max_detections": 1000}."""

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "semantic",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        self.root = None if root is None else Path(root).expanduser()
        self.split, self.task, self.transform, self.seed = split, task, transform, seed
        self._check_request(classes)
        self.records = self._list_records()
        self._classes, self._lookup = _merge(self.table, classes, self.title)
        if task == "instance":
            self._classes = tuple(c for c in self.table if c.thing)

    def index(self) -> Sequence[Any]:
        """The records of ``self.split``, in the official order."""
        raise NotImplementedError

    def read(self, record: Any) -> Sample:
        """One record with the finest truth its files hold. ``Sample.id`` is filled in by the base."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The name used in messages."""
        return type(self).__name__

    @property
    def classes(self) -> tuple[Class, ...]:
        """The classes of the samples' labels 0..K-1: of the task, after merging (instance: the things, renumbered)."""
        return self._classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Index) -> Sample:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.title} {self.split} has {len(self)} images, asked for {i}")
        i %= len(self)
        sample = self.plain(i)
        if self.transform is None:
            return sample
        rng = np.random.default_rng([self.seed, epoch, i])
        more = (self,) if getattr(self.transform, "takes_dataset", False) else ()
        return self.transform(sample, rng, *more)

    def plain(self, i: int) -> Sample:
        """Sample i (0 <= i < len) with the truth of the task, without transform."""
        sample = self._read(i)
        target = self._convert(self._checked(sample, i))
        return replace(sample, target=target, id=i)

    def name(self, i: int) -> str:
        """The name of image i, unique in the split: by default the stem of its file."""
        paths = _paths(self.records[i])
        return paths[0].stem if paths else str(self.records[i])

    def fingerprint(self, any_task: bool = False) -> str:
        """SHA-256 over split, task, classes, the sorted names of the images and the sizes of their files.

        Two datasets with the same fingerprint can be put into one table. With `any_task` it is of the dataset's own
        class table instead, and the same for all tasks. It does not read the files.
        """
        lines = [f"{self.split} {self.task} {self.facts}", repr(self.classes), repr(self._lookup.tolist())]
        if any_task:
            lines = [f"{self.split} {self.facts}", repr(self.table)]
        lines += sorted(
            " ".join([self.name(i), *(str(path.stat().st_size) for path in _paths(record))])
            for i, record in enumerate(self.records)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def path(self, *parts: str) -> Path:
        """A file or folder under the root that has to exist.

        Raises:
            ZooError: it does not; the expected tree is shown.
        """
        if self.root is None:
            raise incomplete(None, f"{self.title} needs root=", self.layout)
        path = self.root.joinpath(*parts)
        if not path.exists():
            problem = f"{path.relative_to(self.root)} is missing" if parts else "there is no such folder"
            raise incomplete(self.root, problem, self.layout)
        return path

    def _check_request(self, classes: Mapping[str, str | Sequence[str]] | None) -> None:
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)
        if self.task not in self.tasks:
            raise ZooError(f"{self.title} has no {self.task} truth; it offers task={' or task='.join(self.tasks)}")
        if self.splits and self.split not in self.splits:
            raise unknown(f"split of {self.title}", self.split, self.splits)
        if classes is not None and self.task != "semantic":
            raise ZooError(f"classes= merges classes of task=semantic only, the task is {self.task}")

    def _list_records(self) -> Sequence[Any]:
        if self.layout:
            root = self.path()
            if not root.is_dir() or not any(root.iterdir()):
                raise incomplete(root, "is empty or not a folder", self.layout)
        try:
            records = self.index()
            records = records if isinstance(records, Sequence) else list(records)
        except FileNotFoundError as error:
            raise incomplete(self.root, f"{error.filename} is missing", self.layout) from error
        if not records:
            problem = f"{self.title} has no images in split {self.split!r}"
            raise incomplete(self.root, problem, self.layout) if self.layout else ZooError(problem)
        return records

    def _read(self, i: int) -> Sample:
        """Record i; an error in what it holds names its file."""
        try:
            return self.read(self.records[i])
        except ZooError as error:
            where = self._where(i)
            raise error if where in str(error) else ZooError(f"{where}: {error}") from error

    def _checked(self, sample: Sample, i: int) -> Target | None:
        """The target of sample i, which fits its image and the class table."""
        target, shape = sample.target, sample.image.shape[:2]
        if target is None:
            return None
        if target.size != shape:
            raise ZooError(f"{self._where(i)}: the image is {_size(shape)}, its mask {_size(target.size)}")
        labels = target.labels
        # One pass where all is well: in a byte, 255 + 1 is 0.
        if labels.dtype == torch.uint8 and labels.numel() and int((labels + 1).max()) <= len(self.table):
            return target
        wrong = labels[(labels >= len(self.table)) & (labels != VOID) | (labels < 0)]
        if wrong.numel():
            values, counts = wrong.unique(return_counts=True)
            what = "pixels" if isinstance(target, Semantic) else "segments"
            raise ZooError(
                f"{self._where(i)}: label {int(values[0])} ({int(counts[0])} {what}) is outside the "
                f"{len(self.table)} classes 0..{len(self.table) - 1}; void is {VOID}"
            )
        return target

    def _convert(self, target: Target | None) -> Target | None:
        if target is None or self.task == "panoptic":
            return target
        if self.task == "instance":
            return target if isinstance(target, Instances) else target.instances(self.table)
        semantic = target.semantic()
        if self._classes is self.table:
            return semantic
        return Semantic(torch.from_numpy(self._lookup[semantic.labels.numpy()]))

    def _where(self, i: int) -> str:
        paths = _paths(self.records[i])
        return str(paths[-1]) if paths else f"{self.title} {self.name(i)}"


class Images(Sequence[tuple[Path, int]]):
    """Records (path of the image, its row in a table), made when asked for: 100 000 paths are megabytes a worker.

    Args:
        folder: that the names are relative to.
        names: (I,) UTF-8 bytes.
        rows: (N,) into names; all by default.
    """

    def __init__(self, folder: Path, names: NDArray[np.bytes_], rows: NDArray[np.int64] | None = None) -> None:
        self.folder, self.names = folder, names
        self.rows = np.arange(len(names)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> tuple[Path, int]: ...
    @overload
    def __getitem__(self, i: slice) -> Images: ...
    def __getitem__(self, i: int | slice) -> tuple[Path, int] | Images:
        if isinstance(i, slice):
            return Images(self.folder, self.names, self.rows[i])
        row = int(self.rows[i])
        return self.folder / self.names[row].decode(), row


def _merge(
    table: tuple[Class, ...], classes: Mapping[str, str | Sequence[str]] | None, title: str
) -> tuple[tuple[Class, ...], np.ndarray]:
    """The merged class table, and a (256,) uint8 lookup from old label to new."""
    lookup = np.arange(256, dtype=np.uint8)
    if classes is None:
        return table, lookup
    lookup[:] = VOID
    position = {c.name: i for i, c in enumerate(table)}
    merged = []
    for new, taken in enumerate(classes.items()):
        name, old = taken[0], [taken[1]] if isinstance(taken[1], str) else list(taken[1])
        for part in old:
            if part not in position:
                raise unknown(f"class of {title}", part, position)
            if lookup[position[part]] != VOID:
                raise ZooError(f"classes=: {part!r} of {title} is taken twice")
            lookup[position[part]] = new
        if not old:
            raise ZooError(f"classes=: {name!r} takes in no class of {title}")
        merged.append(replace(table[position[old[0]]], name=name))
    return tuple(merged), lookup


def _paths(record: Any) -> list[Path]:
    parts = record if isinstance(record, tuple) else (record,)
    return [part for part in parts if isinstance(part, Path)]


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"
