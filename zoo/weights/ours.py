"""Our own checkpoints: the header names the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError
from zoo.structures import Class
from zoo.weights.recipe import Recipe


def recognizes(file: Mapping[str, Any]) -> bool:
    """Whether `zoo.checkpoint` wrote this."""
    return file.get("format") == "zoo"


def recipe(file: Mapping[str, Any]) -> Recipe:
    """What best.ckpt or last.ckpt describes; of last.ckpt the averaged weights, if training kept an average.

    Raises:
        ZooError: the file has no header or no weights.
    """
    header, state = file.get("header"), (file.get("training") or {}).get("average") or file.get("state")
    if not isinstance(header, Mapping) or not isinstance(state, Mapping):
        raise ZooError("this checkpoint of ours has no header or no weights: it was not written by save_model")
    lacking = [key for key in ("name", "classes", "backbone", "options") if key not in header]
    if lacking:
        raise ZooError(f"the header of this checkpoint lacks {', '.join(lacking)}")
    classes = [Class(entry["name"], tuple(entry["color"]), entry["thing"]) for entry in header["classes"]]
    return Recipe("zoo", header["name"], classes, dict(header["backbone"]), dict(header["options"]), dict(state))
