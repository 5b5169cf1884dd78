"""The parts of two-stage models against numbers worked out by hand and slow, plain references."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from zoo.models import create_model
from zoo.models.keypoint_rcnn import cubic, from_maps, to_cells
from zoo.models.mask_rcnn import cut_out
from zoo.models.two_stage import boxes as box_ops
from zoo.models.two_stage import sampling
from zoo.models.two_stage.anchors import Anchors
from zoo.models.two_stage.conventions import CASCADE_CONVENTIONS, DETECTRON2, KEYPOINT_CONVENTIONS, TORCHVISION
from zoo.models.two_stage.faster_rcnn import Found
from zoo.models.two_stage.heads import BoxHead, KeypointHead, MaskHead, box_loss
from zoo.models.two_stage.neck import FPN
from zoo.models.two_stage.roi import RoIPooler, align_by_rows
from zoo.models.two_stage.rpn import RPN, propose, rpn_loss
from zoo.models.two_stage.sampling import Regions, Truth
from zoo.models.two_stage.stages import FrozenNorm
from zoo.structures import Instances, Masks


def truth_of(boxes: list[list[float]], labels: list[int], size: tuple[int, int] = (64, 64)) -> Truth:
    rows = torch.arange(len(labels))
    instances = Instances.empty(size) if not labels else Instances(None, labels, boxes=torch.tensor(boxes), size=size)
    return Truth(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), rows, instances)


# ---- boxes and anchors


def test_offsets_by_hand() -> None:
    reference, box = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[15.0, 20, 25, 100]])
    expected = torch.tensor([[0.0, 0.5, math.log(0.5), math.log(2)]])  # centre (20, 60) against (20, 40)
    torch.testing.assert_close(box_ops.encode(box, reference), expected)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(box_ops.encode(box, reference, weights), expected * torch.tensor(weights))
    torch.testing.assert_close(box_ops.decode(expected * torch.tensor(weights), reference, weights), box)
    far = box_ops.decode(torch.tensor([[0.0, 0, 50, -50]]), reference)
    assert (far[:, 2] - far[:, 0]).item() == pytest.approx(20 * 1000 / 16, rel=1e-5)  # not e^50
    assert (far[:, 3] - far[:, 1]).item() == pytest.approx(0, abs=1e-5)  # small ones are not held


def test_anchors_of_both_conventions() -> None:
    """32 pixels, ratio 0.5: 45.25 x 22.63 in detectron2, 46 x 22 in torchvision, whose coarsest stride is 61 at 800."""
    maps = [torch.zeros(1, 1, side, side) for side in (200, 100, 50, 25, 13)]
    arguments = [[32], [64], [128], [256], [512]], [0.5, 1.0, 2.0], [4, 8, 16, 32, 64]
    exact, rounded = (Anchors(*arguments, own)(maps, (800, 800)) for own in (DETECTRON2, TORCHVISION))
    assert [len(level) for level in exact] == [3 * side**2 for side in (200, 100, 50, 25, 13)]
    assert rounded[0][0].tolist() == [-23, -11, 23, 11]
    torch.testing.assert_close(exact[0][0], torch.tensor([-1, -0.5, 1, 0.5]) * 16 * 2**0.5)
    torch.testing.assert_close(exact[0][3 * 200 + 1 + 3], torch.tensor([4 - 16, 4 - 16, 4 + 16, 4 + 16.0]))
    centres = [level[-1].view(2, 2).mean(0).tolist() for level in (exact[4], rounded[4])]
    assert centres == [[768, 768], [732, 732]]


def test_order_of_several_sizes_on_one_map() -> None:
    sizes = [[32.0, 64.0]], [0.5, 2.0], [16]
    widths = []
    for own in (DETECTRON2, TORCHVISION):
        boxes = Anchors(*sizes, own)([torch.zeros(1, 1, 1, 1)], (16, 16))[0]
        widths.append((boxes[:, 2] - boxes[:, 0]).round().tolist())
    assert widths == [[45, 23, 91, 45], [46, 90, 22, 46]]


# ---- proposals


def test_proposals_are_the_best_of_each_level_and_do_not_overlap() -> None:
    anchors = [torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 90, 60]]), torch.tensor([[0.0, 0, 20, 20]])]
    scores = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.5]])]
    still = [torch.zeros(1, 3, 4), torch.zeros(1, 1, 4)]
    (boxes,) = propose(scores, still, anchors, [(64, 64)], 100, 100, DETECTRON2)
    # Cut at the border; of the two near ones the better; the other level has its own suppression.
    assert boxes.tolist() == [[40, 40, 64, 60], [1, 0, 21, 20], [0, 0, 20, 20]]
    (boxes,) = propose(scores, still, anchors, [(64, 64)], 2, 1, DETECTRON2)
    assert boxes.tolist() == [[40, 40, 64, 60]]
    (boxes,) = propose(scores, still, anchors, [(64, 40)], 100, 100, DETECTRON2)
    assert boxes.tolist() == [[1, 0, 21, 20], [0, 0, 20, 20]]  # nothing left of the third


def test_matching_of_anchors() -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 8], [50, 50, 60, 60], [30, 30, 40, 40], [0, 0, 4, 10]]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [38, 38, 48, 48], [200, 200, 210, 210]])
    positive, negative, owner = sampling.match_anchors(boxes, anchors)
    # 1.0, 0.5 (neither), 0.8; a far one; the best of the second box at 4 %; 0.4 (neither). The third box has none.
    assert positive.tolist() == [True, False, True, False, True, False]
    assert negative.tolist() == [False, False, False, True, False, False]
    assert owner[positive].tolist() == [0, 0, 1]
    assert sampling.match_anchors(boxes[:0], anchors)[1].all()


def test_matching_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(90, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(90, 2, generator=generator)], 1)
    whole = sampling.match_anchors(boxes[:20], boxes[20:])
    monkeypatch.setattr(sampling, "CHUNK", 3 * 70)
    parts = sampling.match_anchors(boxes[:20], boxes[20:])
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], parts[:2], strict=True))
    assert torch.equal(whole[2][whole[0]], parts[2][parts[0]])


def test_overlaps_are_torchvision_s() -> None:
    corners = torch.rand(90, 2, generator=torch.Generator().manual_seed(0)) * 80
    boxes = torch.cat([corners, corners + 1 + corners.flip(1)], 1)
    assert torch.equal(box_ops.overlaps(boxes[:20], boxes[20:]), box_iou(boxes[:20], boxes[20:]))
    assert box_ops.overlaps(boxes[:0], boxes).shape == (0, 90)


def test_sampling_is_without_replacement_and_fills_up() -> None:
    torch.manual_seed(0)
    kinds = torch.tensor([1] * 6 + [0] * 30 + [-1] * 10)
    for count, share, wanted in [(16, 0.5, (6, 10)), (8, 0.25, (2, 6)), (100, 0.5, (6, 30))]:
        objects, n, others, m = sampling.sample(kinds == 1, kinds == 0, count, share)
        assert (int(n), int(m)) == wanted
        assert (kinds[objects[:n]] == 1).all()
        assert (kinds[others[:m]] == 0).all()
        assert len(set(objects[:n].tolist())) == n
        assert len(set(others[:m].tolist())) == m
    drawn = torch.stack([sampling.sample(kinds == 1, kinds == 0, 2, 0.5)[0] for _ in range(300)])
    assert torch.bincount(drawn.flatten(), minlength=46)[:6].min() > 25  # of 50 each


def test_regions_have_objects_first() -> None:
    torch.manual_seed(0)
    proposals = [torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60], [0, 0, 10, 9]]), torch.tensor([[5.0, 5, 9, 9]])]
    truths = [truth_of([[0, 0, 10, 10], [41, 41, 61, 61]], [2, 0]), truth_of([], [])]
    regions = sampling.sample_regions(proposals, truths, count=16, background=3)
    assert regions.foreground == [4, 0]  # a quarter of 16
    assert len(regions.boxes[0]) == 4  # nothing is background there
    assert regions.labels.tolist()[4:] == [3]
    boxes, owners, labels = regions.objects()
    assert torch.equal(labels, truths[0].labels[owners[0]])
    assert torch.equal(regions.targets[:4], truths[0].boxes[owners[0]])
    assert boxes[1].shape == (0, 4)


def test_rpn_loss_by_hand() -> None:
    """Two objects' anchors among four, all sampled."""
    anchors = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 8, 10], [30, 30, 40, 40], [20, 0, 24, 4]])]
    logits, moves = torch.tensor([[2.0, -1.0, 0.5, 0.0]]), torch.zeros(1, 4, 4)
    moves[0, 0], moves[0, 3] = 1.0, 9.0
    truths = [truth_of([[0.0, 0, 10, 10]], [0])]
    entropy = F.softplus(torch.tensor([-2.0, 1.0, 0.5, 0.0])).sum().item()
    # Offsets of the second, 0.8 of the box, are (1/8, 0, log 1.25, 0); those of the first 0, of which it says 1.
    distance = 4 + 0.125 + math.log(1.25)
    terms = rpn_loss([logits], [moves], anchors, truths, 256, DETECTRON2)
    assert terms["rpn_objectness"].item() == pytest.approx(entropy / 256, rel=1e-5)
    assert terms["rpn_box"].item() == pytest.approx(distance / 256, rel=1e-5)
    terms = rpn_loss([logits], [moves], anchors, truths, 256, TORCHVISION)
    assert terms["rpn_objectness"].item() == pytest.approx(entropy / 4, rel=1e-5)
    smooth = 4 * (1 - 1 / 18) + (0.125 - 1 / 18) + (math.log(1.25) - 1 / 18)
    assert terms["rpn_box"].item() == pytest.approx(smooth / 4, rel=1e-5)


