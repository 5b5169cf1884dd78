"""All ways of counting label pairs against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.metrics import counts
from zoo.metrics.counts import LABELS, Pairs, count_pairs


def table(pairs: Pairs) -> np.ndarray:
    out = np.zeros((LABELS, LABELS), np.int64)
    np.add.at(out, (pairs.truth, pairs.prediction), pairs.pixels)
    return out


def naive(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    out = np.zeros((LABELS, LABELS), np.int64)
    np.add.at(out, (truth.ravel(), prediction.ravel()), 1)
    return out


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 57)])
@pytest.mark.parametrize("run", [1, 3, 5, 20])
def test_counts_equal_the_definition(size: tuple[int, int], run: int) -> None:
    rng = np.random.default_rng(run)
    small = rng.integers(0, LABELS, (2, size[0], -(-size[1] // run)), dtype=np.uint8)
    truth, prediction = np.repeat(small, run, axis=2)[:, :, : size[1]]
    expected = naive(truth, prediction)
    tensors = torch.from_numpy(truth.copy()), torch.from_numpy(prediction.copy())
    assert (table(count_pairs(*tensors)) == expected).all()
    assert (counts._histogram(truth.ravel(), prediction.ravel()) == expected).all()
    assert (counts._table(*tensors) == expected).all()  # what other devices do


def test_views_are_counted_right() -> None:
    whole = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (2, 40, 60), dtype=np.uint8))
    truth, prediction = whole[:, 5:30, 7:50]
    assert (table(count_pairs(truth, prediction)) == naive(truth.numpy(), prediction.numpy())).all()
    assert (table(count_pairs(truth.T, prediction.T)) == naive(truth.numpy(), prediction.numpy())).all()


def test_nothing_to_count() -> None:
    empty = torch.empty(0, 5, dtype=torch.uint8)
    assert count_pairs(empty, empty).pixels.sum() == 0


def test_one_pair_more_often_than_float32_can_tell() -> None:
    many = 2**24 + 3
    ones = np.ones(many, np.uint8)
    assert counts._histogram(ones, ones)[1, 1] == many
