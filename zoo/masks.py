"""`Masks`: N binary masks of one image in four forms, and what every structure does with the tensors it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import masks as rle_ops

Size = tuple[int, int]
Array: TypeAlias = "Tensor | NDArray[Any] | Sequence[Any]"
Keep: TypeAlias = "Tensor | NDArray[Any] | Sequence[int] | Sequence[bool] | slice"
Device: TypeAlias = "torch.device | str"
T = TypeVar("T")


def as_tensor(value: Array, dtype: torch.dtype) -> Tensor:
    """`value` as a tensor of `dtype`, sharing memory where it can."""
    if isinstance(value, np.ndarray):  # torch takes neither negative strides nor, silently, read-only memory
        value = np.require(value, requirements=["C", "W"])
    return torch.as_tensor(value, dtype=dtype)


def each_tensor(x: T, function: Callable[[Any], Any]) -> T:
    """A copy of a structure with `function` applied to every tensor, and to what holds tensors, in its fields.

    `areas` stay as they are, float64 on the CPU: they decide a size class by comparison and only metrics read them.
    """
    moved = copy.copy(x)
    for name, value in vars(x).items():
        if isinstance(value, Tensor | Masks | _Rois) and name != "areas":
            setattr(moved, name, function(value))
    return moved


@dataclass
class _Rois:
    """Probabilities (N,h,w) on boxes (N,4), and how they are drawn."""

    probabilities: Tensor
    boxes: Tensor
    rule: str
    threshold: float

    def to(self, device: Device, non_blocking: bool = False) -> _Rois:
        return each_tensor(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> _Rois:
        return each_tensor(self, lambda t: t.pin_memory())

    def __getitem__(self, rows: NDArray[np.int64]) -> _Rois:
        return each_tensor(self, lambda t: t[torch.from_numpy(rows).to(t.device)])


class Masks:
    """N binary masks of one image, held as dense booleans, RLEs, polygons or RoI grids, converted when asked for.

    RoI grids become RLEs without a full-size mask. RLEs, once made, are kept; dense masks are not. RLEs, polygons and
    what is computed from them live on the CPU; `device` is where `dense()`, `area()` and `boxes()` deliver.
    """

    def __init__(self, count: int, size: Size, device: Device = "cpu") -> None:
        self.count = count
        self.size: Size = (int(size[0]), int(size[1]))
        self.device = torch.device(device)
        self._dense: Tensor | None = None
        self._rle: list[rle_ops.Rle] | None = None
        self._runs: tuple[rle_ops.Counts, rle_ops.Counts] | None = None
        self._polygons: list[list[list[float]]] | None = None
        self._rois: _Rois | None = None

    @classmethod
    def from_dense(cls, masks: Tensor | NDArray[Any]) -> Masks:
        """`masks` (N,H,W), non-zero inside."""
        dense = as_tensor(masks, torch.bool)
        if dense.ndim != 3:
            raise ZooError(f"dense masks are (N,H,W), not {tuple(dense.shape)}")
        made = cls(len(dense), (dense.shape[1], dense.shape[2]), dense.device)
        made._dense = dense
        return made

    @classmethod
    def from_rle(
        cls, rles: Sequence[rle_ops.Rle], size: Size, runs: tuple[rle_ops.Counts, rle_ops.Counts] | None = None
    ) -> Masks:
        """COCO RLEs in any spelling: compressed with bytes or text, or a list of counts.

        `runs`, of compressed ones, are what `zoo.ops.masks.unpack_flat` gave for them, if it was asked already.
        """
        made = cls(len(rles), size)
        made._rle = [rle_ops.canonical(rle, made.size) for rle in rles]
        made._runs = runs
        return made

    @classmethod
    def from_run_lengths(cls, flat: rle_ops.Counts, lengths: rle_ops.Counts, size: Size) -> Masks:
        """RLEs that are not packed, as `zoo.ops.masks.unpack_flat` gives them; packed when they are asked for."""
        made = cls(len(lengths), size)
        made._runs = flat, lengths
        return made

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[Sequence[float]]], size: Size) -> Masks:
        """Per mask any number of parts `[x0, y0, x1, y1, ...]`; no part is an empty mask."""
        made = cls(len(polygons), size)
        made._polygons = [[list(part) for part in parts] for parts in polygons]
        return made

    @classmethod
    def from_rois(
        cls, probabilities: Array, boxes: Array, size: Size, rule: str = "detectron2", threshold: float = 0.5
    ) -> Masks:
        """`probabilities` (N,h,w) in [0, 1] on `boxes` (N,4); `rule` as in `zoo.ops.masks.paste`."""
        rois = _Rois(as_tensor(probabilities, torch.float32), as_tensor(boxes, torch.float32), rule, threshold)
        if rois.probabilities.ndim != 3 or rois.boxes.shape != (len(rois.probabilities), 4):
            shapes = f"{tuple(rois.probabilities.shape)} and {tuple(rois.boxes.shape)}"
            raise ZooError(f"RoI masks are probabilities (N,h,w) and boxes (N,4), not {shapes}")
        made = cls(len(rois.boxes), size, rois.boxes.device)
        made._rois = rois
        return made

    @classmethod
    def cat(cls, parts: Sequence[Masks]) -> Masks:
        """The masks of several `Masks` of one size, in order."""
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise ZooError(f"masks of one size can be joined, not of {sorted(sizes)}")
        dense = [part._dense for part in parts if part._dense is not None]
        if len(dense) == len(parts):
            return cls.from_dense(torch.cat(dense))
        return cls.from_rle([rle for part in parts for rle in part.rle()], parts[0].size).to(parts[0].device)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        held: dict[str, Any] = {"dense": self._dense, "RLE": self._rle, "polygons": self._polygons}
        held |= {"RoI grids": self._rois, "run lengths": self._runs}
        forms = ", ".join(name for name, value in held.items() if value is not None)
        return f"Masks({self.count} of {self.size[0]}x{self.size[1]} as {forms} on {self.device})"

    def __getitem__(self, keep: Keep) -> Masks:
        """The masks a boolean mask, a list of indices or a slice picks, in the forms held."""
        rows = picked_rows(keep, self.count)
        made = Masks(len(rows), self.size, self.device)
        if self._dense is not None:
            made._dense = self._dense[torch.from_numpy(rows).to(self._dense.device)]
        if self._rle is not None or self._runs is not None:
            rles = self.rle()
            made._rle = [rles[i] for i in rows]
        if self._polygons is not None:
            made._polygons = [self._polygons[i] for i in rows]
        if self._rois is not None:
            made._rois = self._rois[rows]
        return made

    def dense(self) -> Tensor:
        """(N,H,W) bool."""
        if self._dense is not None:
            return self._dense
        if self._runs is not None:
            return torch.from_numpy(rle_ops.draw(*self._runs, self.size)).to(self.device)
        return torch.from_numpy(rle_ops.decode(self.rle(), self.size)).to(self.device)

    def rle(self) -> list[rle_ops.Rle]:
        """N COCO RLEs, compressed, `counts` as bytes."""
        if self._rle is None:
            if self._dense is not None:
                self._rle = rle_ops.encode(self._dense.cpu().numpy())
            elif self._runs is not None:
                self._rle = rle_ops.pack_flat(*self._runs, self.size)
            elif self._polygons is not None:
                self._rle = rle_ops.from_polygons(self._polygons, self.size)
            elif self._rois is not None:
                rois = self._rois
                self._rle = rle_ops.paste(rois.probabilities, rois.boxes, self.size, rois.rule, rois.threshold)
            else:
                self._rle = []
        return self._rle

    def run_lengths(self) -> tuple[rle_ops.Counts, rle_ops.Counts]:
        """Their RLEs not packed, as `zoo.ops.masks.unpack_flat` gives them."""
        return rle_ops.unpack_flat(self.rle()) if self._runs is None else self._runs

    @property
    def is_dense(self) -> bool:
        """Whether dense masks are held and no RLEs, so that `rle()` would have to encode them."""
        return self._dense is not None and self._rle is None

    def crops(self, rows: Sequence[int]) -> list[rle_ops.Crop]:
        """Some of the masks inside their boxes: bool arrays of the boxes' sizes, and the boxes' left and top."""
        if self._dense is not None:
            return [rle_ops.crop_dense(self._dense[i].cpu().numpy()) for i in rows]
        rles = self.rle()
        return rle_ops.crops([rles[i] for i in rows])

    def area(self) -> Tensor:
        """Pixels of each mask, int64 (N,)."""
        if self._dense is not None and self._rle is None:
            if self._dense.device.type == "cpu":  # ten times as fast as torch
                return torch.tensor([np.count_nonzero(mask) for mask in self._dense.numpy()], dtype=torch.int64)
            return self._dense.flatten(1).count_nonzero(1)
        return torch.from_numpy(rle_ops.area(self.rle())).to(self.device)

    def boxes(self) -> Tensor:
        """Tight boxes, float32 (N,4); an empty mask has 0, 0, 0, 0."""
        return torch.from_numpy(rle_ops.boxes(self.rle())).to(self.device)

    def to(self, device: Device, non_blocking: bool = False) -> Masks:
        """The same masks with their tensors on `device`."""
        moved = each_tensor(self, lambda t: t.to(device, non_blocking=non_blocking))
        moved.device = torch.device(device)
        return moved

    def pin_memory(self) -> Masks:
        """The same masks with their tensors in pinned memory."""
        return each_tensor(self, lambda t: t.pin_memory())


def picked_rows(keep: Keep, count: int) -> NDArray[np.int64]:
    """The indices that a boolean mask, a list of indices or a slice picks out of `count`."""
    if isinstance(keep, Tensor):
        keep = keep.cpu().numpy()
    elif not isinstance(keep, slice | np.ndarray):
        keep = np.asarray(keep, dtype=None if len(keep) else np.int64)
    return np.atleast_1d(np.arange(count)[keep])
