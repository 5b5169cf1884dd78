"""The picture of what leads to a mask."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from zoo.devices import create_fabric
from zoo.errors import ZooError
from zoo.models import create_model
from zoo.predict import predict_input
from zoo.report.explain import directions, draw_explanation, heat
from zoo.structures import Batch

NARROW: dict[str, Any] = {"crop_size": 21, "refine_channels": 8, "anchor_sizes": (16, 32, 64), "detections": 3}


def masklab(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("masklab", ["cat", "dog"], "test_resnet", test_proposals=8, **{**NARROW, **options})


def test_colours_of_logits() -> None:
    blue, white, red = heat(torch.tensor([[-20.0, 0.0, 20.0]]))[0].tolist()
    assert white == [255, 255, 255]
    assert blue[2] > 180 > blue[0]
    assert red[0] > 180 > red[2]


def test_hues_are_directions_and_doubt_is_white() -> None:
    """Each of four directions by itself gives its own hue; all alike give none."""
    logits = torch.full((4, 3, 1, 5), -20.0)
    logits[:, 2] = 20.0  # a ring that is everywhere, in all directions
    for sector in range(4):
        logits[sector, sector % 2, 0, sector] = 20.0
    logits[:, 0, 0, 4] = 20.0
    hsv = cv2.cvtColor(directions(logits), cv2.COLOR_RGB2HSV)[0]
    for sector in range(4):
        assert abs(int(hsv[sector, 0]) - (45 + 90 * sector) / 2) <= 2  # OpenCV counts 180 to the turn
        assert hsv[sector, 1] > 250
    assert hsv[4, 1] < 5


def test_the_explained_object_is_the_best_prediction() -> None:
    model = masklab().train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 72, 72)]
    batch = Batch.of(images)
    batch.original_sizes = [(64, 96), (36, 36)]
    predictions, found = model.predict(batch), model.explain(batch)
    assert model.training
    for prediction, own, size in zip(predictions, found, batch.original_sizes, strict=True):
        assert (own.label, own.score) == (
            int(prediction.labels[0]),
            pytest.approx(float(prediction.scores[0]), rel=1e-4),
        )
        torch.testing.assert_close(own.box, prediction.boxes[0], rtol=1e-4, atol=1e-3)
        grid = prediction.masks._rois.probabilities[0]
        torch.testing.assert_close(own.masks[-1].sigmoid(), grid, rtol=1e-4, atol=1e-4)
        assert own.semantic.shape == size
        assert own.direction.shape == (8, 4, *size)
        fused = own.read[0] / 2 + own.read[1]
        torch.testing.assert_close(own.masks[0], fused)


@pytest.mark.parametrize("options", [{}, {"logits": "semantic"}, {"logits": "direction", "refine_levels": []}])
def test_pictures_have_what_the_model_has(options: dict[str, Any]) -> None:
    model = masklab(**options)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    (found,) = model.explain(Batch.of([pixels]))
    picture = draw_explanation(pixels, found, model.classes)
    tiles = 1 + (found.semantic is not None) + 2 * (found.direction is not None) + len(found.masks)
    assert tiles == {None: 6, "semantic": 4, "direction": 4}[options.get("logits")]
    assert picture.dtype == np.uint8
    width = 90 * math.ceil(240 / 90)
    assert abs(picture.shape[1] - tiles * width) < 7 * (tiles + 1)


def test_predict_writes_it_and_others_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels)
    out = tmp_path / "out"
    out.mkdir()
    predict_input(masklab(), tmp_path / "a.png", out, create_fabric("cpu"), explain=True)
    assert {path.name for path in out.iterdir()} == {"a_labels.png", "a_overlay.png", "a_explain.png"}
    other = create_model("fcn", 2, "test_resnet")
    with pytest.raises(ZooError, match="explain=true: fcn has nothing to show"):
        predict_input(other, tmp_path / "a.png", out, create_fabric("cpu"), explain=True)
