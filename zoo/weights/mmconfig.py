"""What an mmsegmentation config says, read from the text that its checkpoints carry, without running it.

A checkpoint's `meta` holds the whole config as Python source: assignments of literals and of `dict(...)` calls. These,
and nothing else, are evaluated; what is written otherwise counts as not said.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any

from zoo.errors import ZooError

# A ResNet's where the config names one of the two alone.
STAGES: dict[str, list[Any]] = {"strides": [1, 2, 2, 2], "dilations": [1, 1, 1, 1]}


def read_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the config in a checkpoint's `meta` settles, by our names; empty where there is none.

    Keys: output_stride, dilation, mean, std, bgr, align_corners, aux_weight, rates, bins, dropout, head_dilation,
    window, overlap; and unread, a list of settings that are there and could not be read.

    Raises:
        ZooError: a setting that has no counterpart here, or a value that is none of such a setting.
    """
    text = meta.get("config") or meta.get("cfg")
    values = _assignments(text) if isinstance(text, str) else {}
    model = _dict(values.get("model"))
    if not model:
        return {}
    parts = [
        _backbone(_dict(model.get("backbone"))),
        _statistics(_dict(model.get("data_preprocessor")) or _dict(values.get("img_norm_cfg"))),
        _head(_dict(model.get("decode_head"))),
        _auxiliary(model),
        _windows(_dict(model.get("test_cfg")) or _dict(values.get("test_cfg"))),
    ]
    unread = [setting for part in parts for setting in part.pop("unread", ())]
    said = {key: value for part in parts for key, value in part.items()}
    return {**said, "unread": unread} if unread else said


def _backbone(card: Mapping[str, Any]) -> dict[str, Any]:
    if card.get("style", "pytorch") != "pytorch":
        raise ZooError("this ResNet of mmsegmentation strides in its 1x1 convolutions (style='caffe'): timm's does not")
    if card.get("multi_grid"):
        raise ZooError(
            f"this ResNet of mmsegmentation has multi_grid={card['multi_grid']}, which are dilations there and factors "
            "here: not known"
        )
    if "dilations" not in card and "strides" not in card:
        return {}
    given = {key: _numbers(card, key) if key in card else default for key, default in STAGES.items()}
    unread = [key for key, value in given.items() if value is None]
    if unread:
        return {"unread": [f"backbone.{key}" for key in unread]}
    strides, dilations = given["strides"], given["dilations"]
    reached = list(accumulate(strides or (), mul))
    rates = [nominal // max(stride, 1) for nominal, stride in zip((1, 2, 4, 8), reached, strict=False)]
    if len(reached) != 4 or dilations != rates:
        raise ZooError(
            f"this ResNet of mmsegmentation has strides {strides} and dilations {dilations}: here a stage that keeps "
            "its stride doubles its dilation"
        )
    said: dict[str, Any] = {"output_stride": 4 * reached[-1]}
    return said if rates[-1] == 1 else said | {"dilation": "previous" if card.get("contract_dilation") else "full"}


def _statistics(card: Mapping[str, Any]) -> dict[str, Any]:
    mean, std = _numbers(card, "mean"), _numbers(card, "std")
    if not mean or not std:
        return {}
    said: dict[str, Any] = {"mean": [value / 255 for value in mean], "std": [value / 255 for value in std]}
    return said | ({} if card.get("bgr_to_rgb", card.get("to_rgb", True)) else {"bgr": True})


def _head(card: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if isinstance(card.get("align_corners"), bool):
        said["align_corners"] = card["align_corners"]
    for theirs, ours in (("dropout_ratio", "dropout"), ("dilation", "head_dilation")):
        if card.get(theirs) is not None:
            said[ours] = _number(card, theirs)
    for theirs, ours in (("pool_scales", "bins"), ("dilations", "rates")):
        values = _numbers(card, theirs)
        if values:
            said[ours] = values if ours == "bins" else values[1:]  # the first is the 1x1 convolution's
        elif theirs in card:
            said.setdefault("unread", []).append(f"decode_head.{theirs}")
    return said


def _auxiliary(model: Mapping[str, Any]) -> dict[str, Any]:
    """The weight of the auxiliary head's loss; a list of one head is that head."""
    heads = model.get("auxiliary_head")
    if isinstance(heads, list) and len(heads) == 1:
        heads = heads[0]
    if isinstance(heads, list):
        return {"unread": ["auxiliary_head"]} if heads else {}
    loss = _dict(_dict(heads).get("loss_decode"))
    return {} if loss.get("loss_weight") is None else {"aux_weight": float(_number(loss, "loss_weight"))}


def _windows(card: Mapping[str, Any]) -> dict[str, Any]:
    """The windows of `mode='slide'`: their size, and their overlap if it is the same share in height and width."""
    if card.get("mode") != "slide":
        return {}
    crop, stride = _numbers(card, "crop_size"), _numbers(card, "stride")
    if crop is None or len(crop) != 2 or min(crop) < 1:
        return {"unread": ["test_cfg"]}
    said: dict[str, Any] = {"window": [int(size) for size in crop]}
    if (
        stride is not None
        and len(stride) == 2
        and all(0 < step <= size for step, size in zip(stride, crop, strict=True))
    ):
        # A little less than the share, which the window that follows it from its size then reaches exactly.
        overlap = max(0.0, 1 - max(step / size for step, size in zip(stride, crop, strict=True)) - 1e-9)
        if [int(size * (1 - overlap)) for size in crop] == stride:
            return said | {"overlap": overlap}
    return said | {"unread": ["test_cfg.stride"]}


def _number(card: Mapping[str, Any], key: str) -> float:
    if not _is_number(card[key]):
        raise ZooError(f"{key}={card[key]!r} in this config of mmsegmentation is no number")
    return card[key]


def _numbers(card: Mapping[str, Any], key: str) -> list[Any] | None:
    """A list of numbers; None where it is not there or not written as literals."""
    values = card.get(key)
    if values is None or (isinstance(values, list) and None in values):
        return None
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise ZooError(f"{key}={values!r} in this config of mmsegmentation is no list of numbers")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _assignments(text: str) -> dict[str, Any]:
    """The values that `text` assigns to names, as far as they are literals and `dict` calls."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return {}
    found = {}
    for line in body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = _value(line.value)
    return found


def _value(node: ast.expr) -> Any:
    """A literal's value, a dict's with the entries that have one; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
