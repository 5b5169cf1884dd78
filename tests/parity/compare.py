"""What the comparisons with peers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomize(model: nn.Module) -> None:
    """Running statistics and affine parameters that are not the identity, so that forgetting one shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.0, generator=generator)
            layer.bias.data.normal_(0, 0.1, generator=generator)


def normalized(images: Tensor) -> Tensor:
    """Images in [0, 1] as the peers want them: ImageNet mean and standard deviation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Largest difference at most 1e-5 of the spread (largest minus smallest value) of the reference."""
    spread = theirs.max() - theirs.min()
    assert ours.shape == theirs.shape
    assert spread > 1e-4
    assert (ours - theirs).abs().max() <= 1e-5 * spread
