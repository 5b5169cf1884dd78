"""Augmenting instances: sizes of the recipes, boxes and keypoints that move with the image, copy-paste, the cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zoo.data import transforms
from zoo.data.annotations import Keypoints
from zoo.data.base import Dataset
from zoo.data.layers import disjoint_layers, masks_of_layers
from zoo.data.transforms import TrainTransform
from zoo.data.warp import Warp
from zoo.errors import ZooError
from zoo.ops import masks as rle_ops
from zoo.structures import Class, Instances, Masks, Sample, Semantic

H, W = 48, 64
POINTS = Keypoints.of(["nose", "left_eye", "right_eye"])


class Listed(Dataset):
    """Samples from a list."""

    table = (Class("a", (255, 0, 0), thing=True), Class("b", (0, 255, 0), thing=True))
    tasks = ("instance",)

    def __init__(self, samples: list[Sample], transform: Any = None, keypoints: Keypoints | None = None) -> None:
        self.samples, self.keypoints = samples, keypoints
        super().__init__(task="instance", transform=transform)

    def index(self) -> list[int]:
        return list(range(len(self.samples)))

    def read(self, record: int) -> Sample:
        return self.samples[record]


def blank(height: int = H, width: int = W, value: int = 0) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def sample(target: Any, image: np.ndarray | None = None) -> Sample:
    image = blank(*target.size) if image is None else image
    return Sample(image, target, 0, target.size)


def plain(**options: Any) -> TrainTransform:
    return TrainTransform(**{"crop": None, "scale": (1, 1), "flip": 0, "color": 0} | options)


def blobs(count: int, seed: int = 0, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """(count, H, W) rectangles that overlap."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((count, *size), bool)
    for mask in dense:
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = True
    return dense


# ---- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [(480, 640), (640, 480), (427, 640), (300, 1200), (1200, 300), (333, 500)])
def test_multi_scale_short_side_is_detectrons_rule(source: tuple[int, int]) -> None:
    """Short side from the list; where the long one would pass 1333, that is 1333 and the short one follows."""
    sides = list(range(640, 801, 32))
    transform = plain(short_side=sides, long_side=1333)
    expected = set()
    for side in sides:
        short, long = side, max(source) * side / min(source)
        if long > 1333:
            short, long = short * 1333 / long, 1333
        pair = int(short + 0.5), int(long + 0.5)
        expected.add(pair if source[0] <= source[1] else pair[::-1])
    assert {transform._draw(np.random.default_rng(k), source).size for k in range(60)} == expected
    image = transform(sample(Instances.empty(source)), np.random.default_rng(0)).image
    assert image.shape[:2] == transform._draw(np.random.default_rng(0), source).size


def test_large_scale_jitter_is_relative_to_the_crop() -> None:
    """At scale 1 the image just fits; the drawn factors reach from 0.1 to 2."""
    source = (30, 60)
    everything = Instances(Masks.from_dense(np.ones((1, *source), bool)), torch.tensor([0]))
    fit = plain(crop=(80, 100), fit=True)
    boxes = torch.cat([fit(sample(everything), np.random.default_rng(k)).target.boxes for k in range(20)])
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], torch.tensor([[100.0, 50.0]]).expand(20, 2))
    assert len(boxes[:, 1].unique()) > 5  # a smaller image lies anywhere
    jitter = plain(crop=(80, 100), fit=True, scale=(0.1, 2.0))
    shapes = []
    for k in range(120):
        out = jitter(sample(everything), np.random.default_rng(k))
        assert out.image.shape == (80, 100, 3)
        shapes.append((out.target.boxes[0, 2:] - out.target.boxes[0, :2]).tolist())
    widths, heights = np.array(shapes).T
    assert widths.min() < 20
    assert widths.max() == 100
    assert heights.max() == 80
    whole = (widths < 100) & (heights < 80)
    assert np.abs(widths - 2 * heights)[whole].max() <= 1


