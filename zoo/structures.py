"""The nouns every room shares: classes, masks, the three kinds of truth and prediction, samples, batches.

Class ids are 0..K-1 and void is 255. Boxes are (x0, y0, x1, y1) in pixels with exclusive right and bottom edges.
Scores lie in [0, 1]. A prediction has the same type as the truth. Conversions go downhill only: panoptic truth gives
semantic and instance truth, never the reverse.
"""

from __future__ import annotations

import colorsys
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError
from zoo.masks import Array, Device, Keep, Masks, Size, T, as_tensor, each_tensor, picked_rows
from zoo.ops import masks as rle_ops

VOID = 255
TASKS = ("semantic", "instance", "panoptic")


@dataclass(frozen=True)
class Class:
    """One class of a table: its name, its colour (red, green, blue in 0..255), and whether it is a countable thing."""

    name: str
    color: tuple[int, int, int]
    thing: bool = False

    def __post_init__(self) -> None:
        red, green, blue = (int(c) for c in self.color)
        object.__setattr__(self, "color", (red, green, blue))


def as_classes(classes: int | Sequence[str | Class]) -> tuple[Class, ...]:
    """A table of classes from a number, names or a table. Numbers and names get a fixed palette and are no things."""
    if isinstance(classes, int):
        classes = [f"class_{i}" for i in range(classes)]
    table = tuple(c if isinstance(c, Class) else Class(c, _color(i)) for i, c in enumerate(classes))
    if not table:
        raise ZooError("a table of classes needs at least one class")
    repeated = [name for name, times in Counter(c.name for c in table).items() if times > 1]
    if repeated:
        raise ZooError(f"class names must differ; repeated: {', '.join(repeated)}")
    return table


