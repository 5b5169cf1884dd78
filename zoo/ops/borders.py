"""How near a pixel is to two objects at once: the weight map of U-Net's loss."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.structures import VOID

REACH = 5.0
"""In multiples of sigma: pixels whose second object is further away weigh exp(-REACH^2 / 2), 4e-6, at most: nothing."""


def border_weights(
    labels: NDArray[np.uint8], border: int = 0, w0: float = 10.0, sigma: float = 5.0
) -> NDArray[np.float32]:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on pixels of the class `border`, 0 elsewhere: (H,W) -> (H,W).

    d1 and d2 are the distances in pixels to the nearest and the second nearest object, measured between pixel centres;
    objects are 4-connected regions of what is neither `border` nor void (Ronneberger et al. 2015, equation 2, without
    the term that balances classes).
    """
    objects = ((labels != border) & (labels != VOID)).astype(np.uint8)
    count, ids, boxes, _ = cv2.connectedComponentsWithStats(objects, connectivity=4)
    nearest = np.full(labels.shape, np.inf, np.float32)
    second = nearest.copy()
    margin = math.ceil(REACH * sigma)
    for index in range(1, count):
        left, top, width, height = boxes[index, :4]
        window = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
        outside = (ids[window] != index).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(labels == border, weights, 0).astype(np.float32)
