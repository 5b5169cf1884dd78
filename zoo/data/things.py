"""The things that stand in drawn scenes: each a function from random numbers to painted outlines.

Local coordinates: a thing stands on (0, 0), x to the right and y up, and is about two units wide. `sun` is -1 or 1: the
side the light comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Local coordinates x, y (h, w) -> colours (h, w, 3) in [0, 1]."""


@dataclass(frozen=True)
class Part:
    """One painted outline of a thing: polygon (n, 2) of (x, y) in local coordinates."""

    outline: np.ndarray
    paint: Paint


Built = tuple[list[Part], float]
"""Parts in the order they are drawn in, and the half width of the shadow (0 for none)."""


def tree(rng: Rng, sun: float) -> Built:
    """A trunk under three round clumps of mottled green."""
    bark = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.25, 0.5))
    leaf = hsv(rng.uniform(0.28, 0.45), rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.5))
    phase = rng.uniform(0, 6.28, 4)

    def trunk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return bark * (1 + 0.25 * np.sin(40 * x + phase[0]))[..., None]

    def crown(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bumps = np.sin(11 * x + phase[1] + 2 * np.sin(6 * y)) * np.sin(12 * y + phase[2] + 2 * np.sin(5 * x))
        return leaf * (1 + 0.3 * bumps + 0.25 * sun * x + 0.2 * (y - 1.2))[..., None]

    lean = rng.uniform(-0.1, 0.1)
    parts = [Part(np.array([(-0.14, 0), (0.14, 0), (0.1 + lean, 1), (-0.1 + lean, 1)]), trunk)]
    for centre_x, centre_y in ((-0.35, 1.05), (0.35, 1.1), (0.0, 1.5)):
        shift = rng.uniform(-0.08, 0.08, 2)
        radii = rng.uniform(0.48, 0.6), rng.uniform(0.45, 0.55)
        parts.append(Part(disk(*radii, centre_x + lean + shift[0], centre_y + shift[1]), crown))
    return parts, 0.8


def house(rng: Rng, sun: float) -> Built:
    """Plank walls, a tiled roof, a door and a window."""
    plaster = hsv(rng.uniform(-0.05, 0.15), rng.uniform(0.1, 0.45), rng.uniform(0.65, 0.95))
    tiles = hsv(rng.uniform(-0.04, 0.06), rng.uniform(0.5, 0.85), rng.uniform(0.35, 0.65))
    dark = hsv(0.6, 0.3, rng.uniform(0.15, 0.3))
    half, wall, roof = rng.uniform(0.75, 1.05), rng.uniform(0.8, 1.0), rng.uniform(1.4, 1.7)

    def planks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return plaster * (1 - 0.3 * (y * 7 % 1.0 < 0.28) + 0.08 * sun * x)[..., None]

    def tiling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return tiles * (1 + 0.25 * np.sin(22 * x) * np.sign(np.sin(16 * y)))[..., None]

    def glass(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(dark, (*x.shape, 3))

    eaves, ridge = half + 0.15, rng.uniform(0.0, 0.5) * half
    return [
        Part(np.array([(-half, 0), (half, 0), (half, wall), (-half, wall)]), planks),
        Part(np.array([(-eaves, wall), (eaves, wall), (ridge, roof), (-ridge, roof)]), tiling),
        Part(box(-0.5 * half, 0.0, 0.16, 0.5), glass),
        Part(box(0.4 * half, 0.35, 0.18, 0.3), glass),
    ], half


def ball(rng: Rng, sun: float) -> Built:
    """A beach ball of six sectors."""
    hue, turn = rng.uniform(0.05, 0.2), rng.uniform(0, 6.28)
    first = hsv(hue, rng.uniform(0.6, 0.95), rng.uniform(0.7, 0.95))
    second = hsv(hue + rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.7), rng.uniform(0.6, 0.95))

    def sectors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return alternate(first, second, np.sin(3 * np.arctan2(y - 0.95, x) + turn)) * sphere(x, y - 1, sun)

    return [Part(disk(1.0, 1.0, 0.0, 0.97), sectors)], 0.9


def tent(rng: Rng, sun: float) -> Built:
    """Panels that meet at the top, and a dark opening."""
    hue, top, stripes = rng.uniform(0.45, 0.8), rng.uniform(1.5, 1.9), rng.uniform(8, 12)
    first = hsv(hue, rng.uniform(0.4, 0.9), rng.uniform(0.5, 0.95))
    second = hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.0, 0.3), rng.uniform(0.6, 0.95))

    def panels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return alternate(first, second, np.sin(stripes * x / (top + 0.25 - y))) * (0.95 + 0.1 * sun * x)[..., None]

    def opening(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(first * 0.3, (*x.shape, 3))

    lean = rng.uniform(-0.25, 0.25)
    return [
        Part(np.array([(-1.1, 0), (1.1, 0), (lean + 0.06, top), (lean - 0.06, top)]), panels),
        Part(np.array([(-0.25, 0), (0.25, 0), (lean * 0.4, top * 0.5)]), opening),
    ], 1.1


def rock(rng: Rng, sun: float) -> Built:
    """A grey boulder with flat facets."""
    stone = hsv(rng.uniform(0.5, 0.75), rng.uniform(0.0, 0.2), rng.uniform(0.4, 0.7))
    angles = np.linspace(0, np.pi, 9)
    radius = rng.uniform(0.8, 1.15, 9)
    outline = np.stack([1.2 * radius * np.cos(angles), 1.1 * radius * np.sin(angles)], axis=1)
    lines = rng.uniform(-0.6, 0.6, (3, 3))

    def facets(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shade = sum(0.13 * np.sign(x + a * 3 * (y - 0.5) + b) for a, b, _ in lines)
        grain = 0.1 * np.sin(23 * x + 9 * np.sin(7 * y)) * np.sin(19 * y + 8 * np.sin(6 * x))
        return stone * (1 + shade + grain + 0.2 * (y - 0.5) + 0.15 * sun * x)[..., None]

    return [Part(outline, facets)], 1.2


def balloon(rng: Rng, sun: float) -> Built:
    """A balloon of vertical gores over its basket; it casts no shadow."""
    hue = rng.uniform(0.75, 1.05)
    first = hsv(hue, rng.uniform(0.5, 0.9), rng.uniform(0.55, 0.95))
    second = hsv(hue + rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.8), rng.uniform(0.6, 0.95))
    wicker = hsv(0.08, rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.5))
    gores = rng.uniform(4, 6)

    def silk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        girth = np.sqrt(np.clip(1 - ((y - 1.4) / 1.15) ** 2, 0.05, 1))
        return alternate(first, second, np.cos(gores * np.arcsin(np.clip(x / girth, -1, 1)))) * sphere(x, y - 1.4, sun)

    def weave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return wicker * (1 + 0.3 * np.sin(40 * y))[..., None]

    envelope = disk(1.0, 1.12, 0.0, 1.4)
    envelope[:, 0] *= np.minimum(1, 1 + 0.4 * (envelope[:, 1] - 1.4))  # narrow towards the basket
    return [Part(box(0.0, 0.0, 0.24, 0.42), weave), Part(envelope, silk)], 0.0


