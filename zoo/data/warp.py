"""One mapping from a new image back to its source, for pixels, labels, boxes and points alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.structures import Size

Array = NDArray[Any]
SMOOTH_BELOW = 0.5
"""An image that shrinks further than this is averaged over areas first: bilinear samples would miss pixels."""


@dataclass(frozen=True)
class Warp:
    """A mapping from the pixels of a new image to places in the source.

    Attributes:
        matrix: (3, 3), takes (x, y, 1) of a new pixel to the source; the centre of the first pixel is (0, 0).
        size: (H, W) of the new image.
        bend: (H, W, 2) float32, added to the place in the source, or None.
        scale: the factor by which the source grows.
        mirrored: left and right have changed places.
    """

    matrix: Array
    size: Size
    bend: Array | None = None
    scale: float = 1.0
    mirrored: bool = False

    def image(self, image: Array) -> Array:
        """(h, w, C) -> (H, W, C), bilinear; the mean colour beyond the edge."""
        groups = [image[..., k : k + 4] for k in range(0, image.shape[2], 4)]  # OpenCV fills four channels at most
        warped = [self._smoothed(group, group[::4, ::4].mean((0, 1)).tolist()) for group in groups]
        planes = [part.reshape(*self.size, -1) for part in warped]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def labels(self, labels: Array, fill: int) -> Array:
        """(h, w) uint8 or float32 holding integers -> (H, W), nearest neighbour; `fill` beyond the edge."""
        return self._sample(labels, cv2.INTER_NEAREST, [fill])

    def reach(self, source: Size) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1: what of a source of this size can be seen in the new image."""
        right, bottom = self.size[1] - 1, self.size[0] - 1
        corners = np.array([(0, 0, 1), (right, 0, 1), (0, bottom, 1), (right, bottom, 1)]) @ self.matrix[:2].T
        low, high = corners.min(0), corners.max(0)
        if self.bend is not None:
            low, high = low + self.bend.min((0, 1)), high + self.bend.max((0, 1))
        (x0, y0), (x1, y1) = (np.floor(low) - 1).clip(0).astype(int), (np.ceil(high) + 2).clip(0).astype(int)
        return int(x0), int(y0), min(int(x1), source[1]), min(int(y1), source[0])

    def points(self, points: Array) -> Array:
        """(..., 2) x, y of the source, the centre of its first pixel (0, 0) -> the same of the new image. No bend."""
        inverse = np.linalg.inv(self.matrix)
        moved: Array = points @ inverse[:2, :2].T + inverse[:2, 2]
        return moved

    def boxes(self, boxes: Array) -> Array:
        """(N, 4) -> (N, 4): the upright boxes around the moved ones, cut to the new image. No bend."""
        corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - 0.5  # from edges of pixels to centres
        moved = self.points(corners) + 0.5
        around = np.concatenate([moved.min(1), moved.max(1)], 1)
        return around.clip(0, [self.size[1], self.size[0]] * 2)

    def _smoothed(self, image: Array, fill: list[float]) -> Array:
        if self.scale >= SMOOTH_BELOW:
            return self._sample(image, cv2.INTER_LINEAR, fill)
        height, width = image.shape[:2]
        small = max(1, int(width * self.scale + 0.5)), max(1, int(height * self.scale + 0.5))
        x, y = small[0] / width, small[1] / height
        matrix = np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]]) @ self.matrix
        bend = None if self.bend is None else self.bend * np.array([x, y], np.float32)
        shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA).reshape(small[1], small[0], -1)
        return Warp(matrix, self.size, bend)._sample(shrunk, cv2.INTER_LINEAR, fill)

    def _sample(self, source: Array, how: int, fill: list[float]) -> Array:
        height, width = self.size
        if self.bend is None:
            flags = how | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(source, self.matrix[:2], (width, height), flags=flags, borderValue=fill)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        (xx, xy, x0), (yx, yy, y0) = self.matrix[:2].astype(np.float32)
        from_x, from_y = xx * x + xy * y + x0 + self.bend[..., 0], yx * x + yy * y + y0 + self.bend[..., 1]
        return cv2.remap(source, from_x, from_y, how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)


def shift(x: float, y: float) -> Array:
    """(3, 3): moves by x and y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def rotation(angle: float) -> Array:
    """(3, 3): turns by `angle` in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
