"""A backbone's channels, strides and sizes, measured by running small images through it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.families import EXAMPLES, cannot_dilate
from zoo.models.pretrained import brief
from zoo.structures import Size

if TYPE_CHECKING:
    from zoo.models.backbone import Backbone

# Sizes are tried as multiples of these, in order: most networks take any size; windows of 7 or 8 want 224 or 256.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 224, 256)


def measure(backbone: Backbone, levels: int = 0) -> Backbone:
    """Run small images through it: fills in channels, strides and padding, or refuses. No levels: all of them."""
    training = backbone.model.training
    backbone.model.eval()
    refusal = "it gives no features"
    for multiple in MULTIPLES:
        size = probe_size(multiple)
        try:
            features = _probe(backbone, size, levels)
            strides = [map_stride(size, feature) for feature in features]
            # A second size, so that none is accepted because one happened to round well, and wide enough to leave
            # tables of relative positions made for 224 pixels.
            wide = size[0] + multiple, size[1] + -(-404 // multiple) * multiple
            again = [map_stride(wide, feature) for feature in _probe(backbone, wide, levels)]
        except Exception as error:  # asserts and shape errors of 90 families: this size does not suit, try the next
            refusal = brief(error)
            continue
        if None not in strides and strides == again:
            break
        refusal = f"maps of {[tuple(f.shape[-2:]) for f in features]} for an image of {size}"
    else:
        raise ZooError(
            f"backbone {backbone.name} does not take images of any size ({refusal}): use one such as {EXAMPLES}"
        )
    backbone.channels = [feature.shape[1] for feature in features]
    backbone.strides = [stride for stride in strides if stride is not None]
    backbone.multiple = multiple
    backbone.smallest = _smallest(backbone)
    backbone.model.train(training)
    return backbone


def _smallest(backbone: Backbone) -> int:
    """The side of the smallest image that leaves something in every map: 1 for most, more where layers round down."""
    for side in (1, 8, 16, 32, 64, 128):
        side += -side % backbone.multiple
        with suppress(Exception):  # as above
            if all(feature.numel() for feature in _probe(backbone, (side, side), len(backbone.strides))):
                return side
    raise ZooError(f"backbone {backbone.name} fails on small images: use one such as {EXAMPLES}")


def check_strides(backbone: Backbone) -> Backbone:
    """`backbone`, if its coarsest map has the stride that was asked for and the finest another one."""
    wanted, strides = backbone.config["output_stride"], backbone.strides
    if wanted < 32 and strides[-1] != wanted:
        raise cannot_dilate(backbone.name, wanted)
    if wanted == 32 and len(strides) > 1 and len(set(strides)) == 1:
        raise ZooError(
            f"backbone {backbone.name} has a single resolution (stride {strides[-1]}), not a pyramid: use one such as "
            f"{EXAMPLES}"
        )
    return backbone


def _probe(backbone: Backbone, size: Size, levels: int) -> list[Tensor]:
    with torch.no_grad():
        return backbone._features(backbone.mean.new_zeros(1, backbone.mean.shape[1], *size))[-levels:]


def probe_size(multiple: int) -> Size:
    """About (67, 101), as odd multiples of `multiple`, so that only what truly divides is accepted."""
    rows, columns = (-(-length // multiple) | 1 for length in (67, 101))
    return rows * multiple, columns * multiple


def map_stride(size: Size, feature: Tensor) -> int | None:
    """The power of two by which `feature` is coarser than `size`, whichever way it rounds; None if there is none."""
    for stride in (1, 2, 4, 8, 16, 32, 64, 128):
        if all(n // stride <= m <= -(-n // stride) for n, m in zip(size, feature.shape[-2:], strict=True)):
            return stride
    return None