class Told:
    """Random numbers in hand: `scale` of its range, `offset` of how far a crop can lie; smaller images lie top left."""

    def __init__(self, scale: float, offset: float) -> None:
        self.scale, self.offset = scale, offset

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (self.scale if high > low else 0)

    def integers(self, low: int, high: int) -> int:
        return round(self.offset * (high - 1)) if low == 0 else 0

    def random(self) -> float:
        return 1.0


def test_large_scale_jitter_is_that_of_the_released_training() -> None:
    """Resized to fit a target that the factor scales, cut at an offset, padded at the right and the bottom.

    The same numbers in hand give the same sizes, boxes, and masks but for what rounds to another pixel.
    """
    rng, crop = np.random.default_rng(0), (90, 70)
    unequal = pixels = compared = 0
    for _ in range(150):
        height, width = rng.integers(20, 160, 2).tolist()
        (x0, x1), (y0, y1) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (width, height))
        told = Told(rng.random(), rng.random())
        target = np.multiply(crop, 0.1 + 1.9 * told.scale)
        new = np.round(np.multiply((height, width), np.min(target / (height, width)))).astype(int)
        offset = np.round(np.maximum(new - crop, 0) * told.offset).astype(int)
        grown = np.array([new[1] / width, new[0] / height] * 2)
        box = (np.array([x0, y0, x1, y1]) * grown - np.tile(offset[::-1], 2)).clip(0, [*crop[::-1]] * 2)
        jitter = plain(crop=crop, scale=(0.1, 2.0), fit=True)
        boxed = Instances(None, [0], boxes=torch.tensor([[x0, y0, x1, y1]]).float(), size=(height, width))
        found = jitter(sample(boxed), told).target.boxes
        if (box[2:] - box[:2]).min() < 1e-3:
            assert len(found) == 0 or (found[0, 2:] - found[0, :2]).min() < 1e-3
            continue
        np.testing.assert_allclose(found[0], box, atol=1e-4)
        dense = np.zeros((1, height, width), bool)
        dense[0, y0:y1, x0:x1] = True
        rows, columns = (np.arange(side) for side in crop)
        ys, xs = ((rows + offset[0] + 0.5) / grown[1]).astype(int), ((columns + offset[1] + 0.5) / grown[0]).astype(int)
        wanted = np.pad(dense[0], (0, 1))[ys.clip(max=height)[:, None], xs.clip(max=width)[None]]
        moved = jitter(sample(Instances(Masks.from_dense(dense), [0])), told).target
        mask = moved.masks.dense()[0].numpy() if len(moved) else np.zeros(crop, bool)
        unequal, pixels, compared = unequal + int((mask != wanted).sum()), pixels + int(wanted.sum()), compared + 1
    assert compared > 120
    assert unequal < 2e-3 * pixels


def test_a_crop_of_the_recipes_is_two_draws() -> None:
    """The offsets of the two axes are independent: not only the diagonal is seen."""
    transform = plain(crop=16)
    marked = Instances(None, torch.tensor([0]), boxes=torch.tensor([[0.0, 0, W, H]]), size=(H, W))
    image = np.stack([*np.mgrid[0:H, 0:W].astype(np.uint8), np.zeros((H, W), np.uint8)], 2)
    corners = {tuple(transform(sample(marked, image), np.random.default_rng(k)).image[0, 0, :2]) for k in range(60)}
    assert len(corners) > 50


def test_shrinking_far_averages_the_pixels() -> None:
    """Stripes one pixel wide become grey; a sample in every tenth pixel would show black and white."""
    stripes = blank(200, 200)
    stripes[:, ::2] = 200
    out = plain(scale=(0.1, 0.1))(sample(Instances.empty((200, 200)), stripes), np.random.default_rng(0)).image
    assert out.shape == (20, 20, 3)
    assert np.abs(out.astype(int) - 100).max() <= 1


