"""Weights into a model, strictly: everything fits, or nothing is touched and every key that does not fit is named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models import create_model, model_options
from zoo.structures import VOID, Class


def fit_state(model: Any, state: Mapping[str, Tensor], source: str, skip: Collection[str] = ()) -> None:
    """Load `state` into `model`, but for the keys in `skip`, which keep the weights they have.

    Counts of batches that batch norm has seen may be missing: only old checkpoints lack them, nothing here uses them.

    Raises:
        ZooError: one table of the keys that are missing, unexpected or of another shape; `model` is as it was.
    """
    own = model.state_dict()
    given = {key: value for key, value in state.items() if key not in skip}
    wanted = {key: value for key, value in own.items() if key not in skip}
    rows = [("missing", key, _shape(value)) for key, value in wanted.items() if key not in given]
    rows = [row for row in rows if not row[1].endswith("num_batches_tracked")]
    rows += [("unexpected", key, _shape(value)) for key, value in given.items() if key not in wanted]
    rows += [
        ("shape", key, f"{_shape(given[key])} in the checkpoint, {_shape(value)} in the model")
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if rows:
        raise ZooError(_table(model, rows, len(own), source))
    model.load_state_dict({**own, **given})


def head_keys(model: Any) -> set[str]:
    """The keys of `model` whose shape depends on the number of classes, told from a twin with another number.

    Raises:
        ZooError: a model without a header.
    """
    header = _header(model, "skip_head=True")
    count = len(model.classes)
    with torch.random.fork_rng(devices=[]):
        twin = create_model(
            header["name"],
            [*model.classes, Class("one more", (0, 0, 0))] if count < VOID else model.classes[:-1],
            model.backbone,
            **header["options"],
        )
    others = twin.state_dict()
    return {key for key, value in model.state_dict().items() if others[key].shape != value.shape}


def stage_keys(model: Any) -> tuple[set[str], set[str]]:
    """What training in stages begins anew: the keys `model` has and its predecessor lacks, and the reverse.

    The predecessor is the model its class names, built with the options they share.

    Raises:
        ZooError: a model without a header.
    """
    header = _header(model, f"beginning with the weights of {model.predecessor}")
    known = model_options(model.predecessor)
    options = {key: value for key, value in header["options"].items() if key in known}
    with torch.random.fork_rng(devices=[]):
        twin = create_model(model.predecessor, model.classes, model.backbone, **options)
    own, others = model.state_dict().keys(), twin.state_dict().keys()
    return set(own - others), set(others - own)


def _header(model: Any, wish: str) -> Any:
    if not hasattr(model, "header"):
        raise ZooError(
            f"{wish} takes a twin of the model, and this {type(model).__name__} does not say how it was built: build "
            "it with zoo.create_model"
        )
    return model.header


def _table(model: Any, rows: list[tuple[str, str, str]], total: int, source: str) -> str:
    width = max(len(key) for _, key, _ in rows)
    lines = [f"  {what:<10}  {key:<{width}}  {shape}" for what, key, shape in rows]
    hint = ""
    only_shapes = all(what == "shape" for what, _, _ in rows) and hasattr(model, "header")
    if only_shapes and {key for _, key, _ in rows} <= head_keys(model):
        hint = "\nthe number of classes differs: skip_head=True keeps this model's own heads"
    name = getattr(model, "header", {}).get("name", type(model).__name__)
    counted = f"{len(rows)} keys do not fit" if len(rows) > 1 else "1 key does not fit"
    return "\n".join([f"{source} does not fit this {name}, of {total} keys {counted}:", *lines]) + hint


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
