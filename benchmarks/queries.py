"""The pairs of `benchmarks/models.py` that answer with queries: Mask2Former of transformers, and ours, panoptic.

    predict    uint8 image -> the final panoptic map. Theirs: (x / 255 - mean) / std, forward, then their processor's
               `post_process_panoptic_segmentation` with the paper's thresholds. Ours: `model.predict(batch)`
    criterion  class logits, embeddings and pixels of ten layers, two images with 20 segments -> the loss and its
               gradient to all three. Theirs first makes each layer's masks of them, as their network does
    train      theirs: model(images, mask_labels, class_labels), its loss, backward, SGD. Ours: `model.loss(batch)`, the
               same

Weights are random, but classes are spread and the bias of no-object is set so that KEPT queries pass the threshold.
Their map is not ours, on purpose: their processor makes it of masks of 384x384 and other rules (tests/models/
test_readings.py); so what is compared, in double precision, are logits, masks and the terms of the loss.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, ResNetConfig, SwinConfig
from transformers.models.mask2former import modeling_mask2former as reference

import zoo
from zoo.models.queries import points
from zoo.models.queries.criterion import Answers, PointCriterion, Truth
from zoo.structures import VOID, Batch, Panoptic

CLASSES, THINGS = 133, 80  # COCO's
SEGMENTS, KEPT = 20, 30  # of an image's truth; queries that pass the threshold
THRESHOLD = 0.8
SIDE, BATCH = 800, 1  # of images in pixels; images of a training step
COMPILES = False  # the other side
LAYERS = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ["stage1", "stage2", "stage3", "stage4"]
PEERS: dict[str, Callable[[], Any]] = {
    "transformers mask2former swin_tiny": lambda: SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES
    ),
    "transformers mask2former resnet50": lambda: ResNetConfig(out_features=STAGES),
}


@dataclass
class QueryCase:
    """Images and their segments, and how to compute with them."""

    images: Tensor  # (B, 3, S, S) uint8
    truth: list[Panoptic]
    half: bool = False

    @classmethod
    def of(cls, batch: int, size: int, device: str) -> QueryCase:
        """Blocks of colour with noise; segments are ellipses on a ground, some of which hide others."""
        generator = torch.Generator().manual_seed(0)
        blocks = torch.rand(batch, 3, 1 + size // 24, 1 + size // 24, generator=generator)
        images = F.interpolate(blocks, (size, size)) + 0.2 * torch.rand(batch, 3, size, size, generator=generator)
        y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        truth = []
        for _ in range(batch):
            ids = torch.ones(size, size, dtype=torch.int32)
            for number in range(2, SEGMENTS + 1):
                middle, half = size * torch.rand(2, generator=generator), size * (0.05 + 0.1 * torch.rand(2))
                ids[((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2 < 1] = number
            labels = torch.randint(0, CLASSES, (SEGMENTS,), generator=generator)
            truth.append(Panoptic(ids, torch.cat([torch.tensor([VOID]), labels])).to(device))
        return cls((images.clamp(0, 1) * 255).to(torch.uint8).to(device), truth, device != "cpu")

    def batch(self) -> Batch:
        """As our models take it."""
        return Batch.of(self.images, self.truth)

    def labels(self, dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
        """As theirs takes it."""
        segments = [truth.segments() for truth in self.truth]
        return {"mask_labels": [m.to(dtype) for m, _ in segments], "class_labels": [own for _, own in segments]}

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on a GPU."""
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()


class TheirQueries:
    """transformers' model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)
        self.processor = Mask2FormerImageProcessor()
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)

    def images(self, case: QueryCase) -> Tensor:
        """Normalised, in the precision of the weights."""
        return ((case.images / 255 - self.mean) / self.std).to(next(self.model.parameters()).dtype)

    def predict(self, case: QueryCase) -> list[dict[str, Any]]:
        """The map and the segments of each image."""
        size = tuple(case.images.shape[-2:])
        with torch.inference_mode(), case.precision():
            return self.processor.post_process_panoptic_segmentation(
                self.model(pixel_values=self.images(case)),
                threshold=THRESHOLD,
                label_ids_to_fuse=set(range(THINGS, CLASSES)),
                target_sizes=[size] * len(case.images),
            )

    def loss(self, case: QueryCase) -> Tensor:
        """The sum of all terms."""
        with case.precision():
            return self.model(pixel_values=self.images(case), **case.labels()).loss.sum()


class OurQueries:
    """Our model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)

    def predict(self, case: QueryCase) -> list[Panoptic]:
        """One map for each image."""
        with torch.inference_mode(), case.precision():
            return self.model.predict(Batch.of(case.images))

    def loss(self, case: QueryCase) -> Tensor:
        """The sum of all terms."""
        with case.precision():
            return torch.stack([*self.model.loss(case.batch()).values()]).sum()


# ---- what benchmarks/models.py asks of every kind of pairs


def network(name: str, size: int) -> Any:
    """The other side's, with random weights."""
    config = Mask2FormerConfig(backbone_config=PEERS[name](), num_labels=CLASSES)
    return reference.Mask2FormerForUniversalSegmentation(config)


def first(name: str) -> str:
    """A small pair that makes either library import all it imports."""
    return name