def test_shrinking_keeps_image_and_masks_together() -> None:
    dense = blobs(1, seed=3, size=(200, 200))
    dense[0, 60:140, 40:150] = True
    image = np.repeat(dense[0][..., None] * np.uint8(255), 3, 2)
    for options in ({"crop": 64}, {"crop": 90, "rotate": 40, "elastic": 4}, {"crop": (50, 80), "flip": 1}):
        transform = plain(scale=(0.2, 0.45), **options)
        for seed in range(5):
            out = transform(
                sample(Instances(Masks.from_dense(dense), torch.tensor([0])), image), np.random.default_rng(seed)
            )
            if len(out.target) == 0:
                continue
            mask = out.target.masks.dense()[0].numpy()
            bright = out.image[..., 0] > 127
            fill = int(image[::4, ::4, 0].mean())
            assert fill < 127
            assert (mask ^ bright).sum() <= 0.12 * mask.sum() + 12  # the rim alone


# ---- boxes and keypoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1},
        {"crop": 40},
        {"crop": 60, "fit": True, "scale": (0.3, 2)},
        {"flip": 1, "crop": 30, "scale": (0.5, 2)},
    ],
)
def test_boxes_alone_move_as_masks_do(options: dict[str, Any]) -> None:
    """The box of a moved rectangle and the moved box of the rectangle differ by the rounding of pixels only."""
    dense = blobs(12)
    masks = Masks.from_dense(dense)
    labels = torch.arange(12)
    with_masks = Instances(masks, labels)
    alone = Instances(None, labels, boxes=masks.boxes(), size=(H, W), crowd=labels > 8)
    for seed in range(8):
        one = plain(**options)(sample(with_masks), np.random.default_rng(seed)).target
        other = plain(**options)(sample(alone), np.random.default_rng(seed)).target
        assert other.masks is None
        assert other.size == one.size
        assert set(one.labels.tolist()) <= set(other.labels.tolist())
        assert torch.equal(other.crowd, other.labels > 8)
        kept = torch.tensor([k for k, label in enumerate(other.labels.tolist()) if label in one.labels.tolist()])
        assert (other.boxes[kept.long()] - one.boxes).abs().max() <= 1 if len(kept) else True
        sides = other.boxes[:, 2:] - other.boxes[:, :2]
        assert (sides > 0).all()
        gone = [k for k, label in enumerate(other.labels.tolist()) if label not in one.labels.tolist()]
        assert all(sides[k].min() < 1 for k in gone)  # slivers no pixel centre lies in


def test_flipping_boxes_is_exact() -> None:
    truth = Instances(None, torch.tensor([0]), boxes=torch.tensor([[3.5, 4.25, 10.0, 20.0]]), size=(H, W))
    out = plain(flip=1)(sample(truth), np.random.default_rng(0)).target
    assert out.boxes.tolist() == [[W - 10.0, 4.25, W - 3.5, 20.0]]


def person(points: list[list[float]]) -> Instances:
    dense = np.zeros((1, H, W), bool)
    dense[0, 5:40, 5:60] = True
    return Instances(Masks.from_dense(dense), torch.tensor([0]), keypoints=torch.tensor([points]))


def test_keypoints_mark_the_same_places() -> None:
    """A bright pixel under each point stays under it, whatever moves; names follow the mirror."""
    places = [[10, 12, 2], [40, 20, 1], [50, 33, 2]]
    options = {"crop": 60, "fit": True, "scale": (0.8, 3), "flip": 0.5, "rotate": 25}
    seen = mirrored = 0
    for seed in range(15):
        for p, (x, y, _) in enumerate(places):
            image = blank()
            image[y - 1 : y + 2, x - 1 : x + 2] = 255
            data = Listed([sample(person(places), image)], plain(**options), POINTS)
            out = data[seed, 0]
            if not len(out.target):
                continue
            draw = np.random.default_rng([0, seed, 0])
            flipped = plain(**options)._draw(draw, (H, W)).mirrored
            mirrored += flipped
            named = POINTS.mirror[p] if flipped else p
            x1, y1, visible = out.target.keypoints[0, named].tolist()
            if visible == 0:
                assert (x1, y1) == (0, 0)
                continue
            assert visible == places[p][2]
            bright = np.argwhere(out.image[..., 0] > 200)
            if len(bright):
                seen += 1
                assert np.abs(bright.mean(0) - [y1, x1]).max() < 1.6
    assert seen > 15
    assert mirrored > 5


