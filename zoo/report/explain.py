"""The picture that explains a mask, as the figures of MaskLab's paper: what the pixels are, where they point, the mask.

Logits are coloured by their probability: blue is less than a half, white a half, red more. Directions are hues, with
the wheel in the corner: a pixel whose hue is that of the wheel's right lies right of the centre it belongs to; where
directions contradict each other it is white.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.models.masklab import Explanation
from zoo.report.visualize import PAPER, Picture, rgb, side_by_side
from zoo.structures import Class

LOW, HIGH = np.array([40, 90, 200], np.float32), np.array([205, 40, 45], np.float32)
SMALLEST, LARGEST = 240, 720  # pixels of a tile's longer side


def draw_explanation(image: NDArray[Any], found: Explanation, classes: Sequence[Class]) -> Picture:
    """Image with the object's box | semantic logits of its class | directions | in the box: pooled, coarse, refined.

    `image` (H,W,C), uint8 or float in [0, 1] -> (H',W',3) uint8. What the model does not have is left out.
    """
    picture = rgb(image)
    longer = max(picture.shape[:2])
    factor = max(1, -(-SMALLEST // longer)) if longer < SMALLEST else min(1.0, LARGEST / longer)
    size = [round(side * factor) for side in picture.shape[:2]]
    x0, y0, x1, y1 = (round(float(v) * factor) for v in found.box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)

    def fitted(whole: Picture) -> Picture:
        return np.asarray(cv2.resize(whole, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

    def boxed(logits: Tensor) -> Picture:
        tile = np.full((*size, 3), PAPER, np.uint8)
        patch = cv2.resize(heat(logits), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        inside = tile[max(y0, 0) : y1, max(x0, 0) : x1]
        inside[...] = patch[max(-y0, 0) :, max(-x0, 0) :][: inside.shape[0], : inside.shape[1]]
        return tile

    tiles = {"image": fitted(picture)}
    if found.semantic is not None:
        tiles["semantic logits"] = fitted(heat(found.semantic))
    if found.direction is not None:
        tiles["direction"] = fitted(directions(found.direction))
        _wheel(tiles["direction"])
        tiles["direction, pooled"] = boxed(found.read[-1])
    for name, logits in zip(("coarse mask", "refined mask"), found.masks, strict=False):
        tiles[name] = boxed(logits)
    for tile in tiles.values():
        cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), (20, 20, 20), 1)
    return side_by_side(tiles, f"{classes[found.label].name} {found.score:.2f}")


def heat(logits: Tensor) -> Picture:
    """Logits (H, W) as colours (H,W,3): blue, at 0 white, red."""
    share = logits.float().sigmoid().cpu().numpy()[..., None] * 2 - 1
    end = np.where(share < 0, LOW, HIGH)
    return np.rint(255 + (end - 255) * np.abs(share)).astype(np.uint8)


def directions(logits: Tensor) -> Picture:
    """Direction logits (directions, bins, H, W) as colours (H,W,3): the hue of their mean direction, whitened by doubt.

    Each direction counts with the largest probability among its rings, beyond what all directions of a ring share: near
    a centre all are likely. White is where none is likelier than the others, or opposite ones are.
    """
    shares = logits.float().sigmoid().cpu()
    weights = (shares - shares.amin(0)).amax(1)
    angles = (torch.arange(len(weights)) + 0.5) * (2 * torch.pi / len(weights))
    right, up = (torch.einsum("ahw,a->hw", weights, side) for side in (angles.cos(), angles.sin()))
    strength = torch.hypot(right, up) / weights.sum(0).clamp(min=1)
    return _hues(torch.atan2(up, right).numpy(), strength.numpy())


def _hues(angles: NDArray[Any], strength: NDArray[Any]) -> Picture:
    hue = np.rint(angles % (2 * np.pi) / (2 * np.pi) * 180) % 180
    hsv = np.stack([hue, 255 * strength, np.full_like(hue, 235)], -1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


def _wheel(tile: Picture) -> None:
    """The hues of all directions in the lower right corner, in place."""
    side = max(15, min(tile.shape[:2]) // 6)
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(steps, steps, indexing="ij")
    inside = np.hypot(x, y) <= 1
    corner = tile[-side:, -side:]
    corner[inside] = _hues(np.arctan2(-y, x), np.ones_like(x))[inside]
