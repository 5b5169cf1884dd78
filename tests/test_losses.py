"""Losses against hand-computed numbers, their formulas, independent codes and finite differences."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.losses import (
    LOSSES,
    border_cross_entropy,
    create_loss,
    cross_entropy,
    dice,
    enet_weights,
    focal,
    lovasz,
    median_frequency_weights,
    ohem_cross_entropy,
    weigh_classes,
)
from zoo.structures import VOID

K = 4
WEIGHTS = [1.0, 2.0, 0.5, 3.0]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "border_cross_entropy": [{}, {"border": 1, "w0": 3.0, "sigma": 1.0, "reduction": "sum", "class_weights": WEIGHTS}],
    "cross_entropy": [
        {},
        {"reduction": "sum"},
        {"reduction": "all_pixels", "class_weights": WEIGHTS},
        {"label_smoothing": 0.1, "class_weights": WEIGHTS},
    ],
    "dice": [{}, {"smooth": 1.0}],
    "focal": [{}, {"gamma": 0.5}, {"class_weights": WEIGHTS}],
    "lovasz": [{}, {"per_image": True}],
    "ohem_cross_entropy": [{"min_kept": 9}, {"threshold": 0.3, "min_kept": 0, "class_weights": WEIGHTS}],
}
CASES = [pytest.param(LOSSES[n], o, id=f"{n}-{i}") for n, each in OPTIONS.items() for i, o in enumerate(each)]
Loss = Callable[..., Tensor]


def batch(size: tuple[int, int] = (5, 6), void: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits (3,K,h,w) float64 and labels uint8, some void, without class 3, the last image all void."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, K, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = VOID
    labels[2] = VOID
    return logits, labels.to(torch.uint8)


def test_every_loss_is_tested() -> None:
    assert OPTIONS.keys() == LOSSES.keys()


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_gradients_equal_finite_differences(loss: Loss, options: dict[str, Any]) -> None:
    logits, labels = batch()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, **options), logits.requires_grad_())


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_void_has_no_influence(loss: Loss, options: dict[str, Any]) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, labels, **options), logits)
    void = (labels == VOID)[:, None].expand_as(logits)
    assert not gradient[void].any()
    assert gradient[~void].any()
    other = torch.where(void, 100 * torch.randn_like(logits), logits)
    assert torch.equal(loss(other, labels, **options), loss(logits, labels, **options))


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_all_void_is_zero_with_zero_gradient(loss: Loss, options: dict[str, Any]) -> None:
    logits, labels = batch(void=1.0)
    value = loss(logits.requires_grad_(), labels, **options)
    value.backward()
    assert value.shape == ()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_symmetries(loss: Loss, options: dict[str, Any]) -> None:
    """The order of images, the place of pixels, the names of classes and the type of labels do not matter."""
    logits, labels = batch()
    value = loss(logits, labels, **options)
    same = torch.testing.assert_close
    same(loss(logits.flip(0), labels.flip(0), **options), value)
    same(loss(logits.flip(-1), labels.flip(-1), **options), value)
    same(loss(logits, labels.long(), **options), value, rtol=0, atol=0)
    if "class_weights" not in options:
        renamed = torch.where(labels == VOID, VOID, 3 - labels)
        border = {"border": 3} if loss is border_cross_entropy else {}  # the one loss that knows a class by its number
        same(loss(logits.flip(1), renamed.to(torch.uint8), **options, **border), value)


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_computed_in_float32_under_autocast(loss: Loss, options: dict[str, Any]) -> None:
    logits, labels = batch()
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(half, labels, **options)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(half.float(), labels, **options))


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_a_perfect_prediction_costs_nothing(loss: Loss, options: dict[str, Any]) -> None:
    labels = batch()[1]
    logits = 200 * F.one_hot(labels.long() % VOID, K).permute(0, 3, 1, 2).float()
    if not options.get("label_smoothing"):
        value = loss(logits.requires_grad_(), labels, **options)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_cross_entropy_by_hand() -> None:
    """Two pixels with p = 3/4 and 1/4 for the true class, and two void ones."""
    logits = torch.tensor([[math.log(3), 0.0, 5.0, 1.0], [0.0, math.log(3), 2.0, 9.0]]).view(1, 2, 2, 2)
    labels = torch.tensor([[[0, 0], [VOID, VOID]]], dtype=torch.uint8)
    total = math.log(4 / 3) + math.log(4)
    for reduction, count in (("valid", 2), ("all_pixels", 4), ("sum", 1)):
        assert cross_entropy(logits, labels, reduction).item() == pytest.approx(total / count, rel=1e-6)
    weighted = {"valid": total / 2, "all_pixels": 3 * total / 4, "sum": 3 * total}  # weight 3 on the only class seen
    for reduction, value in weighted.items():
        assert cross_entropy(logits, labels, reduction, [3.0, 1.0]).item() == pytest.approx(value, rel=1e-6)
    with pytest.raises(ZooError, match="did you mean valid"):
        cross_entropy(logits, labels, "valit")
    with pytest.raises(ZooError, match="3 class weights for 2 classes"):
        cross_entropy(logits, labels, class_weights=[1.0, 1.0, 1.0])


def test_the_three_means_differ_as_their_formulas() -> None:
    """Over labelled pixels, over all pixels (mmsegmentation), over images of their own means (which is neither)."""
    logits, labels = batch((20, 20), void=0.44)
    logits, labels = logits[:2], labels[:2]
    labels[0, :10] = VOID
    pixel = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="none")
    valid = labels != VOID
    torch.testing.assert_close(cross_entropy(logits, labels), pixel[valid].mean())
    torch.testing.assert_close(cross_entropy(logits, labels, "all_pixels"), pixel.mean())
    torch.testing.assert_close(
        cross_entropy(logits, labels, "all_pixels"), cross_entropy(logits, labels) * valid.double().mean()
    )
    of_images = torch.stack([cross_entropy(x[None], y[None]) for x, y in zip(logits, labels, strict=True)]).mean()
    assert abs(of_images - cross_entropy(logits, labels)) > 1e-3


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_valid_is_the_mean_of_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, labels = batch()
    table = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels.long(), table, ignore_index=VOID, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, "valid", weights, smoothing), expected)


def test_ohem_keeps_the_hard_pixels() -> None:
    logits, labels = batch((8, 8))
    valid = labels != VOID
    p = logits.softmax(1).gather(1, torch.where(valid, labels, 0).long()[:, None])[:, 0][valid]
    hardest = p.sort().values
    below = hardest[hardest < 0.4]
    assert 3 < len(below) < len(hardest) - 9
    cases = [(0, below), (3, below), (len(below) + 5, hardest[: len(below) + 5]), (10**6, hardest)]
    for min_kept, kept in cases:
        torch.testing.assert_close(ohem_cross_entropy(logits, labels, 0.4, min_kept), -kept.log().mean())
    weights = [0.5, 2.0, 1.0, 1.0]
    of_pixel = torch.tensor(weights, dtype=torch.float64)[labels[valid].long()]
    expected = -(of_pixel * p.log())[p < 0.4].sum() / of_pixel[p < 0.4].sum()
    torch.testing.assert_close(ohem_cross_entropy(logits, labels, 0.4, 0, weights), expected)
    with pytest.raises(ZooError, match="threshold"):
        ohem_cross_entropy(logits, labels, threshold=0)


def test_focal_by_its_formula() -> None:
    logits, labels = batch()
    valid = labels != VOID
    p = logits.softmax(1).gather(1, torch.where(valid, labels, 0).long()[:, None])[:, 0][valid]
    torch.testing.assert_close(focal(logits, labels, gamma=2), (-((1 - p) ** 2) * p.log()).mean())
    torch.testing.assert_close(focal(logits, labels, gamma=0), cross_entropy(logits, labels))
    weights = [0.25, 0.75, 1.0, 1.0]
    torch.testing.assert_close(
        focal(logits, labels, gamma=0, class_weights=weights), cross_entropy(logits, labels, class_weights=weights)
    )
    with pytest.raises(ZooError, match="gamma"):
        focal(logits, labels, gamma=-1)


def test_dice_by_hand() -> None:
    """p of class 0 is 3/4 and 1/4; both pixels are of class 0; class 1 does not occur and does not count."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]).view(1, 2, 1, 2)
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    assert dice(logits, labels).item() == pytest.approx(1 - 2 * 1 / (1 + 2), rel=1e-6)
    assert dice(logits, labels, smooth=1.0).item() == pytest.approx(1 - (2 * 1 + 1) / (1 + 2 + 1), rel=1e-6)


