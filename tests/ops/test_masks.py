"""Run-length masks agree with pycocotools bit for bit, pasted RoI grids with their sources' full-size drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from zoo.errors import ZooError
from zoo.ops import masks as ops

SIZES = [(1, 1), (1, 9), (9, 1), (2, 40), (40, 2), (7, 11), (33, 64), (97, 33)]


def random_masks(rng: np.random.Generator, size: tuple[int, int], count: int) -> NDArray[np.bool_]:
    """Noise of all densities, blobs, whole rows and columns, single pixels, nothing, everything."""
    height, width = size
    masks = np.zeros((count, height, width), dtype=bool)
    for i, mask in enumerate(masks):
        y0, x0 = rng.integers(0, height), rng.integers(0, width)
        y1, x1 = rng.integers(y0 + 1, height + 1), rng.integers(x0 + 1, width + 1)
        match i % 6:
            case 0:
                mask[:] = rng.random(size) < rng.random()
            case 1:
                mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.8
            case 2:
                mask[y0:y1, x0:x1] = True
            case 3:
                mask[:, x0:x1] = True  # whole columns: runs that go on from one column to the next
            case 4:
                mask[y0, x0] = True
            case 5:
                mask[:] = i % 12 == 5
    return masks


def reference(masks: NDArray[np.bool_]) -> list[ops.Rle]:
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


@pytest.mark.parametrize("size", SIZES)
def test_encode_decode_area_and_boxes_equal_pycocotools(size: tuple[int, int]) -> None:
    masks = random_masks(np.random.default_rng(size), size, 420)
    expected = reference(masks)
    rles = ops.encode(masks)
    assert rles == expected
    assert np.array_equal(ops.decode(expected, size), masks)
    assert ops.area(rles).tolist() == [coco.area(rle) for rle in expected]
    x, y, w, h = coco.toBbox(expected).T
    assert np.array_equal(ops.boxes(rles), np.stack([x, y, x + w, y + h], 1))


def test_no_masks_at_all() -> None:
    assert ops.encode(np.zeros((0, 5, 7), bool)) == []
    assert ops.decode([], (5, 7)).shape == (0, 5, 7)
    assert ops.area([]).shape == (0,)
    assert ops.boxes([]).shape == (0, 4)


def test_long_runs_pack_as_in_pycocotools() -> None:
    """Counts of every number of five-bit groups, and negative differences."""
    rng = np.random.default_rng(1)
    size = (3000, 3000)
    for _ in range(300):
        counts = np.floor(2 ** rng.uniform(0, 22, rng.integers(1, 9))).astype(np.int64)
        counts = np.append(counts[np.cumsum(counts) < 9_000_000], 0)
        counts[-1] = 9_000_000 - counts.sum()
        expected = coco.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
        assert ops.pack([counts], size) == [expected]
        assert np.array_equal(ops.unpack([expected])[0], counts)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools against NumPy 2
def test_counts_with_empty_runs_measure_as_in_pycocotools() -> None:
    rng = np.random.default_rng(2)
    height, width = 6, 7
    for _ in range(500):
        cuts = np.sort(rng.integers(1, height * width + 1, rng.integers(1, 8)))
        counts = np.diff(np.concatenate([[0], cuts, [height * width]]))
        rle = ops.canonical({"size": [height, width], "counts": counts.tolist()}, (height, width))
        given = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        assert rle == coco.encode(coco.decode(given))  # no empty runs but for the first
        assert np.array_equal(ops.decode([given], (height, width))[0], coco.decode(given))
        assert ops.area([given])[0] == coco.area(given)
        if not coco.area(given):
            assert ops.boxes([given])[0].tolist() == [0, 0, 0, 0]  # pycocotools: differences of unsigned numbers
            continue
        x, y, w, h = coco.toBbox(given)
        assert ops.boxes([given])[0].tolist() == [x, y, x + w, y + h]


def test_every_spelling_of_counts() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    (rle,) = ops.encode(mask[None])
    text = {"size": [4, 5], "counts": rle["counts"].decode()}
    numbers = {"size": (4, 5), "counts": [9, 2, 2, 2, 5]}
    assert ops.canonical(text, (4, 5)) == ops.canonical(numbers, (4, 5)) == ops.canonical(rle, (4, 5)) == rle


def test_empty_runs_hide_no_pixels() -> None:
    """Both masks have a run of 0 at pixel 4, behind which pycocotools' `iou` would not look: it says 1."""
    lists = [2, 2, 0, 2, 6], [2, 2, 0, 4, 4]
    rles = [ops.canonical({"size": [4, 3], "counts": counts}, (4, 3)) for counts in lists]
    assert coco.iou(rles[:1], rles[1:], [0]).tolist() == [[4 / 6]]


def test_ids_encode_like_their_dense_masks() -> None:
    rng = np.random.default_rng(3)
    for size in SIZES:
        coarse = rng.integers(0, 6, (3, 3)).repeat(40, 0).repeat(40, 1)[: size[0], : size[1]]
        for ids in (coarse, rng.integers(0, 6, size), np.zeros(size, int)):
            ids = ids[: size[0], : size[1]].astype(np.int32)
            wanted = [4, 0, 5, 9]
            assert ops.encode_ids(ids, wanted) == reference(ids == np.array(wanted)[:, None, None])


def test_polygons_of_several_parts_equal_pycocotools() -> None:
    rng = np.random.default_rng(4)
    height, width = 60, 80
    polygons = [
        [rng.uniform(-10, 90, 2 * rng.integers(3, 9)).tolist() for _ in range(rng.integers(1, 4))] for _ in range(200)
    ]
    expected = [coco.merge(coco.frPyObjects(parts, height, width)) for parts in polygons]
    assert ops.from_polygons(polygons, (height, width)) == expected
    assert ops.area(ops.from_polygons([[]], (height, width))).tolist() == [0]