@torch.no_grad()
def weights_of(name: str, size: int) -> dict[str, Tensor]:
    """Random weights with which about KEPT queries pass the threshold."""
    generator = torch.Generator().manual_seed(1)
    model = network(name, size).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    model.class_predictor.weight.normal_(0, 0.5, generator=generator)
    images = TheirQueries(model, "cpu").images(QueryCase.of(1, 256, "cpu"))  # scores hardly depend on the image
    logits = model(pixel_values=images).class_queries_logits[0]
    low, high = -200.0, 200.0
    for _ in range(40):
        shift = (low + high) / 2
        shifted = logits.clone()
        shifted[:, -1] += shift
        few = int((shifted.softmax(1)[:, :-1] > THRESHOLD).sum()) < KEPT
        low, high = (low, shift) if few else (shift, high)
    model.class_predictor.bias[-1] += low
    return model.state_dict()


def case_of(name: str, batch: int, size: int, device: str) -> QueryCase:
    """Images and truth for the pair of this name."""
    return QueryCase.of(batch, size, device)


def ours(name: str, state: dict[str, Tensor], size: int, device: str) -> OurQueries:
    """Our side with these weights."""
    return OurQueries(zoo.load(state, test_size=size, test_limit=2 * size), device)


def theirs(name: str, model: nn.Module, device: str) -> TheirQueries:
    """The other side, with its weights."""
    return TheirQueries(model, device)


def look(model: Any, case: QueryCase) -> None:
    """One image through our network."""
    model(case.images[:1])


@torch.no_grad()
def same(theirs: TheirQueries, ours: OurQueries, case: QueryCase) -> str:
    """How far the two sides are from each other, in shares of the spread; ValueError where it is too far.

    In double precision and on 256 pixels of the image.
    """
    case = replace(case, images=case.images[..., :256, :256])
    network, model = copy.deepcopy(theirs.model).double().eval(), copy.deepcopy(ours.model).double().eval()
    model.backbone.set_statistics(MEAN, STD)  # which single precision has rounded
    images = (case.images / 255.0).double()
    output, found = network(pixel_values=model.backbone.normalize(images)), model(images)
    pairs = (found.logits, output.class_queries_logits), (found.masks, output.masks_queries_logits)
    difference = max(float((mine - other).abs().max() / other.std()) for mine, other in pairs)
    case_of_loss = criterion_case(torch.float64, 1024, 256)
    with same_points():
        gap = abs(float(our_criterion(*case_of_loss)) / float(their_criterion(*case_of_loss)) - 1)
    if difference > 1e-9 or gap > 1e-9:
        raise ValueError(f"not the same model: logits and masks {difference:.1e}, loss {gap:.1e}")
    return f"logits and masks differ {difference:.0e}"


# ---- the criterion


def criterion_case(
    dtype: torch.dtype, points: int, size: int, device: str = "cpu"
) -> tuple[Answers, list[Truth], Any, int]:
    """Random answers of all layers to two images of `size`, their truth, transformers' criterion, and the points."""
    generator = torch.Generator().manual_seed(0)
    shapes = (LAYERS, 2, 100, CLASSES + 1), (LAYERS, 2, 100, 256), (2, 256, size // 4, size // 4)
    drawn = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    drawn[1] /= 8  # mask logits of a spread of 2
    answers = Answers(*(x.to(device).requires_grad_() for x in drawn))
    truths = [Truth(*own.segments()) for own in QueryCase.of(2, size, device).truth]
    config = Mask2FormerConfig(backbone_config=SwinConfig(), num_labels=CLASSES, train_num_points=points)
    return answers, truths, reference.Mask2FormerLoss(config, {}).to(device, dtype), points


def our_criterion(answers: Answers, truths: list[Truth], theirs: Any, count: int) -> Tensor:
    """The loss of all layers."""
    side = 4 * answers.pixels.shape[-1]
    return torch.stack([*PointCriterion(points=count)(answers, truths, (side, side)).values()]).sum()


def their_criterion(answers: Answers, truths: list[Truth], theirs: Any, count: int) -> Tensor:
    """The same."""
    masks = [torch.einsum("bqc,bchw->bqhw", own, answers.pixels) for own in answers.embeddings]
    outputs = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(masks, answers.logits)]  # noqa: B905
    wanted = [truth.masks.to(answers.pixels.dtype) for truth in truths], [truth.labels for truth in truths]
    terms = theirs(masks[-1], answers.logits[-1], *wanted, outputs[:-1])
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    return torch.stack(
        [w * term for k, term in terms.items() for name, w in weights.items() if k.startswith(name)]
    ).sum()


def criteria(device: str) -> list[Callable[[], object]]:
    """The loss and its gradient, of ours and of theirs, for images of 1024x1024."""
    case = criterion_case(torch.float32, 12544, 1024, device)

    def run(criterion: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(criterion(*case), list(case[0]))

    return [run(our_criterion), run(their_criterion)]


@contextlib.contextmanager
def same_points() -> Iterator[None]:
    """Both sides look at the same points instead of drawing: the same for every mask, the more points the others."""

    def drawn(*shape: Any, **_: Any) -> Tensor:
        count, number = shape[:2]
        generator = torch.Generator().manual_seed(number)
        places = torch.empty(number, 2, dtype=torch.float64).uniform_(generator=generator)
        return places.expand(count, number, 2).clone()

    with (
        mock.patch.object(points, "draw", lambda shape, device: drawn(*shape)),
        mock.patch.object(torch, "rand", drawn),
    ):
        yield
