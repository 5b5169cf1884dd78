"""U-Net's weight map: two squares by hand, and any labels against the definition, object by object."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zoo.ops.borders import border_weights
from zoo.structures import VOID


def test_the_gap_between_two_squares() -> None:
    """Three pixels wide: the distances to the two are 1 and 3, 2 and 2, 3 and 1."""
    labels = np.zeros((9, 15), np.uint8)
    labels[2:7, 1:6] = 1
    labels[2:7, 9:14] = 1
    weights = border_weights(labels, w0=10, sigma=5)
    np.testing.assert_allclose(weights[4, 6:9], 10 * np.exp(-(4**2) / 50), rtol=1e-6)
    assert weights[4, 0] == pytest.approx(10 * np.exp(-((1 + 9) ** 2) / 50), rel=1e-6)
    assert weights[0, 0] == pytest.approx(10 * np.exp(-((5**0.5 + 85**0.5) ** 2) / 50), rel=1e-6)
    assert not weights[labels == 1].any()


@pytest.mark.parametrize(("border", "sigma"), [(0, 5.0), (0, 1.0), (2, 2.0)])
def test_equals_the_definition(border: int, sigma: float) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((70, 90)), 3)
    low, high = np.quantile(noise, [0.7, 0.9])
    objects = [k for k in (0, 1, 2) if k != border]  # two classes, which touch and are one object
    labels = np.select([noise < low, noise < high], [border, objects[0]], objects[1]).astype(np.uint8)
    labels[:4] = VOID
    ids, count = ndimage.label((labels != border) & (labels != VOID))
    assert count > 4
    distances = np.sort([ndimage.distance_transform_edt(ids != k) for k in range(1, count + 1)], axis=0)
    expected = 10 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)) * (labels == border)
    np.testing.assert_allclose(border_weights(labels, border, 10, sigma), expected, atol=1e-4)
    assert expected.max() > 0.1


def test_one_object_or_none_has_no_borders() -> None:
    labels = np.zeros((8, 8), np.uint8)
    assert not border_weights(labels).any()
    labels[2:4, 2:4] = 1
    assert not border_weights(labels).any()