def test_keypoints_that_leave_are_not_labelled() -> None:
    truth = person([[0, 0, 2], [30, 20, 2], [W - 1, H - 1, 1]])
    data = Listed([sample(truth)], plain(crop=(H, 20)), POINTS)
    for k in range(30):
        out = data[k, 0].target
        for x, y, v in out.keypoints[0].tolist():
            assert (v == 0 and x == y == 0) or (0 <= x <= 19 and 0 <= y <= H - 1)
    assert plain()(sample(truth), np.random.default_rng(0)).target.keypoints.tolist() == truth.keypoints.tolist()


def test_what_cannot_be_moved_is_said() -> None:
    truth = person([[1, 2, 2]] * 3)
    with pytest.raises(ZooError, match="which keypoints mirror each other"):
        plain(flip=1)(sample(truth), np.random.default_rng(0))
    with pytest.raises(ZooError, match="cannot bend boxes or keypoints: set elastic=0"):
        plain(elastic=3)(sample(truth), np.random.default_rng(0))
    boxes = Instances(None, torch.tensor([0]), boxes=torch.ones(1, 4), size=(H, W))
    with pytest.raises(ZooError, match="cannot bend boxes"):
        plain(elastic=3)(sample(boxes), np.random.default_rng(0))
    with pytest.raises(ZooError, match="no dataset was given"):
        plain(copy_paste=1)(sample(person([[1, 2, 2]] * 3)), np.random.default_rng(0))
    labels = Semantic(torch.zeros(H, W, dtype=torch.uint8))
    with pytest.raises(ZooError, match="it needs task=instance"):
        plain(copy_paste=1)(sample(labels), np.random.default_rng(0))
    with pytest.raises(ZooError, match="copy_paste needs masks"):
        Listed([sample(boxes), sample(boxes)], plain(copy_paste=1))[0]


# ---- copy-paste -------------------------------------------------------------------------------------------------


def numbered(count: int, base: int, seed: int, crowd: int | None = None) -> Sample:
    """An image whose pixels say which object they show: base + its label, the last one on top."""
    dense = blobs(count, seed)
    image = blank(value=base)
    visible = np.zeros_like(dense)
    for k, mask in enumerate(dense):
        visible[:k] &= ~mask
        visible[k] = mask
        image[mask] = base + 1 + k
    kept = [k for k in range(count) if visible[k].any()]
    labels = torch.tensor(kept)
    crowds = torch.tensor([k == crowd for k in kept])
    return Sample(image, Instances(Masks.from_dense(visible[kept]), labels * 0, crowd=crowds), 0, (H, W))


def test_pasted_objects_come_with_their_pixels() -> None:
    """Every mask covers pixels of one object and all that can be seen of it; what was covered is cut or dropped."""
    below, above = numbered(6, 0, seed=1), numbered(8, 100, seed=2, crowd=7)
    data = Listed([below, above], plain(copy_paste=1.0))
    pasted = set()
    for epoch in range(16):
        out = data[epoch, 0]
        values = []
        for mask, box in zip(out.target.masks.dense().numpy(), out.target.boxes.tolist(), strict=True):
            (value,) = np.unique(out.image[..., 0][mask]).tolist()
            assert (out.image[..., 0] == value).sum() == mask.sum()
            y, x = np.nonzero(mask)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            values.append(value)
        assert len(set(values)) == len(values)
        shown = set(np.unique(out.image[..., 0]).tolist()) - {0}
        assert shown == set(values)
        assert 108 not in shown  # crowds are not pasted
        assert not out.target.crowd.any()
        pasted |= {value for value in values if value > 100}
    assert len(pasted) == len(above.target) - 1  # every one of them some time