THINGS: dict[str, tuple[float, Callable[[Rng, float], Built]]] = {
    "tree": (0.3, tree),
    "house": (0.26, house),
    "ball": (0.2, ball),
    "tent": (0.27, tent),
    "rock": (0.25, rock),
    "balloon": (0.19, balloon),
}
"""Pixels of one local unit, as a share of the image's height, for a thing in the foreground; and what builds it."""


# ---- colours and outlines ------------------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB; the hue is in turns and wraps."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return (value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)).astype(np.float32)


def alternate(first: np.ndarray, second: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Two colours by the sign of a wave, (h, w, 3)."""
    return np.where((wave > 0)[..., None], first, second)


def sphere(x: np.ndarray, y: np.ndarray, sun: float) -> np.ndarray:
    """The shading of a sphere, (h, w, 1)."""
    return (0.9 + 0.2 * sun * x + 0.2 * y - 0.15 * (x * x + y * y))[..., None]


def disk(half_width: float, half_height: float, x: float, y: float) -> np.ndarray:
    """An ellipse around (x, y) as a polygon (32, 2)."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1)


def box(x: float, y: float, half_width: float, height: float) -> np.ndarray:
    """A rectangle standing on (x, y), as a polygon (4, 2)."""
    left, right, top = x - half_width, x + half_width, y + height
    return np.array([(left, y), (right, y), (right, top), (left, top)])
