"""How the contenders of `benchmarks/models.py` are measured: turns, medians, operations, a GPU's memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.evaluation import frozen

Contender = Callable[[], object]


def stepper(side: Any, case: Any) -> Contender:
    """One training step a call."""
    optimizer = torch.optim.SGD(side.model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        side.model.train()
        side.loss(case).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def predictor(side: Any, case: Any) -> Contender:
    """One prediction a call."""

    def predict() -> None:
        side.model.eval()
        side.predict(case)

    return predict


CLOCKS: dict[bool, Callable[[], float]] = {False: time.perf_counter, True: time.process_time}
clock = CLOCKS[False]


def use_processor_time(yes: bool) -> None:
    """Whether times are the processor's, not the wall's."""
    global clock
    clock = CLOCKS[yes]


def milliseconds(run: Contender) -> float:
    """Of one call, to its end also on a GPU."""
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def medians(ours: Contender, theirs: Contender, turns: int, seconds: float) -> tuple[float, float]:
    """Milliseconds of each, taking turns after a first one; at least three turns, then until `seconds` are over."""
    times: list[tuple[float, float]] = []
    milliseconds(ours)
    milliseconds(theirs)
    start = time.perf_counter()
    while len(times) < 3 or (len(times) < turns and time.perf_counter() - start < seconds):
        pair = [milliseconds(run) for run in ((ours, theirs) if len(times) % 2 else (theirs, ours))]
        times.append((pair[0], pair[1]) if len(times) % 2 else (pair[1], pair[0]))
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def multiply_adds(model: nn.Module, look: Contender) -> float:
    """Of what `look` does with the model, in 1e9 (convolutions and matrix products)."""
    with frozen(model), FlopCounterMode(display=False) as counter:
        look()
    return counter.get_total_flops() / 2e9


def convolutions(model: nn.Module, look: Contender) -> float:
    """Milliseconds of the convolutions of what `look` does alone, each the fastest of three, in channels_last."""
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    handles = [
        layer.register_forward_hook(lambda layer, inputs, _: calls.append((layer, inputs[0].shape)))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    look()
    with torch.inference_mode():
        for handle in handles:
            handle.remove()
        total = 0.0
        for layer, shape in calls:
            weight = layer.weight.contiguous(memory_format=torch.channels_last)
            x = torch.randn(shape, device=weight.device).contiguous(memory_format=torch.channels_last)
            padding = layer.padding if not isinstance(layer.padding, str) else 0
            geometry = (layer.stride, padding, layer.dilation, layer.groups)
            run = lambda x=x, w=weight, g=geometry: torch.conv2d(x, w, None, *g)  # noqa: E731
            total += min(milliseconds(run) for _ in range(3))
    return total


def gpu_memory(run: Contender, model: nn.Module) -> float:
    """MiB of the model and the peak of a call beyond what was there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (torch.cuda.max_memory_allocated() - before + weights) / 2**20
