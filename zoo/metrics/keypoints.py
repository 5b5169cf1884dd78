"""Object keypoint similarity (OKS) and its extents, as the COCO API computes them.

A predicted pose and a true one are as similar as their keypoints are near, on a scale that grows with the object's
area and the keypoint's own spread sigma (people agree on an eye to a few pixels, on a hip hardly):

    OKS = mean over the labelled keypoints i of exp(-d_i^2 / (2 area (2 sigma_i)^2))

Lin et al., https://cocodataset.org/#keypoints-eval; pycocotools/cocoeval.py. A truth without a labelled keypoint is
ignored; predictions are near it as far as they lie within twice its box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.metrics.overlaps import Bools, Floats, Pairs, above_zero

COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
    0.089, 0.089,
)  # fmt: skip
"""Of COCO's 17 keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""


def labelled(keypoints: Floats) -> Bools:
    """The objects (N,) of which keypoints (N,P,3) any is labelled, visible or not."""
    return np.any(keypoints[:, :, 2] > 0, axis=1)


def extents(keypoints: Floats) -> Floats:
    """The area (N,) of the box around all keypoints (N,P,3), which stands for a detection's area."""
    sides = keypoints[:, :, :2].max(1) - keypoints[:, :, :2].min(1)
    return sides[:, 0] * sides[:, 1]


def similarities(
    detected: Floats, true: Floats, boxes: Floats, areas: Floats, sigmas: Sequence[float], wanted: Bools
) -> Pairs:
    """OKS of the pairs `wanted` (D, G) of detections (D,P,3) and truths (G,P,3), with the truths' boxes and areas."""
    spread = (2 * np.asarray(sigmas)) ** 2
    table = np.zeros(wanted.shape)
    for g in np.flatnonzero(wanted.any(0)).tolist():
        d = np.flatnonzero(wanted[:, g])
        seen = true[g, :, 2] > 0
        if seen.any():
            x, y = np.moveaxis(detected[d, :, :2] - true[g, :, :2], -1, 0)
        else:
            x, y = _beyond(detected[d, :, :2], boxes[g])
            seen = np.ones_like(seen)
        far = (x**2 + y**2) / spread / (areas[g] + np.spacing(1)) / 2
        table[d, g] = np.exp(-far[:, seen]).sum(1) / seen.sum()
    return above_zero(table)


def _beyond(points: Floats, box: Floats) -> tuple[Floats, Floats]:
    """How far points (D,P,2) lie outside a box (4,) that has grown by its width and height on every side."""
    sides = box[2:] - box[:2]
    low, high = box[:2] - sides, box[:2] + 2 * sides
    x, y = np.moveaxis(np.maximum(0, low - points) + np.maximum(0, points - high), -1, 0)
    return x, y