def _color(index: int) -> tuple[int, int, int]:
    """Colour of class `index`: hues by the golden ratio, so that neighbours and any first few are far apart."""
    hue = (0.02 + index * 0.6180339887498949) % 1.0
    saturation, value = ((0.72, 0.95), (0.90, 0.70), (0.50, 0.90), (0.85, 0.50))[index % 4]
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def as_size(value: Any, name: str) -> Size:
    """(H, W) of an option that is one number of pixels or [height, width]. Raises ZooError, naming it, for others."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ZooError(f"{name}={value} is a number of pixels or [height, width]")
    return sides


def _optional(kind: str, field: str, value: Array | None, dtype: torch.dtype, *shape: int) -> Tensor | None:
    """None, or a tensor whose shape begins with `shape`."""
    if value is None:
        return None
    tensor = as_tensor(value, dtype)
    if tuple(tensor.shape[: len(shape)]) != shape:
        raise ZooError(f"{kind}: {field} of shape {tuple(tensor.shape)} should begin with {shape}")
    return tensor


class _Structure:
    """What the three kinds of truth and prediction share: moving, and refusing to go uphill."""

    def to(self: T, device: Device, non_blocking: bool = False) -> T:
        """The same with every tensor on `device`."""
        return each_tensor(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self: T) -> T:
        """The same with every tensor in pinned memory."""
        return each_tensor(self, lambda t: t.pin_memory())

    def _uphill(self, wanted: str, because: str) -> ZooError:
        mine = type(self).__name__
        return ZooError(f"{mine} cannot give {wanted}: {because}. Conversions go downhill only, from Panoptic")


@dataclass(eq=False)
class Semantic(_Structure):
    """A class for every pixel: `labels` (H,W) uint8, 255 where void; optionally `scores` (H,W) float32."""

    labels: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        self.labels = _labels(self.labels)
        self.scores = _optional("Semantic", "scores", self.scores, torch.float32, *self.size)

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.labels.shape[0], self.labels.shape[1]

    def segments(self) -> tuple[Tensor, Tensor]:
        """One mask for each class that occurs: masks (N,H,W) bool, labels (N,) int64; void is left out."""
        present = torch.bincount(self.labels.flatten(), minlength=256)[:VOID].nonzero()[:, 0]
        return self.labels[None] == present[:, None, None], present

    def semantic(self) -> Semantic:
        """Itself."""
        return self

    def instances(self, classes: Sequence[Class]) -> Instances:
        """Refused: labels do not tell one object from the next."""
        raise self._uphill("Instances", "labels do not tell one object from the next")

    def panoptic(self) -> Panoptic:
        """Refused: labels do not tell one object from the next."""
        raise self._uphill("Panoptic", "labels do not tell one object from the next")


def _labels(value: Array) -> Tensor:
    labels = (
        as_tensor(value, torch.uint8) if getattr(value, "dtype", None) in (torch.uint8, np.uint8) else _narrow(value)
    )
    if labels.ndim != 2:
        raise ZooError(f"Semantic: labels are (H,W), not {tuple(labels.shape)}")
    return labels


def _narrow(value: Array) -> Tensor:
    wide = as_tensor(value, torch.int64)
    if wide.numel() and (int(wide.min()) < 0 or int(wide.max()) > VOID):
        raise ZooError(f"Semantic: labels lie in 0..255, these in {int(wide.min())}..{int(wide.max())} (void is 255)")
    return wide.to(torch.uint8)


@dataclass(eq=False)
class Instances(_Structure):
    """N objects that may overlap. Truth has score 1.

    `masks` may be None (then `boxes` and `size` are needed), `labels` (N,) int64, `scores` (N,) float32, `crowd` (N,)
    bool, `boxes` (N,4) float32, `areas` (N,) float64 (what the truth's file says, which need not be the pixels; always
    on the CPU), `keypoints` (N,P,3) float32 as x, y, visibility.
    """

    masks: Masks | None
    labels: Tensor
    scores: Tensor = None  # type: ignore[assignment]  # all 1
    crowd: Tensor = None  # type: ignore[assignment]  # all False
    boxes: Tensor | None = None
    areas: Tensor | None = None
    keypoints: Tensor | None = None
    size: Size = None  # type: ignore[assignment]  # that of the masks

    def __post_init__(self) -> None:
        self.labels, self.scores, self.crowd = _per_segment("Instances", self.labels, self.scores, self.crowd)
        self.boxes = _optional("Instances", "boxes", self.boxes, torch.float32, len(self), 4)
        self.areas = _optional("Instances", "areas", self.areas, torch.float64, len(self))
        self.keypoints = _optional("Instances", "keypoints", self.keypoints, torch.float32, len(self))
        if self.masks is None:
            if self.boxes is None or self.size is None:
                raise ZooError("Instances without masks need boxes and size")
        else:
            self.size = self.masks.size
            if len(self.masks) != len(self):
                raise ZooError(f"Instances: {len(self.masks)} masks but {len(self)} labels")

    @classmethod
    def empty(cls, size: Size) -> Instances:
        """No objects on an image of `size`."""
        return cls(Masks.from_rle([], size), torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, keep: Keep) -> Instances:
        """The objects a boolean mask, a list of indices or a slice picks; every field is filtered."""
        rows = torch.from_numpy(picked_rows(keep, len(self)))
        picked = copy.copy(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(picked, field.name, value[rows.to(value.device)])
            elif isinstance(value, Masks):
                setattr(picked, field.name, value[rows])
        return picked

    def segments(self) -> tuple[Tensor, Tensor]:
        """What a set-prediction loss trains on: masks (N,H,W) bool, labels (N,); no crowds, no empty masks."""
        if self.masks is None:
            raise ZooError("Instances without masks have no segments")
        dense, labels = self.masks.dense(), self.labels
        keep = ~self.crowd & dense.flatten(1).any(1)
        return (dense, labels) if bool(keep.all()) else (dense[keep], labels[keep])

    def semantic(self) -> Semantic:
        """Refused: objects overlap and leave the rest unnamed."""
        raise self._uphill("Semantic", "objects overlap and leave the rest unnamed")

    def instances(self, classes: Sequence[Class]) -> Instances:
        """Itself."""
        return self

    def panoptic(self) -> Panoptic:
        """Refused: objects overlap and leave the rest unnamed."""
        raise self._uphill("Panoptic", "objects overlap and leave the rest unnamed")


def _per_segment(kind: str, labels: Array, scores: Array | None, crowd: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    labels = as_tensor(labels, torch.int64)
    if labels.ndim != 1:
        raise ZooError(f"{kind}: labels are (N,), not {tuple(labels.shape)}")
    given = _optional(kind, "scores", scores, torch.float32, len(labels))
    ignored = _optional(kind, "crowd", crowd, torch.bool, len(labels))
    return (
        labels,
        torch.ones_like(labels, dtype=torch.float32) if given is None else given,
        torch.zeros_like(labels, dtype=torch.bool) if ignored is None else ignored,
    )


@dataclass(eq=False)
class Panoptic(_Structure):
    """A segment for every pixel: `ids` (H,W) int32 index the tables `labels` (S,) int64, `scores` (S,), `crowd` (S,).

    Segment 0 is void and `labels[0]` is 255. `areas` (S,) float64 is what the truth's file says, always on the CPU.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor = None  # type: ignore[assignment]  # all 1
    crowd: Tensor = None  # type: ignore[assignment]  # all False
    areas: Tensor | None = None

    def __post_init__(self) -> None:
        self.ids = as_tensor(self.ids, torch.int32)
        if self.ids.ndim != 2:
            raise ZooError(f"Panoptic: ids are (H,W), not {tuple(self.ids.shape)}")
        self.labels, self.scores, self.crowd = _per_segment("Panoptic", self.labels, self.scores, self.crowd)
        # On an accelerator the look would wait for it.
        if not len(self.labels) or (self.labels.device.type == "cpu" and int(self.labels[0]) != VOID):
            raise ZooError("Panoptic: segment 0 is void, so labels[0] must be 255")
        if self.ids.device.type == "cpu" and self.ids.numel():
            low, high = (int(side) for side in self.ids.aminmax())
            if low < 0 or high >= len(self.labels):
                raise ZooError(f"Panoptic: ids {low}..{high} do not index {len(self.labels)} segments")
        self.areas = _optional("Panoptic", "areas", self.areas, torch.float64, len(self.labels))

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.ids.shape[0], self.ids.shape[1]

    def _occurs(self) -> Tensor:
        """(S,) bool: the segments, void aside, that have pixels."""
        occurs = torch.bincount(self.ids.flatten(), minlength=len(self.labels)) > 0
        occurs[0] = False
        return occurs

    def segments(self) -> tuple[Tensor, Tensor]:
        """What a set-prediction loss trains on: masks (N,H,W) bool, labels (N,); no void, crowds or empty segments."""
        keep = (self._occurs() & ~self.crowd).nonzero()[:, 0]
        return self.ids[None] == keep[:, None, None], self.labels[keep]

    def semantic(self) -> Semantic:
        """The class of each pixel's segment; crowds keep theirs."""
        labels = self.labels.to(torch.uint8)
        return Semantic(labels.index_select(0, self.ids.flatten()).view(self.size))

    def instances(self, classes: Sequence[Class]) -> Instances:
        """The things of the table `classes`, their labels renumbered 0.. in table order; none without pixels."""
        number = torch.full((256,), -1, dtype=torch.int64)
        things = [i for i, c in enumerate(classes) if c.thing]
        number[things] = torch.arange(len(things))
        labels = number.to(self.labels.device)[self.labels]
        keep = (self._occurs() & (labels >= 0)).nonzero()[:, 0]
        rles = rle_ops.encode_ids(self.ids.cpu().numpy(), keep.tolist())
        return Instances(
            Masks.from_rle(rles, self.size).to(self.ids.device),
            labels[keep],
            self.scores[keep],
            self.crowd[keep],
            areas=None if self.areas is None else self.areas[keep.cpu()],
        )

    def panoptic(self) -> Panoptic:
        """Itself."""
        return self


