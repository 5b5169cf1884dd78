"""Features from inside a backbone: what one of its modules puts out, by name, beside the levels it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo.models.backbone import Backbone
from zoo.models.measure import map_stride, probe_size
from zoo.models.semantic import evaluating
from zoo.structures import Size


@dataclass(frozen=True)
class Tap:
    """A backbone's module `name`, whose output is a map (B, channels, H / stride, W / stride)."""

    name: str
    channels: int
    stride: int


def measure_tap(backbone: Backbone, name: str) -> Tap:
    """The tap at the backbone's module `name`, seen on blank images.

    Raises ZooError where no module has that name, or where its output is no such map (swin's are (B, h, w, C)).
    """
    unit = max(backbone.multiple, backbone.smallest)  # of sizes that the backbone does not pad
    height, width = probe_size(unit)
    found = {_map_at(backbone, name, size) for size in ((height, width), (height + unit, width + 2 * unit))}
    channels, stride = found.pop()
    if found:  # what looked like a width was a number of channels
        raise _no_map(backbone, name, f"maps of {channels} and {found.pop()[0]} channels")
    return Tap(name, channels, stride)


def _map_at(backbone: Backbone, name: str, size: Size) -> tuple[int, int]:
    """Channels and stride of what the module puts out for a blank image of this (H, W)."""
    with torch.no_grad(), evaluating(backbone), _listening(backbone, name) as outputs:
        backbone.extract(backbone.mean.new_zeros(1, backbone.mean.shape[1], *size))
    if not outputs or not isinstance(outputs[0], Tensor):
        raise _no_map(backbone, name, type(outputs[0]).__name__ if outputs else "nothing")
    stride = map_stride(size, outputs[0]) if outputs[0].ndim == 4 else None
    if stride is None:
        raise _no_map(backbone, name, f"{list(outputs[0].shape)} for an image of {list(size)}")
    return outputs[0].shape[1], stride


def _no_map(backbone: Backbone, name: str, found: str) -> ZooError:
    return ZooError(
        f"module {name!r} of {backbone.name} puts out {found}, where a map (B, channels, height / stride, width / "
        "stride) is needed: name a module that gives one, or none, for a level of the backbone"
    )


def extract_with(backbone: Backbone, tap: Tap, normalized: Tensor) -> list[Tensor]:
    """What the tap gives of a normalised image (B, C, H, W), then the backbone's features; all without padding."""
    with _listening(backbone, tap.name) as outputs:
        features = backbone.extract(normalized)
    height, width = (-(-length // tap.stride) for length in normalized.shape[-2:])
    return [outputs[0][..., :height, :width], *features]


@contextmanager
def _listening(backbone: Backbone, name: str) -> Iterator[list[Any]]:
    """Collects what the backbone's module `name` puts out; ZooError where there is none of that name.

    Inside, a compiled backbone runs uncompiled: compiled code does not call a hook that came after it.
    """
    modules = dict(backbone.model.named_modules())
    if name not in modules:
        raise unknown(f"module of {backbone.name}", name, modules)
    outputs: list[Any] = []
    handle = modules[name].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.compiler.set_stance("force_eager") if backbone.compiled else nullcontext():
            yield outputs
    finally:
        handle.remove()
