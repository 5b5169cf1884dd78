"""What every registered instance model owes, on a tiny backbone and with narrow heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph import in_graph
from torch import nn

import zoo
from zoo.errors import ZooError
from zoo.models import MODELS, create_model, list_models, model_options
from zoo.models.two_stage import sampling
from zoo.models.two_stage.faster_rcnn import FasterRCNN
from zoo.structures import Batch, Instances, Masks, Panoptic

TINY = "test_resnet"
SIZE = 96
NARROW: dict[str, Any] = {
    "channels": 32,
    "box_width": 64,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "roi_samples": 32,
    "test_proposals": 64,
    "detections": 20,
}
OWN: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"mask_channels": 32, "mask_convs": 1},
    "cascade_mask_rcnn": {"mask_channels": 32, "mask_convs": 1},
    "keypoint_rcnn": {"keypoints": 3, "keypoint_channels": 32, "keypoint_convs": 1},
    "masklab": {"refine_channels": 8, "crop_size": 21, "anchor_sizes": (16, 32, 64), "nms_threshold": 0.3},
}
# Of two images learned: masklab's box head is a stage of the backbone, which takes longer for each region.
LEARNED = {"masklab": {"roi_samples": 32, "deformable": 0}}
# Sides of the maps that are given of 70 x 101 pixels, and how many of them have anchors.
PYRAMID = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
MAPS = {"masklab": ([(9, 13), (9, 13), (35, 51), (18, 26)], 1)}
every_model = pytest.mark.parametrize("name", [name for name in list_models("instance") if name in OWN])


def test_every_instance_model_is_tested_here() -> None:
    names = {name for name in list_models("instance") if issubclass(MODELS[name], FasterRCNN)}
    assert names == set(OWN)  # queries have a contract of their own, test_query_contract


def build(name: str, in_channels: int = 3, backbone: str = TINY, **options: Any) -> Any:
    torch.manual_seed(0)
    narrow = {key: value for key, value in NARROW.items() if key in model_options(name)}
    return create_model(name, 2, backbone, in_channels=in_channels, **{**narrow, **OWN[name], **options})


def objects(count: int = 2, channels: int = 3, size: int = SIZE) -> Batch:
    """Images with a bright square of class 0 and a dark disc of class 1; their corners, or nearly, are keypoints."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, targets = 0.5 + 0.05 * torch.randn(count, channels, size, size, generator=generator), []
    for number, image in enumerate(images):
        left = 10 + 14 * number
        square = (x >= left) & (x < left + 30) & (y >= 8) & (y < 38)
        disc = (x - 60) ** 2 + (y - 64) ** 2 < 20**2
        image[:, square], image[:, disc] = 0.95, 0.05
        masks = Masks.from_dense(torch.stack([square, disc]))
        boxes = masks.boxes()
        points = torch.stack([boxes[:, :2] + 4, boxes[:, 2:] - 4, (boxes[:, :2] + boxes[:, 2:]) / 2], 1)
        keypoints = torch.cat([points, torch.full((2, 3, 1), 2.0)], 2)
        targets.append(Instances(masks, [0, 1], boxes=boxes, keypoints=keypoints))
    return Batch.of(images.clamp(0, 1), targets)


def assert_close(a: Instances, b: Instances) -> None:
    assert torch.equal(a.labels, b.labels)
    for mine, other in ((a.scores, b.scores), (a.boxes, b.boxes), (a.keypoints, b.keypoints)):
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@every_model
def test_forward_is_the_same_in_both_modes_and_takes_any_channels(name: str) -> None:
    for channels in (1, 5):
        model = build(name, channels)
        pixels = torch.randint(0, 256, (1, channels, 70, 101), dtype=torch.uint8)
        outputs = []
        for mode in (True, False):
            with torch.no_grad():
                dense = model.train(mode)(pixels if mode else pixels / 255)
            outputs.append([x.shape for part in dense for x in part])
            assert all(x.isfinite().all() for part in dense for x in part)
        assert outputs[0] == outputs[1]
        sides, levels = MAPS.get(name, (PYRAMID, len(PYRAMID)))
        assert [x.shape[-2:] for x in dense.pyramid] == sides
        assert len(dense.offsets) == levels
        assert [x.shape for x in dense.offsets] == [(*x.shape, 4) for x in dense.objectness]


@every_model
def test_a_batch_of_one_trains_and_reaches_every_parameter(name: str) -> None:
    heads = {"norm": "batch", "box_convs": 1, "box_fcs": 1}
    model = build(name, **{key: value for key, value in heads.items() if key in model_options(name)}).train()
    terms = model.loss(objects(1))
    assert 4 < len(terms) <= 6
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    assert {id(p) for p in model.parameters() if p.requires_grad} <= in_graph(total)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # Less than most: ResNets' blocks begin as the identity, and what is inside them learns from the second step on.
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.7 * len(list(model.parameters()))