# ---- regions and heads


def test_levels_of_regions() -> None:
    """224 pixels are stride 16's; twice as many stride 32's; beyond the ends the ends."""
    pooler = RoIPooler([4, 8, 16, 32], 7, DETECTRON2)
    sides = torch.tensor([10.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert pooler.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("own", [DETECTRON2, TORCHVISION], ids=["detectron2", "torchvision"])
def test_pooling_keeps_the_order_of_boxes(own: object) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 256 // stride, 256 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    boxes = [
        torch.tensor([[0.0, 0, 250, 240], [3, 5, 40, 47]]),
        torch.tensor([[100.0, 90, 230, 220], [0, 0, 9, 200], [7, 7, 8, 8]]),
    ]
    pooler = RoIPooler([4, 8, 16, 32], 7, own)
    pooled = pooler(maps, boxes)
    row = 0
    for image, some in enumerate(boxes):
        for box in some:
            level = int(pooler.levels(box[None]))
            roi = torch.cat([torch.tensor([float(image)]), box])[None]
            aligned = own is DETECTRON2
            expected = roi_align(maps[level], roi, 7, 1 / 4 / 2**level, 0 if aligned else 2, aligned)
            torch.testing.assert_close(pooled[row : row + 1], expected)
            row += 1
    assert pooler(maps, [boxes[0][:0], boxes[1][:0]]).shape == (0, 3, 7, 7)


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (0, True), (0, False), (1, True)])
@pytest.mark.parametrize("size", [7, 14])
def test_pooling_by_rows_is_roi_align(ratio: int, aligned: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of any shape, beyond the borders, and of no area; also few at a time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 30, 41, generator=generator, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )
    corner = torch.rand(60, 2, generator=generator, dtype=torch.float64) * 200 - 30
    extent = torch.rand(60, 2, generator=generator, dtype=torch.float64) ** 3 * 200
    extent[:3], extent[3, 0] = 0, 0
    image = torch.randint(0, 2, (60, 1), generator=generator)
    rois = torch.cat([image, corner, corner + extent], 1)
    given = torch.randn(60, 5, size, size, generator=generator, dtype=torch.float64)
    expected = roi_align(x.requires_grad_(), rois, size, 1 / 4, ratio, aligned)
    (slope,) = torch.autograd.grad(expected, x, given)
    for chunk in (2**20, 1):
        monkeypatch.setattr("zoo.models.two_stage.roi.CHUNK", chunk)
        pooled = align_by_rows(x, rois, size, 1 / 4, ratio, aligned)
        assert pooled.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.autograd.grad(pooled, x, given)[0], slope, rtol=1e-10, atol=1e-10)
    none = align_by_rows(x, rois[:0], size, 1 / 4, ratio, aligned)
    assert none.shape == (0, 5, size, size)
    assert not torch.autograd.grad(none.sum(), x)[0].any()  # the graph stays whole