def test_what_is_covered_altogether_is_dropped() -> None:
    inside, around = np.zeros((2, 1, H, W), bool)
    inside[:, 10:14, 10:14], around[:, 5:30, 5:30] = True, True
    below = Instances(Masks.from_dense(inside), torch.tensor([0]))
    above = Instances(Masks.from_dense(around), torch.tensor([1]))
    data = Listed([sample(below), sample(above)], plain(copy_paste=1.0))
    assert {tuple(data[epoch, 0].target.labels.tolist()) for epoch in range(12)} == {(0,), (1,)}
    assert {tuple(data[epoch, 1].target.labels.tolist()) for epoch in range(12)} == {(1,), (1, 0)}


def test_copy_paste_happens_as_often_as_asked_and_leaves_the_rest_alone() -> None:
    data = [numbered(5, 0, 1), numbered(5, 100, 2)]
    often = Listed(data, plain(copy_paste=0.3, crop=40, scale=(0.5, 2)))
    shares = [bool((often[epoch, 0].image > 90).any()) for epoch in range(80)]
    assert 0.1 < np.mean(shares) < 0.45
    never = Listed(data, plain(crop=40, scale=(0.5, 2)))
    other = Listed(data, plain(copy_paste=1e-12, crop=40, scale=(0.5, 2)))
    assert all(np.array_equal(never[k, 1].image, other[k, 1].image) for k in range(5))
    alone = Listed(data[:1], plain(copy_paste=1.0))
    assert np.array_equal(alone[0].image, data[0].image)


def test_pasted_keypoints() -> None:
    one, two = sample(person([[10, 12, 2], [0, 0, 0], [50, 33, 2]])), sample(person([[7, 7, 2]] * 3))
    data = Listed([one, two], plain(copy_paste=1.0), POINTS)
    for epoch in range(20):
        out = data[epoch, 0].target
        if len(out) == 2:
            continue
        # The other one's mask is the same, so it covers the first altogether.
        assert out.keypoints[0].tolist() in ([[7, 7, 2]] * 3, [[10, 12, 2], [0, 0, 0], [50, 33, 2]])
    smaller = person([[7, 7, 2]] * 3)
    smaller.masks = Masks.from_dense(np.pad(np.ones((1, 10, 10), bool), ((0, 0), (8, H - 18), (6, W - 16))))
    data = Listed([one, sample(smaller)], plain(copy_paste=1.0), POINTS)
    both = next(out for out in (data[epoch, 0].target for epoch in range(40)) if len(out) == 2)
    assert both.keypoints[0, :, 2].tolist() == [1, 0, 2]  # the first lies under the other: labelled, not visible


# ---- layers and cost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_layers_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.random((30, 14, 17)) < rng.choice([0.02, 0.1, 0.5])
    dense[3] = False
    dense[4] = True
    dense[5] = dense[6]
    masks, boxes, kept = masks_of_layers(
        [layer.astype(np.int32) for layer in disjoint_layers(Masks.from_dense(dense))], (14, 17)
    )
    present = np.flatnonzero(dense.any((1, 2)))
    assert kept.tolist() == present.tolist()
    assert np.array_equal(masks.dense(), dense[present])
    assert masks.rle() == rle_ops.encode(dense[present])  # the same strings too
    assert np.array_equal(boxes, rle_ops.boxes(masks.rle()))
    rles = rle_ops.encode(dense)
    unpacked = disjoint_layers(Masks.from_rle(rles, (14, 17), rle_ops.unpack_flat(rles)))
    assert np.array_equal(unpacked, disjoint_layers(Masks.from_dense(dense)))


