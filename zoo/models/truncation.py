"""Leaving out the coarse stages of a backbone that nobody reads, with their parameters and their time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.errors import ZooError


def truncate(name: str, model: Any, taps: str, indices: Sequence[int], count: int) -> list[int]:
    """Cut `model`, which gives the maps `indices`, down to the first `count` of them; returns their indices.

    What comes after the last map goes: stages, transitions, norms. An HRNet loses the heads of its coarse branches
    alone, since its finest branch depends on all of them.

    Raises:
        ZooError: a network whose stages cannot be told apart.
    """
    kept = list(indices[:count])
    if taps == "transition":
        _truncate_densenet(model, count)
    elif taps == "getter" and hasattr(model, "prune_intermediate_layers"):
        model.prune_intermediate_layers(kept, prune_norm=True)
    elif hasattr(model, "_stage_out_idx"):  # timm's MobileNetV3Features: 0 is the stem, stage i follows blocks[i - 1]
        stages = sorted(model._stage_out_idx)
        model.blocks = model.blocks[: stages[count - 1]]
    else:
        raise ZooError(f"backbone {name} cannot leave out stages: use backbone.coarsest=null")
    return kept


def _truncate_densenet(model: Any, count: int) -> None:
    """A DenseNet tapped in its transitions, of which the last one kept ends with its norm."""
    ends = ["norm0", *(name for name, _ in model.features.named_children() if name.startswith("transition"))]
    names = [name for name, _ in model.features.named_children()]
    for name in names[names.index(ends[count - 1]) + 1 :]:
        delattr(model.features, name)
    if count > 1:
        model.features[-1].conv = model.features[-1].pool = nn.Identity()
