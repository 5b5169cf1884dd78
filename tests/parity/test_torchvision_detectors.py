"""Mask R-CNN and Keypoint R-CNN with torchvision's conventions against torchvision's own, in double precision.

(In single precision the two differ by rounding alone, which can swap detections of nearly one score.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import SMALL, first_ones, images_of, on_resnet18, published, training_pair
from peers import assert_equal
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

import zoo
from zoo.models.two_stage import sampling
from zoo.structures import Batch, Instances, Masks

# Parameters of theirs, and of ours: no regression and no mask of background.
PARAMETERS = {
    "maskrcnn_resnet50_fpn": (44_401_393, 44_454_513 - 4 * 1025 - 257),
    "maskrcnn_resnet50_fpn_v2": (46_359_409, 46_359_409 - 4 * 1025 - 257),
    "keypointrcnn_resnet50_fpn": (59_190_378, 59_190_378 - 4 * 1025),
}


def ours_of(theirs: nn.Module) -> Any:
    """`zoo.load`, with the sizes of the small peers, in double precision."""
    state = theirs.state_dict()
    sizes = {"test_size": SMALL["min_size"], "test_limit": SMALL["max_size"]}
    counts = {"test_proposals": SMALL["rpn_post_nms_top_n_test"], "detections": SMALL["box_detections_per_img"]}
    model = zoo.load(state, **sizes, **counts, roi_samples=SMALL["box_batch_size_per_image"]).double()
    model.backbone.set_statistics(model.backbone.config["mean"], model.backbone.config["std"])  # not those rounded
    return model


@pytest.fixture(scope="module", params=PARAMETERS)
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Any]:
    theirs = published(request.param, frozen=request.param == "maskrcnn_resnet50_fpn")
    return request.param, theirs.double(), ours_of(theirs)


def assert_same(prediction: Instances, wanted: dict[str, Tensor]) -> None:
    assert len(prediction) == len(wanted["boxes"]) > 5
    assert torch.equal(prediction.labels, wanted["labels"] - 1)
    assert (prediction.scores - wanted["scores"]).abs().max() < 1e-6
    assert (prediction.boxes - wanted["boxes"]).abs().max() < 1e-4
    if "masks" in wanted:
        assert prediction.masks is not None
        inside = wanted["masks"][:, 0] > 0.5
        assert inside.any()
        # A pixel may lie on the threshold: grids are held in single precision.
        assert (prediction.masks.dense() != inside).sum() <= 1e-5 * inside.numel()
    if "keypoints" in wanted:
        assert prediction.keypoints is not None
        assert (prediction.keypoints[..., :2] - wanted["keypoints"][..., :2]).abs().max() < 1e-3
        assert ((prediction.keypoints[..., 2] > 0) & (prediction.keypoints[..., 2] <= 1)).all()


@torch.no_grad()
def test_predictions_equal(pair: tuple[str, nn.Module, Any]) -> None:
    """Images larger and smaller than the test size, wide and tall."""
    name, theirs, ours = pair
    for size in [(70, 101), (200, 110)] if name == "maskrcnn_resnet50_fpn" else [(90, 121)]:
        (image,) = images_of(size)
        (prediction,) = ours.predict(Batch.of(image[None]))
        assert prediction.size == size
        assert_same(prediction, theirs([image.double()])[0])


def test_numbers_of_parameters(pair: tuple[str, nn.Module, Any]) -> None:
    name, theirs, ours = pair
    counts = tuple(sum(p.numel() for p in model.parameters()) for model in (theirs, ours))
    assert counts == PARAMETERS[name]


@torch.no_grad()
def test_a_padded_batch_of_two_sizes_equals() -> None:
    """`predict` keeps images of two sizes apart; `detect` takes them together, padded, as torchvision does."""
    theirs = on_resnet18("v1").double()
    ours = ours_of(theirs)
    images = images_of((96, 131), (150, 96))
    batch = Batch.of(images)
    normalized = ours.backbone.normalize(batch.images, batch.sizes)
    together = ours.detect(normalized, batch.sizes, batch.original_sizes)
    for prediction, wanted in zip(together, theirs([image.double() for image in images]), strict=True):
        assert_same(prediction, wanted)
    for image, prediction in zip(images, ours.predict(batch), strict=True):
        assert_same(prediction, theirs([image.double()])[0])


@pytest.mark.parametrize("kind", ["v1", "v2", "keypoint"])
def test_training_losses_equal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same sampled anchors and regions: every term, and the gradients it gives."""
    theirs = on_resnet18(kind)
    ours = ours_of(theirs)
    ours.backbone.requires_grad_(True)
    images, targets = training_pair(classes=1 if kind == "keypoint" else 3)
    truth = []
    for target in targets:
        masks = Masks.from_dense(target["masks"])
        truth.append(Instances(masks, target["labels"] - 1, boxes=target["boxes"]))
        if kind == "keypoint":
            corner, extent = target["boxes"][:, None, :2], (target["boxes"][:, 2:] - target["boxes"][:, :2])[:, None]
            places = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
            seen = torch.tensor([2.0, 1, 0, 2, 2]).expand(3, 5)[..., None]
            target["keypoints"] = torch.cat([corner + extent * places, seen], 2)
            truth[-1].keypoints = target["keypoints"]

    def draw(self: BalancedPositiveNegativeSampler, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return first_ones(matched, self.batch_size_per_image, self.positive_fraction)

    monkeypatch.setattr(BalancedPositiveNegativeSampler, "__call__", draw)
    monkeypatch.setattr(sampling, "keys", lambda count, device: torch.linspace(1, 0, count, dtype=torch.float64))
    theirs, ours = theirs.train().double(), ours.train()
    ours.conventions = ours.conventions.__class__(
        **{**vars(ours.conventions), "train_proposals": SMALL["rpn_post_nms_top_n_train"]}
    )
    wanted = theirs([image.double() for image in images], [{**t, "boxes": t["boxes"].double()} for t in targets])
    sum(wanted.values()).backward()
    terms = ours.loss(Batch.of(images, truth))
    sum(terms.values()).backward()

    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box": "loss_box_reg",
    }
    names |= {"keypoint": "loss_keypoint"} if kind == "keypoint" else {"mask": "loss_mask"}
    assert list(terms) == list(names)
    for name, theirs_name in names.items():
        assert wanted[theirs_name] > 1e-3
        torch.testing.assert_close(terms[name], wanted[theirs_name], rtol=1e-6, atol=0, check_dtype=False)
    for name, theirs_name in {
        "rpn.reg.weight": "rpn.head.bbox_pred.weight",
        "neck.lateral.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.model.conv1.weight": "backbone.body.conv1.weight",
    }.items():
        assert_equal(ours.get_parameter(name).grad, theirs.get_parameter(theirs_name).grad)
