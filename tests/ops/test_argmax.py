"""The plane-wise argmax gives torch's labels, whatever the layout, type, ties and non-numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.ops import argmax


def same(logits: Tensor) -> None:
    labels = argmax(logits)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), logits.argmax(-3))


@pytest.mark.parametrize(
    "shape", [(1, 4, 5), (2, 1, 1), (19, 33, 57), (255, 8, 9), (3, 7, 40, 30), (5, 300, 400), (3, 2, 70_000), (3, 0, 5)]
)
def test_random_logits(shape: tuple[int, ...]) -> None:
    same(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def test_ties_give_the_first_class() -> None:
    same(torch.randint(0, 3, (2, 9, 40, 50), generator=torch.Generator().manual_seed(0)).float())
    same(torch.zeros(4, 3, 3))
    same(torch.tensor([-0.0, 0.0]).view(2, 1, 1))


def test_infinities_and_nans() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 40, 50, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = -torch.inf
    logits[:, 0] = -torch.inf
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = torch.inf
    same(logits)
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = torch.nan
    same(logits)


def test_layouts() -> None:
    logits = torch.randn(2, 7, 30, 40, generator=torch.Generator().manual_seed(0))
    same(logits.to(memory_format=torch.channels_last))
    same(logits[:, 1:6, 3:20, 5:33])
    same(logits.transpose(-1, -2))
    same(logits[:, ::2, ::3])
    same(logits.flip(-1).requires_grad_())
    same(logits[:, :1].expand(-1, 4, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    same(torch.randn(2, 7, 30, 40, generator=torch.Generator().manual_seed(0)).to(dtype))


@pytest.mark.parametrize("shape", [(4, 4), (256, 2, 2), (2, 0, 3, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ZooError, match="1 to 255 classes"):
        argmax(torch.zeros(shape))
