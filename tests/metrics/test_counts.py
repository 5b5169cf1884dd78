"""All ways of counting label pairs against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.metrics import counts
from zoo.metrics.counts import pair_counts
from zoo.structures import VOID


def naive(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixel by pixel."""
    out = np.zeros((classes + 2, classes + 1), np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        row = t if t < classes else classes if t == VOID else classes + 1
        out[row, min(p, classes)] += 1
    return out


@pytest.mark.parametrize("classes", [1, 100, 255])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 57)])
@pytest.mark.parametrize("run", [1, 3, 20])
def test_counts_equal_the_definition(size: tuple[int, int], run: int, classes: int) -> None:
    rng = np.random.default_rng(run)
    labels = np.array([0, 1, 2, 99, 100, 101, 254, VOID], np.uint8)
    small = rng.choice(labels, (2, size[0], -(-size[1] // run)))
    truth, prediction = np.repeat(small, run, axis=2)[:, :, : size[1]]
    expected = naive(truth, prediction, classes)
    tensors = torch.from_numpy(truth.copy()), torch.from_numpy(prediction.copy())
    assert (pair_counts(*tensors, classes) == expected).all()
    assert (counts._runs(truth.ravel(), prediction.ravel(), np.arange(truth.size), classes) == expected).all()
    assert (counts._fold(counts._histogram(truth.ravel(), prediction.ravel()), classes) == expected).all()
    assert (counts._fold(counts._table(*tensors), classes) == expected).all()  # what other devices do


def test_views_are_counted_right() -> None:
    whole = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (2, 40, 60), dtype=np.uint8))
    truth, prediction = whole[:, 5:30, 7:50]
    expected = naive(truth.numpy(), prediction.numpy(), 9)
    assert (pair_counts(truth, prediction, 9) == expected).all()
    assert (pair_counts(truth.T, prediction.T, 9) == expected).all()


def test_nothing_to_count() -> None:
    empty = torch.empty(0, 5, dtype=torch.uint8)
    assert pair_counts(empty, empty, 3).tolist() == [[0] * 4] * 5


def test_one_pair_more_often_than_float32_can_tell() -> None:
    many = 2**24 + 3
    ones = np.ones(many, np.uint8)
    assert int(counts._histogram(ones, ones)[1, 1]) == many