def test_dice_equals_smp_up_to_its_divisor() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, labels = batch()
    peer = smp.losses.DiceLoss("multiclass", ignore_index=VOID)(logits, labels.long())
    torch.testing.assert_close(dice(logits, labels), peer * K / 3)  # 3 of K classes occur


def brute_lovasz(p: Tensor, labels: Tensor) -> Tensor:
    """The Lovász extension from its definition: differences of 1 - IoU as the worst pixels go wrong."""
    valid = labels != VOID
    losses = []
    for c in labels[valid].unique():
        fg = (labels[valid] == c).double()
        errors = (fg - p[:, int(c)][valid]).abs()
        order = errors.argsort(descending=True)
        value, before = torch.zeros((), dtype=torch.float64), 0.0
        for n in range(1, len(order) + 1):
            wrong = torch.zeros_like(fg, dtype=torch.bool)
            wrong[order[:n]] = True
            predicted = torch.where(wrong, 1 - fg, fg)
            now = 1 - float((fg * predicted).sum() / (fg + predicted - fg * predicted).sum())
            value, before = value + errors[order[n - 1]] * (now - before), now
        losses.append(value)
    return torch.stack(losses).mean()


def test_lovasz_by_its_definition() -> None:
    logits, labels = batch()
    p = logits.softmax(1)
    torch.testing.assert_close(lovasz(logits, labels), brute_lovasz(p, labels))
    images = [brute_lovasz(p[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(lovasz(logits, labels, per_image=True), torch.stack(images).mean())


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_equals_smp(per_image: bool) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, labels = batch((40, 50))
    logits = logits.float()  # the peer fails on float64
    peer = smp.losses.LovaszLoss("multiclass", per_image, ignore_index=VOID)(logits[:2], labels[:2].long())
    torch.testing.assert_close(lovasz(logits[:2], labels[:2], per_image), peer)


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, predicted = torch.randint(0, 3, (2, 1, 20, 20), generator=generator)
    logits = 1000 * F.one_hot(predicted, 3).permute(0, 3, 1, 2).double()
    iou = [((labels == c) & (predicted == c)).sum() / ((labels == c) | (predicted == c)).sum() for c in range(3)]
    assert lovasz(logits, labels).item() == pytest.approx(1 - float(torch.stack(iou).mean()), rel=1e-6)


def test_terms_are_weighted_and_named() -> None:
    logits, labels = batch()
    criterion = create_loss({"cross_entropy": 1, "dice": {"weight": 0.5, "smooth": 1.0}, "focal": {"gamma": 1.0}})
    values = pickle.loads(pickle.dumps(criterion))(logits, labels)
    assert list(values) == ["cross_entropy", "dice", "focal"]
    assert torch.equal(values["dice"], 0.5 * dice(logits, labels, smooth=1.0))
    assert torch.equal(values["focal"], focal(logits, labels, gamma=1.0))
    assert list(create_loss({"cross_entropy": None, "dice": 1.0}).terms) == ["dice"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"cross_entrpy": 1.0}, "did you mean cross_entropy"),
        ({"dice": {"smoth": 1.0}}, "option of the loss dice 'smoth': did you mean smooth"),
        ({"dice": {"logits": 1.0}}, "option of the loss dice"),
        ({"dice": "much"}, "weight of the loss dice is a number, not 'much'"),
        ({}, "at least one term"),
        ({"dice": None}, "at least one term"),
        ({"dicee": None, "focal": 1.0}, "did you mean dice"),
        ("dice", "loss='dice' should give at least one term its weight"),
        (1.0, "loss=1.0 should"),
        (["dice"], r"loss=\['dice'\] should"),
        ({"dice": 1.0, "focal": {"class_weights": "enet"}}, "class_weights=enet: give one number per class"),
        ({"focal": {"class_weights": 2.0}}, "class_weights=2.0: give one number per class"),
    ],
)
def test_mistakes_are_named(terms: Any, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        create_loss(terms)


def test_a_name_is_no_list_of_weights() -> None:
    logits, labels = torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ZooError, match="class_weights=enet: give one number per class"):
        cross_entropy(logits, labels, class_weights="enet")


