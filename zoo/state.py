"""What changes while a model trains, besides its weights: progress, averaged weights, modes, random numbers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass
class Progress:
    """How far a run is: the plain part of its checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    evaluated: int = 0
    """The step of the last evaluation."""
    best: float | None = None
    """The best value of the metric so far, and the step it was measured at."""
    best_step: int = 0
    misses: int = 0
    """Evaluations since then."""
    seconds: float = 0.0
    """Time spent training, without evaluation."""
    sums: dict[str, float] = field(default_factory=dict)
    """Loss terms summed since the last row of metrics.csv."""
    summed: int = 0
    """Steps in `sums`."""

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1

    def take_means(self) -> dict[str, float]:
        """The mean losses since the last call; starts new sums."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def judge(self, score: float) -> bool:
        """Note an evaluation with `score` (nan counts as worst); whether it is the best so far."""
        self.evaluated = self.step
        score = score if score == score else float("-inf")
        if self.best is not None and score <= self.best:
            self.misses += 1
            return False
        self.best, self.best_step, self.misses = score, self.step, 0
        return True


class Average:
    """An exponential moving average of a model's weights, in a copy of the model that predicts.

    Parameters and floating buffers (the statistics of batch norms) are averaged, integer buffers copied. The decay
    warms up as min(decay, (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage: a short run
    is not dominated by its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [(own, new) for own, new in pairs if own.is_floating_point()]
        self._others = [(own, new) for own, new in pairs if not own.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([own for own, _ in self._floats], [new for _, new in self._floats], 1 - decay)
        for own, new in self._others:
            own.copy_(new)


@torch.no_grad()
def is_finite(model: nn.Module) -> bool:
    """Whether all weights and floating buffers that `model` saves are finite."""
    tensors = [value for value in model.state_dict().values() if value.is_floating_point() and value.numel()]
    # The largest magnitude, not the 2-norm: it cannot overflow, and nan goes through it.
    return not tensors or bool(nn.utils.get_total_norm(tensors, float("inf")).isfinite())


def set_statistics(model: nn.Module, header: Mapping[str, Any]) -> None:
    """Normalise images as the model with this `header` did: mean and std are there, not in the state dict."""
    saved = header.get("backbone", {})
    setter: Any = getattr(getattr(model, "backbone", None), "set_statistics", None)
    if setter is not None and {"mean", "std"} <= saved.keys():
        setter(saved["mean"], saved["std"])


def freeze_norms(model: nn.Module, which: str | bool) -> None:
    """Put batch norms of the backbone or of all into evaluation mode and their weights out of training.

    To be repeated after each `model.train()`, which would thaw the statistics.
    """
    if which:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and (which == "all" or name.startswith("backbone.")):
                module.eval().requires_grad_(False)


def compile_parts(model: nn.Module) -> None:
    """Compile the parts of `model` in place: its backbone, by that one's own rule, and its heads.

    The model's verbs stay plain Python; they are where images of other sizes, structures and lists live.
    """
    for child in model.children():
        for part in _callable_parts(child):
            part.compile()


def _callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _callable_parts(child)
    elif any(True for _ in module.parameters()):
        yield module


def set_deterministic() -> None:
    """Deterministic kernels where torch has them; it warns where CUDA has none, as for a bilinear resize."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def own_randomness(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Random numbers inside start from `seed` and leave those outside as if nothing had been drawn."""
    state = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state, device)
