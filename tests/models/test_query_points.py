"""Masks at points, and pairs where queries are too few; a Swin's attention in one kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.models.backbone import create_backbone
from zoo.models.queries import points
from zoo.models.queries.criterion import Answers, PointCriterion, Truth
from zoo.models.queries.matcher import assign
from zoo.models.queries.points import sample, sample_masks, sample_truth, uncertain_points

SIZE = (24, 40)


def some_masks(count: int = 5) -> Tensor:
    """Smaller than the padded image."""
    return torch.rand(count, 21, 37, generator=torch.Generator().manual_seed(0)) < 0.4


def test_truth_is_read_alike_both_ways_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = some_masks()
    places = torch.rand(5, 300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = sample_truth(masks, torch.arange(5), places, SIZE)
    for pixels in (1, 2 * SIZE[0] * SIZE[1], 10**6):
        monkeypatch.setattr(points, "CHUNK", pixels)
        torch.testing.assert_close(sample_masks(masks, places, SIZE), wanted, rtol=0, atol=1e-12)


def test_the_most_doubtful_points_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    drawn: list[Tensor] = []

    def draw(shape: tuple[int, ...], device: torch.device) -> Tensor:
        drawn.append(torch.rand(*shape, 2, generator=generator))
        return drawn[-1]

    monkeypatch.setattr(points, "draw", draw)
    masks = torch.randn(3, 2, 8, 8, generator=generator)  # of 3 segments in 2 layers
    chosen = uncertain_points(masks, 40, 3.0, 0.75)
    assert chosen.shape == (3, 2, 40, 2)
    candidates, fresh = drawn
    assert candidates.shape == (3, 120, 2)
    for segment in range(3):
        for layer in range(2):
            doubt = sample(masks[segment, layer][None, None], candidates[segment][None])[0, 0].abs()
            nearest = candidates[segment][doubt.argsort()[:30]]
            own = chosen[segment, layer, :30]
            assert torch.equal(own[own[:, 0].argsort()], nearest[nearest[:, 0].argsort()])
            assert torch.equal(chosen[segment, layer, 30:], fresh[segment])


def test_more_segments_than_queries_are_compared_with_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 queries for 5 segments: the losses are those of the two segments that each layer matched."""
    line = lambda shape, device: torch.linspace(0.02, 0.97, shape[1] * 2).view(1, -1, 2).expand(*shape, 2)  # noqa: E731
    monkeypatch.setattr(points, "draw", line)
    generator = torch.Generator().manual_seed(3)
    shapes = (3, 1, 2, 5), (3, 1, 2, 8), (1, 8, 6, 10)
    answers = Answers(*(torch.randn(*shape, generator=generator) for shape in shapes))
    truth = Truth(some_masks(), torch.tensor([0, 1, 2, 3, 1]))
    criterion = PointCriterion(points=64)
    (matched,) = assign(criterion.costs(answers, [truth], SIZE))
    assert matched.segments.shape == (3, 2)
    assert (matched.segments.diff(dim=1) > 0).all()
    together = criterion.mask_losses(answers, [truth], [matched], SIZE)
    for layer in range(3):
        alone = Answers(answers.logits[layer, None], answers.embeddings[layer, None], answers.pixels)
        own = Truth(truth.masks[matched.segments[layer]], truth.labels[matched.segments[layer]])
        pairs = type(matched)(matched.queries[layer, None], torch.arange(2)[None])
        expected = criterion.mask_losses(alone, [own], [pairs], SIZE)
        torch.testing.assert_close(together[:, layer], expected[:, 0])


def test_a_swin_gives_the_same_with_and_without_gradients() -> None:
    """In one kernel and step by step, at a size that is no multiple of the window."""
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "levels": 2, "dense": True}
    backbone = create_backbone("swin_tiny_patch4_window7_224", **options).double().eval()
    for parameter in backbone.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    images = torch.rand(2, 3, 36, 52, dtype=torch.float64)
    with torch.no_grad():
        fused = backbone(images)
    for one, other in zip(fused, backbone(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
