"""MaskLab's ideas: regions around a centre, one channel for each cell, two crops, a copy of conv5."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.masklab import Refinement
from zoo.models.two_stage.conventions import DETECTRON2, TORCHVISION
from zoo.models.two_stage.deformable_crop import DeformableCrop
from zoo.models.two_stage.direction import DirectionMaskHead, read_channels, regions
from zoo.models.two_stage.roi import RoIPooler, numbered
from zoo.structures import Batch, Instances, Masks

POINT = replace(DETECTRON2, sampling_ratio=1)
SMALL: dict[str, Any] = {
    "crop_size": 21, "refine_channels": 8, "anchor_sizes": (16, 32, 64), "roi_samples": 8, "test_proposals": 8,
    "detections": 4,
}  # fmt: skip


def build(backbone: str = "test_resnet", **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("masklab", 3, backbone, **{**SMALL, **options})


def batch_of(count: int = 2, size: int = 64) -> Batch:
    """An image with `count` squares along its diagonal, of classes 0, 1, 2, 0, ..."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    step = size // count
    squares = [(x // step == i) & (y // step == i) for i in range(count)]
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    masks = Masks.from_dense(torch.stack(squares))
    return Batch.of(image, [Instances(masks, [i % 3 for i in range(count)], boxes=masks.boxes())])


# ---- which cell reads which channel


@pytest.mark.parametrize("size", [21, 41, 81])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("directions", "bins"), [(8, 4), (8, 1), (6, 4), (4, 4), (2, 4), (1, 1)])
def test_regions_are_a_partition(size: int, norm: str, directions: int, bins: int) -> None:
    channel = regions(size, directions, bins, norm)
    counts = torch.bincount(channel.flatten(), minlength=directions * bins)
    assert channel.shape == (size, size)
    assert len(counts) == directions * bins
    assert counts.sum() == size**2
    assert counts.min() > 0


def test_regions_by_hand() -> None:
    """Sectors go against the clock from the right, rings outwards."""
    channel = regions(41, 8, 4)
    middle = 20
    places = {(0, 20): 0, (-10, 20): 0, (-20, 10): 1, (-20, -10): 2, (-10, -20): 3, (0, -20): 4, (10, -20): 4}
    places |= {(20, -10): 5, (20, 10): 6, (10, 20): 7}
    for (down, right), sector in places.items():
        assert channel[middle + down, middle + right] // 4 == sector, (down, right)
    # Distance in half diagonals, sqrt(2) * 20.5 cells long: 7.25 cells a ring.
    assert [int(channel[middle, middle + right]) for right in (1, 7, 8, 14, 15, 20)] == [0, 0, 1, 1, 2, 2]
    assert channel[0, 40] == 1 * 4 + 3  # a corner is on the line, which belongs to the second sector
    assert [int(regions(41, 8, 4, "linf")[middle, middle + right]) for right in (5, 6, 11, 16, 20)] == [0, 1, 2, 3, 3]
    assert [int(regions(41, 1, 2, "linf", [0.9])[middle, middle + right]) for right in (18, 19)] == [0, 1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("size", [41, 21, 20])
def test_a_quarter_turn_moves_directions_by_two(size: int, norm: str) -> None:
    channel = regions(size, 8, 4, norm)
    turned = torch.rot90(channel)  # against the clock: what was on the right comes to lie above
    outside = torch.ones(size, size, dtype=torch.bool)
    if size % 2:
        outside[size // 2, size // 2] = False  # the centre has no direction
    # What lies at a place after the turn had a direction two less before it.
    assert torch.equal((turned // 4 + 2)[outside] % 8 * 4 + turned[outside] % 4, channel[outside])


def test_a_turned_image_gives_a_turned_mask() -> None:
    """Direction logits turned with the image, and renamed by two directions, pool to the turned result."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 32, 16, 16, generator=generator, dtype=torch.float64)
    box = torch.tensor([[0.0, 16, 8, 96, 56]], dtype=torch.float64)
    turned_box = torch.tensor([[0.0, 8, 128 - 96, 56, 128 - 16]], dtype=torch.float64)
    head = DirectionMaskHead(4, 8, 1, "direction", regions(21, 8, 4), 32, POINT)
    label = torch.zeros(1, dtype=torch.int64)
    plain = head(logits, box, label)[0]
    renamed = torch.rot90(logits, dims=(2, 3)).view(1, 8, 4, 16, 16).roll(2, 1).flatten(1, 2)
    turned = head(renamed, turned_box, label)[0]
    outside = torch.ones(21, 21, dtype=torch.bool)
    outside[10, 10] = False
    torch.testing.assert_close(turned[outside], torch.rot90(plain)[outside])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop_size": 3}, "crop_size=3 is too small for 8 directions and 4 rings"),
        ({"directions": 0}, "directions=0"),
        ({"distance_norm": "l1"}, "unknown distance_norm 'l1'"),
        ({"distance_edges": [0.5, 0.25, 0.75]}, r"distance_edges=\[0.5, 0.25, 0.75\]: 4 rings have 3 rising edges"),
        ({"distance_edges": [0.5]}, "4 rings have 3 rising edges"),
        ({"logits": "sematic"}, "unknown logits 'sematic': did you mean semantic"),
        ({"refine_levels": [0]}, r"refine_levels=\[0\]: name maps from 1"),
        ({"refine_kernel": 4}, "an odd kernel"),
        ({"deformable": 4}, "deformable=4: 14 cells are cut into 1, 2, 7 or 14 parts"),
        ({"box_rates": [0]}, r"rates \[0\]"),
        ({"mask_samples": 0}, "mask_samples=0"),
        ({"backbone": "test_convnext"}, "test_convnext gives 4 maps, where MaskLab needs conv1 to conv5"),
        ({"backbone": "mobilenetv3_small_050"}, r"mobilenetv3_small_050 .* has no dilated last stage"),
        ({"output_stride": 32}, r"test_resnet \(strides \[2, 4, 8, 16, 32\]\) has no dilated last stage"),
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        build(**options)


# ---- pooling


def naive(logits: Tensor, boxes: Tensor, labels: Tensor, classes: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Section 3.2 cell by cell: the angle and distance of each, one bilinear value of the channel that they name."""
    semantic, direction = torch.zeros(2, len(boxes), size, size, dtype=logits.dtype)
    height, width = logits.shape[2:]
    for number, (image, *box) in enumerate(boxes.tolist()):
        left, top, right, bottom = box
        for row in range(size):
            for column in range(size):
                across, down = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
                angle = math.degrees(math.atan2(-down, across)) % 360
                sector = int((angle + 1e-7) // 45) % 8
                ring = min(int(math.hypot(across, down) / math.hypot(0.5, 0.5) * 4), 3)
                x = ((0.5 + across) * (right - left) + left) / stride - 0.5
                y = ((0.5 + down) * (bottom - top) + top) / stride - 0.5
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                x0, y0 = int(x), int(y)
                for grid, channel in ((semantic, int(labels[number])), (direction, classes + 4 * sector + ring)):
                    plane = logits[int(image), channel]
                    for yy, wy in ((y0, 1 - (y - y0)), (min(y0 + 1, height - 1), y - y0)):
                        for xx, wx in ((x0, 1 - (x - x0)), (min(x0 + 1, width - 1), x - x0)):
                            grid[number, row, column] += wy * wx * plane[yy, xx]
    return semantic, direction


def test_one_gather_is_the_loop_over_boxes_and_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3 + 32, 9, 12, generator=generator, dtype=torch.float64)
    boxes = [[0, 3.0, 5, 80, 60], [1, 0.0, 0, 96, 72], [1, 40.5, 8.25, 52, 71], [0, 10.0, 10, 14, 14]]
    rois, labels = torch.tensor(boxes, dtype=torch.float64), torch.tensor([2, 0, 1, 1])
    head = DirectionMaskHead(4, 8, 3, "both", regions(21, 8, 4), 32, POINT).double()
    read = head.read(logits, rois, labels)
    semantic, direction = naive(logits, rois, labels, 3, 21, 8)
    torch.testing.assert_close(read, torch.stack([semantic, direction], 1))
    # The 1x1 begins as half the semantic logits and all of the direction's.
    torch.testing.assert_close(head(logits, rois, labels), 0.5 * semantic + direction)
    for kind, expected in (("semantic", semantic), ("direction", direction)):
        alone = DirectionMaskHead(4, 8, 3, kind, regions(21, 8, 4), 32, POINT)
        part = logits[:, :3] if kind == "semantic" else logits[:, 3:]
        torch.testing.assert_close(alone(part, rois, labels), expected)


@pytest.mark.parametrize(("points", "own"), [(1, DETECTRON2), (2, DETECTRON2), (2, TORCHVISION)])
def test_reading_chosen_channels_is_align_and_then_choose(points: int, own: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 9, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, -9.0, 5, 80, 60], [1, 0, 0, 96, 72], [1, 90, 60, 120, 90]], dtype=torch.float64)
    channels = torch.randint(0, 6, (3, 2, 7, 7), generator=generator)
    read = read_channels(x, rois, channels, 1 / 8, points, own.aligned)
    every = roi_align(x, rois, 7, 1 / 8, points, own.aligned)
    torch.testing.assert_close(read, every.gather(1, channels))
    weight = torch.randn(read.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (read, every.gather(1, channels))]
    torch.testing.assert_close(*gradients)


def test_gradients_reach_the_selected_channels_alone() -> None:
    logits = torch.zeros(1, 3 + 32, 12, 12, requires_grad=True)
    head = DirectionMaskHead(4, 8, 3, "both", regions(41, 8, 4), 32, POINT)
    rois, labels = torch.tensor([[0, 8.0, 8, 88, 88]]), torch.tensor([1])
    head(logits, rois, labels).sum().backward()
    gradient = logits.grad[0]
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()
    # Of each direction channel those cells alone that lie in its sector and ring, or beside it.
    y, x = torch.meshgrid(*[torch.arange(12) * 8 + 4.0 - 48] * 2, indexing="ij")
    angle, distance = torch.atan2(-y, x).rad2deg() % 360, torch.hypot(x, y) / math.hypot(40, 40) * 4
    for channel in range(32):
        reached = gradient[3 + channel] != 0
        assert reached.any()
        sector, ring = channel // 4, channel % 4
        off = ((angle - 45 * sector - 22.5 + 180) % 360 - 180).abs()
        # A cell's diagonal is 11.3 pixels; so near to the centre lies every direction.
        away = torch.hypot(x, y)
        slack = torch.where(away > 12, (12 / away).clamp(max=1).asin().rad2deg(), 180)
        assert (off[reached] <= 22.5 + slack[reached]).all()
        assert (distance[reached] > ring - 0.9).all()
        assert (distance[reached] < ring + 1.9).all()


def test_touching_objects_of_one_class_come_apart() -> None:
    """Two ellipses side by side, each box half full of the other one; their pixels point to their own centres."""
    y, x = (v * 8 + 4.0 for v in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    along, across = (x + y) / 2**0.5, (x - y) / 2**0.5
    shift = 33.0
    ellipses = [((along - 226) / 140) ** 2 + ((across + s) / shift) ** 2 < 1 for s in (-shift, shift)]
    first, second = ellipses
    assert not (first & second).any()
    grown = nn.functional.max_pool2d(first[None].float(), 3, 1, 1)[0] > 0
    assert (grown & second).any()  # they touch
    boxes = [torch.cat([Masks.from_dense(mask[None]).boxes()[0] * 8]) for mask in ellipses]
    semantic = torch.where(first | second, 5.0, -5.0)[None, None]
    direction = torch.full((1, 32, 40, 40), -5.0)
    for mask, (left, top, right, bottom) in zip(ellipses, boxes, strict=True):
        u, v = (x - left) / (right - left) - 0.5, (y - top) / (bottom - top) - 0.5
        sector = (torch.atan2(-v, u) / (math.pi / 4) % 8).floor().long()
        ring = (torch.hypot(u, v) / math.hypot(0.5, 0.5) * 4).floor().clamp(max=3).long()
        rows, columns = mask.nonzero().unbind(1)
        direction[0, (sector * 4 + ring)[mask], rows, columns] = 5.0
    rois, label = torch.cat([torch.zeros(1), boxes[0]])[None], torch.zeros(1, dtype=torch.int64)
    truth = roi_align(first[None, None].float(), rois, 41, 1 / 8, 1, True)[0, 0] >= 0.5
    found = {}
    for kind, logits in {"semantic": semantic, "both": torch.cat([semantic, direction], 1)}.items():
        mask = DirectionMaskHead(4, 8, 1, kind, regions(41, 8, 4), 32, POINT)(logits, rois, label)[0] > 0
        found[kind] = ((mask & truth).sum() / (mask | truth).sum()).item()
    assert found["semantic"] < 0.7
    assert found["both"] > 0.85


# ---- crops of the box branch


def test_a_deformable_crop_begins_as_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, 20, generator=generator, dtype=torch.float64)
    boxes = [torch.tensor([[3.0, 5, 140, 100], [0, 0, 160, 128]]), torch.tensor([[50.0, 8.25, 52, 71]])]
    boxes = [own.double() for own in boxes]
    for own in (POINT, replace(TORCHVISION, sampling_ratio=1)):
        plain = RoIPooler([8], 14, own)([x], boxes)
        for parts in (1, 2, 7, 14):
            deform = DeformableCrop(5, 14, parts, 8, own.aligned).double()
            torch.testing.assert_close(deform(x, boxes, plain), plain)
    nothing = [own[:0] for own in boxes]
    assert deform(x, nothing, plain[:0]).shape == (0, 5, 14, 14)


def test_offsets_move_parts_and_learn() -> None:
    """Parts of a map that is its own x coordinate give their places; offsets are tenths of the box's sides."""
    x = torch.stack(torch.meshgrid(*[torch.arange(16) * 8 + 4.0] * 2, indexing="xy"))[None]
    boxes = [torch.tensor([[24.0, 32, 80, 88]])]  # 56 pixels: cells of 4
    deform = DeformableCrop(2, 14, 2, 8, True)
    plain = RoIPooler([8], 14, POINT)([x], boxes)
    with torch.no_grad():
        deform.offset.bias.view(2, 2, 2)[0, 1] = torch.tensor([-1.0, 2.0])  # the upper right part: x, y
    moved = deform(x, boxes, plain)
    expected = torch.zeros(2, 14, 14)
    expected[0, :7, 7:], expected[1, :7, 7:] = -5.6, 11.2
    torch.testing.assert_close(moved - plain, expected[None], atol=1e-3, rtol=0)
    moved.sum().backward()
    assert deform.offset.weight.grad.abs().sum() > 0
    torch.testing.assert_close(deform.offset.bias.grad.view(2, 2, 2), torch.full((2, 2, 2), 49 * 5.6))


# ---- refinement and the whole


def test_refinement_sees_logits_and_maps_at_the_same_places() -> None:
    """With kernels of one cell that add their inputs up, of what `roi_align` of each map gives."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(1, 2, 32, 32, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)]
    refine = Refinement([(2, 2), (3, 4)], 1, 1, 1, 21, POINT)
    for parameter in refine.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim == 4 else 0.0)
    rois, coarse = torch.tensor([[0, 4.0, 8, 60, 50]]), torch.rand(1, 21, 21, generator=generator)
    crops = [roi_align(x, rois, 21, 1 / stride, 1, True).sum(1) for x, stride in zip(maps, (2, 4), strict=True)]
    torch.testing.assert_close(refine(coarse, maps, rois), coarse + crops[0] + crops[1])


def test_as_the_paper_has_it_on_a_bottleneck_resnet() -> None:
    """Strides, channels and rates; box head and mask branch have a conv5 each, begun alike."""
    model = build("resnet50", crop_size=41, refine_channels=64, anchor_sizes=(64, 128, 256, 512), deformable=7)
    with torch.no_grad():
        dense = model(torch.zeros(1, 3, 64, 96))
    shared, logits, conv1, conv2 = dense.pyramid
    assert [tuple(x.shape[1:]) for x in (shared, logits)] == [(1024, 8, 12), (3 + 32, 8, 12)]
    assert [tuple(x.shape[1:]) for x in (conv1, conv2)] == [(64, 32, 48), (256, 16, 24)]
    assert dense.objectness[0].shape == (1, 8 * 12 * 12)
    deep = model.backbone.model.layer4
    assert [block.conv2.dilation[0] for block in deep] == [4, 8, 4]
    assert [block.conv2.dilation[0] for block in model.box_head.stage] == [1, 2, 1]
    pairs = zip(deep.parameters(), model.box_head.stage.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    with torch.no_grad():
        assert model.box_head.stage(torch.zeros(2, 1024, 7, 7)).shape == (2, 2048, 7, 7)
    assert [tuple(conv.weight.shape) for conv in model.refine.conv] == [(64, 321, 5, 5)] + [(64, 64, 5, 5)] * 2
    assert model.mask_head.fuse.weight.flatten().tolist() == [0.5, 1.0]
    assert model.deform.offset.weight.shape == (98, 1024 * 49)


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"crop_size": 81}, 6),
        (
            {"crop_size": 41, "distance_norm": "linf", "distance_edges": [0.2, 0.5, 0.8], "conventions": "torchvision"},
            6,
        ),
        ({"logits": "semantic"}, 6),
        ({"logits": "direction", "directions": 4, "distance_bins": 1}, 6),
        ({"refine_levels": []}, 5),
        ({"refine_levels": [1, 2, 3], "refine_convs": 1, "refine_kernel": 3}, 6),
        ({"deformable": 0, "mask_rates": [1, 2, 4], "box_rates": [2]}, 6),
        ({"deformable": 2, "output_stride": 16, "mask_samples": 1}, 6),
        ({"backbone": "test_efficientnet"}, 6),
        ({"frozen_norm": True, "frozen_stages": 2}, 6),
    ],
)
def test_every_ablation_trains_and_predicts(options: dict[str, Any], terms: int) -> None:
    model = build(**options).train()
    losses = model.loss(batch_of())
    assert len(losses) == terms
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert all(
        p.grad.any() for name, p in model.named_parameters() if name.startswith(("mask_head", "refine", "deform"))
    )
    (prediction,) = model.predict(batch_of())
    size = options.get("crop_size", 21)
    assert prediction.masks._rois.probabilities.shape == (len(prediction), size, size)
    assert len(prediction) > 0


def test_frozen_norms_of_the_copy_stay_frozen() -> None:
    model = build("resnet18", frozen_norm=True, norm_epsilon=0.01).train()
    norms = [m for m in model.box_head.stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not norm.training and not norm.weight.requires_grad and norm.eps == 0.01 for norm in norms)


def test_masks_are_learned_on_true_boxes_and_drawn_ones_of_many() -> None:
    """Also where no region is an object's; of more objects than `mask_samples` some are drawn, each time others."""
    torch.manual_seed(0)
    model = build(mask_samples=3)
    batch = batch_of(8)
    truth = batch.targets[0]
    seen: list[Tensor] = []
    inner = model.mask_head.forward
    model.mask_head.forward = lambda logits, rois, labels: (seen.append(torch.cat([rois, labels[:, None]], 1)), inner(logits, rois, labels))[1]  # fmt: skip  # noqa: E501
    for _ in range(8):
        model.loss(batch)
    rows = torch.cat(seen)
    assert all(len(own) == 3 for own in seen)
    known = torch.cat([torch.zeros(8, 1), truth.boxes, truth.labels[:, None]], 1)
    places = (rows[:, None] == known).all(-1).nonzero()
    assert len(places) == len(rows)  # each a true box with its class
    assert len(places[:, 1].unique()) > 3


def test_masks_of_many_detections_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(detections=7)
    batch = batch_of()
    whole = model.predict(batch)[0]
    monkeypatch.setattr("zoo.models.masklab.CHUNK", 3)
    parts = model.predict(batch)[0]
    assert len(whole) == 7
    torch.testing.assert_close(parts.masks._rois.probabilities, whole.masks._rois.probabilities)


def test_regions_are_numbered_by_image() -> None:
    boxes = [torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 2.0)]
    assert numbered(boxes)[:, 0].tolist() == [0, 0, 2]
