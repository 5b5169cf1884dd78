"""Boundaries against iterated erosion of each class mask, and boundary IoU over a set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.metrics import SemanticMetric
from zoo.metrics.boundary import _inside, boundary_distance, boundary_labels
from zoo.structures import VOID, Semantic


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Erosion by 3x3, `times` over, everything beyond the image empty."""
    for _ in range(times):
        ring = np.pad(mask, 1)
        h, w = mask.shape
        mask = np.all([ring[y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=0)
    return mask


def boundary_of(labels: np.ndarray, label: int, distance: int) -> np.ndarray:
    mask = labels == label
    return mask & ~eroded(mask, distance)


def maps(seed: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros(size, np.uint8)
    for _ in range(8):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        out[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = rng.choice([0, 1, 2, 5, 254, VOID])
    return out


@pytest.mark.parametrize("distance", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("size", [(40, 61), (1, 9), (2, 2)])
def test_boundaries_equal_iterated_erosion(size: tuple[int, int], distance: int) -> None:
    labels = maps(distance, size)
    drawn = boundary_labels(torch.from_numpy(labels), distance).numpy()
    for label in (0, 1, 2, 5, 254):
        assert ((drawn == label) == boundary_of(labels, label, distance)).all()
    inside = _inside(torch.from_numpy(labels), distance).numpy()  # what other devices do
    assert (np.where(inside, VOID, labels) == drawn).all()


def test_distance_is_a_share_of_the_diagonal() -> None:
    assert boundary_distance((480, 640)) == 16
    assert boundary_distance((5, 5)) == 1
    assert boundary_distance((3, 4), ratio=0.5) == 2  # 2.5 and 3.5 round to even
    assert boundary_distance((3, 4), ratio=0.7) == 4
    with pytest.raises(ZooError, match="at least 1 pixel"):
        boundary_labels(torch.zeros(3, 3, dtype=torch.uint8), 0)


def test_boundary_iou_accumulates_over_the_set_without_void() -> None:
    truths = [maps(seed, (40, 60)) for seed in (1, 2, 3)]
    truths = [np.where(t == 254, 1, t).astype(np.uint8) for t in truths]
    predictions = [np.where(t == VOID, 0, np.roll(t, 3, axis=1)).astype(np.uint8) for t in truths]
    metric = SemanticMetric(6, boundary=0.05)
    metric.update([Semantic(p) for p in predictions], [Semantic(t) for t in truths])
    values = metric.compute()
    distance = boundary_distance((40, 60), 0.05)
    scores = []
    for label in range(6):
        both = either = 0
        for p, t in zip(predictions, truths, strict=True):
            mine = boundary_of(np.where(t == VOID, VOID, p), label, distance)
            true = boundary_of(t, label, distance)
            both, either = both + (mine & true).sum(), either + (mine | true).sum()
        scores.append(both / either if either else np.nan)
        assert values[f"boundary_IoU/class_{label}"] == pytest.approx(scores[-1], rel=1e-15, nan_ok=True)
    assert values["boundary_IoU"] == pytest.approx(np.nanmean(scores), rel=1e-14)
    assert 0 < values["boundary_IoU"] < values["mIoU"] < 1
