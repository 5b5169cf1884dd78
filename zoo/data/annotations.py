"""What annotation formats share: outlines and run lengths become masks, and what is odd is counted and said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.ops import masks as rle_ops
from zoo.ops.masks import Counts, Rle
from zoo.structures import Size


class BadAnnotation(ZooError):
    """An annotation that cannot be what it says; the message names its file and its id or line."""


@dataclass(frozen=True)
class Note:
    """Something odd about `count` annotations of a file or folder, shown at one of them; nothing is dropped."""

    path: Path
    problem: str
    count: int
    example: str
    advice: str

    def say(self) -> None:
        """One line on stderr."""
        print(f"{self.path}: {self.problem} ({self.count}, first: {self.example}); {self.advice}", file=sys.stderr)


@dataclass(frozen=True)
class Keypoints:
    """The named points of an object: P names, `skeleton` of index pairs, `sigmas` (P,) of the OKS, `mirror` (P,).

    ``mirror[p]`` is the index of the point that p becomes in a mirror: left_eye and right_eye change places.
    """

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    mirror: tuple[int, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], skeleton: Sequence[Sequence[int]] = (), sigmas: Sequence[float] | None = None
    ) -> Keypoints:
        """From names and a skeleton that counts from 1, as COCO's files have it.

        Names that differ in "left" and "right" alone are mirror pairs. Without `sigmas`: those of COCO where the names
        are COCO's, else 0.05 for all, about the middle of those.
        """
        position = {name: p for p, name in enumerate(names)}
        if sigmas is None:
            sigmas = COCO_SIGMAS if tuple(names) == COCO_NAMES else [0.05] * len(names)
        if len(position) != len(names) or len(sigmas) != len(names):
            raise ZooError(f"{len(names)} keypoints need as many different names and sigmas: {', '.join(names)}")
        edges = tuple((int(a) - 1, int(b) - 1) for a, b in skeleton)
        if any(not 0 <= end < len(names) for edge in edges for end in edge):
            raise ZooError(f"the skeleton of {len(names)} keypoints joins points 1 to {len(names)}: {list(skeleton)}")
        mirror = tuple(position.get(_other_side(name), p) for p, name in enumerate(names))
        return cls(tuple(names), edges, tuple(float(s) for s in sigmas), mirror)


COCO_NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
COCO_SIGMAS = tuple(
    s / 1000 for s in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)
)  # cocodataset.org/#keypoints-eval


def _other_side(name: str) -> str:
    for one, other in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name


def to_rle(segmentation: Any, size: Size, where: str) -> Rle:
    """COCO's `segmentation` in any of its forms: polygons, an RLE with counts as a list or packed, none at all.

    Parts outside the image are cut off; `where` names the annotation in messages. The runs of an RLE are not looked
    at, see `checked_runs`.

    Raises:
        BadAnnotation: a polygon of less than three points or far outside of the image, an RLE of another size.
    """
    try:
        if isinstance(segmentation, dict):
            return rle_ops.canonical(segmentation, size)
        if not segmentation:
            return rle_ops.from_polygons([[]], size)[0]
        if isinstance(segmentation[0], dict):
            return _union([rle_ops.canonical(part, size) for part in segmentation], size)
        if not isinstance(segmentation[0], list):  # a single polygon without the list around it
            segmentation = [segmentation]
        parts = [part for part in segmentation if part]
        _check_reach(parts, size)
        return rle_ops.from_polygons([parts], size)[0]
    except ZooError as error:
        raise BadAnnotation(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, UnicodeError) as error:
        raise BadAnnotation(f"{where}: its segmentation is neither polygons nor an RLE ({error!r})") from error


def checked_runs(rles: Sequence[Rle], size: Size, where: Callable[[int], str]) -> tuple[Counts, Counts]:
    """The run lengths of compressed RLEs as `zoo.ops.masks.unpack_flat` gives them.

    Raises:
        BadAnnotation: those of mask k do not fill the image; it names ``where(k)``.
    """
    try:
        flat, lengths = rle_ops.unpack_flat(rles)
        stops = np.cumsum(lengths)
        covered = np.diff(np.cumsum(flat)[stops - 1], prepend=0)
        wrong = (covered != size[0] * size[1]) | (np.minimum.reduceat(flat, stops - lengths) < 0) if len(rles) else []
    except ZooError as error:
        if len(rles) > 1:  # one of them is no RLE: which?
            for k, rle in enumerate(rles):
                checked_runs([rle], size, lambda _, k=k: where(k))  # type: ignore[misc]
        raise BadAnnotation(f"{where(0)}: {error}") from error
    if any(wrong):
        k = int(np.argmax(wrong))
        pixels = f"{size[0] * size[1]} of the {size[0]}x{size[1]} image"
        raise BadAnnotation(f"{where(k)}: the runs of its RLE cover {covered[k]} pixels, not the {pixels}")
    return flat, lengths


def _union(rles: list[Rle], size: Size) -> Rle:
    return rle_ops.encode(np.logical_or.reduce(rle_ops.decode(rles, size))[None])[0]


def _check_reach(parts: Sequence[Sequence[float]], size: Size) -> None:
    """Coordinates a whole image away are in other units, and drawing them would take memory without end."""
    flat = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts]) if parts else np.zeros(0)
    if np.isfinite(flat).all() and flat.size and np.abs(flat - max(size) / 2).max() > 1.5 * max(size):
        far = max(flat.tolist(), key=lambda x: abs(x - max(size) / 2))
        raise ZooError(f"a polygon reaches {far:g}, far outside of the {size[0]}x{size[1]} (height x width) image")