def test_frozen_norms_compute_the_same_and_remember_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.BatchNorm2d(4, eps=0.1).eval().requires_grad_(False)
    for values in (plain.weight, plain.bias, plain.running_mean, plain.running_var):
        values.copy_(torch.rand(4, generator=generator) + 0.5)
    frozen = copy.deepcopy(plain)
    frozen.__class__ = FrozenNorm
    x = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    y, expected = frozen(x), plain(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)))
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: held.append(saved), lambda saved: saved):
        frozen(x)
    assert sum(saved.numel() for saved in held) <= 4
    with torch.no_grad():
        assert torch.equal(frozen(x), plain(x))
    assert frozen.state_dict().keys() == plain.state_dict().keys()


def test_numbers_of_parameters() -> None:
    """Section by section of Mask R-CNN with 80 classes on a ResNet-50's maps."""
    count = {
        "neck": (FPN([256, 512, 1024, 2048], [4, 8, 16, 32], 256), 256 * 3840 + 4 * 256 + 4 * (256 * 256 * 9 + 256)),
        "rpn": (RPN(256, 3), 256 * 256 * 9 + 256 + 15 * 257),
        "box": (BoxHead(256, 80), 12544 * 1024 + 1024 + 1024 * 1025 + 1025 * (81 + 320)),
        "mask": (MaskHead(256, 80), 4 * (256 * 256 * 9 + 256) + 256 * 256 * 4 + 256 + 257 * 80),
        "keypoint": (KeypointHead(256, 17), 9 * 512 * (256 + 7 * 512) + 8 * 512 + 512 * 17 * 16 + 17),
    }
    for name, (module, wanted) in count.items():
        assert sum(p.numel() for p in module.parameters()) == wanted, name


