"""The pairs of `benchmarks/models.py` that find objects: torchvision's Mask R-CNN and Keypoint R-CNN, and ours.

    predict   uint8 image -> boxes, classes, scores and COCO RLEs (keypoints). Theirs: model([image / 255]), its own
              paste, masks > 0.5, pycocotools.mask.encode. Ours: `model.predict(batch)`, `masks.rle()`
    train     theirs: model(images, targets), the sum of its losses, backward, SGD. Ours: `model.loss(batch)`, the same

Weights are random, but each convolution's statistics are those of its features, heads spread their outputs as trained
ones do, and the background's bias is set so that some hundreds of pairs of a region and a class pass the threshold:
100 detections are kept. Version 1 has frozen norms with an epsilon of 0 and trains from the second stage on, as users
get it with COCO_V1; version 2 learns all of its layers and statistics. Theirs resizes in the model, by a factor of one
here, images and masks of a training step too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from pycocotools import mask as coco
from spread import SPREAD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, box_iou

import zoo
from zoo.models.two_stage import sampling
from zoo.structures import Batch, Instances, Masks

PEERS = {
    f"torchvision {name}": name
    for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn")
}
SIDE, BATCH = 800, 2  # of images in pixels; images of a training step
COMPILES = False  # the other side
OBJECTS, PAIRS = 12, 400
FIRST_VERSIONS: dict[str, tuple[type[nn.Module], int]] = {
    "maskrcnn_resnet50_fpn": (detection.MaskRCNN, 91),
    "keypointrcnn_resnet50_fpn": (detection.KeypointRCNN, 2),
}


def detector(name: str, size: int = 800) -> nn.Module:
    """torchvision's detector without weights, on images of about `size`; version 1 as with its COCO_V1 weights."""
    sides = {"min_size": size, "max_size": 2 * size}
    if name not in FIRST_VERSIONS:
        return getattr(detection, name)(weights=None, weights_backbone=None, **sides)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    for layer in body.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.eps = 0.0
    model, classes = FIRST_VERSIONS[name]
    return model(body, classes, **sides)


