"""Pictures: what is right stays grey, each kind of error has its colour, any image can be shown."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.report import visualize
from zoo.report.visualize import WRONG, draw, panel, rgb, save_png
from zoo.structures import VOID, Class, Instances, Masks, Panoptic, Semantic, Target

TABLE = (Class("ground", (0, 200, 0)), Class("car", (200, 0, 0), thing=True), Class("dog", (0, 0, 200), thing=True))
SIZE = (40, 60)
GREY = np.full((*SIZE, 3), 128, np.uint8)
KINDS = list(WRONG)


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def kinds(truth: Target, prediction: Target) -> np.ndarray:
    """Names of the errors, "" where there is none."""
    segments = (visualize.as_segments(t, TABLE, 0.5) for t in (truth, prediction))
    return np.array([*KINDS, ""])[visualize.errors(*segments)]


def panoptic(labels: list[int], *masks: np.ndarray, crowd: list[bool] | None = None) -> Panoptic:
    ids = np.zeros(SIZE, np.int32)
    for i, mask in enumerate(masks, 1):
        ids[mask] = i
    return Panoptic(ids, [VOID, *labels], crowd=None if crowd is None else [False, *crowd])


def instances(labels: list[int], *masks: np.ndarray, **fields: object) -> Instances:
    return Instances(Masks.from_dense(np.stack(masks)), labels, **fields)  # type: ignore[arg-type]


def test_semantic_errors() -> None:
    truth, prediction = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    truth[:5] = VOID
    prediction[3:8] = 1
    prediction[20:22] = VOID
    expected = np.full(SIZE, "", dtype="<U12")
    expected[5:8] = "wrong class"
    expected[20:22] = "missed"
    assert np.array_equal(kinds(Semantic(truth), Semantic(prediction)), expected)


def test_panoptic_errors() -> None:
    """The left car is split in two halves, of which neither has an IoU above one half; the right one is found."""
    ground, left, right, crowd = box(0, 40, 0, 60), box(10, 20, 5, 25), box(10, 20, 35, 55), box(30, 40, 0, 10)
    truth = panoptic([0, 1, 1, 2], ground, left, right, crowd, crowd=[False, False, False, True])
    prediction = panoptic([0, 1, 1, 1], ground, box(10, 20, 5, 15), box(10, 20, 15, 25), box(10, 20, 36, 55))
    expected = np.full(SIZE, "", dtype="<U12")
    expected[left] = "wrong object"
    expected[10:20, 35] = "wrong class"
    assert np.array_equal(kinds(truth, prediction), expected)


def test_instance_errors() -> None:
    truth = instances([0, 0, 1], box(0, 10, 0, 10), box(20, 30, 0, 10), box(20, 30, 30, 40), crowd=[False, True, False])
    prediction = instances(
        [0, 1, 0, 1],
        box(0, 10, 1, 12),
        box(20, 30, 0, 10),
        box(20, 30, 30, 40),
        box(0, 40, 0, 60),
        scores=[1, 1, 1, 0.2],
    )
    expected = np.full(SIZE, "", dtype="<U12")
    expected[0:10, 0] = "missed"
    expected[0:10, 10:12] = "extra"
    expected[20:30, 30:40] = "wrong class"
    assert np.array_equal(kinds(truth, prediction), expected)


def all_three() -> list[Target]:
    whole = panoptic([0, 1, 2], box(0, 40, 0, 60), box(10, 20, 5, 25), box(10, 30, 30, 50))
    return [whole.semantic(), whole, whole.instances(TABLE)]


@pytest.mark.parametrize("target", all_three(), ids=lambda t: type(t).__name__)
def test_truth_against_itself_is_right_everywhere(target: Target) -> None:
    assert (kinds(target, target) == "").all()


@pytest.mark.parametrize("target", all_three(), ids=lambda t: type(t).__name__)
def test_draw_tints_with_the_class_and_leaves_the_rest(target: Target) -> None:
    table = TABLE[1:] if isinstance(target, Instances) else TABLE
    image = GREY.copy()
    drawn = draw(image, target, table)
    assert np.array_equal(image, GREY)
    assert drawn[15, 15].argmax() == 0  # the car is red
    assert drawn[15, 40].argmax() == 2  # the dog blue
    if isinstance(target, Instances):
        assert np.array_equal(drawn[35, 5], GREY[0, 0])
    else:
        assert drawn[35, 5].argmax() == 1
    if not isinstance(target, Semantic):
        assert (drawn[9, 5:25] == 255).all()  # outlined
    assert np.array_equal(draw(GREY, target, table, alpha=0)[35, 5], GREY[0, 0])


def test_two_things_of_a_class_have_two_shades() -> None:
    drawn = draw(GREY, instances([0, 0], box(5, 15, 5, 15), box(5, 15, 30, 40)), TABLE)
    assert not np.array_equal(drawn[10, 10], drawn[10, 35])


def test_draw_leaves_out_unsure_objects_and_the_surer_lies_on_top() -> None:
    target = instances([0, 1, 2], box(0, 40, 0, 60), box(0, 40, 0, 60), box(0, 40, 0, 60), scores=[0.9, 0.6, 0.1])
    assert draw(GREY, target, TABLE)[20, 20].argmax() == 1
    assert draw(GREY, target[[2]], TABLE, min_score=0)[20, 20].argmax() == 2
    assert np.array_equal(draw(GREY, target[[2]], TABLE), GREY)


def test_instances_without_masks_show_their_boxes() -> None:
    drawn = draw(GREY, Instances(None, [1], boxes=[[10, 5, 30, 25]], size=SIZE), TABLE)
    assert drawn[10, 20].argmax() == 0
    assert np.array_equal(drawn[30, 20], GREY[0, 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_image_can_be_shown(channels: int, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8)
    picture = rgb(pixels if dtype is np.uint8 else pixels.astype(np.float32) / 255)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, pixels[..., [0, 0, 0] if channels < 3 else [0, 1, 2]])


def test_float_images_outside_their_range_are_cut() -> None:
    assert rgb(np.array([[[-1.0], [2.0], [np.nan]]], np.float32))[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("target", all_three(), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_panel_has_four_tiles_a_heading_and_a_legend(target: Target, channels: int, tmp_path: Path) -> None:
    table = TABLE[1:] if isinstance(target, Instances) else TABLE
    image = np.full((*SIZE, channels), 128, np.uint8)
    picture = panel(image, target, target, table, title="one")
    tile = 40 * 4, 60 * 4  # enlarged by whole pixels to at least 240
    assert picture.shape[1] == 4 * tile[1] + 5 * visualize.GAP
    assert picture.shape[0] > tile[0] + 3 * visualize.LINE
    for name, color in WRONG.items():
        assert not (picture == color).all(-1).any(), name
    assert (picture == table[-1].color).all(-1).any()  # in the legend
    save_png(tmp_path / "new" / "one.png", picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "new" / "one.png"))[..., ::-1], picture)


def test_panel_colours_and_names_the_errors_that_occur() -> None:
    truth = Semantic(np.zeros(SIZE, np.uint8))
    picture = panel(GREY, truth, Semantic(np.full(SIZE, 1, np.uint8)), TABLE)
    assert (picture == WRONG["wrong class"]).all(-1).any()
    assert not (picture == WRONG["missed"]).all(-1).any()


def test_large_images_are_shrunk_and_long_legends_wrapped() -> None:
    labels = np.arange(40, dtype=np.uint8).repeat(40)[:, None].repeat(1200, 1)
    table = tuple(Class(f"a rather long name of class {i}", (i, 2 * i, 3 * i)) for i in range(40))
    picture = panel(np.zeros((1600, 1200, 3), np.uint8), Semantic(labels), Semantic(labels), table)
    assert picture.shape[1] == 4 * (1200 * 720 // 1600) + 5 * visualize.GAP
    assert picture.shape[0] > 720 + 5 * visualize.LINE


def test_names_in_other_letters_do_not_stop_it() -> None:
    panel(GREY, Semantic(np.zeros(SIZE)), Semantic(np.zeros(SIZE)), (Class("Straße", (1, 2, 3)),), title="木")


def test_predictions_on_a_device_and_empty_ones() -> None:
    nothing = Instances.empty(SIZE)
    assert np.array_equal(draw(GREY, nothing, TABLE), GREY)
    panel(GREY, nothing, nothing, TABLE)
    void = Panoptic(torch.zeros(SIZE, dtype=torch.int32), [VOID])
    assert (kinds(void, all_three()[1]) == "").all()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ZooError, match="image is 40x60 but what is drawn on it 2x3"):
        draw(GREY, Semantic(np.zeros((2, 3))), TABLE)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "one.png").mkdir()
    with pytest.raises(ZooError, match="could not be written"):
        save_png(tmp_path / "one.png", GREY)