def test_mask_head_computes_the_class_that_is_asked_for() -> None:
    torch.manual_seed(0)
    head = MaskHead(8, 5, convs=1, channels=8)
    x, labels = torch.rand(4, 8, 14, 14), torch.tensor([0, 4, 2, 2])
    every = head.predictor(F.relu(head.deconv(head.conv[0](x))))
    torch.testing.assert_close(head(x, labels), every[torch.arange(4), labels])
    assert MaskHead(8, 5, agnostic=True)(x, labels).shape == (4, 28, 28)


def test_box_loss_by_hand() -> None:
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]]), torch.tensor([[5.0, 5, 9, 9]])]
    targets = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 9, 9]])
    regions = Regions(boxes, torch.tensor([0, 2, 1]), targets, [], [])  # the second is background
    logits = torch.zeros(3, 3)
    offsets = torch.zeros(3, 2, 4)
    offsets[0, 0, 0], offsets[0, 1], offsets[1], offsets[2, 1, 3] = 0.5, 7.0, 7.0, -1.0
    classification, box = box_loss(logits, offsets, regions, beta=0.0)
    assert classification.item() == pytest.approx(math.log(3))
    assert box.item() == pytest.approx(1.5 / 3)


def test_mask_targets_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(5, 20, 20, generator=generator) > 0.5
    truth = Truth(torch.zeros(5, 4), torch.zeros(5), torch.arange(5), Instances(Masks.from_dense(dense), [0] * 5))
    corner = torch.rand(8, 2, generator=generator) * 10
    boxes, owners = torch.cat([corner, corner + 8], 1), torch.tensor([4, 0, 0, 3, 1, 4, 2, 0])
    for count in (8, 3):  # more regions than objects, and fewer
        monkeypatch.setattr("zoo.models.mask_rcnn.CHUNK", 2**24)
        whole = cut_out(truth, owners[:count], boxes[:count], 7, aligned=True, soft=True)
        monkeypatch.setattr("zoo.models.mask_rcnn.CHUNK", 800)
        assert torch.equal(cut_out(truth, owners[:count], boxes[:count], 7, aligned=True, soft=True), whole)
        rois = torch.cat([owners[:count, None], boxes[:count]], 1)
        assert torch.equal(whole, roi_align(dense[:, None].float(), rois, 7, 1.0, 0, True)[:, 0])


