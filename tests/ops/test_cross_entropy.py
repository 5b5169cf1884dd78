"""Cross-entropy by strips: torch's resize and loss, value and gradient, at any pair of sizes; and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops import cross_entropy as module
from zoo.ops.cross_entropy import resized_cross_entropy

VOID = 255
K = 5


def case(small: tuple[int, int], full: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits (2, K, *small) that want a gradient and labels (2, *full), a quarter of them void."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, K, *small, generator=generator, dtype=dtype)
    labels = torch.randint(0, K, (2, *full), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.25] = VOID
    return logits.requires_grad_(), labels.to(torch.uint8)


def resizing(length: int, target: int, align_corners: bool) -> Tensor:
    """What torch's resize in float32 does to each of `length` places, (target, length) float64."""
    if length == target:
        return torch.eye(length, dtype=torch.float64)
    eye = torch.eye(length)[None]
    return F.interpolate(eye, size=target, mode="linear", align_corners=align_corners)[0].double().T


def of_torch(logits: Tensor, labels: Tensor, align_corners: bool, **options: Any) -> Tensor:
    """The same in float64: torch adds up thousands of float32 less exactly than we do."""
    rows, columns = (
        resizing(length, target, align_corners)
        for length, target in zip(logits.shape[-2:], labels.shape[-2:], strict=True)
    )
    return F.cross_entropy(rows @ logits @ columns.T, labels.long(), ignore_index=VOID, reduction="sum", **options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("small", "full"),
    [
        ((9, 13), (65, 97)),
        ((8, 8), (64, 64)),
        ((64, 40), (64, 40)),
        ((50, 60), (20, 33)),  # smaller than the logits
        ((1, 1), (40, 600)),  # more columns than go back in one product
        ((7, 300), (7, 601)),
        ((3, 3), (1, 1)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "weight": [1.0, 2.0, 0.0, 3.0, 0.5]}])
def test_equals_resize_and_loss(
    small: tuple[int, int],
    full: tuple[int, int],
    align_corners: bool,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SCORES", {"cpu": 1})  # strips of the smallest height
    logits, labels = case(small, full)
    weights = torch.tensor(options["weight"]) if options else None
    smoothing = options.get("label_smoothing", 0.0)
    ours = resized_cross_entropy(logits, labels, VOID, align_corners, weights, smoothing)
    (gradient,) = torch.autograd.grad(ours, logits)
    exact = logits.detach().double().requires_grad_()
    weights = None if weights is None else weights.double()
    theirs = of_torch(exact, labels, align_corners, label_smoothing=smoothing, weight=weights)
    (expected,) = torch.autograd.grad(theirs, exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-7)


def test_gradient_of_the_value() -> None:
    logits, labels = case((4, 5), (11, 17), torch.float64)
    assert torch.autograd.gradcheck(lambda x: resized_cross_entropy(x, labels, VOID, False, None, 0.2), logits)


@pytest.mark.parametrize("nothing", [float("nan"), float("-inf")])
def test_void_has_no_influence(nothing: float) -> None:
    logits, labels = case((6, 6), (6, 6))
    value = resized_cross_entropy(logits, labels, VOID)
    (gradient,) = torch.autograd.grad(value, logits)
    void = (labels == VOID)[:, None].expand_as(gradient)
    assert gradient[void].abs().max() == 0
    assert gradient[~void].abs().min() > 0
    without = logits.detach().masked_fill(void, nothing).requires_grad_()
    other = resized_cross_entropy(without, labels, VOID)
    assert torch.equal(other, value)
    assert torch.equal(torch.autograd.grad(other, without)[0], gradient)
    assert resized_cross_entropy(logits, torch.full_like(labels, VOID), VOID) == 0


def test_void_has_no_influence_after_a_resize() -> None:
    logits, labels = case((4, 4), (32, 32))
    labels[:, :, :20] = VOID  # all that the first two columns of logits reach
    (gradient,) = torch.autograd.grad(resized_cross_entropy(logits, labels, VOID), logits)
    assert gradient[..., :2].abs().max() == 0
    assert gradient[..., 2:].abs().min() > 0


def test_large_scores_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    value = resized_cross_entropy(logits, torch.ones(1, 4, 4, dtype=torch.uint8), VOID)
    assert value == 16 * 2e4
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.equal(gradient[0, :, 0, 0], torch.tensor([1.0, -1.0, 0.0]))


def test_half_precision_is_widened_first() -> None:
    logits, labels = case((6, 7), (30, 40))
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = resized_cross_entropy(half, labels, VOID)
    whole = half.detach().float().requires_grad_()
    theirs = resized_cross_entropy(whole, labels, VOID)
    assert torch.equal(ours, theirs)
    ours.backward()
    theirs.backward()
    assert half.grad is not None
    assert whole.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert torch.equal(half.grad, whole.grad.bfloat16())


def test_any_memory_format() -> None:
    logits, labels = case((6, 7), (30, 40))
    last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(resized_cross_entropy(last, labels, VOID), resized_cross_entropy(logits, labels, VOID))


def test_what_is_kept_is_small() -> None:
    """Between the passes the graph holds the gradient of the small logits, and nothing of the labels' size."""
    kept: list[int] = []
    logits, labels = case((8, 8), (256, 256))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        resized_cross_entropy(logits, labels, VOID)
    assert max(kept) == logits.numel()


def test_the_gradient_is_that_of_what_follows() -> None:
    """Rounded once, after what comes from behind: a gradient beyond float16's range that is divided again."""
    logits, labels = case((2, 2), (64, 64))
    weights = torch.full((K,), 500.0)
    half = logits.detach().half().requires_grad_()
    (resized_cross_entropy(half, labels, VOID, weights=weights) / 3e5).backward()
    whole = half.detach().float().requires_grad_()
    expected = torch.autograd.grad(resized_cross_entropy(whole, labels, VOID, weights=weights) / 3e5, whole)[0]
    assert expected.abs().max() * 3e5 > torch.finfo(torch.half).max
    assert half.grad is not None
    assert torch.equal(half.grad, expected.half())


def test_a_second_derivative_is_refused() -> None:
    logits, labels = case((4, 4), (8, 8))
    loss = resized_cross_entropy(logits, labels, VOID)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_a_batch_without_pixels() -> None:
    for logits, labels in (((0, K, 4, 4), (0, 8, 8)), ((2, K, 4, 4), (2, 8, 0)), ((0, K, 8, 8), (0, 8, 8))):
        x = torch.zeros(logits, requires_grad=True)
        loss = resized_cross_entropy(x, torch.zeros(labels, dtype=torch.uint8), VOID)
        assert loss == 0
        assert torch.autograd.grad(loss, x)[0].shape == logits


def test_logits_and_labels_are_of_one_batch() -> None:
    logits, labels = case((4, 4), (8, 8))
    for wrong in (labels[:1], labels[0]):
        with pytest.raises(ValueError, match="not of one batch"):
            resized_cross_entropy(logits, wrong, VOID)
