"""QueryModel: what MaskFormer and Mask2Former have in common but for the network: truth, padding, predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError, unknown
from zoo.models.backbone import Backbone
from zoo.models.fold import folding
from zoo.models.layers import join
from zoo.models.queries.criterion import Answers, Truth, at_least_float
from zoo.models.queries.readings import Place, read_instances, read_panoptic, read_semantic
from zoo.models.semantic import evaluating, rows_of_sizes
from zoo.structures import TASKS, VOID, Batch, Class, Instances, Panoptic, Semantic, Size, as_classes

KINDS: dict[str, type] = {"semantic": Semantic, "instance": Instances, "panoptic": Panoptic}


class Queries(NamedTuple):
    """Class logits (B, Q, K + 1), the last for no object, and mask logits (B, Q, h, w) at a quarter of the padded
    image's size."""

    logits: Tensor
    masks: Tensor


class QueryModel(nn.Module):
    """A set of masks with classes, read as labels, objects or segments.

    Args:
        classes: how many, their names, or a dataset's table, which a panoptic model needs: it says what are things.
        backbone: a built `Backbone`.
        task: "semantic", "instance" or "panoptic": the truth that is trained on and what `predict` gives.
        object_threshold: panoptic: a segment's class has a higher probability.
        overlap_threshold: panoptic: a segment keeps at least this share of its mask when others take theirs.
        detections: instance: at most this many.
        test_size, test_limit: in prediction resize the short side to this many pixels, the long one to at most these.

    A subclass writes `answer` and sets `criterion`.
    """

    task = "panoptic"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    needs: ClassVar[dict[str, Any]] = {"levels": 4, "dense": True}
    natural_backbone: ClassVar[str] = "resnet50"
    encoder_options: ClassVar[tuple[str, ...]] = ()
    multiple: ClassVar[int] = 32  # images are padded to
    header: dict[str, Any]
    criterion: Any

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        task: str = "panoptic",
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        detections: int = 100,
        test_size: int | None = None,
        test_limit: int = 1333,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        self.task = task
        self.classes = as_classes(classes)
        if task == "panoptic" and isinstance(classes, int):
            raise ZooError(
                f"classes={classes} does not say which classes are things, as task=panoptic needs to know: give a "
                "dataset's table, or task='semantic' or 'instance'"
            )
        if task != "instance" and len(self.classes) > VOID:
            raise ZooError(f"a {task} model has 1 to {VOID} classes, not {len(self.classes)}")
        self.backbone = backbone
        self.object_threshold, self.overlap_threshold = object_threshold, overlap_threshold
        self.detections = detections
        self.test_size, self.test_limit = test_size, test_limit
        self._told = False

    # ---- what a model writes

    def answer(self, normalized: Tensor, every: bool = False) -> Answers:
        """What the last layer, or every one, says of normalised and padded images (B, C, H, W)."""
        raise NotImplementedError

    # ---- the three verbs

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Queries:
        """Answers for images (B, C, H, W), uint8 or float in [0, 1]; pixels beyond `sizes` are padding."""
        return compose(self.answer(self.padded(self.backbone.normalize(images, sizes))))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss: classification, mask, dice of the last layer, and auxiliary, all of the others.

        Images without a segment teach that there is none. Every trainable parameter is in the graph of the first term.
        Raises ZooError for images without truth of the model's task.
        """
        truths = self.read_truth(batch)
        normalized = self.padded(self.backbone.normalize(batch.images, batch.sizes))
        answers = self.answer(normalized, every=True)
        self._tell_about_surplus(truths, batch, answers.logits.shape[2])
        terms = self.criterion(answers, truths, (normalized.shape[-2], normalized.shape[-1]))
        first = next(iter(terms))
        terms[first] = join(terms[first], self.parameters())
        return terms

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Any]:
        """One `Semantic`, `Instances` or `Panoptic` per image, at its original size, in evaluation mode whatever the
        model's mode is.

        Images of one size are predicted together and without the batch's padding, so that a prediction does not depend
        on what else is in the batch.
        """
        results: dict[int, Any] = {}
        with evaluating(self):
            for (size, original), rows in rows_of_sizes(batch).items():
                images = batch.images if len(rows) == len(batch) else batch.images[rows]
                normalized = self._resized(self.backbone.normalize(images[..., : size[0], : size[1]]))
                seen = (normalized.shape[-2], normalized.shape[-1])
                padded = self.padded(normalized)
                place = Place((padded.shape[-2], padded.shape[-1]), seen, original)
                with folding(self, self._trial, padded):
                    queries = compose(self.answer(padded))
                for row, logits, masks in zip(rows, *(at_least_float(x) for x in queries), strict=True):
                    results[row] = self.read(logits, masks, place)
        return [results[row] for row in range(len(batch))]

    # ---- the steps

    def read(self, logits: Tensor, masks: Tensor, place: Place) -> Semantic | Instances | Panoptic:
        """The model's reading of one image: class logits (Q, K + 1), mask logits (Q, h, w)."""
        if self.task == "semantic":
            return read_semantic(logits, masks, place)
        if self.task == "instance":
            return read_instances(logits, masks, place, self.classes, self.detections)
        return read_panoptic(logits, masks, place, self.classes, self.object_threshold, self.overlap_threshold)

    def read_truth(self, batch: Batch) -> list[Truth]:
        """The segments of every image, on the batch's device; ZooError where its truth is not of the model's task."""
        wanted, device = KINDS[self.task], batch.images.device
        truths = []
        for target, size, image in zip(batch.targets or [None] * len(batch), batch.sizes, batch.ids, strict=True):
            if self.task == "semantic" and isinstance(target, Panoptic):
                target = target.semantic()
            fits = isinstance(target, wanted)
            if not fits:
                kind = "no truth" if target is None else f"{type(target).__name__} for its truth"
                raise ZooError(f"image {image} has {kind}: task={self.task} needs {wanted.__name__}")
            if target.size != tuple(size):
                raise ZooError(f"image {image} is {size} (height, width) but its truth {target.size}: transform both")
            masks, labels = target.segments()
            truths.append(Truth(masks.to(device), labels.to(device)))
        return truths

    def padded(self, normalized: Tensor) -> Tensor:
        """Normalised images with zeros right and below, up to a multiple of 32."""
        height, width = normalized.shape[-2:]
        missing = -height % self.multiple, -width % self.multiple
        return F.pad(normalized, (0, missing[1], 0, missing[0])) if any(missing) else normalized

    def _resized(self, normalized: Tensor) -> Tensor:
        """Normalised images with the short side at `test_size`, the long one at `test_limit` at most."""
        if self.test_size is None:
            return normalized
        height, width = normalized.shape[-2:]
        factor = min(self.test_size / min(height, width), self.test_limit / max(height, width))
        size = [int(side * factor + 0.5) for side in (height, width)]
        if size == [height, width]:
            return normalized
        return F.interpolate(normalized, size, mode="bilinear", align_corners=False, antialias=True)

    def _trial(self, normalized: Tensor) -> Tensor:
        """The backbone's features in one row: the rest has no batch norms, and who attends to what is no steady
        function, of which rounding would move little."""
        return torch.cat([feature.flatten() for feature in self.backbone.extract(normalized)])

    def _tell_about_surplus(self, truths: Sequence[Truth], batch: Batch, queries: int) -> None:
        """Say once that an image has more segments than there are queries."""
        counts = [len(truth.labels) for truth in truths]
        most = max(counts, default=0)
        if most > queries and not self._told:
            self._told = True
            image = batch.ids[counts.index(most)]
            print(
                f"image {image} has {most} segments and the model {queries} queries: the other {most - queries} cannot "
                f"be learned; model.queries={most} would do (this is said once)",
                file=sys.stderr,
            )


def compose(answers: Answers) -> Queries:
    """The last layer's logits and masks."""
    return Queries(answers.logits[-1], torch.einsum("bqc,bchw->bqhw", answers.embeddings[-1], answers.pixels))