def test_mask_targets() -> None:
    """A quarter of the region is mask: cells are whole. Half a pixel off (not aligned) those at its edge are not."""
    dense = torch.zeros(3, 40, 40, dtype=torch.bool)
    dense[1, 8:20, 8:20] = True
    truth = Truth(torch.zeros(1, 4), torch.zeros(1), torch.tensor([1]), Instances(Masks.from_dense(dense), [0, 0, 0]))
    box, owner = torch.tensor([[8.0, 8, 32, 32]]), torch.tensor([0])
    hard = cut_out(truth, owner, box, 4, aligned=True, soft=False)[0]
    assert hard.tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2
    soft = cut_out(truth, owner, box, 4, aligned=False, soft=True)[0]
    edge = 5.5 / 6  # of the six points across the second cell the last lies between a pixel inside and one outside
    torch.testing.assert_close(soft[:2, :2], torch.tensor([[1, edge], [edge, edge**2]]))
    assert soft.sum() == soft[:2, :2].sum()
    many = cut_out(truth, owner.repeat(5), box.repeat(5, 1), 4, aligned=True, soft=False)
    assert torch.equal(many, hard.expand(5, 4, 4))


# ---- keypoints


def plain_decode(logits: Tensor, boxes: Tensor) -> Tensor:
    """One region after the other, with torch's own bicubic interpolation."""
    rows = []
    for maps, box in zip(logits, boxes, strict=True):
        width, height = (box[2:] - box[:2]).clamp(min=1).tolist()
        size = math.ceil(height), math.ceil(width)
        whole = F.interpolate(maps[:, None], size, mode="bicubic", align_corners=False)[:, 0].flatten(1)
        value, index = whole.max(1)
        x = (index % size[1] + 0.5) * width / size[1] + box[0]
        y = (index // size[1] + 0.5) * height / size[0] + box[1]
        share = 1 / (maps.flatten(1) - value[:, None]).exp().sum(1)
        rows.append(torch.stack([x, y, share.clamp(max=1)], 1))
    return torch.stack(rows)


def test_keypoints_of_many_boxes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = 4 * torch.randn(7, 3, 8, 8, generator=generator)
    logits = F.interpolate(coarse, (56, 56), mode="bilinear", align_corners=False).double()
    corner = torch.rand(7, 2, generator=generator) * 20
    extent = torch.tensor([[30.2, 60.7], [56, 56], [0.3, 5], [120, 40.5], [17, 90.1], [200.9, 33.3], [61, 61]])
    boxes = torch.cat([corner, corner + extent], 1).double()
    expected = plain_decode(logits, boxes)
    torch.testing.assert_close(from_maps(logits, boxes), expected, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr("zoo.models.keypoint_rcnn.CHUNK", 3 * 60 * 60)
    torch.testing.assert_close(from_maps(logits, boxes), expected, rtol=1e-6, atol=1e-6)
    assert from_maps(logits[:0], boxes[:0]).shape == (0, 3, 3)


def test_cubic_matrices_are_torch_s() -> None:
    x = torch.randn(1, 1, 1, 9, dtype=torch.float64)
    for length in (4, 9, 30):
        expected = F.interpolate(x, (1, length), mode="bicubic", align_corners=False).flatten()
        torch.testing.assert_close(cubic(9, torch.tensor([length]), length)[0] @ x.flatten(), expected)


def test_cells_of_keypoints() -> None:
    box = torch.tensor([[10.0, 20, 66, 76]])  # one pixel a cell of 56
    points = torch.tensor([[[10, 20, 2], [65.9, 20.5, 1], [66, 76, 2], [9.9, 30, 2], [30, 30, 0], [66.1, 30, 2]]])
    cells, counted = to_cells(points, box, 56)
    assert counted.tolist() == [[True, True, True, False, False, False]]
    assert cells[counted].tolist() == [0, 55, 56 * 56 - 1]


class Peak(nn.Module):
    """A keypoint head that is sure of column 9, row 11 of its 56 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 1, 56, 56)
        logits[..., 11, 9] = 20
        return logits


@pytest.mark.parametrize(("conventions", "half"), [("detectron2", 0.5), ("torchvision", 0.0)])
def test_half_a_pixel_between_keypoints_and_boxes(conventions: str, half: float) -> None:
    """A box of 28 pixels from (10, 20) has cells of half a pixel: column 9, row 11 are in the pixel number (14, 25).

    Its centre is at (14.5, 25.5) where boxes are measured, and that is its second cell in both directions.
    """
    narrow = {"channels": 32, "box_width": 64, "anchor_sizes": (8, 16, 32, 64, 128)}
    model = create_model("keypoint_rcnn", 1, "test_resnet", conventions=conventions, keypoint_channels=8, **narrow)
    model.keypoint_head = Peak()
    with torch.no_grad():
        pyramid = model.eval()(torch.rand(1, 3, 64, 64)).pyramid
    box = torch.tensor([[10.0, 20, 38, 48]])
    found = Found(box, torch.tensor([0]), torch.tensor([0.9]))
    for scale in (1, 2):
        (prediction,) = model.describe(pyramid, [found], [((64, 64), (64 * scale, 64 * scale))])
        assert prediction.keypoints is not None
        assert prediction.keypoints[0, 0, :2].tolist() == [14.5 * scale - half, 25.5 * scale - half]
    losses = []
    for x, y in ((14.7 - half, 25.7 - half), (14.7 - half, 25.2 - half)):  # off the edges of cells
        truth = truth_of([[8.0, 8, 40, 50]], [0])
        truth.instances.keypoints = torch.tensor([[[x, y, 2.0]]])
        regions = SimpleNamespace(objects=lambda: ([box], [torch.tensor([0])], torch.tensor([0])))
        losses.append(float(model.branch_loss(pyramid, regions, [truth])["keypoint"]))
    assert losses[0] < 1e-4
    assert losses[1] > 19


def test_recipes_of_relatives() -> None:
    assert (KEYPOINT_CONVENTIONS["detectron2"].box_beta, KEYPOINT_CONVENTIONS["detectron2"].train_proposals) == (
        0.5,
        1500,
    )
    assert CASCADE_CONVENTIONS["detectron2"].train_proposals == 2000
    assert KEYPOINT_CONVENTIONS["torchvision"] == CASCADE_CONVENTIONS["torchvision"] == TORCHVISION
