"""What comparisons with peers share: peers whose weights hide nothing, and how near is equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

torch.set_num_threads(1)


def randomize(model: nn.Module) -> nn.Module:
    """Give norms statistics and weights that are not the identity, so that a lost or swapped one shows."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
    return model


def randomized(model: nn.Module) -> nn.Module:
    """`model` randomized, in evaluation mode."""
    return randomize(model).eval()


def normalized(images: Tensor) -> Tensor:
    """Images in [0, 1] as torchvision and smp want them: less ImageNet's mean, over its standard deviation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Largest difference at most 1e-5 of the reference's spread."""
    spread = theirs.max() - theirs.min()
    assert ours.shape == theirs.shape
    assert spread > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5 * spread
