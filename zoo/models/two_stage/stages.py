"""Parts of a backbone that two-stage recipes treat on their own: its last stage, its first ones, its norms."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.semantic import evaluating


def last_stage(backbone: Backbone) -> nn.Module:
    """The module of a ResNet (or a relative) that makes the coarsest map of the one before.

    Raises ZooError for others: the C4 variant runs it on regions instead of on the image.
    """
    if isinstance(backbone.model, ResNet) and backbone.taps == "getter" and backbone.strides[-2:] == [16, 32]:
        stage: nn.Module = backbone.model.layer4  # type: ignore[assignment]
        return stage
    raise ZooError(
        f"variant c4 runs the last stage on each region, and backbone {backbone.name} is no ResNet with a last stage "
        "of stride 32: use resnet*, resnext*, wide_resnet* at output_stride=32, or variant=fpn"
    )


def before_last_stage(backbone: Backbone, normalized: Tensor) -> Tensor:
    """The map (B, C, h, w) of stride 16 that the last stage starts from."""
    (x,) = backbone.model.forward_intermediates(  # type: ignore[operator]
        normalized, indices=backbone.indices[-2:-1], stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return x


def dense_last_stage(backbone: Backbone) -> nn.Module:
    """The modules that make the last map of a dilated backbone of the one before, which has the same stride.

    They are those between the modules that give the two maps, and shown to be by running them. Raises ZooError for
    backbones of another make.
    """
    if backbone.taps != "getter" or len(backbone.strides) < 2 or backbone.strides[-1] != backbone.strides[-2]:
        raise _no_dense_stage(backbone)
    records: Any = backbone.model.feature_info
    before, last = (records[index]["module"] for index in backbone.indices[-2:])
    parent, _, name = last.rpartition(".")
    children = dict(backbone.model.get_submodule(parent).named_children())
    names = list(children)
    if before.rpartition(".")[0] != parent:
        raise _no_dense_stage(backbone)
    own = [children[key] for key in names[names.index(before.rpartition(".")[2]) + 1 : names.index(name) + 1]]
    stage = own[0] if len(own) == 1 else nn.Sequential(*own)
    like = next(stage.parameters(), None)
    if like is None:  # of a VGG's last maps one is the other's ReLU
        raise _no_dense_stage(backbone)
    with evaluating(backbone), torch.no_grad():
        ramp = torch.linspace(-1, 1, 64 * 64, dtype=like.dtype, device=like.device).view(1, 1, 64, 64)
        maps = backbone.extract(ramp.expand(1, backbone.mean.shape[1], -1, -1))
        if not torch.allclose(stage(maps[-2]), maps[-1], rtol=1e-3, atol=1e-5):
            raise _no_dense_stage(backbone)
    return stage


def _no_dense_stage(backbone: Backbone) -> ZooError:
    return ZooError(
        f"backbone {backbone.name} (strides {backbone.strides}) has no dilated last stage that could run on regions: "
        "use resnet*, resnext*, regnet*, efficientnet* or mobilenetv2* at output_stride=8 or 16"
    )


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm that is not trained: where gradients pass through, one product and one sum.

    `batch_norm` keeps its input for the gradients of its own weights, also where nobody asks for them: half of what a
    training step remembers of a backbone. (detectron2's FrozenBatchNorm2d does the same.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not (x.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * factor
        return (x * factor.to(x.dtype)[:, None, None]).add_(shift.to(x.dtype)[:, None, None])


def freeze(backbone: Backbone, stages: int, norms: bool) -> None:
    """Take the parameters of the first `stages` maps out of training, and those of all batch norms if `norms`.

    What the first map depends on is its stage, stem included, whatever the network calls it. Raises ZooError for more
    stages than there are.
    """
    if not 0 <= stages <= len(backbone.channels):
        raise ZooError(f"frozen_stages={stages}: backbone {backbone.name} gives {len(backbone.channels)} maps")
    frozen = _behind(backbone, stages) if stages else set()
    for parameter in backbone.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm) and norms:
            module.requires_grad_(False)
            if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
                module.__class__ = FrozenNorm  # the same state and names, whatever holds it
    keep_statistics(backbone)


def keep_statistics(backbone: nn.Module) -> None:
    """Put the batch norms whose weights are not trained into evaluation mode."""
    for module in backbone.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()


def _behind(backbone: Backbone, stages: int) -> set[int]:
    """ids of the parameters that the first `stages` maps depend on, seen in the graph of a small image."""
    like = next(backbone.parameters())
    with evaluating(backbone), torch.enable_grad():
        image = like.new_zeros(1, backbone.mean.shape[1], 64, 64)
        nodes = [x.grad_fn for x in backbone.extract(image)[:stages]]
    seen, found = set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [parent for parent, _ in node.next_functions]
    return found
