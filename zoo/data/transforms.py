"""Training augmentation: one warp for image and truth together, then albumentations on the pixels.

Scale, rotation, flip, elastic deformation and crop are one mapping from the crop back to the source image, so that
every pixel is interpolated once and only what ends up in the crop is computed. The truth follows by nearest
neighbour. Segments travel as maps of integers: a panoptic map is one, instances that do not touch share one, so
the cost does not grow with their number. Keypoints, and boxes without masks, take the way forward. albumentations sees
the cropped image only and draws from the sample's own generator (its own one repeats in workers and over epochs).
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.layers import disjoint_layers, masks_of_layers
from zoo.data.warp import Warp, rotation, shift
from zoo.errors import ZooError, unknown
from zoo.structures import VOID, Instances, Panoptic, Sample, Semantic, Size, as_size

if TYPE_CHECKING:
    from zoo.data.base import Dataset

Array = NDArray[Any]
Rng = np.random.Generator


class TrainTransform:
    """Random scale, rotation, flip, elastic deformation, crop and colour of a sample.

    What lies beyond the source image gets the image's mean colour and void truth. Segments that leave the crop are
    dropped; boxes are those of the new masks. Boxes without masks become the upright boxes around the moved ones;
    keypoints that leave count as not labelled. Images of any number of channels; colour needs 1 or 3.

    Args:
        crop: (H, W) or one number for both; None keeps the whole scaled image.
        scale: range of the factor, drawn uniformly.
        flip: probability of mirroring left and right.
        color: probability of changing brightness, contrast and saturation by up to 30 %, the hue by up to 18 degrees.
        rotate: largest angle in degrees, either way.
        elastic: spread, in pixels of the crop, of the random displacements on a 3x3 grid of Ronneberger et al. 2015,
            section 3.1 (10 in the paper); bicubic in between.
        fit: `scale` is relative to the size at which the image just fits into the crop: with 0.1 to 2.0 large-scale
            jitter (Ghiasi et al. 2021). detectron2's code draws one offset for both axes, so that crops lie on the
            diagonal, and puts a smaller image into the upper left corner; here crops and images lie anywhere.
        short_side: the image is brought to one of these lengths of its shorter side before `scale`, the longer one at
            most `long_side`: with 640, 672, ..., 800 and 1333 the training of Detectron.
        long_side: see `short_side`.
        copy_paste: probability of pasting objects of another image on top (Ghiasi et al. 2021): of each that is no
            crowd with probability one half, that image scaled, flipped and cropped by itself. No blending. What is
            covered altogether is dropped.
        extra: further pixel transforms of albumentations by name, such as ``{"GaussNoise": {"p": 0.2}}``.

    Raises:
        ZooError: a range that makes no sense, an `extra` that is unknown or moves pixels.
    """

    takes_dataset = True

    def __init__(
        self,
        crop: int | Size | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        color: float = 0.5,
        rotate: float = 0.0,
        elastic: float = 0.0,
        extra: Mapping[str, Mapping[str, Any]] | None = None,
        fit: bool = False,
        short_side: int | Sequence[int] | None = None,
        long_side: int | None = None,
        copy_paste: float = 0.0,
    ) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise ZooError(f"transform: scale={list(scale)} should be two positive factors, the smaller first")
        for name, share in (("flip", flip), ("color", color), ("copy_paste", copy_paste)):
            if not 0 <= share <= 1:
                raise ZooError(f"transform: {name}={share} is a probability, 0 to 1")
        self.crop: Size | None = None if crop is None else as_size(crop, "transform: crop")
        if fit and crop is None:
            raise ZooError("transform: fit=true scales the image to the crop, so it needs crop=")
        if fit and short_side is not None:
            raise ZooError("transform: fit and short_side both say what scale is relative to; set one")
        self.fit, self.short_side, self.long_side = fit, _sides(short_side), long_side
        self.copy_paste = copy_paste
        self.scale, self.flip, self.rotate, self.elastic = (low, high), flip, rotate, elastic
        self._color = _compose({"ColorJitter": _COLOR | {"p": color}}) if color else None
        self._extra = _compose(extra) if extra else None

    def __call__(self, sample: Sample, rng: Rng, dataset: Dataset | None = None) -> Sample:
        """The sample, transformed; `rng` decides everything. `dataset` gives mirror pairs and other samples."""
        height, width = sample.image.shape[:2]
        warp = self._draw(rng, (height, width))
        image, target = warp.image(sample.image), sample.target
        if isinstance(target, Instances):
            mirror = None if dataset is None or dataset.keypoints is None else dataset.keypoints.mirror
            moved = _move(target, warp, mirror)
            if self.copy_paste and rng.random() < self.copy_paste:
                image, moved = self._pasted(image, moved, sample.id, rng, dataset)
            target = moved.instances(warp.size)
        elif target is not None:
            if self.copy_paste:
                raise ZooError("transform: copy_paste pastes objects, it needs task=instance")
            target = _warp_map(target, warp)
        if self._color is not None and image.shape[2] in (1, 3):
            image = _apply(self._color, image, rng)
        if self._extra is not None:
            image = _apply(self._extra, image, rng)
        return replace(sample, image=image, target=target)

    def _pasted(
        self, image: Array, moved: _Moved, index: int, rng: Rng, dataset: Dataset | None
    ) -> tuple[Array, _Moved]:
        """The image with objects of another one of the dataset, that moved by itself, on top."""
        if dataset is None:
            raise ZooError("transform: copy_paste takes objects from other samples, and no dataset was given")
        if len(dataset) < 2:
            return image, moved
        other = dataset.plain((index + int(rng.integers(1, len(dataset)))) % len(dataset))
        if not isinstance(other.target, Instances):
            return image, moved
        warp = self._draw(rng, (other.image.shape[0], other.image.shape[1]), moved.rest.size)
        mirror = None if dataset.keypoints is None else dataset.keypoints.mirror
        above = _move(other.target, warp, mirror)
        chosen = (rng.random(len(above.rest)) < 0.5) & ~above.rest.crowd.numpy()
        moved, covered = _paste(moved, above, chosen)
        return np.where(covered[..., None], warp.image(other.image), image), moved

    def _draw(self, rng: Rng, source: Size, size: Size | None = None) -> Warp:
        """The random mapping for a source image of this size, to a new one of `size`."""
        factor = self._base(rng, source) * rng.uniform(*self.scale)
        scaled = (max(1, int(source[0] * factor + 0.5)), max(1, int(source[1] * factor + 0.5)))
        size = size or self.crop or scaled
        # Whole pixels: at scale 1 a crop is an exact copy. A smaller image lies anywhere within the crop.
        top, left = (
            int(rng.integers(min(0, have - want), max(0, have - want) + 1))
            for have, want in zip(scaled, size, strict=True)
        )
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        mirrored = rng.random() < self.flip
        centre_y, centre_x = size[0] / 2, size[1] / 2
        matrix = (
            shift(-0.5, -0.5)  # continuous coordinates -> pixel centres
            @ np.diag([source[1] / scaled[1], source[0] / scaled[0], 1.0])
            @ shift(left + centre_x, top + centre_y)
            @ rotation(angle)
            @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
            @ shift(0.5 - centre_x, 0.5 - centre_y)
        )
        bend = None
        if self.elastic:
            grid = rng.normal(0.0, self.elastic / factor, (3, 3, 2)).astype(np.float32)
            bend = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        return Warp(matrix, size, bend, factor, mirrored)

    def _base(self, rng: Rng, source: Size) -> float:
        """The factor that `scale` is relative to."""
        if self.short_side is not None:
            side = self.short_side[int(rng.integers(len(self.short_side)))]
            most = float("inf") if self.long_side is None else self.long_side / max(source)
            return min(side / min(source), most)
        if self.fit:
            assert self.crop is not None
            return min(self.crop[0] / source[0], self.crop[1] / source[1])
        return 1.0


def _sides(value: int | Sequence[int] | None) -> list[int] | None:
    sides = [value] if isinstance(value, int) else value
    if sides is not None and not (len(sides) and all(isinstance(side, int) and side > 0 for side in sides)):
        raise ZooError(f"transform: short_side={value} is a number of pixels or a list of them")
    return None if sides is None else list(sides)


# ---- truth ------------------------------------------------------------------------------------------------------


def _warp_map(target: Semantic | Panoptic, warp: Warp) -> Semantic | Panoptic:
    if isinstance(target, Semantic):
        return Semantic(torch.from_numpy(warp.labels(target.labels.numpy(), VOID)))
    return _warp_panoptic(target, warp)


def _warp_panoptic(target: Panoptic, warp: Warp) -> Panoptic:
    """Segments without a pixel are dropped, the others numbered 1..S without gaps."""
    # float32 holds integers up to 2^24 and takes the same path through OpenCV as the image; int32 rounds otherwise.
    ids = warp.labels(target.ids.numpy().astype(np.float32, order="C"), 0).astype(np.int32)
    present = np.bincount(ids.ravel(), minlength=len(target.labels)) > 0
    present[0] = True
    number = (np.cumsum(present) - 1).astype(np.int32)
    keep = torch.from_numpy(present)
    return Panoptic(torch.from_numpy(number[ids]), target.labels[keep], target.scores[keep], target.crowd[keep])


@dataclass(frozen=True)
class _Moved:
    """Instances on their way: `layers` (H, W) int32 as in `disjoint_layers`, and what else is known of each.

    Without masks `layers` is None and the boxes of `rest` have moved already.
    """

    rest: Instances
    layers: list[Array] | None

    def instances(self, size: Size) -> Instances:
        """Those with a pixel, or with a box that has an area. The areas of the file hold no longer and are left out."""
        if self.layers is None:
            assert self.rest.boxes is not None
            return self.rest[(self.rest.boxes[:, 2:] > self.rest.boxes[:, :2]).all(1)]
        masks, boxes, kept = masks_of_layers(self.layers, size)
        return replace(self.rest[kept], masks=masks, boxes=torch.from_numpy(boxes), size=size)


def _move(target: Instances, warp: Warp, mirror: Sequence[int] | None) -> _Moved:
    boxes = torch.zeros(len(target), 4)
    if warp.bend is not None and (target.masks is None or target.keypoints is not None):
        raise ZooError("transform: elastic bends masks and images, it cannot bend boxes or keypoints: set elastic=0")
    if target.masks is None:
        assert target.boxes is not None
        boxes = torch.from_numpy(warp.boxes(target.boxes.numpy()).astype(np.float32))
    keypoints = None if target.keypoints is None else _move_keypoints(target.keypoints.numpy(), warp, mirror)
    rest = replace(target, masks=None, boxes=boxes, areas=None, keypoints=keypoints, size=warp.size)
    if target.masks is None:
        return _Moved(rest, None)
    # float32 takes the same path through OpenCV as the image; int32 rounds otherwise.
    layers = disjoint_layers(target.masks, warp.reach(target.size))
    return _Moved(rest, [warp.labels(layer, 0).astype(np.int32) for layer in layers])


def _move_keypoints(keypoints: Array, warp: Warp, mirror: Sequence[int] | None) -> torch.Tensor:
    """(N, P, 3); those that leave the image are not labelled any more: 0, 0, 0. In a mirror left and right change."""
    if warp.mirrored:
        if mirror is None:
            raise ZooError("transform: flip needs to know which keypoints mirror each other; the dataset says it")
        keypoints = keypoints[:, list(mirror)]
    moved = keypoints.copy()
    moved[..., :2] = warp.points(keypoints[..., :2].astype(np.float64))
    inside = ((moved[..., :2] >= -0.5) & (moved[..., :2] < [warp.size[1] - 0.5, warp.size[0] - 0.5])).all(-1)
    moved[(keypoints[..., 2] == 0) | ~inside] = 0
    return torch.from_numpy(moved)


def _paste(below: _Moved, above: _Moved, chosen: Array) -> tuple[_Moved, Array]:
    """`below` with the `chosen` (N,) bool of `above` on top, and where those lie (H, W) bool."""
    if below.layers is None or above.layers is None:
        raise ZooError("transform: copy_paste needs masks, these objects have boxes alone: set copy_paste=0")
    taken = np.append(False, chosen)
    pasted = [np.where(taken[layer], layer + len(below.rest), 0) for layer in above.layers]
    covered = np.zeros(below.rest.size, bool)
    for layer in pasted:
        covered |= layer > 0
    layers = [np.where(covered, 0, layer) for layer in below.layers]
    return _Moved(_joined(_hidden(below.rest, covered), above.rest), [*layers, *pasted]), covered


def _hidden(target: Instances, covered: Array) -> Instances:
    """Keypoints where something else now lies are labelled but not visible: 1."""
    if target.keypoints is None:
        return target
    points = target.keypoints.numpy().copy()
    x, y = (np.rint(points[..., k]).astype(int).clip(0, target.size[1 - k] - 1) for k in (0, 1))
    points[..., 2] = np.where(covered[y, x], points[..., 2].clip(max=1), points[..., 2])
    return replace(target, keypoints=torch.from_numpy(points))


def _joined(one: Instances, other: Instances) -> Instances:
    def both(name: str) -> Any:
        pair = getattr(one, name), getattr(other, name)
        return None if pair[0] is None or pair[1] is None else torch.cat(pair)

    return Instances(
        None, both("labels"), both("scores"), both("crowd"), both("boxes"), None, both("keypoints"), size=one.size
    )


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