@every_model
@pytest.mark.parametrize("conventions", ["detectron2", "torchvision"])
def test_images_without_an_object_train(name: str, conventions: str) -> None:
    """They teach background alone: no box, mask or keypoint has anything to say, and every parameter is reached."""
    model = build(name, conventions=conventions).train()
    crowd = objects(2).targets[0]
    crowd.crowd[:] = True
    batch = objects(2)
    batch.targets = [Instances.empty((SIZE, SIZE)), crowd]
    terms = model.loss(batch)
    total = sum(terms.values())
    total.backward()
    assert terms["rpn_objectness"] > 0
    assert terms["classification"] > 0
    assert sum(value.item() for key, value in terms.items() if key not in ("rpn_objectness", "classification")) == 0
    assert {id(p) for p in model.parameters()} <= in_graph(total)
    mixed = objects(2)
    mixed.targets[0] = Instances.empty((SIZE, SIZE))
    assert torch.isfinite(sum(model.loss(mixed).values()))


@every_model
def test_objects_without_an_area_are_left_out_of_training(name: str) -> None:
    """A box without width and a mask without pixels beside two real objects: the same losses as without them."""
    model = build(name).train()
    batch, odd = objects(1), objects(1)
    (truth,) = batch.targets
    dense = torch.cat([truth.masks.dense(), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)])
    boxes = torch.cat([truth.boxes, torch.tensor([[20.0, 20, 20, 60], [0, 0, 0, 0]])])
    points = torch.cat([truth.keypoints, truth.keypoints])
    odd.targets = [Instances(Masks.from_dense(dense), [0, 1, 0, 1], boxes=boxes, keypoints=points)]
    terms = []
    for each in (batch, odd):
        torch.manual_seed(3)
        terms.append(model.loss(each))
    assert terms[0] == terms[1]


