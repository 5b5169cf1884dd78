"""Optimizers over timm's registry, with the parameter groups segmentation recipes use, and schedules by step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from zoo.errors import ZooError, unknown

Schedule = Callable[[int], float]
FUSED = ("adam", "adamw", "sgd")  # whose step PyTorch has as one loop for CPUs


def create_optimizer(
    model: nn.Module,
    name: str = "adamw",
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    backbone_lr_factor: float = 1.0,
    layer_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    decay_vectors: bool = False,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of `model`.

    Vectors and scalars (norms, biases, layer scales) and what a module lists in timm's `no_weight_decay()` are not
    decayed. Each group keeps its starting rate in "initial_lr", which the engine multiplies by the schedule.

    Args:
        model: a model with a `backbone`.
        name: any name of timm.optim. "sgd" is classical momentum as in the papers unless `nesterov=True`.
        lr: learning rate of the heads.
        weight_decay: for matrices and kernels.
        momentum: for optimizers that have it.
        backbone_lr_factor: learning rate of the backbone, and of the parts that the model names in `backbone_copies`,
            over that of the heads.
        layer_decay: the rate falls by this factor for each layer of the backbone from its last to its first (BEiT,
            Bao et al. 2022, appendix), the layers as timm groups them.
        bias_lr_factor: learning rate of the biases of convolutions and linear layers over that of their weights (2 in
            Caffe's recipes, such as FCN's).
        decay_vectors: decay vectors and scalars as well, as the recipes of PSPNet and DeepLab do.
        options: the optimizer's own (betas, eps, ...); None means its default.

    Raises:
        ZooError: unknown name or option, nothing to train, or a backbone whose layers timm does not group.
    """
    names = [str(known) for known in list_optimizers()]
    if name not in names:
        raise unknown("optimizer", name, names)
    rates = _rates(model, lr, backbone_lr_factor, layer_decay, bias_lr_factor)
    groups = _groups(model, rates, weight_decay, decay_vectors)
    options = {key: value for key, value in options.items() if value is not None}
    if name in FUSED and "foreach" not in options and _is_on_cpu(groups):
        options.setdefault("fused", True)  # one pass over the weights instead of a dozen: a third of the time
    if name == "sgd":
        options.setdefault("nesterov", False)
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    try:
        optimizer = create_optimizer_v2(
            groups, opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum, **options
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise ZooError(f"optimizer {name}: {error}") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _rates(
    model: nn.Module, lr: float, backbone_lr_factor: float, layer_decay: float | None, bias_lr_factor: float
) -> dict[str, float]:
    """The learning rate of each parameter by its name."""
    scales = {} if layer_decay is None else _layer_scales(model, layer_decay)
    biases = {
        f"{name}.bias" if name else "bias"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    pretrained = ("backbone.", *getattr(model, "backbone_copies", ()))
    return {
        name: lr
        * scales.get(name, 1.0)
        * (backbone_lr_factor if name.startswith(pretrained) else 1.0)
        * (bias_lr_factor if name in biases else 1.0)
        for name, _ in model.named_parameters()
    }


def _groups(
    model: nn.Module, rates: dict[str, float], weight_decay: float, decay_vectors: bool
) -> list[dict[str, Any]]:
    """Parameters by their (rate, decay), in the order of first occurrence."""
    undecayed = _undecayed(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = name in undecayed or (parameter.ndim <= 1 and not decay_vectors)
            groups[rates[name], 0.0 if spared else weight_decay].append(parameter)
    if not groups:
        raise ZooError("the model has no trainable parameter: nothing to optimize")
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def _is_on_cpu(groups: list[dict[str, Any]]) -> bool:
    return all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])


def _undecayed(model: nn.Module) -> set[str]:
    """Full names of what modules exclude from weight decay themselves (position embeddings, bias tables)."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factor on the rate for each parameter of the backbone: 1 for its last layer, falling towards the first."""
    matched = [(name, module) for name, module in model.named_modules() if hasattr(module, "group_matcher")]
    if not matched:
        raise ZooError("layer_decay needs a backbone whose layers timm groups (group_matcher): set layer_decay=null")
    prefix, trunk = matched[0]
    layers = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    # What a trunk without its classifier leaves unmatched (final norms) is timm's last layer: it keeps scale 1.
    last = max(layers.values())
    return {f"{prefix}.{name}": layer_decay ** (last - layer) for name, layer in layers.items()}


def create_schedule(name: str, steps: int, warmup: int = 0, power: float = 0.9) -> Schedule:
    """The factor on the learning rate as a function of the step, 0 for the first of `steps`.

    During the first `warmup` steps it rises linearly to 1 and then follows the curve `name` over the rest:
    "poly" (1 - t)^power (DeepLab, Chen et al. 2017, section 4.1), "cosine" (1 + cos(pi t)) / 2, "constant" 1.
    It is a function of the step alone, so there is no state to save.

    Raises:
        ZooError: unknown name.
    """
    curves: dict[str, Schedule] = {
        "poly": lambda step: (1 - progress(step)) ** power,
        "cosine": lambda step: (1 + math.cos(math.pi * progress(step))) / 2,
        "constant": lambda step: 1.0,
    }
    if name not in curves:
        raise unknown("schedule", name, curves)

    def progress(step: int) -> float:
        return min(1.0, max(0, step - warmup) / max(1, steps - warmup))

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else curves[name](step)

    return factor
