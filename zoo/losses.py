"""Losses between logits (B,K,H,W) and labels (B,H,W), summed by configuration.

Common to all: labels are integers, 0..K-1 or 255 for void; void pixels have no influence on value or gradient, and a
batch without any labelled pixel gives 0 with gradient 0. Computed in float32 whatever the autocast (in float64 for
float64 logits). Means are those of one process: distributed training averages them, which is a mean over processes and
not over all pixels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo.ops.borders import border_weights
from zoo.ops.cross_entropy import resized_cross_entropy
from zoo.ops.strips import at_least_float
from zoo.structures import VOID

Weights = Sequence[float] | Tensor

REDUCTIONS = ("valid", "all_pixels", "sum")


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    reduction: str = "valid",
    class_weights: Weights | None = None,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """- w[y] log softmax(logits)[y], reduced to a scalar.

    Logits (B,K,h,w) of another size than the labels are resized, bilinear and with `align_corners` as in torch, without
    all classes at full size: `zoo.ops.cross_entropy`, whose gradient has no derivative of its own.

    `reduction` divides the sum over labelled pixels by: "valid", the sum of their weights (without weights their
    number), which is torch's mean; "all_pixels", the number of all pixels with void ones, which is mmsegmentation's
    default and shrinks with the labelled fraction; "sum", 1 (FCN, Long et al., CVPR 2015). `class_weights` are K
    floats. `label_smoothing` in [0, 1) as in torch.
    """
    weights = _weights(class_weights, logits)
    total = resized_cross_entropy(logits, labels, VOID, align_corners, weights, label_smoothing)
    return total / _divisor(labels, reduction, weights)


def border_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    border: int = 0,
    w0: float = 10.0,
    sigma: float = 5.0,
    reduction: str = "valid",
    class_weights: Weights | None = None,
) -> Tensor:
    """- (w[y] + w0 exp(-(d1 + d2)^2 / (2 sigma^2))) log softmax(logits)[y]: U-Net's loss, which forces thin borders
    between objects that touch (Ronneberger et al. 2015, equations 1 and 2).

    `border` is the class between objects, d1 and d2 the distances in pixels to the two nearest objects, see
    `border_weights`; they are computed from the labels at every call, on the CPU. `class_weights` w[y] are K floats, 1
    by default; the paper balances classes by them. `reduction`: "valid" divides by the number of labelled pixels,
    "all_pixels" by that of all, "sum" by 1 (the paper's energy).
    """
    weights = _weights(class_weights, logits)
    losses = _per_pixel(logits, labels)
    maps = [border_weights(row, border, w0, sigma) for row in labels.to(torch.uint8).cpu().numpy()]
    near = torch.from_numpy(np.stack(maps)).to(losses)
    return _reduce(_weighted(losses, labels, weights) + near * losses, labels, reduction, None)


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Weights | None = None,
) -> Tensor:
    """Cross-entropy over hard pixels: online hard example mining (Shrivastava et al., CVPR 2016), on pixels as in Wu,
    Shen & van den Hengel, "High-performance Semantic Segmentation Using Very Deep Fully Convolutional Networks", 2016.

    Kept are labelled pixels whose true class has a probability below `threshold`, and at least the `min_kept` hardest
    of the batch (all, if there are fewer). The mean is over kept pixels, by weight, so that the scale does not shrink
    as pixels become easy; mmsegmentation divides by all pixels.
    """
    if not 0 < threshold <= 1 or min_kept < 0:
        raise ZooError(f"OHEM needs a threshold in (0, 1] and min_kept >= 0, not {threshold} and {min_kept}")
    losses = _per_pixel(logits, labels)
    kept = _hard(losses.detach().masked_fill(labels == VOID, -1.0), -math.log(threshold), min_kept)
    weights = _weights(class_weights, logits)
    return _reduce(_weighted(losses, labels, weights) * kept, torch.where(kept, labels, VOID), "valid", weights)


def _hard(losses: Tensor, limit: float, min_kept: int) -> Tensor:
    """Which losses (void: -1) exceed `limit`; if too few, the `min_kept` largest, with those equal to the last."""
    kept = losses > limit
    wanted = min(min_kept, losses.numel())
    if int(kept.sum()) >= wanted:
        return kept
    return losses >= losses.flatten().kthvalue(losses.numel() - wanted + 1).values


def focal(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    reduction: str = "valid",
    class_weights: Weights | None = None,
) -> Tensor:
    """- w[y] (1 - p)^gamma log p, p the softmax probability of the true class y (Lin et al., ICCV 2017, equation 5).

    `class_weights` are the paper's alpha; `reduction` as in `cross_entropy`. gamma = 0 is cross-entropy.
    """
    if gamma < 0:
        raise ZooError(f"the focal loss needs gamma >= 0, not {gamma}")
    weights = _weights(class_weights, logits)
    losses = _per_pixel(logits, labels)
    # 1 - p without cancellation; the bound keeps the slope of a power below 1 finite where p = 1.
    wrong = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
    return _reduce(_weighted(wrong**gamma * losses, labels, weights), labels, reduction, weights)


def dice(logits: Tensor, labels: Tensor, smooth: float = 0.0) -> Tensor:
    """1 - the soft Dice coefficient of each class over the batch, averaged over the classes that occur in it.

    Dice = (2 sum p t + smooth) / (sum p + sum t + smooth), sums over labelled pixels, p the softmax, t one-hot truth
    (Milletari et al., "V-Net", 3DV 2016, section 3, with plain instead of squared sums in the denominator).
    segmentation_models.pytorch divides by all K classes, absent ones counted 0.
    """
    probabilities, truth = _probabilities_and_truth(logits, labels)
    hit = torch.where(truth, probabilities, 0.0).sum((0, 2, 3))
    pixels = truth.sum((0, 2, 3))
    size = probabilities.sum((0, 2, 3)) + pixels
    coefficient = (2 * hit + smooth) / (size + smooth).clamp(min=1e-7)
    present = pixels > 0
    return torch.where(present, 1 - coefficient, 0.0).sum() / present.sum().clamp(min=1)


def lovasz(logits: Tensor, labels: Tensor, per_image: bool = False) -> Tensor:
    """The Lovász-softmax loss (Berman et al., CVPR 2018, equation 11): a convex surrogate of 1 - IoU of each class,
    averaged over the classes that occur, in the batch or, with `per_image`, in each image and then over the images
    that have labels.
    """
    probabilities, truth = _probabilities_and_truth(logits, labels)
    groups = zip(probabilities[:, None], truth[:, None], strict=True) if per_image else [(probabilities, truth)]
    losses = [_lovasz_of_classes(p, t) for p, t in groups]
    found = [loss for loss in losses if loss is not None]
    return torch.stack(found).mean() if found else probabilities.sum() * 0


def _lovasz_of_classes(probabilities: Tensor, truth: Tensor) -> Tensor | None:
    """Probabilities and truth (B,K,H,W), zero on void; None where no class occurs."""
    present = truth.flatten(2).any(2).any(0).nonzero()[:, 0].tolist()
    if not present:
        return None
    return torch.stack([_lovasz_of_class(probabilities[:, k].flatten(), truth[:, k].flatten()) for k in present]).mean()


def _lovasz_of_class(probabilities: Tensor, truth: Tensor) -> Tensor:
    """The Lovász extension of 1 - IoU at the errors of one class, (N,) and (N,) bool with at least one pixel true.

    Void pixels have error 0: they sort last and add nothing.
    """
    errors, order = torch.sort(torch.where(truth, 1 - probabilities, probabilities), descending=True)
    truth = truth[order]
    missed = truth.cumsum(0)
    total = missed[-1]
    union = (total + torch.arange(1, len(truth) + 1, device=truth.device) - missed).to(errors.dtype)
    # The steps of 1 - IoU as pixels go wrong one by one, in closed form: differences of the values would be noise.
    of_false = (total - missed) / (union * (union - 1).clamp(min=1))
    return (errors * torch.where(truth, 1 / union, of_false)).sum()


def _probabilities_and_truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and one-hot truth (bool), both (B,K,H,W) and zero on void pixels."""
    probabilities = at_least_float(logits).softmax(1) * (labels != VOID)[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device, dtype=labels.dtype)
    return probabilities, labels[:, None] == classes[:, None, None]


def _per_pixel(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel (B,H,W), 0 on void. Reduced elsewhere: that kernel is not deterministic on CUDA."""
    return F.cross_entropy(at_least_float(logits), labels.long(), ignore_index=VOID, reduction="none")


def _reduce(losses: Tensor, labels: Tensor, reduction: str, weights: Tensor | None) -> Tensor:
    return losses.sum() / _divisor(labels, reduction, weights)


def _divisor(labels: Tensor, reduction: str, weights: Tensor | None) -> Tensor | int:
    """What a sum over pixels is divided by, never 0."""
    if reduction == "sum":
        return 1
    if reduction == "all_pixels":
        return max(1, labels.numel())
    if reduction != "valid":
        raise unknown("reduction", reduction, REDUCTIONS)
    total = (labels != VOID).sum() if weights is None else _weight_map(labels, weights).sum()
    return torch.where(total > 0, total, 1)


def _weights(class_weights: Weights | None, logits: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    _check_weights(class_weights)
    if len(class_weights) != logits.shape[1]:
        raise ZooError(f"{len(class_weights)} class weights for {logits.shape[1]} classes: give one per class")
    return torch.as_tensor(class_weights, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)


def _check_weights(class_weights: Any) -> None:
    if not isinstance(class_weights, Sequence | Tensor | np.ndarray) or isinstance(class_weights, str):
        said = f"class_weights={class_weights}"
        raise ZooError(f"{said}: give one number per class (zoo-train also takes {' and '.join(CLASS_WEIGHTS)})")


def _weighted(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * _weight_map(labels, weights)


def _weight_map(labels: Tensor, weights: Tensor) -> Tensor:
    """The weight of every pixel's class, 0 on void."""
    table = weights.new_zeros(VOID + 1)
    table[: len(weights)] = weights
    return table[labels.int()]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "border_cross_entropy": border_cross_entropy,
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "ohem_cross_entropy": ohem_cross_entropy,
}


_OF_THE_MODEL = ("logits", "labels", "align_corners")  # parameters that no configuration sets


@dataclass(frozen=True)
class WeightedLosses:
    """Several losses of one pair: `criterion(logits, labels)` gives each by name, already weighted.

    Logits (B,K,h,w) of another size than the labels (B,H,W) are resized, bilinear, with `align_corners` as in torch;
    for cross-entropy alone without a map of all classes at full size.
    """

    terms: dict[str, tuple[float, dict[str, Any]]]  # name: (weight, keyword arguments)

    def __call__(self, logits: Tensor, labels: Tensor, align_corners: bool = False) -> dict[str, Tensor]:
        """Logits (B,K,h,w) and labels (B,H,W) with 255 for void -> one scalar a term."""
        size = (labels.shape[-2], labels.shape[-1])
        if list(self.terms) == ["cross_entropy"]:
            weight, options = self.terms["cross_entropy"]
            return {"cross_entropy": weight * cross_entropy(logits, labels, **options, align_corners=align_corners)}
        if tuple(logits.shape[-2:]) != size:
            logits = F.interpolate(at_least_float(logits), size=size, mode="bilinear", align_corners=align_corners)
        return {
            name: weight * LOSSES[name](logits, labels, **options) for name, (weight, options) in self.terms.items()
        }


def create_loss(terms: Mapping[str, float | Mapping[str, Any]]) -> WeightedLosses:
    """The losses of a configuration: each name in `LOSSES` with its weight, or with keyword arguments and a `weight`.

    `{"cross_entropy": 1.0, "dice": {"weight": 0.5, "smooth": 1.0}}`. A term that is None is left out, so that a recipe
    can take one out of a card. Names of `CLASS_WEIGHTS` have to be replaced by `weigh_classes` before. Raises ZooError
    for a name or keyword that is unknown, naming the nearest.
    """
    if isinstance(terms, Mapping):
        terms = {name: given for name, given in terms.items() if given is not None or name not in LOSSES}
    if not isinstance(terms, Mapping) or not terms:
        raise ZooError(f"loss={terms!r} should give at least one term its weight, {{term: 1.0}}: {', '.join(LOSSES)}")
    return WeightedLosses({name: _term(name, given) for name, given in terms.items()})


def _term(name: str, given: float | Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ZooError(f"the weight of the loss {name} is a number, not {weight!r}")
    known = [option for option in inspect.signature(LOSSES[name]).parameters if option not in _OF_THE_MODEL]
    for option in options:
        if option not in known:
            raise unknown(f"option of the loss {name}", option, ["weight", *known])
    if options.get("class_weights") is not None:
        _check_weights(options["class_weights"])
    return float(weight), options


def median_frequency_weights(pixels: ArrayLike) -> NDArray[np.float32]:
    """Class weights (K,) from the labelled pixels of each class in each image, (N,K): median frequency / frequency.

    The frequency of a class is its share of the pixels of the images it occurs in (Eigen & Fergus, ICCV 2015; SegNet).
    A class that never occurs gets 0.
    """
    counts = np.asarray(pixels, dtype=np.float64)
    around = (counts.sum(1, keepdims=True) * (counts > 0)).sum(0)
    seen = around > 0
    frequency = np.divide(counts.sum(0), around, out=np.ones_like(around), where=seen)
    if not seen.any():
        raise ZooError("class weights need labelled pixels, and no image has any")
    return np.where(seen, np.median(frequency[seen]) / frequency, 0.0).astype(np.float32)


def enet_weights(pixels: ArrayLike, c: float = 1.02) -> NDArray[np.float32]:
    """Class weights (K,) from the labelled pixels of each class, (K,) or (N,K): 1 / ln(c + share of all pixels).

    Bounded by 1 / ln(c), 50.5 for the default (Paszke et al., "ENet", 2016).
    """
    counts = np.asarray(pixels, dtype=np.float64)
    counts = counts.reshape(-1, counts.shape[-1]).sum(0)
    if not counts.sum():
        raise ZooError("class weights need labelled pixels, and no image has any")
    return (1 / np.log(c + counts / counts.sum())).astype(np.float32)


CLASS_WEIGHTS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "enet": enet_weights,
    "median_frequency": median_frequency_weights,
}
"""What a configuration may say for `class_weights`, to be computed from the pixels (N,K) of the training set."""


def weigh_classes(terms: Any, count: Callable[[], ArrayLike]) -> Any:
    """The terms of a loss with the names of `CLASS_WEIGHTS` replaced by K floats.

    `count` gives the pixels (N,K) of each class in each image; it is called at most once, and only where a term has
    such a name. Raises ZooError for a name that is unknown.
    """
    if not isinstance(terms, Mapping):
        return terms
    named = {
        name: given["class_weights"]
        for name, given in terms.items()
        if isinstance(given, Mapping) and isinstance(given.get("class_weights"), str)
    }
    for name, rule in named.items():
        if rule not in CLASS_WEIGHTS:
            raise unknown(f"class_weights of the loss {name}", rule, CLASS_WEIGHTS)
    if not named:
        return dict(terms)
    pixels = count()
    weights = {name: {"class_weights": CLASS_WEIGHTS[rule](pixels).tolist()} for name, rule in named.items()}
    return {name: {**given, **weights[name]} if name in weights else given for name, given in terms.items()}
