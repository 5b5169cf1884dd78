"""Little landscapes drawn on the fly: panoptic truth without a file, for first runs, demos and tests.

A scene is a sky, often hills, grass, often a road, and two to five things standing on the ground or floating in
the air. Far things are drawn before near ones, so near ones hide them; each casts a shadow. Light, haze, noise and
blur change from scene to scene. Each class has a range of colours and a texture; the ranges overlap (trees and
grass, rocks and hills, tents and sky, balloons and roofs), so colour alone does not tell the classes apart.

Everything about scene i of a split follows from ``(world, split, i)``; splits can share no scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from zoo.data.base import Dataset, Transform
from zoo.data.things import THINGS, Part, Rng, hsv
from zoo.errors import ZooError
from zoo.structures import Class, Panoptic, Sample, Size, as_size

SKY, HILL, GRASS, ROAD = range(4)
LENGTHS = {"train": 2000, "val": 100, "test": 200}
_SPLITS = ("train", "val", "test")
_MIN_VISIBLE = 0.015
"""Share of the image below which a mostly hidden thing is left out: a speck would be scored like a thing."""


class Scenes(Dataset):
    """Drawn landscapes with 4 classes of stuff and 6 of things.

    Args:
        size: height and width of the images, or one number for both.
        length: how many scenes; by default 2000, 100 and 200 in train, val and test.
        world: another world has other scenes in every split. (`seed` is the transform's, as everywhere: runs with
            different seeds still see the same scenes.)
    """

    tasks = ("semantic", "instance", "panoptic")
    splits = _SPLITS
    table = (
        Class("sky", (135, 190, 235)),
        Class("hill", (110, 120, 150)),
        Class("grass", (90, 160, 60)),
        Class("road", (150, 140, 130)),
        Class("tree", (20, 100, 40), thing=True),
        Class("house", (190, 80, 60), thing=True),
        Class("ball", (250, 210, 50), thing=True),
        Class("tent", (60, 80, 200), thing=True),
        Class("rock", (90, 85, 85), thing=True),
        Class("balloon", (200, 60, 180), thing=True),
    )

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "semantic",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Mapping[str, str | Sequence[str]] | None = None,
        size: int | Size = 96,
        length: int | None = None,
        world: int = 0,
    ) -> None:
        self.size: Size = as_size(size, "scenes: size")
        if min(self.size) < 32:
            raise ZooError(f"scenes: size={size} is too small to show anything; use at least 32")
        self.length, self.world = length, world
        self.facts = f"scenes 1, {self.size[0]}x{self.size[1]}, world {world}"
        super().__init__(root, split, task, transform, seed, classes)

    def index(self) -> list[int]:
        return list(range(LENGTHS[self.split] if self.length is None else self.length))

    def name(self, i: int) -> str:
        return f"{self.split}-{i:05d}"

    def read(self, record: int) -> Sample:
        # Four numbers: with three, transforms would draw the same sequence as some scenes.
        rng = np.random.default_rng([self.world, _SPLITS.index(self.split), record, 1])
        image, ids, labels = draw_scene(rng, self.size)
        target = Panoptic(torch.from_numpy(ids), torch.from_numpy(labels))
        return Sample(image, target, record, self.size)


@dataclass(frozen=True)
class _Thing:
    """Parts drawn in order. Local (0, 0) is (x, y) in pixels, one local unit is `scale` pixels, y points up."""

    label: int
    x: float
    y: float
    scale: float
    parts: list[Part]
    shadow: float
    """Half width of the shadow in local units; 0 for none."""


def draw_scene(rng: Rng, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One landscape.

    Returns:
        image (H, W, 3) uint8; ids (H, W) int32 in 1..S; labels (S + 1,) int64, labels[0] = 255 for the unused id 0.
    """
    sun = float(rng.choice([-1.0, 1.0]))
    horizon = float(rng.uniform(0.3, 0.5)) * size[0]
    stuff = _ground_plan(rng, size, horizon)
    image = _paint_ground(rng, stuff, horizon)
    things = _place_things(rng, size, horizon, sun)
    covers = [_cover(thing, size) for thing in things]
    kept = _visible(covers, size)

    ids = stuff.astype(np.int32) + 1
    labels = [255, SKY, HILL, GRASS, ROAD]
    for k in kept:
        if things[k].shadow:
            _cast_shadow(image, things[k], sun)
        ids[_truth(covers[k], size)] = len(labels)
        labels.append(things[k].label)
        for part, (window, alpha) in zip(things[k].parts, covers[k], strict=True):
            _blend(image, things[k], part, window, alpha)
    return _expose(rng, image), *_compact(ids, np.array(labels, np.int64))


