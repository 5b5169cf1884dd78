"""How to train: the keywords of `zoo.fit` and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from zoo.errors import ZooError, unknown


@dataclass(frozen=True)
class Recipe:
    """The keywords of `zoo.fit` that say how to train.

    A step's gradient with `accumulate` parts is the mean of the parts' gradients. That is the gradient of the whole
    batch where the loss is a mean over images, or over pixels of which each part has equally many that are not void;
    batch norms see one part at a time. The same holds for the processes of a step.
    """

    steps: int = 40_000
    """Optimizer steps."""
    batch_size: int = 16
    """Images of one step, over all processes and parts."""
    accumulate: int = 1
    """Parts that a step's images are worked on in, to save memory."""
    workers: int = 4
    """Loader processes of each process."""
    evaluate_every: int = 4000
    """Steps between evaluations on the validation set; the last step is always evaluated."""
    save_every: int = 1000
    """Steps between saves of last.ckpt, besides those before and after each evaluation."""
    log_every: int = 50
    """Steps that one row of metrics.csv averages over."""
    clip: float | None = None
    """Largest 2-norm of the gradient."""
    schedule: str = "poly"
    """Learning rate over steps: "poly", "cosine" or "constant", see `zoo.optim.create_schedule`."""
    warmup: int = 0
    """Steps of linear warm-up."""
    power: float = 0.9
    """Of "poly"."""
    ema: float | None = None
    """Decay of averaged weights, which are then the ones evaluated and kept; None for no average."""
    compile: bool = False
    """torch.compile backbone and heads."""
    channels_last: bool = False
    """Memory layout of the convolutions."""
    sync_batchnorm: bool = False
    """Batch statistics over all processes; needs CUDA where there are several."""
    freeze_norm: str | bool = False
    """Batch norms that keep statistics and weights as they are: False, "backbone" or "all"."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better metric."""
    eval_batch_size: int = 1
    """Images predicted at a time by each process."""
    eval_workers: int = 2
    """Loader processes of each process in evaluation."""
    deterministic: bool = False
    """Deterministic kernels where torch has them (it warns where not), for the rest of the process."""

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Recipe:
        """A recipe from the keywords of `zoo.fit`; ZooError for unknown ones and for numbers that make no sense."""
        known = {f.name for f in fields(cls)}
        for name in keywords:
            if name not in known:
                raise unknown("keyword of fit", name, known)
        recipe = cls(**keywords)
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "evaluate_every",
            "save_every",
            "log_every",
            "eval_batch_size",
        ):
            if getattr(recipe, name) < 1:
                raise ZooError(f"{name}={getattr(recipe, name)}: at least 1 is needed")
        for name in ("workers", "eval_workers", "warmup"):
            if getattr(recipe, name) < 0:
                raise ZooError(f"{name}={getattr(recipe, name)}: at least 0 is needed")
        if recipe.patience is not None and recipe.patience < 1:
            raise ZooError(f"patience={recipe.patience}: at least 1 evaluation, or null")
        if recipe.clip is not None and not (isinstance(recipe.clip, int | float) and recipe.clip > 0):
            raise ZooError(f"clip={recipe.clip}: a norm above 0, or null")
        if recipe.freeze_norm not in (False, "backbone", "all"):
            raise ZooError(f"freeze_norm={recipe.freeze_norm}: choose false, backbone or all")
        if recipe.ema is not None and not 0 <= recipe.ema < 1:
            raise ZooError(f"ema={recipe.ema}: a decay lies in [0, 1), for example 0.9999")
        return recipe
