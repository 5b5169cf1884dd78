"""SemanticModel, the one base class: an architecture writes `__init__` and `decode`; all that is common is here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.losses import create_loss
from zoo.models.backbone import Backbone
from zoo.models.fold import folding
from zoo.models.layers import are_positive, join, resize
from zoo.ops.strips import Strips, WindowMean, average, stored
from zoo.structures import VOID, Batch, Class, Semantic, Size, as_classes


class SemanticModel(nn.Module):
    """One class per pixel: a backbone, a decoder, and everything that does not depend on which decoder it is.

    Args:
        classes: how many, their names, or a dataset's table; at most 255 (void is 255 in the label maps).
        backbone: a built `Backbone`.
        loss: terms of `zoo.losses.create_loss`, by name; None is {"cross_entropy": 1.0}. Auxiliary heads use the same.
        align_corners: how logits are resized (semantic.md's C.2: torchvision False, smp's DeepLab and PSPNet True).
        window: predict in windows of this size (one number or (H, W)), in pixels after `test_size` and scale;
            None looks at the whole image. A window larger than the image becomes the image.
        overlap: smallest share of a window that it has in common with the next, in [0, 1).
        scales: predict at these multiples of the image's size and average.
        flip: predict the mirrored image too and average.
        test_size: resize the image's short side to this many pixels before predicting.

    Averages are of probabilities. A single pass is never turned into probabilities: the largest logit wins.

    A subclass overrides `decode`, may override `auxiliary`, and `extract` where features need more than the image.
    Class attributes: `needs` is what `create_model` asks of the backbone (`dilation` of those that have it alone),
    `natural_backbone` the one it takes when nobody names one, `encoder_options` the options that go to the model's own
    encoder as well.
    """

    task = "semantic"
    needs: ClassVar[dict[str, Any]] = {}
    natural_backbone: ClassVar[str] = "resnet50"
    encoder_options: ClassVar[tuple[str, ...]] = ()
    header: dict[str, Any]

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        loss: Mapping[str, float | Mapping[str, Any]] | None = None,
        align_corners: bool = False,
        window: int | Sequence[int] | None = None,
        overlap: float = 1 / 3,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        test_size: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = as_classes(classes)
        if not 1 <= len(self.classes) <= VOID:
            raise ZooError(f"a semantic model has 1 to {VOID} classes, not {len(self.classes)}")
        if not 0 <= overlap < 1:
            raise ZooError(f"overlap={overlap}: windows share at least 0 and less than 1 of their size")
        if not isinstance(scales, Sequence) or not scales or min(scales) <= 0:
            raise ZooError(f"scales={scales!r}: give one or more positive factors, such as [0.75, 1.0, 1.25]")
        sides = (window, window) if isinstance(window, int) else window
        if sides is not None and not are_positive(sides, count=2):
            raise ZooError(f"window={window!r}: give the side of a window or its [height, width], in pixels, or null")
        self.backbone = backbone
        self.criterion = create_loss({"cross_entropy": 1.0} if loss is None else loss)
        self.align_corners = align_corners
        self.window = sides
        self.overlap = overlap
        self.scales = tuple(scales)
        self.flip = flip
        self.test_size = test_size

    # ---- what an architecture writes

    def decode(self, features: list[Tensor], size: Size) -> Tensor:
        """Logits (B, K, h, w) from the backbone's features, fine to coarse; `size` is the input's (H, W)."""
        raise NotImplementedError

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        """Heads that exist for the loss alone: (weight, logits (B, K, h, w)) each."""
        return []

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """Features of a normalised image (B, C, H, W)."""
        return self.backbone.extract(normalized)

    # ---- the three verbs

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W), uint8 or float in [0, 1]; pixels beyond `sizes` are padding."""
        return self.segment(self.backbone.normalize(images, sizes))

    def segment(self, normalized: Tensor) -> Tensor:
        """Logits (B, K, H, W) of a normalised image (B, C, H, W)."""
        size = (normalized.shape[-2], normalized.shape[-1])
        return resize(self.decode(self.extract(normalized), size), size, self.align_corners)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss against the batch's truth; void pixels and padding do not count.

        "auxiliary" is the sum over the auxiliary heads. Every trainable parameter is in the graph of the first term.
        """
        features = self.extract(self.backbone.normalize(batch.images, batch.sizes))
        labels = stack_labels(batch)
        logits = self.decode(features, (labels.shape[1], labels.shape[2]))
        terms = self.criterion(logits, labels, self.align_corners)
        auxiliary = [
            weight * term
            for weight, logits in self.auxiliary(features)
            for term in self.criterion(logits, labels, self.align_corners).values()
        ]
        if auxiliary:
            terms["auxiliary"] = torch.stack(auxiliary).sum()
        first = next(iter(terms))
        terms[first] = join(terms[first], self.parameters())
        return terms

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Semantic]:
        """One `Semantic` per image, at its original size, in evaluation mode whatever the model's mode is.

        Images of one size are predicted together and without the batch's padding, so that a prediction does not
        depend on what else is in the batch. Scores of all classes are never held at full size unless the decoder
        gives them so: not of windows, nor after a resize, nor of several views (but for the sum of full-size ones).
        """
        results: dict[int, Semantic] = {}
        with evaluating(self):
            for ((height, width), original), rows in rows_of_sizes(batch).items():
                images = batch.images if len(rows) == len(batch) else batch.images[rows]
                scores = self._scores(images[..., :height, :width]).resized(original, self.align_corners)
                for row, labels in zip(rows, scores.labels(images.device), strict=True):
                    results[row] = Semantic(labels)
        return [results[row] for row in range(len(batch))]

    # ---- how prediction looks at an image; scores are made strip by strip when they are read, see zoo/ops/strips.py

    def _scores(self, images: Tensor) -> Strips:
        """(B, K, h, w) at the test size: logits of a single pass, mean probabilities of several."""
        normalized = self.backbone.normalize(images, None)
        if self.test_size is not None:
            normalized = _resize_image(normalized, short_side(normalized.shape[-2:], self.test_size))
        size = (normalized.shape[-2], normalized.shape[-1])
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        parts: list[Strips] = []
        total: Tensor | None = None
        for scale, mirrored in views:
            view = _resize_image(normalized, scaled(size, scale))
            part = self._windows(view.flip(-1) if mirrored else view, probabilities=len(views) > 1)
            part = (part.mirrored() if mirrored else part).resized(size, self.align_corners)
            if len(views) > 1 and part.full_size:  # all views at full size would be more than their sum
                total = part.add_to(total, images.device)
            else:
                parts.append(part)
        if total is not None:
            parts.append(stored(total))
        return average(parts, len(views))

    def _windows(self, normalized: Tensor, probabilities: bool) -> Strips:
        """(B, K, H, W) of one view: logits of a single window unless `probabilities`, else means of probabilities."""
        height, width = normalized.shape[-2:]
        window = self.window or (height, width)
        tops = window_starts(height, window[0], self.overlap)
        lefts = window_starts(width, window[1], self.overlap)
        if len(tops) == len(lefts) == 1:
            scores = self._view(normalized)
            return scores.softmax() if probabilities else scores

        def look(rows: slice, columns: slice) -> Tensor:
            return self._view(normalized[..., rows, columns]).softmax().whole()

        shape = (len(normalized), len(self.classes), height, width)
        return Strips(shape, WindowMean(shape, tops, lefts, window, look))

    def _view(self, normalized: Tensor) -> Strips:
        """The logits of `segment`, of which only what `decode` gives is held."""
        size = (normalized.shape[-2], normalized.shape[-1])
        with folding(self, self.segment, normalized):
            logits = self.decode(self.extract(normalized), size)
        return stored(logits).resized(size, self.align_corners)


def auxiliary_channels(backbone: Backbone) -> int:
    """Channels of what an auxiliary head reads, the level before the coarsest; ZooError where there is none."""
    if len(backbone.channels) < 2:
        raise ZooError(
            f"an auxiliary head reads the level before the coarsest, and backbone {backbone.name} gives "
            f"{len(backbone.channels)}: build it with levels=2, or take aux_weight=0"
        )
    return backbone.channels[-2]


def stack_labels(batch: Batch) -> Tensor:
    """The batch's truth as uint8 labels (B, H, W) at the padded size; padding is void."""
    labels = torch.full((len(batch), *batch.images.shape[-2:]), VOID, dtype=torch.uint8, device=batch.images.device)
    targets = batch.targets or [None] * len(batch)
    for row, target, size, image in zip(labels, targets, batch.sizes, batch.ids, strict=True):
        if target is None:
            raise ZooError(f"image {image} has no truth, which a loss needs")
        if target.size != tuple(size):
            raise ZooError(f"image {image} is {size} (height, width) but its truth {target.size}: transform both")
        row[: size[0], : size[1]] = target.semantic().labels
    return labels


def short_side(size: Sequence[int], length: int) -> Size:
    """(H, W) with its short side `length` and its ratio kept, truncated as torchvision's Resize does."""
    height, width = size
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def scaled(size: Size, scale: float) -> Size:
    """(H, W) times `scale`, rounded, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: evenly spaced, the last one moved back to end with the image."""
    if window >= length:
        return [0]
    stride = max(1, math.floor(window * (1 - overlap)))
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again afterwards (frozen norms stay frozen)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def rows_of_sizes(batch: Batch) -> dict[tuple[Size, Size], list[int]]:
    """Which images of a batch have which size and which original size."""
    rows: dict[tuple[Size, Size], list[int]] = {}
    for row, ((height, width), (original_height, original_width)) in enumerate(
        zip(batch.sizes, batch.original_sizes, strict=True)
    ):
        rows.setdefault(((height, width), (original_height, original_width)), []).append(row)
    return rows


def _resize_image(image: Tensor, size: Size) -> Tensor:
    """A float image (B, C, H, W) at another size, smoothed where it shrinks."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
