"""Prediction on the CPU without batch norms: each becomes part of the convolution before it.

In evaluation a batch norm is y = scale * x + shift with scale = weight / sqrt(running_var + eps) per channel, so that
after a convolution it is that convolution with its filters multiplied by `scale` (the algebra of
`torch.nn.utils.fusion.fuse_conv_bn_weights`). It saves a read and a write of every feature map. And convolutions run in
channels_last, whose oneDNN kernels need no reordering of input and output: that is the larger part of the gain.

Nothing of the model changes. `folding` is a mode of one thread: while it is on, calls of `conv2d` and `batch_norm` with
tensors of a known pair are answered differently. Filters are multiplied when they are used, where they are fewer than
the values to be normalised: nothing is kept, so nothing goes stale when weights, statistics or devices change, and
prediction takes no memory that stays. Which batch norm follows which convolution is seen once, as a small image goes
through the model; if the result then is not the same, or nothing can be seen, that model is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from timm.models import FeatureHooks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from zoo.errors import ZooError

# Convolutions, each with the batch norm that alone reads its output.
Pairs = list[tuple["ref[nn.Conv2d]", "ref[_BatchNorm]"]]

# Of the spread of the outputs. Rounding alone moves those of some ResNet-50s by 3e-5, with norms or without them.
TOLERANCE = 1e-4

# Values of a weight beyond which its filters are used in turns. oneDNN copies a weight twice before it multiplies, and
# a head's 2048 x 512 filters of 3x3 are larger than all features: the copies would be the peak of a prediction.
MANY_WEIGHTS = 1 << 21
FILTERS = 64  # a turn takes a multiple of: oneDNN takes half as long again for 103 filters as for 128

# Questions about a tensor, not about its values: who asks them is no reader.
QUERIES = frozenset(
    [Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_contiguous]
    + [getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")]
)

# Of each model its layers and their pairs, or None where it is to be left alone. Weak, as layers may know their model.
_SEEN: WeakKeyDictionary[nn.Module, tuple[list[ref[nn.Module]], Pairs | None]] = WeakKeyDictionary()


@contextmanager
def folding(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Iterator[None]:
    """Inside, `model` in evaluation mode runs in channels_last and without batch norms, if it is plain and on the CPU.

    `run(images)` is what it is going to do; the first time, a corner of the first image goes through it. Nothing is
    done on other devices, with half-precision or compiled parts, under autocast, where gradients are recorded, or while
    a module has a forward hook (which would see that corner, and normalised outputs of convolutions) that is not one of
    timm's, which collect features. Raises ZooError if a `forward` was replaced after the first time by one that does
    something between a convolution and its batch norm; layers may be replaced.
    """
    pairs = None
    if _applies(model):
        layers = [ref(module) for module in model.modules()][1:]
        if model in _SEEN and _SEEN[model][0] == layers:
            pairs = _SEEN[model][1]
        else:
            known, pairs = _find(model, run, images[:1, :, :64, :64])
            if known:
                _SEEN[model] = layers, pairs
    if pairs is None:
        yield
        return
    with _Folding(pairs) as mode:
        yield
    mode.check()


def folded(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight (O, I, kh, kw) and bias (O,) of the convolution that includes the batch norm after it."""
    assert norm.running_mean is not None  # `_foldable` is asked first
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = scale * (-norm.running_mean if bias is None else bias - norm.running_mean)
    return weight * scale.view(-1, 1, 1, 1), shift if norm.bias is None else shift + norm.bias