def test_class_weights_by_name() -> None:
    pixels = [[20, 0, 0], [10, 10, 0]]
    terms = {"dice": 0.5, "focal": {"gamma": 1.0, "class_weights": "enet"}, "cross_entropy": {"weight": 2.0}}
    weighed = weigh_classes(terms, lambda: pixels)
    assert weighed.pop("focal") == {"gamma": 1.0, "class_weights": enet_weights(pixels).tolist()}
    assert weighed == {"dice": 0.5, "cross_entropy": {"weight": 2.0}}
    assert weigh_classes({"dice": 0.5}, lambda: pytest.fail("counted")) == {"dice": 0.5}
    with pytest.raises(ZooError, match="unknown class_weights of the loss focal 'enett': did you mean enet"):
        weigh_classes({"focal": {"class_weights": "enett"}}, lambda: pytest.fail("counted"))


def test_class_weights_by_hand() -> None:
    """Class 0 has 30 of the 40 pixels of both images, class 1 10 of the 20 of the second; class 2 never occurs."""
    pixels = [[20, 0, 0], [10, 10, 0]]
    np.testing.assert_allclose(median_frequency_weights(pixels), [0.625 / 0.75, 0.625 / 0.5, 0], rtol=1e-6)
    expected = [1 / math.log(1.02 + share) for share in (0.75, 0.25, 0)]
    np.testing.assert_allclose(enet_weights(pixels), expected, rtol=1e-6)
    np.testing.assert_array_equal(enet_weights([30, 10, 0]), enet_weights(pixels))
    for weights in (median_frequency_weights, enet_weights):
        with pytest.raises(ZooError, match="labelled pixels"):
            weights([[0, 0]])


def test_the_border_term_adds_to_the_weight_of_pixels_between_objects() -> None:
    labels = torch.tensor([[[1, 0, 0, 1, VOID]]], dtype=torch.uint8)  # distances 1 and 2 for both in between
    logits = torch.randn(1, 2, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="none")[0, 0]
    near = 10 * math.exp(-(3**2) / 50)
    expected = (2 * each[0] + (1 + near) * each[1] + (1 + near) * each[2] + 2 * each[3]) / 4
    found = border_cross_entropy(logits, labels, class_weights=[1.0, 2.0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        border_cross_entropy(logits, labels, w0=0.0, class_weights=[1.0, 2.0], reduction="sum"),
        cross_entropy(logits, labels, class_weights=[1.0, 2.0], reduction="sum"),
    )