# ---- ground -----------------------------------------------------------------------------------------------------


def _ground_plan(rng: Rng, size: Size, horizon: float) -> np.ndarray:
    """(H, W) uint8 map of the stuff classes before any thing stands on it."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    plan = np.where(y < horizon, SKY, GRASS).astype(np.uint8)
    if rng.random() < 0.8:
        waves = sum(
            rng.uniform(0.3, 1.0) / k * np.sin(k * np.pi * x[0] / width * 2 + rng.uniform(0, 6.28)) for k in (1, 2, 3)
        )
        ridge = horizon - height * (rng.uniform(0.12, 0.18) + 0.045 * waves)
        plan[(y >= ridge) & (y < horizon)] = HILL
    if rng.random() < 0.8:
        depth = np.clip((y - horizon) / (height - horizon), 0, 1)
        centre = rng.uniform(0.2, 0.8) * (1 - depth) + rng.uniform(0.0, 1.0) * depth
        centre = centre + rng.uniform(-0.25, 0.25) * depth * (1 - depth) * 2
        half = 0.04 + rng.uniform(0.16, 0.28) * depth
        plan[(y >= horizon) & (np.abs(x / width - centre) < half)] = ROAD
    return plan


def _paint_ground(rng: Rng, plan: np.ndarray, horizon: float) -> np.ndarray:
    """(H, W, 3) float32 picture of the ground plan."""
    height, width = plan.shape
    unit = min(height, width) / 96
    y = np.arange(height, dtype=np.float32)[:, None]
    sky_hue, green = rng.uniform(0.5, 0.65), rng.uniform(0.2, 0.34)

    towards = np.clip(y / horizon, 0, 1)[..., None]
    sky = hsv(sky_hue, rng.uniform(0.3, 0.7), rng.uniform(0.7, 0.95)) * (1 - towards)
    sky = sky + hsv(rng.choice([sky_hue, 0.08]), rng.uniform(0.05, 0.3), 0.95) * towards
    clouds = np.clip(_noise(rng, plan.shape, 9 * unit, 20 * unit) * 1.2 - 0.2, 0, 1)[..., None]
    sky = sky + (0.97 - sky) * clouds * 0.8

    slope = _noise(rng, plan.shape, 12 * unit, 5 * unit)
    hill = hsv(rng.uniform(0.4, 0.75), rng.uniform(0.15, 0.4), rng.uniform(0.4, 0.65)) * (1 + 0.12 * slope[..., None])

    blades = 0.22 * _noise(rng, plan.shape, 3 * unit, 1 * unit) + 0.1 * _noise(rng, plan.shape, 14 * unit, 14 * unit)
    grass = hsv(green, rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.7)) * (1 + blades[..., None])

    grit = 0.08 * rng.standard_normal(plan.shape, dtype=np.float32) + 0.05 * _noise(
        rng, plan.shape, 2 * unit, 16 * unit
    )
    road = hsv(rng.uniform(0.04, 0.12), rng.uniform(0.15, 0.45), rng.uniform(0.5, 0.8)) * (1 + grit[..., None])

    image = np.zeros((height, width, 3), np.float32)
    for label, texture in ((SKY, sky), (HILL, hill), (GRASS, grass), (ROAD, road)):
        np.copyto(image, texture, where=(plan == label)[..., None])
    return image


def _noise(rng: Rng, shape: Size, cell_y: float, cell_x: float) -> np.ndarray:
    """Smooth noise (H, W) float32 of about unit spread with bumps of the given size in pixels."""
    rows, columns = int(shape[0] / cell_y) + 2, int(shape[1] / cell_x) + 2
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


# ---- things -----------------------------------------------------------------------------------------------------


def _place_things(rng: Rng, size: Size, horizon: float, sun: float) -> list[_Thing]:
    """Two to five things, far ones first. Ground things grow with nearness, balloons hang in the sky."""
    height, width = size
    ground = height - horizon
    things: list[_Thing] = []
    x = rng.uniform(0, width)
    for _ in range(rng.integers(2, 6)):
        label = int(rng.integers(len(Scenes.table) - len(THINGS), len(Scenes.table)))
        name = Scenes.table[label].name
        # A third of the things stand close to the one before, so that they overlap.
        x = x + rng.uniform(-0.2, 0.2) * width if rng.random() < 0.35 else rng.uniform(0.05, 0.95) * width
        if name == "balloon":
            y, nearness = rng.uniform(0.35, 0.9) * horizon + 0.06 * height, rng.uniform(0.6, 1.0)
        else:
            depth = rng.uniform(0.12, 0.97)
            y, nearness = horizon + depth * ground, 0.6 + 0.4 * depth
        half_height, build = THINGS[name]
        scale = half_height * rng.uniform(0.85, 1.15) * nearness * height
        parts, shadow = build(rng, sun)
        things.append(_Thing(label, float(x), float(y), float(scale), parts, shadow))
    return sorted(things, key=lambda thing: (Scenes.table[thing.label].name != "balloon", thing.y))


# ---- painting ---------------------------------------------------------------------------------------------------

_Window = tuple[slice, slice]
_Cover = list[tuple[_Window, np.ndarray]]


def _cover(thing: _Thing, size: Size) -> _Cover:
    """For each part the window it falls into and its anti-aliased coverage there, (h, w) uint8."""
    covers = []
    for part in thing.parts:
        points = part.outline * (thing.scale, -thing.scale) + (thing.x, thing.y)
        low = np.clip(np.floor(points.min(0)), 0, (size[1], size[0])).astype(int)
        high = np.clip(np.ceil(points.max(0)) + 1, 0, (size[1], size[0])).astype(int)
        alpha = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        if alpha.size:
            fixed = np.rint((points - low) * 16).astype(np.int32)
            cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, shift=4)
        covers.append(((slice(low[1], high[1]), slice(low[0], high[0])), alpha))
    return covers


def _truth(cover: _Cover, size: Size) -> np.ndarray:
    """(H, W) bool: pixels at least half covered."""
    mask = np.zeros(size, bool)
    for window, alpha in cover:
        mask[window] |= alpha >= 128
    return mask


def _visible(covers: list[_Cover], size: Size) -> list[int]:
    """The things that stay in sight once the nearer ones are drawn. Leaving one out only uncovers others."""
    hidden = np.zeros(size, bool)
    kept = []
    for k in reversed(range(len(covers))):
        mask = _truth(covers[k], size)
        seen = np.count_nonzero(mask & ~hidden)
        if seen >= max(_MIN_VISIBLE * mask.size, 0.3 * np.count_nonzero(mask)):
            kept.append(k)
            hidden |= mask
    return kept[::-1]


def _blend(image: np.ndarray, thing: _Thing, part: Part, window: _Window, alpha: np.ndarray) -> None:
    if not alpha.size:
        return
    y, x = np.mgrid[window].astype(np.float32)
    colours = part.paint((x - thing.x) / thing.scale, (thing.y - y) / thing.scale)
    weight = (alpha.astype(np.float32) / 255)[..., None]
    image[window] += weight * (colours - image[window])


def _cast_shadow(image: np.ndarray, thing: _Thing, sun: float) -> None:
    """Darken the ground on the side away from the sun; the truth knows no shadows."""
    half = thing.shadow * thing.scale
    dark = np.zeros(image.shape[:2], np.uint8)
    centre = (int(16 * (thing.x - sun * 0.6 * half)), int(16 * thing.y))
    cv2.ellipse(dark, centre, (int(16 * 1.3 * half), int(16 * 0.3 * half)), 0, 0, 360, 110, -1, cv2.LINE_AA, 4)
    image *= (1 - dark.astype(np.float32) / 255)[..., None]


def _expose(rng: Rng, image: np.ndarray) -> np.ndarray:
    """Light, haze, blur and sensor noise: the picture as a camera takes it, uint8."""
    size = image.shape[:2]
    light = rng.uniform(0.75, 1.15) * (1 + 0.1 * _noise(rng, size, size[0] / 2, size[1] / 2))
    image = image * light[..., None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    haze = np.float32(rng.uniform(0, 0.15))
    image = image * (1 - haze) + 0.75 * haze
    blur = rng.uniform(0.0, 0.6)
    if blur > 0.2:
        image = cv2.GaussianBlur(image, (3, 3), blur)
    image = image + np.float32(rng.uniform(0.005, 0.025)) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _compact(ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the segments that are in sight 1..S, without gaps."""
    present = np.bincount(ids.ravel(), minlength=len(labels)) > 0
    present[0] = True
    return (np.cumsum(present) - 1).astype(np.int32)[ids], labels[present]
