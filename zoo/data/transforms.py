"""Training augmentation: one warp for image and truth together, then albumentations on the pixels.

Scale, rotation, flip, elastic deformation and crop are one mapping from the crop back to the source image, so that
every pixel is interpolated once and only what ends up in the crop is computed. The truth follows by nearest
neighbour. Segments travel as maps of integers: a panoptic map is one, instances that do not touch share one, so
the cost does not grow with their number. albumentations sees the cropped image only and draws from the sample's own
generator (its own one repeats in workers and over epochs).
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import ZooError, unknown
from zoo.ops import masks as rle_ops
from zoo.structures import VOID, Instances, Masks, Panoptic, Sample, Semantic, Size, Target, as_size

Array = NDArray[Any]
Rng = np.random.Generator


class TrainTransform:
    """Random scale, rotation, flip, elastic deformation, crop and colour of a sample.

    What lies beyond the source image gets the image's mean colour and void truth. Segments that leave the crop are
    dropped; boxes are those of the new masks. Images of any number of channels; colour needs 1 or 3.

    Args:
        crop: (H, W) or one number for both; None keeps the whole scaled image.
        scale: range of the factor, drawn uniformly. Below 0.5 the image is not smoothed before it shrinks.
        flip: probability of mirroring left and right.
        color: probability of changing brightness, contrast and saturation by up to 30 %, the hue by up to 18 degrees.
        rotate: largest angle in degrees, either way.
        elastic: spread, in pixels of the crop, of the random displacements on a 3x3 grid of Ronneberger et al. 2015,
            section 3.1 (10 in the paper); bicubic in between.
        extra: further pixel transforms of albumentations by name, such as ``{"GaussNoise": {"p": 0.2}}``.

    Raises:
        ZooError: a range that makes no sense, an `extra` that is unknown or moves pixels.
    """

    def __init__(
        self,
        crop: int | Size | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        color: float = 0.5,
        rotate: float = 0.0,
        elastic: float = 0.0,
        extra: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise ZooError(f"transform: scale={list(scale)} should be two positive factors, the smaller first")
        for name, share in (("flip", flip), ("color", color)):
            if not 0 <= share <= 1:
                raise ZooError(f"transform: {name}={share} is a probability, 0 to 1")
        self.crop: Size | None = None if crop is None else as_size(crop, "transform: crop")
        self.scale, self.flip, self.rotate, self.elastic = (low, high), flip, rotate, elastic
        self._color = _compose({"ColorJitter": _COLOR | {"p": color}}) if color else None
        self._extra = _compose(extra) if extra else None

    def __call__(self, sample: Sample, rng: Rng) -> Sample:
        """The sample, transformed; `rng` decides everything."""
        height, width = sample.image.shape[:2]
        warp = self._draw(rng, (height, width))
        image = warp.image(sample.image)
        if self._color is not None and image.shape[2] in (1, 3):
            image = _apply(self._color, image, rng)
        if self._extra is not None:
            image = _apply(self._extra, image, rng)
        target = None if sample.target is None else _warp_target(sample.target, warp)
        return replace(sample, image=image, target=target)

    def _draw(self, rng: Rng, source: Size) -> Warp:
        """The random mapping for a source image of this size."""
        factor = rng.uniform(*self.scale)
        scaled = (max(1, round(source[0] * factor)), max(1, round(source[1] * factor)))
        size = self.crop or scaled
        # Whole pixels: at scale 1 a crop is an exact copy. A smaller image lies anywhere within the crop.
        top, left = (
            int(rng.integers(min(0, have - want), max(0, have - want) + 1))
            for have, want in zip(scaled, size, strict=True)
        )
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        mirrored = rng.random() < self.flip
        centre_y, centre_x = size[0] / 2, size[1] / 2
        matrix = (
            _shift(-0.5, -0.5)  # continuous coordinates -> pixel centres
            @ np.diag([source[1] / scaled[1], source[0] / scaled[0], 1.0])
            @ _shift(left + centre_x, top + centre_y)
            @ _rotation(angle)
            @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
            @ _shift(0.5 - centre_x, 0.5 - centre_y)
        )
        bend = None
        if self.elastic:
            grid = rng.normal(0.0, self.elastic / factor, (3, 3, 2)).astype(np.float32)
            bend = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        return Warp(matrix, size, bend)


@dataclass(frozen=True)
class Warp:
    """A mapping from the pixels of a new image to places in the source.

    Attributes:
        matrix: (3, 3), takes (x, y, 1) of a new pixel to the source.
        size: (H, W) of the new image.
        bend: (H, W, 2) float32, added to the place in the source, or None.
    """

    matrix: Array
    size: Size
    bend: Array | None = None

    def image(self, image: Array) -> Array:
        """(h, w, C) -> (H, W, C), bilinear; the mean colour beyond the edge."""
        groups = [image[..., k : k + 4] for k in range(0, image.shape[2], 4)]  # OpenCV fills four channels at most
        warped = [self._sample(group, cv2.INTER_LINEAR, group[::4, ::4].mean((0, 1)).tolist()) for group in groups]
        planes = [part.reshape(*self.size, -1) for part in warped]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def labels(self, labels: Array, fill: int) -> Array:
        """(h, w) uint8 or float32 holding integers -> (H, W), nearest neighbour; `fill` beyond the edge."""
        return self._sample(labels, cv2.INTER_NEAREST, [fill])

    def _sample(self, source: Array, how: int, fill: list[float]) -> Array:
        height, width = self.size
        if self.bend is None:
            flags = how | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(source, self.matrix[:2], (width, height), flags=flags, borderValue=fill)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        (xx, xy, x0), (yx, yy, y0) = self.matrix[:2].astype(np.float32)
        from_x, from_y = xx * x + xy * y + x0 + self.bend[..., 0], yx * x + yy * y + y0 + self.bend[..., 1]
        return cv2.remap(source, from_x, from_y, how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)


def _shift(x: float, y: float) -> Array:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _rotation(angle: float) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


# ---- truth ------------------------------------------------------------------------------------------------------


def _warp_target(target: Target, warp: Warp) -> Target:
    if isinstance(target, Semantic):
        return Semantic(torch.from_numpy(warp.labels(target.labels.numpy(), VOID)))
    if isinstance(target, Panoptic):
        return _warp_panoptic(target, warp)
    return _warp_instances(target, warp)


def _warp_panoptic(target: Panoptic, warp: Warp) -> Panoptic:
    """Segments without a pixel are dropped, the others numbered 1..S without gaps."""
    ids = _warp_ids(target.ids.numpy(), warp)
    present = np.bincount(ids.ravel(), minlength=len(target.labels)) > 0
    present[0] = True
    number = (np.cumsum(present) - 1).astype(np.int32)
    keep = torch.from_numpy(present)
    return Panoptic(torch.from_numpy(number[ids]), target.labels[keep], target.scores[keep], target.crowd[keep])


def _warp_instances(target: Instances, warp: Warp) -> Instances:
    """Instances without a pixel are dropped. Areas of the file no longer hold and are left out."""
    if target.masks is None or target.keypoints is not None:
        raise ZooError("the training transform moves masks; it cannot move keypoints, or boxes without masks")
    rles: dict[int, rle_ops.Rle] = {}
    for layer in disjoint_layers(target.masks):
        ids = _warp_ids(layer, warp)
        present = np.flatnonzero(np.bincount(ids.ravel())[1:]) + 1
        rles |= dict(zip((present - 1).tolist(), rle_ops.encode_ids(ids, present.tolist()), strict=True))
    keep = sorted(rles)
    masks = Masks.from_rle([rles[k] for k in keep], warp.size)
    kept = replace(target, masks=None, boxes=torch.zeros(len(target), 4), areas=None)[keep]
    return replace(kept, masks=masks, boxes=masks.boxes(), size=warp.size)


def _warp_ids(ids: Array, warp: Warp) -> Array:
    # float32 holds integers up to 2^24 and takes the same path through OpenCV as the image; int32 rounds otherwise.
    return warp.labels(ids.astype(np.float32, order="C"), 0).astype(np.int32)


def disjoint_layers(masks: Masks) -> list[Array]:
    """N masks as few maps (H, W) int32: mask k is where one of them equals k + 1; masks of one map do not touch.

    Each mask goes into the first map that is free where it lies, so that the number of maps follows the depth of the
    overlap, not N. Masks are drawn from their runs; none becomes dense.
    """
    height, width = masks.size
    layers: list[Array] = []  # flat, column by column, as the runs are
    for k, counts in enumerate(rle_ops.unpack(masks.rle())):
        inside = _pixels(counts, height * width)
        free = next((layer for layer in layers if not layer[inside].any()), None)
        if free is None:
            free = np.zeros(height * width, np.int32)
            layers.append(free)
        free[inside] = k + 1
    return [layer.reshape(width, height).T for layer in layers]


def _pixels(counts: rle_ops.Counts, total: int) -> Array:
    """Run lengths, zeros first -> the flat indices of the ones."""
    edges = np.cumsum(counts)
    if edges[-1] != total:
        raise ZooError(f"the runs of an RLE cover {edges[-1]} pixels, its image has {total}")
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    lengths = ends - starts
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


# ---- pixels -----------------------------------------------------------------------------------------------------

_COLOR = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}


def _compose(transforms: Mapping[str, Mapping[str, Any]]) -> Any:
    """An albumentations pipeline of pixel transforms."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version
    import albumentations

    pixel = {
        name: transform
        for name, transform in vars(albumentations).items()
        if isinstance(transform, type) and issubclass(transform, albumentations.ImageOnlyTransform)
    }
    built = []
    for name, options in transforms.items():
        if name not in pixel:
            raise unknown("pixel transform of albumentations", name, pixel)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it only warns of an option it does not know
            try:
                built.append(pixel[name](**options))
            except (TypeError, ValueError, UserWarning) as error:
                raise ZooError(f"transform {name}: {' '.join(str(error).split())}") from error
    return albumentations.Compose(built)


def _apply(pipeline: Any, image: Array, rng: Rng) -> Array:
    # One generator for all: set_random_seed would start each transform of the pipeline from the same number.
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    return pipeline(image=image)["image"]