@dataclass
class DetectionCase:
    """Images and the ellipses on them, and how to compute with them."""

    images: Tensor  # (B, 3, S, S) uint8
    targets: list[dict[str, Tensor]]  # as torchvision takes them
    half: bool = False

    @classmethod
    def of(cls, batch: int, size: int, device: str, classes: int = 90, keypoints: int = 17) -> DetectionCase:
        """Blocks of colour with noise, and OBJECTS ellipses each."""
        generator = torch.Generator().manual_seed(0)
        blocks = torch.rand(batch, 3, 1 + size // 24, 1 + size // 24, generator=generator)
        images = F.interpolate(blocks, (size, size)) + 0.2 * torch.rand(batch, 3, size, size, generator=generator)
        targets = []
        y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        for _ in range(batch):
            extent = size * (0.05 + 0.4 * torch.rand(OBJECTS, 2, generator=generator) ** 2)
            corner = torch.rand(OBJECTS, 2, generator=generator) * (size - extent)
            boxes = torch.cat([corner, corner + extent], 1)
            middle, half = corner + extent / 2, extent / 2
            across, down = ((v - middle[:, i, None, None]) / half[:, i, None, None] for i, v in ((0, x), (1, y)))
            places = torch.rand(OBJECTS, keypoints, 2, generator=generator)
            points = torch.cat([corner[:, None] + extent[:, None] * places, torch.full((*places.shape[:2], 1), 2)], 2)
            labels = torch.randint(1, classes + 1, (OBJECTS,), generator=generator)
            masks = (across**2 + down**2 < 1).to(torch.uint8)
            targets.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": points})
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        return cls((images.clamp(0, 1) * 255).to(torch.uint8).to(device), targets, device != "cpu")

    def batch(self) -> Batch:
        """As our models take it."""
        truth = [
            Instances(Masks.from_dense(own["masks"]), own["labels"] - 1, boxes=own["boxes"], keypoints=own["keypoints"])
            for own in self.targets
        ]
        return Batch.of(self.images, truth)

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on a GPU."""
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()


class TheirDetector:
    """torchvision's model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)

    def images(self, case: DetectionCase) -> list[Tensor]:
        """In [0, 1], in the precision of the weights."""
        return [image.to(next(self.model.parameters()).dtype) / 255 for image in case.images]

    def predict(self, case: DetectionCase) -> list[dict[str, Any]]:
        """Of each image boxes, labels, scores, and `rle` or keypoints."""
        with torch.inference_mode(), case.precision():
            found = self.model(self.images(case))
            for own in found:
                if "masks" in own:
                    inside = (own["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
                    own["rle"] = coco.encode(np.asfortranarray(inside.transpose(1, 2, 0)))
            return found

    def terms(self, case: DetectionCase) -> dict[str, Tensor]:
        """The terms of the loss."""
        with case.precision():
            return self.model(self.images(case), case.targets)

    def loss(self, case: DetectionCase) -> Tensor:
        """Their sum."""
        return torch.stack([*self.terms(case).values()]).sum()


class OurDetector:
    """Our model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)

    def predict(self, case: DetectionCase) -> list[dict[str, Any]]:
        """Of each image boxes, labels (as torchvision counts them), scores, and `rle` or keypoints."""
        results = []
        with torch.inference_mode(), case.precision():
            for own in self.model.predict(Batch.of(case.images)):
                result = {"boxes": own.boxes, "labels": own.labels + 1, "scores": own.scores}
                if own.masks is not None:
                    result["rle"] = own.masks.rle()
                results.append(result | ({} if own.keypoints is None else {"keypoints": own.keypoints}))
        return results

    def terms(self, case: DetectionCase) -> dict[str, Tensor]:
        """The terms of the loss."""
        with case.precision():
            return self.model.loss(case.batch())

    def loss(self, case: DetectionCase) -> Tensor:
        """Their sum."""
        return torch.stack([*self.terms(case).values()]).sum()


@torch.no_grad()
def calibrate(name: str, size: int) -> dict[str, Tensor]:
    """A state dict of `detector(name)` with which 100 objects are found on the images of a case of this `size`."""
    generator = torch.Generator().manual_seed(1)
    small = 256  # statistics and spreads hardly depend on it
    model = getattr(detection, name)(weights=None, weights_backbone=None, min_size=small, max_size=small)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0  # the next batch's statistics are kept
        layer.weight.uniform_(0.7, 1.3, generator=generator)
        layer.bias.normal_(0, 0.1, generator=generator)
    classes = model.roi_heads.box_predictor.cls_score.out_features - 1
    case = DetectionCase.of(2, small, "cpu", classes)
    images = [image / 255 for image in case.images]
    model.train()(images, case.targets)
    handles = []
    for key, spread in SPREAD.items():
        if getattr(model.roi_heads, key.split(".")[1], True) is not None:
            layer = model.get_submodule(key)
            hook = lambda layer, inputs, spread=spread: _spread(layer, inputs[0], spread, generator)  # noqa: E731
            handles.append(layer.register_forward_pre_hook(hook))
    model.eval().roi_heads.score_thresh = 0.0
    model(images[:1])
    for handle in handles:
        handle.remove()
    state = model.state_dict()
    if name in FIRST_VERSIONS:
        state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    final = detector(name, size)
    final.load_state_dict(state)
    return _biased(final.eval(), DetectionCase.of(1, size, "cpu"))


def _biased(model: Any, case: DetectionCase) -> dict[str, Tensor]:
    """Its state with a bias of the background (row 0) with which PAIRS of a region and a class pass the threshold."""
    seen: list[Tensor] = []
    handle = model.roi_heads.box_predictor.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    model.roi_heads.score_thresh = 1.0
    model([image / 255 for image in case.images])
    handle.remove()
    low, high = -50.0, 50.0
    for _ in range(30):
        shift = (low + high) / 2
        logits = seen[0].clone()
        logits[:, 0] += shift
        few = int((logits.softmax(1)[:, 1:] > 0.05).sum()) < PAIRS
        low, high = (low, shift) if few else (shift, high)
    state = model.state_dict()
    state["roi_heads.box_predictor.cls_score.bias"][0] += low
    return state


def _spread(layer: Any, x: Tensor, spread: float, generator: torch.Generator) -> None:
    """Draw a layer's weights so that its outputs have this standard deviation; a second call changes nothing."""
    if not getattr(layer, "drawn", False):
        layer.drawn = True
        layer.weight.normal_(0, 1, generator=generator)
        layer.bias.zero_()
        layer.weight *= spread / copy.deepcopy(layer).forward(x).std().clamp(min=1e-6)


def compare(theirs: TheirDetector, ours: OurDetector, one: DetectionCase) -> float:
    """The largest difference of a box in pixels; ValueError where detections, masks or terms of the loss differ.

    In double precision, where the order of a sum decides nothing: in single precision a random head turns it into
    other scores. The losses are of the same sampled anchors and regions, the first of each kind.
    """
    theirs.model.eval().double()
    backbone = ours.model.eval().double().backbone
    backbone.set_statistics(backbone.config["mean"], backbone.config["std"])  # which single precision has rounded
    (expected,), (found,) = theirs.predict(one), ours.predict(one)
    overlap = box_iou(found["boxes"], expected["boxes"]) * (found["labels"][:, None] == expected["labels"])
    value, partner = overlap.max(1)
    same = value > 0.99
    gaps = [(found[key] - expected[key][partner])[same].abs().max() for key in ("boxes", "scores")]
    masks = torch.ones(1)
    if "rle" in expected:
        pairs = [(found["rle"][i], expected["rle"][int(partner[i])]) for i in same.nonzero()[:, 0].tolist()]
        masks = torch.tensor([float(coco.iou([a], [b], [0])[0, 0]) for a, b in pairs if coco.area(b)])
    with torch.no_grad(), same_samples():
        wanted, terms = theirs.model.train() and theirs.terms(one), ours.model.train() and ours.terms(one)
    losses = torch.tensor([float(a) / float(b) - 1 for a, b in zip(terms.values(), _ordered(wanted), strict=True)])
    theirs.model.float()
    ours.model.float()
    if len(found["boxes"]) != 100 or not same.all() or gaps[0] > 1e-2 or gaps[1] > 1e-4 or masks.min() < 0.999:
        raise ValueError(
            f"not the same model: {int(same.sum())} of {len(same)} detections equal, boxes {gaps[0]:.1e}, "
            f"scores {gaps[1]:.1e}, masks {masks.min():.4f}"
        )
    if losses.abs().max() > 1e-4:
        raise ValueError(f"not the same model: terms of the loss {losses.tolist()}")
    return float(gaps[0])


def _ordered(terms: dict[str, Tensor]) -> list[Tensor]:
    """torchvision's terms in the order of ours."""
    last = "loss_keypoint" if "loss_keypoint" in terms else "loss_mask"
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", last)
    return [terms[name] for name in names]


@contextlib.contextmanager
def same_samples() -> Iterator[None]:
    """Both sides look at the first anchors and regions of each kind instead of drawing."""

    def first_ones(self: Any, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for own in matched:
            positive, negative = (own >= 1).nonzero()[:, 0], (own == 0).nonzero()[:, 0]
            positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
            for mask, rows in zip(
                chosen, (positive, negative[: self.batch_size_per_image - len(positive)]), strict=True
            ):
                mask.append(torch.zeros_like(own, dtype=torch.uint8).index_fill_(0, rows, 1))
        return chosen

    keys = lambda count, device: torch.linspace(1, 0, count, device=device, dtype=torch.float64)  # noqa: E731
    with (
        mock.patch.object(BalancedPositiveNegativeSampler, "__call__", first_ones),
        mock.patch.object(sampling, "keys", keys),
    ):
        yield


# ---- what benchmarks/models.py asks of every kind of pairs


def network(name: str, size: int) -> nn.Module:
    """The other side's, without weights."""
    return detector(PEERS[name], size)


def first(name: str) -> str:
    """A small pair that makes either library import all it imports."""
    return name


def weights_of(name: str, size: int) -> dict[str, Tensor]:
    """Random weights with which the network computes what it would."""
    return calibrate(PEERS[name], size)


def case_of(name: str, batch: int, size: int, device: str) -> DetectionCase:
    """Images and truth for the pair of this name."""
    return DetectionCase.of(batch, size, device, classes=1 if "keypoint" in name else 90)


def ours(name: str, state: dict[str, Tensor], size: int, device: str) -> OurDetector:
    """Our side with these weights."""
    learned = {} if PEERS[name] in FIRST_VERSIONS else {"frozen_stages": 0}
    return OurDetector(zoo.load(state, test_size=size, test_limit=2 * size, **learned), device)


def theirs(name: str, model: nn.Module, device: str) -> TheirDetector:
    """The other side, with its weights."""
    return TheirDetector(model, device)


def look(model: Any, case: DetectionCase) -> None:
    """One image through our network and its heads."""
    model.predict(Batch.of(case.images[:1]))


def same(theirs: TheirDetector, ours: OurDetector, case: DetectionCase) -> str:
    """How far the two sides are from each other; ValueError where it is too far."""
    return f"boxes differ {compare(theirs, ours, replace(case, half=False)):.0e} px"