@every_model
def test_padding_does_not_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond `sizes` images count as zero once normalised whatever they hold, in the loss and in what is seen."""
    monkeypatch.setattr(sampling, "keys", lambda count, device: torch.linspace(1, 0, count, device=device))
    model = build(name).eval()
    batch = objects(1, size=80)
    noisy = torch.full((1, 3, 96, 128), 0.7)
    noisy[..., :80, :80] = batch.images
    zeroed = model.backbone.mean.expand_as(noisy).clone()
    zeroed[..., :80, :80] = batch.images
    with torch.no_grad():
        terms, expected = (
            model.loss(Batch(images, batch.targets, [(80, 80)], [(80, 80)], [0])) for images in (noisy, zeroed)
        )
    assert terms == expected
    padded = Batch(noisy, batch.targets, [(80, 80)], [(80, 80)], [0])
    (alone,), (prediction,) = model.predict(batch), model.predict(padded)
    assert len(alone) > 0
    assert_close(prediction, alone)


@every_model
def test_a_batch_predicts_what_its_images_do(name: str) -> None:
    model = build(name).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 80, 80), torch.rand(3, 64, 96)]
    batch = Batch.of(images)
    batch.original_sizes = [(128, 192), (80, 80), (64, 96)]
    together = model.predict(batch)
    assert all(module.training for module in model.modules())
    assert [p.size for p in together] == [(128, 192), (80, 80), (64, 96)]
    for number, image in enumerate(images):
        alone = Batch.of([image])
        alone.original_sizes = [batch.original_sizes[number]]
        assert_close(together[number], model.predict(alone)[0])
    for prediction, (height, width) in zip(together, batch.original_sizes, strict=True):
        assert 0 < len(prediction) <= 20
        assert (prediction.scores[1:] <= prediction.scores[:-1]).all()
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= torch.tensor([width, height, width, height])).all()
        if prediction.masks is not None:
            assert prediction.masks.dense().shape == (len(prediction), height, width)
        else:
            assert prediction.keypoints is not None
            assert prediction.keypoints.shape == (len(prediction), 3, 3)


@every_model
def test_two_images_are_learned(name: str) -> None:
    # A cascade's step costs twice the others', and it learns in fewer: three heads hand the pyramid their gradients.
    steps, rate, samples = (60, 3e-3, 32) if name == "cascade_mask_rcnn" else (90, 2e-3, 64)
    model = build(name, **LEARNED.get(name, {"roi_samples": samples})).train()
    batch = objects(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        total = sum(model.loss(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    model.test_proposals = 16  # further ones are slivers that no step has drawn
    for prediction, truth in zip(model.predict(batch), batch.targets, strict=True):
        best = prediction[prediction.scores > 0.5]
        assert sorted(best.labels.tolist()) == [0, 1]
        order = best.labels.argsort()
        assert (best.boxes[order] - truth.boxes).abs().max() < 6
        if best.masks is not None:
            mine, true = best.masks.dense()[order], truth.masks.dense()
            assert ((mine & true).sum((1, 2)) / (mine | true).sum((1, 2))).min() > 0.75
        else:
            assert (best.keypoints[order] - truth.keypoints)[..., :2].abs().max() < 8


@every_model
def test_header_rebuilds_the_model(name: str) -> None:
    model = build(name, conventions="torchvision", test_size=64).eval()
    again = zoo.load({"format": "zoo", "header": model.header, "state": model.state_dict()}).eval()
    batch = objects(1)
    assert_close(again.predict(batch)[0], model.predict(batch)[0])


@every_model
def test_truth_of_another_kind_is_refused(name: str) -> None:
    model = build(name)
    batch = objects(1)
    batch.targets = [Panoptic(torch.zeros(SIZE, SIZE), [255])]
    with pytest.raises(ZooError, match="image 0 has Panoptic for its truth"):
        model.loss(batch)
    batch.targets = None
    with pytest.raises(ZooError, match="image 0 has no truth"):
        model.loss(batch)
    batch = objects(1)
    batch.targets[0].masks = batch.targets[0].keypoints = None
    with pytest.raises(ZooError, match=r"boxes but no masks|the truth has none"):
        model.loss(batch)


@every_model
def test_a_diverged_training_says_so(name: str) -> None:
    model = build(name).train()
    nn.init.constant_(model.rpn.reg.weight, float("nan"))
    with pytest.raises(ZooError, match="no longer finite"):
        model.loss(objects(1))
    with torch.no_grad():
        assert len(model.predict(objects(1))[0]) == 0


def test_heads_that_diverged_find_nothing() -> None:
    """Also where the boxes of one head are pooled for the next."""
    for name in ("mask_rcnn", "cascade_mask_rcnn", "masklab"):
        model = build(name)
        first = model.box_head[0] if name == "cascade_mask_rcnn" else model.box_head
        nn.init.constant_(first.reg.weight, float("nan"))
        nn.init.constant_(first.cls.weight, float("nan"))
        assert len(model.predict(objects(1, size=64))[0]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"conventions": "detectron"}, "unknown conventions 'detectron': did you mean detectron2"),
        ({"variant": "fnp"}, "unknown variant 'fnp': did you mean fpn"),
        ({"pooling": "algin"}, "unknown pooling 'algin': did you mean align"),
        ({"detections": 0}, "detections=0: give 1 or more"),
        ({"norm": "bach"}, "unknown norm 'bach': did you mean batch"),
        ({"anchor_sizes": (8, 16)}, r"a pyramid of strides \[4, 8, 16, 32, 64\] takes 5 sizes, such as \[32, 64"),
        ({"frozen_stages": 5}, "frozen_stages=5: backbone test_resnet gives 4 maps"),
        ({"variant": "c4", "backbone": "test_efficientnet"}, "backbone test_efficientnet is no ResNet"),
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        build("mask_rcnn", **options)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("test_efficientnet", {}),
        ("test_convnext", {}),
        (
            "swin_tiny_patch4_window7_224",
            {"backbone_options": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}},
        ),
        ("resnet18", {"variant": "dc5", "pooling": "pool"}),
        ("resnet18", {"variant": "c4", "roi_samples": 8, "test_proposals": 8}),
        (TINY, {"class_agnostic": True, "norm": "group", "conventions": "torchvision"}),
    ],
)
def test_variants_and_backbones(backbone: str, options: dict[str, Any]) -> None:
    model = build("mask_rcnn", backbone=backbone, **{"anchor_sizes": (16, 32, 64, 128, 256), **options}).train()
    batch = objects(1, size=64)
    terms = model.loss(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(p.grad is not None for p in model.parameters())
    heads = [p for name, p in model.named_parameters() if not name.startswith("backbone")]
    assert all(p.grad.any() for p in heads)
    (prediction,) = model.predict(batch)
    assert len(prediction) > 0
    grids = prediction.masks._rois.probabilities
    assert grids.shape[1:] == ((14, 14) if options.get("variant") == "c4" else (28, 28))
    if options.get("variant") == "dc5":
        assert model.backbone.strides[-1] == 16
        assert model.anchors.per_cell == 15


def test_frozen_parts_stay_as_they_are() -> None:
    """frozen_stages=1 is the stem and the first stage; frozen norms keep statistics and weights while others learn."""
    model = build("mask_rcnn", backbone="resnet18", frozen_stages=1, frozen_norm=True, roi_samples=8).train()
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    convs = {name for name in names if "conv" in name}
    assert convs == {
        "backbone.model.conv1.weight",
        *(f"backbone.model.layer1.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2)),
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model.loss(objects(1, size=64)).values()).backward()
    optimizer.step()
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not changed & names
    assert not any("bn" in key or "downsample.1" in key for key in changed)
    # Not conv1 or conv2: timm begins blocks with a last norm of weight 0, which frozen norms without weights keep.
    assert "backbone.model.layer2.0.downsample.0.weight" in changed
    thawed = build("mask_rcnn", backbone="resnet18", roi_samples=8).train()
    assert all(p.requires_grad for p in thawed.parameters())
    assert all(module.training for module in thawed.modules())
