"""Augmentation: image and truth move together, segments that leave are dropped, the generator decides everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from zoo.data import transforms
from zoo.data.layers import disjoint_layers
from zoo.data.transforms import TrainTransform
from zoo.errors import ZooError
from zoo.structures import VOID, Instances, Masks, Panoptic, Sample, Semantic, Target

H, W = 48, 64
GEOMETRIES = {
    "crop": {"crop": 32, "scale": (1, 1), "flip": 0},
    "flip": {"crop": None, "scale": (1, 1), "flip": 1},
    "scale": {"crop": (40, 56), "scale": (0.5, 2.0), "flip": 0.5},
    "whole": {"crop": None, "scale": (0.7, 1.6), "flip": 0.5},
    "rotate": {"crop": 40, "scale": (0.8, 1.5), "rotate": 30},
    "elastic": {"crop": 40, "scale": (1, 1.5), "rotate": 10, "elastic": 3},
}


def coordinates(height: int = H, width: int = W) -> np.ndarray:
    """(H, W, 2) float32 image whose pixels say where they are: x / 256, y / 256."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x / 256, y / 256], axis=-1)


def blocks(height: int = H, width: int = W, step: int = 8) -> np.ndarray:
    """(H, W) ids 1.. of a chessboard of squares."""
    y, x = np.mgrid[0:height, 0:width]
    return (y // step * (width // step) + x // step + 1).astype(np.int32)


def sample(target: Target, image: np.ndarray | None = None) -> Sample:
    image = coordinates() if image is None else image
    return Sample(image, target, 0, (image.shape[0], image.shape[1]))


def semantic_truth() -> Semantic:
    return Semantic(torch.from_numpy(blocks().astype(np.uint8)))


def panoptic_truth() -> Panoptic:
    ids = torch.from_numpy(blocks())
    return Panoptic(ids, torch.cat([torch.tensor([VOID]), torch.arange(1, int(ids.max()) + 1)]))


def instance_truth() -> Instances:
    ids = torch.from_numpy(blocks())
    labels = torch.arange(1, int(ids.max()) + 1)
    return Instances(Masks.from_dense(ids[None] == labels[:, None, None]), labels)


def label_map(target: Target) -> np.ndarray:
    """(H, W) the number of the block each pixel of the truth is from, 0 for none."""
    if isinstance(target, Semantic):
        return np.where(target.labels.numpy() == VOID, 0, target.labels.numpy())
    if isinstance(target, Panoptic):
        return np.where(target.ids.numpy() == 0, 0, target.labels.numpy()[target.ids.numpy()])
    assert target.masks is not None
    return (target.masks.dense() * target.labels[:, None, None]).sum(0).numpy()


@pytest.mark.parametrize("truth", [semantic_truth, panoptic_truth, instance_truth])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_truth_is_where_the_image_is(geometry: str, truth: Callable[[], Target]) -> None:
    """Every pixel of the new image says which source pixel it shows; the new truth has that pixel's label."""
    transform = TrainTransform(**GEOMETRIES[geometry], color=0)
    for seed in range(8):
        out = transform(sample(truth()), np.random.default_rng(seed))
        x, y = np.moveaxis(out.image * 256, 2, 0)
        labels = label_map(out.target)
        assert labels.shape == out.image.shape[:2]
        fill = coordinates()[::4, ::4].mean((0, 1)) * 256
        beyond = ((np.abs(x - fill[0]) < 0.01) & (np.abs(y - fill[1]) < 0.01)).astype(np.uint8)
        assert not labels[cv2.erode(beyond, np.ones((3, 3))) > 0].any()
        # Interpolation at the rim mixes in the fill; halfway between two blocks either label is right.
        beyond = np.pad(beyond[2:-2, 2:-2], 2, constant_values=1)
        certain = cv2.dilate(beyond, np.ones((7, 7))) == 0
        certain &= (np.abs((x + 0.5) % 8 - 4) < 3.9) & (np.abs((y + 0.5) % 8 - 4) < 3.9)
        source = blocks()[np.rint(y[certain]).astype(int), np.rint(x[certain]).astype(int)]
        assert certain.sum() > 150
        np.testing.assert_array_equal(labels[certain], source)


def test_scale_one_copies_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    same = TrainTransform(None, (1, 1), flip=0, color=0)(sample(semantic_truth(), image), np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, image)
    turned = TrainTransform(None, (1, 1), flip=1, color=0)(sample(semantic_truth(), image), np.random.default_rng(0))
    np.testing.assert_array_equal(turned.image, image[:, ::-1])
    assert isinstance(turned.target, Semantic)
    np.testing.assert_array_equal(turned.target.labels.numpy(), blocks()[:, ::-1])
    crop = TrainTransform((20, 30), (1, 1), flip=0, color=0)(sample(semantic_truth(), image), np.random.default_rng(1))
    windows = np.lib.stride_tricks.sliding_window_view(image, (20, 30, 3))[:, :, 0]
    assert (windows == crop.image).all((2, 3, 4)).sum() == 1


def test_crops_reach_every_place() -> None:
    transform = TrainTransform(H - 2, (1, 1), flip=0, color=0)
    corners = {
        tuple((transform(sample(semantic_truth()), np.random.default_rng(s)).image[0, 0, :2] * 256).tolist())
        for s in range(400)
    }
    assert corners == {(x, y) for x in range(W - H + 3) for y in range(3)}


def test_beyond_the_image_is_mean_colour_and_void() -> None:
    image = np.full((H, W, 3), (10, 100, 200), np.uint8)
    out = TrainTransform(100, (1, 1), color=0)(sample(semantic_truth(), image), np.random.default_rng(0))
    assert isinstance(out.target, Semantic)
    assert (out.image == (10, 100, 200)).all()
    assert int((out.target.labels != VOID).sum()) == H * W
    assert int((out.target.labels == VOID).sum()) == 100 * 100 - H * W
    panoptic = TrainTransform(100, (1, 1), color=0)(sample(panoptic_truth(), image), np.random.default_rng(0)).target
    assert isinstance(panoptic, Panoptic)
    assert int((panoptic.ids == 0).sum()) == 100 * 100 - H * W


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_number_of_channels(channels: int, dtype: type) -> None:
    image = (np.random.default_rng(0).random((H, W, channels)) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    options = {"crop": 80, "scale": (1, 1.5), "rotate": 5, "elastic": 1}
    out = TrainTransform(**options, color=1)(sample(semantic_truth(), image), np.random.default_rng(3)).image
    assert out.shape == (80, 80, channels)
    assert out.dtype == dtype
    if channels > 3:  # every channel moves like one alone
        alone = TrainTransform(**options, color=0)
        for k in range(channels):
            single = alone(sample(semantic_truth(), image[..., k : k + 1].copy()), np.random.default_rng(3)).image
            np.testing.assert_allclose(out[..., k], single[..., 0], rtol=0, atol=1e-6)


def test_segments_that_leave_are_dropped_and_numbered_without_gaps() -> None:
    out = TrainTransform(16, (1, 1), flip=0, color=0)(sample(panoptic_truth()), np.random.default_rng(0)).target
    assert isinstance(out, Panoptic)
    assert sorted(out.ids.unique().tolist()) == list(range(1, len(out.labels)))
    assert out.labels[0] == VOID
    instances = TrainTransform(16, (1, 1), flip=0, color=0)(sample(instance_truth()), np.random.default_rng(0)).target
    assert isinstance(instances, Instances)
    assert instances.masks is not None
    assert instances.labels.tolist() == out.labels[1:].tolist()
    assert (instances.masks.area() > 0).all()


def test_instances_keep_their_fields_and_get_new_boxes() -> None:
    dense = torch.zeros(3, H, W, dtype=torch.bool)
    dense[0, :4, :4], dense[1, 20:30, 20:40], dense[2, 24:40, 30:50] = True, True, True
    truth = Instances(
        Masks.from_dense(dense), torch.tensor([5, 6, 7]), crowd=torch.tensor([False, True, False]), areas=torch.ones(3)
    )
    rng = np.random.default_rng(0)
    while True:  # a crop without the first
        out = TrainTransform(40, (1, 1), flip=1, color=0)(sample(truth), rng)
        assert isinstance(out.target, Instances)
        if len(out.target) == 2:
            break
    assert out.target.labels.tolist() == [6, 7]
    assert out.target.crowd.tolist() == [True, False]
    assert out.target.areas is None
    assert out.target.masks is not None
    assert out.target.boxes is not None
    for mask, box in zip(out.target.masks.dense(), out.target.boxes.tolist(), strict=True):
        y, x = mask.nonzero().T
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    both = out.target.masks.dense().all(0)
    assert int(both.sum()) > 0  # the overlap is still one


def test_no_instances() -> None:
    out = TrainTransform(32)(sample(Instances.empty((H, W))), np.random.default_rng(0)).target
    assert isinstance(out, Instances)
    assert len(out) == 0
    assert out.size == (32, 32)
    assert out.boxes is not None
    assert out.boxes.shape == (0, 4)


def test_overlapping_masks_are_layered_without_loss() -> None:
    dense = np.random.default_rng(0).random((40, 12, 12)) < 0.1
    layers = disjoint_layers(Masks.from_dense(dense))
    found = [next(layer for layer in layers if (layer == k + 1).any()) == k + 1 for k in range(40)]
    np.testing.assert_array_equal(np.stack(found), dense)


def test_layers_follow_the_depth_of_the_overlap() -> None:
    chain = np.zeros((30, 4, 70), bool)  # each overlaps the next one only
    for k in range(30):
        chain[k, :, 2 * k : 2 * k + 3] = True
    assert len(disjoint_layers(Masks.from_dense(chain))) == 2
    assert len(disjoint_layers(Masks.from_dense(chain[::2]))) == 1


def test_a_damaged_rle_is_refused() -> None:
    masks = Masks.from_rle([{"size": [4, 6], "counts": [3, 4]}], (4, 6))
    with pytest.raises(ZooError, match="cover 7 pixels, its image has 24"):
        disjoint_layers(masks)


def test_the_cost_does_not_grow_with_the_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warp for the image and one for all disjoint masks, be it 4 or 768."""
    calls = []
    warp = transforms.cv2.warpAffine
    monkeypatch.setattr(transforms.cv2, "warpAffine", lambda *a, **k: calls.append(1) or warp(*a, **k))
    for step in (24, 2):
        ids = torch.from_numpy(blocks(step=step))
        labels = torch.arange(1, int(ids.max()) + 1)
        truth = Instances(Masks.from_dense(ids[None] == labels[:, None, None]), labels)
        calls.clear()
        TrainTransform(32, color=0)(sample(truth), np.random.default_rng(0))
        assert len(calls) == 2, f"{len(truth)} instances"


def test_the_generator_decides_everything() -> None:
    transform = TrainTransform(32, rotate=10, elastic=2, color=1, extra={"GaussNoise": {"p": 1}, "GaussianBlur": {}})
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)

    def run(seed: int) -> np.ndarray:
        return transform(sample(semantic_truth(), image), np.random.default_rng(seed)).image

    first = run(1)
    others = [run(seed) for seed in range(2, 8)]
    np.testing.assert_array_equal(run(1), first)
    assert all((other != first).any() for other in others)


def test_color_leaves_the_truth_and_the_geometry_alone() -> None:
    image = np.random.default_rng(0).integers(60, 200, (H, W, 3), dtype=np.uint8)
    plain = TrainTransform(32, color=0)(sample(semantic_truth(), image), np.random.default_rng(5))
    colored = TrainTransform(32, color=1)(sample(semantic_truth(), image), np.random.default_rng(5))
    assert isinstance(plain.target, Semantic)
    assert isinstance(colored.target, Semantic)
    assert (plain.image != colored.image).any()
    assert torch.equal(plain.target.labels, colored.target.labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": (2, 1)}, "scale"),
        ({"flip": 1.5}, "flip=1.5"),
        ({"crop": 0}, r"transform: crop=0 is a number of pixels or \[height, width\]"),
        ({"crop": -5}, "crop=-5 is a number"),
        ({"crop": [32]}, r"crop=\[32\] is a number"),
        ({"crop": "big"}, "crop=big is a number"),
        ({"crop": [32, 1.5]}, "crop=.* is a number"),
        ({"fit": True}, "fit=true .* needs crop="),
        ({"fit": True, "crop": 32, "short_side": 32}, "set one"),
        ({"short_side": [32, 0]}, r"short_side=\[32, 0\] is a number of pixels or a list"),
        ({"short_side": []}, "short_side"),
        ({"copy_paste": 2}, "copy_paste=2 is a probability"),
        ({"extra": {"GausNoise": {}}}, "GaussNoise"),
        ({"extra": {"HorizontalFlip": {}}}, "unknown pixel transform"),
        ({"extra": {"GaussNoise": {"std": 3}}}, "std"),
        ({"extra": {"GaussNoise": {"std_range": "x"}}}, "std_range"),
    ],
)
def test_bad_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(ZooError, match=says):
        TrainTransform(**options)  # type: ignore[arg-type]


def test_albumentations_is_imported_late_and_looks_for_no_update() -> None:
    code = (
        "import sys, os, zoo.data, zoo.data.transforms as t; assert 'albumentations' not in sys.modules;"
        "t.TrainTransform(); assert 'albumentations' in sys.modules; assert os.environ['NO_ALBUMENTATIONS_UPDATE']"
    )
    environment = {k: v for k, v in __import__("os").environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
