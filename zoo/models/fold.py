"""Prediction on the CPU without batch norms: each becomes part of the convolution before it.

In evaluation a batch norm is y = scale * x + shift with scale = weight / sqrt(running_var + eps) per channel, so that
after a convolution it is that convolution with its filters multiplied by `scale` (the algebra of
`torch.nn.utils.fusion.fuse_conv_bn_weights`). It saves a read and a write of every feature map. And convolutions run in
channels_last, whose oneDNN kernels need no reordering of input and output: that is the larger part of the gain.

Nothing of the model changes. `folding` is a mode of one thread: while it is on, calls of `conv2d` and `batch_norm` with
tensors of a known pair are answered differently. Filters are multiplied when they are used, where they are fewer than
the values to be normalised: nothing is kept, so nothing goes stale when weights, statistics or devices change, and
prediction takes no memory that stays. Which batch norm follows which convolution is seen once, as a small image goes
through the model; if the result then is not the same, that model is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from zoo.errors import ZooError

Pairs = list[tuple[nn.Conv2d, _BatchNorm]]  # convolutions, each with the batch norm that alone reads its output

TOLERANCE = 1e-5  # of the spread of the outputs

# Of each model its layers and their pairs, or None where it is to be left alone.
_SEEN: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], Pairs | None]] = WeakKeyDictionary()


@contextmanager
def folding(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Iterator[None]:
    """Inside, `model` in evaluation mode runs in channels_last and without batch norms, if it is plain and on the CPU.

    `run(images)` is what it is going to do; the first time, a corner of the first image goes through it. Nothing is
    done on other devices, with half-precision or compiled parts, or where gradients are recorded. A hook on a
    convolution sees its output normalised. Raises ZooError if a `forward` was replaced after the first time by one that
    does something between a convolution and its batch norm; layers may be replaced.
    """
    pairs = None
    if _applies(model):
        layers = list(model.modules())[1:]
        if model not in _SEEN or _SEEN[model][0] != layers:
            _SEEN[model] = layers, _find(model, run, images[:1, :, :64, :64])
        pairs = _SEEN[model][1]
    if pairs is None:
        yield
        return
    with _Folding(pairs) as mode:
        yield
    mode.check()


def folded(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight (O, I, kh, kw) and bias (O,) of the convolution that includes the batch norm after it."""
    assert norm.running_mean is not None  # a pair's norm is known by its statistics
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = scale * (-norm.running_mean if bias is None else bias - norm.running_mean)
    return weight * scale.view(-1, 1, 1, 1), shift + norm.bias if norm.affine else shift


def _applies(model: nn.Module) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if any(p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64) for p in model.parameters()):
        return False
    return not any(module._compiled_call_impl or getattr(module, "compiled", False) for module in model.modules())


def _find(model: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> Pairs | None:
    """The pairs of `model`; None if it has other outputs with them, or cannot run in channels_last."""
    with _Watching() as watching:
        plain = run(image)
    pairs = watching.pairs(model)
    try:
        with _Folding(pairs) as mode:
            output = run(image)
        mode.check()
    except Exception:  # a `view` that needs planes, deep inside any of a thousand backbones: it runs as it is
        return None
    spread = (plain.max() - plain.min()).clamp(min=torch.finfo(plain.dtype).tiny)
    return pairs if bool((output - plain).abs().max() <= TOLERANCE * spread) else None


class _Watching(TorchFunctionMode):
    """Notes what convolutions give and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: output (held, so that it stays) and weight
        self.readers: dict[int, list[Tensor | None]] = {}  # running means of batch norms, None for other functions

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list) and not isinstance(result, torch.Size):
            given = [*args, *(kwargs or {}).values()]
            flat = [part for arg in given for part in (arg if isinstance(arg, tuple | list) else (arg,))]
            for key in {id(part) for part in flat} & self.outputs.keys():
                self.readers.setdefault(key, []).append(args[1] if func is F.batch_norm and len(args) > 1 else None)
        if func is torch.conv2d and len(args) > 1:
            self.outputs[id(result)] = result, args[1]
        return result

    def pairs(self, model: nn.Module) -> Pairs:
        """Convolutions that ran once and whose output a batch norm is the only one to read."""
        convs = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Conv2d)}
        norms = {
            id(m.running_mean): m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        }
        ran = [id(weight) for _, weight in self.outputs.values()]
        found = []
        for key, (_, weight) in self.outputs.items():
            conv, readers = convs.get(id(weight)), self.readers.get(key, [])
            norm = norms.get(id(readers[0])) if len(readers) == 1 else None
            if conv is not None and norm is not None and ran.count(id(weight)) == 1:
                found.append((conv, norm))
        return found


class _Folding(TorchFunctionMode):
    """Convolutions of pairs give what their batch norms would, which then give back their input."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.norms = {id(conv.weight): norm for conv, norm in pairs}
        self.pending: tuple[Tensor, _BatchNorm] | None = None  # a normalised output on its way to its batch norm

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) > 2 and args[0].ndim == 4:
            return self._convolve(*args, **(kwargs or {}))
        if func is F.batch_norm and self.pending is not None:
            output, norm = self.pending
            if args[0] is output and args[1] is norm.running_mean:
                self.pending = None
                return output
        return func(*args, **(kwargs or {}))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **options: Any) -> Tensor:
        self.check()
        x = x.contiguous(memory_format=torch.channels_last)
        norm = self.norms.get(id(weight))
        if norm is None or weight[0].numel() > x.shape[0] * x.shape[2] * x.shape[3]:  # more to multiply than is saved
            return torch.conv2d(x, weight, bias, *rest, **options)
        output = torch.conv2d(x, *folded(weight, bias, norm), *rest, **options)
        self.pending = output, norm
        return output

    def check(self) -> None:
        """No normalised output is left that its batch norm has not seen."""
        if self.pending is not None:
            raise ZooError(
                "what the model does between a convolution and its batch norm changed after its first prediction: "
                "predict with a copy (copy.deepcopy) of it"
            )