def test_first_fit_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """b touches a, c touches b, d touches a and b: a 0, b 1, c 0, d 2. With too many pairs boxes decide."""
    dense = np.zeros((4, 3, 12), bool)
    for k, (x0, x1) in enumerate([(0, 4), (3, 7), (6, 9), (2, 5)]):
        dense[k, :, x0:x1] = True
    layers = disjoint_layers(Masks.from_dense(dense))
    where = [next(n for n, layer in enumerate(layers) if (layer == k + 1).any()) for k in range(4)]
    assert where == [0, 1, 0, 2]
    monkeypatch.setattr("zoo.data.layers.MOST_PAIRS", 0)
    again = disjoint_layers(Masks.from_dense(dense))
    assert all(np.array_equal(a, b) for a, b in zip(layers, again, strict=True))


def test_three_hundred_nuclei_are_one_layer_and_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called does not depend on how many there are: the calls into NumPy and OpenCV are the same."""
    import cProfile

    counts = []
    for step in (24, 3):
        y, x = np.mgrid[0:H, 0:W]
        ids = y // step * (W // step + 1) + x // step + 1
        masks = Masks.from_rle(rle_ops.encode_ids(ids, np.unique(ids).tolist()), (H, W))
        truth = Instances(masks, torch.zeros(len(masks), dtype=torch.int64))
        profile = cProfile.Profile()
        transform = plain(crop=32)
        transform(sample(truth), np.random.default_rng(0))
        profile.enable()
        transform(sample(truth), np.random.default_rng(0))
        profile.disable()
        numpy_calls = sum(
            entry.callcount
            for entry in profile.getstats()
            if "numpy" in str(entry.code) or "warpAffine" in str(entry.code)
        )
        counts.append((len(masks), numpy_calls))
    assert counts[1][0] > 50 * counts[0][0]
    assert counts[1][1] <= counts[0][1] + 5, counts


def test_evaluation_changes_nothing() -> None:
    """Without a transform objects without a pixel, of no area and outside stay."""
    dense = np.zeros((2, H, W), bool)
    dense[0, 1:3, 1:3] = True
    truth = Instances(Masks.from_dense(dense), torch.tensor([0, 1]), boxes=torch.tensor([[1.0, 1, 3, 3], [5, 5, 5, 9]]))
    assert len(Listed([sample(truth)])[0].target) == 2
    assert len(Listed([sample(truth)], plain())[0].target) == 1


def test_points_and_pixels_agree() -> None:
    """Warp.points is the inverse of where pixels are taken from."""
    warp = plain(crop=50, fit=True, scale=(0.5, 2), rotate=90, flip=0.5)._draw(np.random.default_rng(4), (H, W))
    new = np.random.default_rng(0).uniform(0, 50, (20, 2))
    source = new @ warp.matrix[:2, :2].T + warp.matrix[:2, 2]
    np.testing.assert_allclose(warp.points(source), new, rtol=0, atol=1e-9)
    assert isinstance(warp, Warp)
    assert transforms.TrainTransform.takes_dataset


@pytest.mark.parametrize("elastic", [0, 6])
def test_what_a_crop_does_not_show_is_not_looked_at(elastic: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it shows is the same as if all had been looked at."""
    transform = TrainTransform(crop=(20, 24), scale=(0.4, 2.5), flip=0.5, color=0, rotate=180, elastic=elastic)
    rng = np.random.default_rng(5)
    specks = np.zeros((150, H, W), bool)
    specks[np.arange(150), rng.integers(0, H, 150), rng.integers(0, W, 150)] = True
    dense = np.concatenate([blobs(12), specks, np.ones((1, H, W), bool)])
    one = sample(Instances(Masks.from_dense(dense), torch.zeros(len(dense), dtype=torch.int64)))
    less = [transform(one, np.random.default_rng(seed)).target for seed in range(30)]
    monkeypatch.setattr(Warp, "reach", lambda self, source: (0, 0, source[1], source[0]))
    for seed, target in enumerate(less):
        whole = transform(one, np.random.default_rng(seed)).target
        assert target.masks.rle() == whole.masks.rle()
        assert torch.equal(target.boxes, whole.boxes)
    assert len({len(target) for target in less}) > 5