def _applies(model: nn.Module) -> bool:
    if model.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    hooks = [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
    hooks += [hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    owners = [getattr(getattr(hook, "func", None), "__self__", None) for some in hooks for hook in some.values()]
    if not all(isinstance(owner, FeatureHooks) for owner in owners):
        return False
    if any(p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64) for p in model.parameters()):
        return False
    return not any(module._compiled_call_impl or getattr(module, "compiled", False) for module in model.modules())


def _find(model: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> tuple[bool, Pairs | None]:
    """The pairs of `model`; None if it has other outputs with them, or cannot run in channels_last.

    The first value says whether that is true of the model, not just of this image, which may be too small or overflow.
    """
    try:
        with _Watching() as watching:
            plain = run(image)
    except Exception:  # some need more pixels; what is wrong with the whole image, the caller's own run will say
        return False, None
    pairs = watching.pairs(model)
    try:
        with _Folding(pairs, all_sizes=True) as mode:
            output = run(image)
        mode.check()
    except Exception:  # a `view` that needs planes, deep inside any of a thousand backbones: it runs as it is
        return True, None
    if not bool(plain.isfinite().all() and output.isfinite().all()):
        return False, None
    spread = (plain.max() - plain.min()).clamp(min=torch.finfo(plain.dtype).tiny)
    return True, pairs if bool((output - plain).abs().max() <= TOLERANCE * spread) else None


def _foldable(conv: nn.Conv2d, norm: _BatchNorm) -> bool:
    """Whether the weight is a parameter (not made anew in each forward) and the norm uses statistics that it has."""
    statistics = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    return "weight" in conv._parameters and not norm.training and not any(value is None for value in statistics)


def _evaluates(
    norm: _BatchNorm,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> bool:
    """Whether a call of `F.batch_norm` with these arguments is that of `norm` in evaluation mode."""
    own = [*map(norm._buffers.get, ("running_mean", "running_var")), *map(norm._parameters.get, ("weight", "bias"))]
    given = [running_mean, running_var, weight, bias]
    return not training and eps == norm.eps and all(a is b for a, b in zip(own, given, strict=True))


def _version(x: Tensor) -> int:
    """Grows as `x` is changed in place; always 0 in inference mode, which does not count."""
    return 0 if x.is_inference() else x._version


def _in_turns(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **options: Any) -> Tensor:
    """`torch.conv2d`, some output channels at a time where the weight is large."""
    if weight.numel() <= MANY_WEIGHTS or weight.shape[1] != x.shape[1]:  # groups: filters for few input channels each
        return torch.conv2d(x, weight, bias, *rest, **options)
    filters = max(MANY_WEIGHTS // weight[0].numel() // FILTERS, 1) * FILTERS
    weights = weight.split(filters)
    biases = [None] * len(weights) if bias is None else bias.split(filters)
    return torch.cat([torch.conv2d(x, *part, *rest, **options) for part in zip(weights, biases, strict=True)], 1)


class _Watching(TorchFunctionMode):
    """Notes what convolutions give and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        # By identity: output (held, so that it stays), its version and the weight.
        self.outputs: dict[int, tuple[Tensor, int, Tensor]] = {}
        self.readers: dict[int, list[tuple[Any, Sequence[Any], Mapping[str, Any]]]] = {}  # functions and arguments

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in QUERIES:
            flat = [
                part for arg in (*args, *kwargs.values()) for part in (arg if isinstance(arg, tuple | list) else (arg,))
            ]
            for key in {id(part) for part in flat} & self.outputs.keys():
                self.readers.setdefault(key, []).append((func, args, kwargs))
        if func is torch.conv2d and len(args) > 1:
            self.outputs[id(result)] = result, _version(result), args[1]
        return result

    def pairs(self, model: nn.Module) -> Pairs:
        """Convolutions that ran once and whose output a batch norm is the only one to read, and nobody changed."""
        convs = {id(m._parameters.get("weight")): m for m in model.modules() if isinstance(m, nn.Conv2d)}
        norms = {id(m._buffers.get("running_mean")): m for m in model.modules() if isinstance(m, _BatchNorm)}
        ran = [id(weight) for _, _, weight in self.outputs.values()]
        found: Pairs = []
        for key, (output, version, weight) in self.outputs.items():
            conv, readers = convs.get(id(weight)), self.readers.get(key, [])
            if conv is None or len(readers) != 1 or _version(output) != version or ran.count(id(weight)) != 1:
                continue
            func, args, kwargs = readers[0]
            if func is F.batch_norm and len(args) > 1 and args[0] is output:
                norm = norms.get(id(args[1]))
                if norm is not None and _foldable(conv, norm) and _evaluates(norm, *args, **kwargs):
                    found.append((ref(conv), ref(norm)))
        return found


class _Folding(TorchFunctionMode):
    """Convolutions of pairs give what their batch norms would, which then give back their input."""

    def __init__(self, pairs: Pairs, all_sizes: bool = False) -> None:
        super().__init__()
        layers = [(conv(), norm()) for conv, norm in pairs]
        # By weight: as keys, tensors are told apart by identity.
        self.norms = {conv.weight: norm for conv, norm in layers if conv and norm and _foldable(conv, norm)}
        self.all_sizes = all_sizes  # whether also filters that are more than the values to be normalised are multiplied
        # A normalised output on its way to its batch norm, and its version.
        self.pending: tuple[Tensor, int, _BatchNorm] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) > 2 and args[0].ndim == 4:
            return self._convolve(*args, **(kwargs or {}))
        if func is F.batch_norm and self.pending is not None:
            output, version, norm = self.pending
            if args[0] is output and _version(output) == version and _evaluates(norm, *args, **(kwargs or {})):
                self.pending = None
                return output
        return func(*args, **(kwargs or {}))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **options: Any) -> Tensor:
        self.check()
        x = x.contiguous(memory_format=torch.channels_last)
        norm = self.norms.get(weight)
        many = weight[0].numel() > x.shape[0] * x.shape[2] * x.shape[3]  # more to multiply than is saved
        if norm is None or (many and not self.all_sizes):
            return _in_turns(x, weight, bias, *rest, **options)
        output = _in_turns(x, *folded(weight, bias, norm), *rest, **options)
        self.pending = output, _version(output), norm
        return output

    def check(self) -> None:
        """No normalised output is left that its batch norm has not seen."""
        if self.pending is not None:
            raise ZooError(
                "what the model does between a convolution and its batch norm changed after its first prediction: "
                "predict with a copy (copy.deepcopy) of it"
            )