@pytest.mark.parametrize("part", [[1.0, 2.0, 3.0, 4.0], [1.0] * 7, [float("nan")] * 6])
def test_broken_polygons_are_refused(part: list[float]) -> None:
    with pytest.raises(ZooError, match="3 or more finite x, y pairs"):
        ops.from_polygons([[part]], (5, 5))


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [(b"03", "cover 3 pixels"), (b"`", "broken, or cut short"), (b"", "broken, or cut short"), ([], "without counts")],
)
def test_broken_rles_are_refused(counts: bytes | list[int], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        ops.decode([ops.canonical({"size": [5, 4], "counts": counts}, (5, 4))], (5, 4))


def test_rle_of_another_size_is_refused() -> None:
    with pytest.raises(ZooError, match=r"size \[5, 4\] does not belong to a 4x5 image"):
        ops.canonical({"size": [5, 4], "counts": b"d0"}, (4, 5))


def random_rois(seed: int, count: int, size: tuple[int, int], grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth and noisy grids on boxes of all sizes: inside, across the border, larger than the image, below a pixel."""
    rng = torch.Generator().manual_seed(seed)
    height, width = size
    noise = torch.rand(count, 1, grid + 4, grid + 4, generator=rng)
    smooth = (F.avg_pool2d(noise, 5, 1) - 0.5) * 3 + 0.5
    grids = torch.where(torch.arange(count)[:, None, None] % 2 == 0, smooth[:, 0], noise[:, 0, 2:-2, 2:-2])
    centre = torch.rand(count, 2, generator=rng) * torch.tensor([width, height])
    extent = torch.exp(torch.rand(count, 2, generator=rng) * 7 - 1.5)
    return grids.clamp(0, 1), torch.cat([centre - extent / 2, centre + extent / 2], 1)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize(("size", "grid"), [((120, 160), 28), ((61, 33), 14), ((5, 90), 7)])
def test_paste_equals_torchvision(size: tuple[int, int], grid: int, threshold: float) -> None:
    grids, boxes = random_rois(0, 150, size, grid)
    boxes = torch.cat([boxes, boxes.round()])
    grids = torch.cat([grids, grids])
    full = paste_masks_in_image(grids[:, None], boxes, size)[:, 0] > threshold
    assert ops.paste(grids, boxes, size, "torchvision", threshold) == reference(full.numpy())


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize(("size", "grid"), [((120, 160), 28), ((61, 33), 14), ((5, 90), 7)])
def test_paste_equals_full_canvas_sampling_for_detectron2(size: tuple[int, int], grid: int, threshold: float) -> None:
    grids, boxes = random_rois(1, 150, size, grid)
    x0, y0, x1, y1 = boxes.T[:, :, None]
    xs = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1
    ys = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1
    where = torch.stack([xs[:, None].expand(-1, size[0], -1), ys[:, :, None].expand(-1, -1, size[1])], -1)
    full = F.grid_sample(grids[:, None], where, align_corners=False)[:, 0] >= threshold
    assert ops.paste(grids, boxes, size, "detectron2", threshold) == reference(full.numpy())


@pytest.mark.parametrize("rule", list(ops.PASTE_RULES))
def test_paste_outside_the_image_and_of_nothing(rule: str) -> None:
    boxes = torch.tensor([[50.0, 50, 60, 60], [-30, -30, -20, -20], [3, 50, 8, 60], [4, 4, 4, 4]])
    assert ops.area(ops.paste(torch.ones(4, 7, 7), boxes, (20, 30), rule))[:3].tolist() == [0, 0, 0]
    assert ops.paste(torch.ones(0, 7, 7), torch.ones(0, 4), (20, 30), rule) == []


def test_paste_rules_differ_where_they_say() -> None:
    """A grid of exactly one half is inside for detectron2 (at the threshold), outside for torchvision (above it)."""
    grid, box = torch.full((1, 4, 4), 0.5), torch.tensor([[2.0, 2, 10, 10]])
    inner = (slice(None), slice(4, 8), slice(4, 8))
    assert ops.decode(ops.paste(grid, box, (12, 12), "detectron2"), (12, 12))[inner].all()
    assert not ops.decode(ops.paste(grid, box, (12, 12), "torchvision"), (12, 12)).any()


def test_unknown_paste_rule() -> None:
    with pytest.raises(ZooError, match="did you mean detectron2"):
        ops.paste(torch.ones(1, 7, 7), torch.ones(1, 4), (20, 30), "detectron")


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_the_masks_inside_their_boxes(size: tuple[int, int]) -> None:
    masks = random_masks(np.random.default_rng(7), size, 120)
    rles = ops.encode(masks)
    for mask, crop, box in zip(masks, ops.crops(rles), ops.boxes(rles), strict=True):
        inside, left, top = crop
        x0, y0, x1, y1 = box.astype(int)
        assert (left, top, *inside.shape[::-1]) == (x0, y0, x1 - x0, y1 - y0)
        assert np.array_equal(inside, mask[y0:y1, x0:x1])
        assert np.array_equal(ops.crop_dense(mask)[0], inside)


def test_crops_of_broken_rles_are_refused() -> None:
    with pytest.raises(ZooError, match="cover 3 pixels, the 5x4 image has 20"):
        ops.crops([{"size": [5, 4], "counts": b"03"}])