Target: TypeAlias = Semantic | Instances | Panoptic


@dataclass
class Sample:
    """An image (H,W,C), uint8 or float32 in [0, 1], and its truth, before collation. `size` is the size on disk."""

    image: NDArray[Any]
    target: Target | None
    id: int
    size: Size

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.dtype not in (np.uint8, np.float32):
            raise ZooError(f"an image is (H,W,C) uint8 or float32, not {self.image.shape} {self.image.dtype}")
        mine = self.image.shape[:2]
        if self.target is not None and self.target.size not in (mine, self.size):
            (h, w), (th, tw) = mine, self.target.size
            raise ZooError(f"image {self.id} is {h}x{w} but its truth is {th}x{tw} (height x width)")


@dataclass(eq=False)
class Batch:
    """Images (B,C,H,W), uint8 or float32 in [0, 1], padded right and below with zeros.

    `sizes` are those before padding, `original_sizes` those on disk, where predictions go back to. Targets are not
    padded.
    """

    images: Tensor
    targets: list[Any] | None
    sizes: list[Size]
    original_sizes: list[Size]
    ids: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: Device) -> Batch:
        """The same batch on `device`; from pinned memory the copy runs beside the computation."""
        beside = torch.device(device).type != "cpu"
        return self._each(lambda x: x.to(device, non_blocking=beside))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory; the data loader calls this."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, function: Callable[[Any], Any]) -> Batch:
        targets = None if self.targets is None else [None if t is None else function(t) for t in self.targets]
        return Batch(function(self.images), targets, self.sizes, self.original_sizes, self.ids)

    @staticmethod
    def of(images: Tensor | Sequence[NDArray[Any] | Tensor], targets: Sequence[Target] | None = None) -> Batch:
        """A batch from a tensor (B,C,H,W) or a list of arrays (H,W,C) or (H,W) and tensors (C,H,W), of any sizes."""
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ZooError(f"a tensor of images is (B,C,H,W), not {tuple(images.shape)}; a single image goes in a list")
        planes = [_planes(image) for image in images]
        brightest = max((float(image.max()) for image in planes if image.is_floating_point()), default=0.0)
        if brightest > 16:
            raise ZooError(f"float images lie in [0, 1], these reach {brightest:g}: divide them or pass uint8")
        if targets is not None and len(targets) != len(planes):
            raise ZooError(f"{len(planes)} images but {len(targets)} targets")
        padded, sizes = _pad(planes)
        return Batch(padded, None if targets is None else list(targets), sizes, list(sizes), list(range(len(sizes))))

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Batch:
        """A batch of samples, for the data loader. Targets are None where no sample has one."""
        padded, sizes = _pad([_planes(sample.image) for sample in samples])
        targets = [sample.target for sample in samples]
        return Batch(
            padded,
            None if all(t is None for t in targets) else targets,
            sizes,
            [sample.size for sample in samples],
            [sample.id for sample in samples],
        )


def _planes(image: NDArray[Any] | Tensor) -> Tensor:
    """One image as (C,H,W) uint8 or float32."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1) if image.ndim == 3 else image
    if not isinstance(image, Tensor):
        kind = f"{type(image).__module__}.{type(image).__name__}"
        raise ZooError(f"an image is an array (H,W,C) or a tensor (C,H,W), not a {kind}: np.asarray makes one of it")
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        shape = f"{tuple(image.shape)} {image.dtype}"
        raise ZooError(f"an image is uint8, or float in [0, 1], array (H,W,C) or tensor (C,H,W), not {shape}")
    return image if image.dtype == torch.uint8 else image.float()


def _pad(images: list[Tensor]) -> tuple[Tensor, list[Size]]:
    """Images (C,h,w) -> one tensor (B,C,H,W), zeros right and below, and the sizes."""
    kinds = {(image.shape[0], image.dtype) for image in images}
    if len(kinds) != 1:
        said = " and ".join(sorted(f"{c} channels of {str(d).removeprefix('torch.')}" for c, d in kinds))
        raise ZooError(f"a batch holds images of one kind, not {said or 'no image at all'}")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = image
    return batch, sizes
