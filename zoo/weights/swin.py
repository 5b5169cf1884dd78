"""Swins as the authors' releases for dense prediction name them -> timm's, and which of timm's they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = (
    (r"layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample."),  # timm: at the beginning
    (r"norm(\d)\.", lambda found: f"stage_norms.{found[1]}."),
)
_KNOWN: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 12): "swin_large_patch4_window12_384",
}


def is_swin(state: Mapping[str, Any]) -> bool:
    """Whether these are names of such a Swin."""
    return "patch_embed.proj.weight" in state and "layers.0.blocks.0.attn.qkv.weight" in state


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under timm's names; tables of indices, which follow from the window, are left out."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            continue
        for pattern, ours in _NAMES:
            key = re.sub(f"^{pattern}", ours, key)
        renamed[key] = value
    return renamed


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `create_backbone` for a Swin, told by its shapes."""
    width = len(state["patch_embed.proj.weight"])
    blocks = {(int(a), int(b)) for a, b in re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", " ".join(state))}
    depths = tuple(sum(stage == own for own, _ in blocks) for stage in range(1 + max(own for own, _ in blocks)))
    tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))]
    window = (round(len(tables[0]) ** 0.5) + 1) // 2
    arguments: dict[str, Any] = {"name": _KNOWN.get((width, depths, window)), "dense": True}
    if arguments["name"] is None:
        heads = [table.shape[1] for table in tables]
        sizes = {"embed_dim": width, "depths": list(depths), "num_heads": heads, "window_size": window}
        arguments |= {"name": "swin_tiny_patch4_window7_224", **sizes}
    return arguments
