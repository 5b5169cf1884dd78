"""Features from inside a backbone: what one of its modules puts out, by name, beside the levels it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from zoo.errors import unknown
from zoo.models.backbone import Backbone
from zoo.models.semantic import evaluating


@contextmanager
def tap(backbone: Backbone, name: str) -> Iterator[list[Tensor]]:
    """Collects what the backbone's module `name` puts out; ZooError where there is none of that name.

    Inside, a compiled backbone runs uncompiled: compiled code does not call a hook that came after it.
    """
    modules = dict(backbone.model.named_modules())
    if name not in modules:
        raise unknown(f"module of {backbone.name}", name, modules)
    outputs: list[Tensor] = []
    handle = modules[name].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.compiler.set_stance("force_eager") if backbone.compiled else nullcontext():
            yield outputs
    finally:
        handle.remove()


def tapped_channels(backbone: Backbone, name: str) -> int:
    """Channels of the backbone's module `name`, seen on a blank image."""
    device = next(backbone.parameters()).device
    with torch.no_grad(), evaluating(backbone), tap(backbone, name) as outputs:
        backbone.extract(torch.zeros(1, backbone.config["in_channels"], 64, 64, device=device))
    return outputs[0].shape[1]
