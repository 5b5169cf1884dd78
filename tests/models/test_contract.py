"""What every registered semantic model owes, on a tiny backbone."""

from __future__ import annotations

import pytest
import torch
from graph import in_graph
from torch import nn

from zoo.models import MODELS, create_model, list_models
from zoo.models.semantic import SemanticModel
from zoo.structures import VOID, Batch, Semantic

TINY = "test_efficientnet"
CLASSES = 4
# Decoders of a fixed width that does not follow the backbone's, made narrow: the tests are minutes shorter.
NARROW: dict[str, dict[str, object]] = {"refinenet": {"channels": (32, 16)}}
# Models of several tasks have a contract of their own, test_query_contract.
NAMES = [name for name in list_models("semantic") if issubclass(MODELS[name], SemanticModel)]
pytestmark = pytest.mark.parametrize("name", NAMES)


def build(name: str, in_channels: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, CLASSES, TINY, in_channels=in_channels, **{**NARROW.get(name, {}), **options})


def squares(count: int, size: int = 64, channels: int = 3) -> Batch:
    """Images whose four quadrants differ in colour and are the four classes, the lines between them void."""
    generator = torch.Generator().manual_seed(1)
    half = size // 2
    labels = torch.empty(size, size, dtype=torch.uint8)
    labels[:half, :half], labels[:half, half:], labels[half:, :half], labels[half:, half:] = 0, 1, 2, 3
    colours = torch.rand(CLASSES, channels, generator=generator)
    image = colours[labels.long()].permute(2, 0, 1)
    images = (image + 0.1 * torch.rand(count, channels, size, size, generator=generator)).clamp(0, 1)
    labels[half], labels[:, half] = VOID, VOID
    return Batch.of(images, [Semantic(labels.clone()) for _ in range(count)])


@pytest.mark.parametrize("size", [(33, 33), (97, 97), (250, 333)])
def test_output_size_is_input_size(name: str, size: tuple[int, int]) -> None:
    model = build(name).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, 3, *size))
    assert logits.shape == (1, CLASSES, *size)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels(name: str, channels: int) -> None:
    model = build(name, channels).eval()
    pixels = torch.randint(0, 256, (1, channels, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), model(pixels / 255), rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_trains_and_reaches_every_parameter(name: str) -> None:
    model = build(name).train()
    terms = model.loss(squares(1))
    assert 1 <= len(terms) <= 6
    total = sum(terms.values())
    total.backward()
    assert total.ndim == 0
    assert torch.isfinite(total)
    assert {id(p) for p in model.parameters() if p.requires_grad} <= in_graph(total)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.8 * len(list(model.parameters()))


def test_an_all_void_batch_gives_zero_with_gradients(name: str) -> None:
    model = build(name).train()
    batch = squares(2)
    batch.targets = [Semantic(torch.full((64, 64), VOID, dtype=torch.uint8))] * 2
    total = sum(model.loss(batch).values())
    total.backward()
    assert total.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(not gradient.any() for gradient in gradients)


def test_padding_does_not_count_in_the_loss(name: str) -> None:
    model = build(name).eval()
    batch = squares(1)
    wider = torch.full((1, 3, 96, 96), 0.7)
    wider[..., :64, :64] = batch.images
    labels = torch.full((96, 96), VOID, dtype=torch.uint8)
    labels[:64, :64] = batch.targets[0].labels
    padded = Batch(wider, batch.targets, [(64, 64)], [(64, 64)], [0])
    zeroed = Batch(model.backbone.mean.expand_as(wider).clone(), [Semantic(labels)], [(96, 96)], [(96, 96)], [0])
    zeroed.images[..., :64, :64] = batch.images  # the mean is zero once normalised
    with torch.no_grad():
        terms, expected = model.loss(padded), model.loss(zeroed)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value, rtol=1e-5, atol=1e-6)


def test_two_images_are_learned(name: str) -> None:
    model = build(name).train()
    batch = squares(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        total = sum(model.loss(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.35 * losses[0]


def test_predictions_have_the_original_sizes(name: str) -> None:
    model = build(name).train()
    images = [torch.rand(3, 40, 56), torch.rand(3, 64, 33)]
    batch = Batch.of(images)
    batch.original_sizes = [(80, 111), (64, 33)]
    predictions = model.predict(batch)
    assert [p.size for p in predictions] == [(80, 111), (64, 33)]
    assert all(p.labels.dtype == torch.uint8 and p.labels.max() < CLASSES for p in predictions)
    assert all(module.training for module in model.modules())


def test_padding_changes_nothing(name: str) -> None:
    """Beyond `sizes` images count as zero whatever they hold, and predictions do not see padding at all."""
    model = build(name).eval()
    small, large = torch.rand(3, 40, 56), torch.rand(3, 64, 64)
    both = Batch.of([small, large])
    noisy = both.images.clone()
    noisy[0, :, 40:] = 0.9
    noisy[0, :, :, 56:] = 0.1
    with torch.no_grad():
        assert torch.equal(model(noisy, both.sizes), model(both.images, both.sizes))
        alone = model(both.images[:1], both.sizes[:1])
        torch.testing.assert_close(model(both.images, both.sizes)[:1], alone, rtol=1e-5, atol=1e-5)
    together = model.predict(both)
    for image, prediction in zip((small, large), together, strict=True):
        assert torch.equal(model.predict(Batch.of([image]))[0].labels, prediction.labels)


def test_a_window_larger_than_the_image_is_the_image(name: str) -> None:
    batch = Batch.of(torch.rand(1, 3, 50, 70))
    whole, windowed = build(name), build(name, window=80)
    assert torch.equal(whole.predict(batch)[0].labels, windowed.predict(batch)[0].labels)
