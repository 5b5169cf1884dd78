"""What several sources have in common, where their files do not say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

# The classes of most published files: VOC's, also where training was on COCO's images.
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# A ResNet's three convolutions in place of one, numbered with their norms and ReLUs -> timm's names.
DEEP_STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}


def classes_of(count: int) -> tuple[int | Sequence[str], dict[str, Any]]:
    """The classes of a head with this many, and what is assumed with that: 21 are VOC's."""
    return (VOC, {"classes": "VOC's"}) if count == len(VOC) else (count, {})


def imagenet() -> dict[str, Any]:
    """`mean` and `std` of pixels in [0, 1]: of weights that began with ImageNet's."""
    return {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What lies under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
