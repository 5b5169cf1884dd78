"""Where a network pads, in conventions that timm's networks do not have."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.errors import ZooError


def pad_early(name: str, model: Any, levels: int, coarsest: int | None) -> None:
    """VainF's MobileNetV2: a block is padded before its 1x1 expansion instead of after it, the stem not at all.

    The expansion's batch norm then makes the padding non-zero, which changes features at the borders of every map.
    Parameters are the same. To be called once dilation is set.

    Raises ZooError for another network, and where the map at stride 2 is to be given: without the stem's padding it is
    a pixel smaller than half the image. (`coarsest` asks for all maps first.)
    """
    blocks = [block for stage in getattr(model, "blocks", ()) for block in stage]
    if not name.startswith("mobilenetv2") or not blocks:
        raise ZooError(f"backbone {name} has no early_padding: it is for mobilenetv2_*")
    if levels > 4 or coarsest is not None:
        raise ZooError(
            f"early_padding leaves the map of backbone {name} at stride 2 a pixel short, which levels={levels} and "
            f"coarsest={coarsest} ask for: use levels=4 or fewer and coarsest=null"
        )
    model.conv_stem.padding = (0, 0)
    for block in blocks:
        if hasattr(block, "conv_pwl"):  # the first block has no expansion
            block.conv_pw.padding, block.conv_dw.padding = block.conv_dw.padding, (0, 0)


def pad_valid_layers(model: nn.Module) -> None:
    """Pad unpadded 3x3 layers, whose maps are shifted and shrink to nothing (smp does the same)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding = (1, 1)
        elif isinstance(layer, nn.MaxPool2d):
            layer.padding = 1
