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


def read_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the config in a checkpoint's `meta` settles, by our names; empty where there is none.

    Keys: output_stride, dilation, mean, std, bgr, align_corners, aux_weight, rates, bins, dropout, head_dilation.

    Raises:
        ZooError: a setting that has no counterpart here.
    """
    text = meta.get("config") or meta.get("cfg")
    values = _assignments(text) if isinstance(text, str) else {}
    model = _dict(values.get("model"))
    if not model:
        return {}
    return {
        **_backbone(_dict(model.get("backbone"))),
        **_statistics(_dict(model.get("data_preprocessor")) or _dict(values.get("img_norm_cfg"))),
        **_head(_dict(model.get("decode_head"))),
        **_auxiliary(_dict(model.get("auxiliary_head"))),
    }


def _backbone(card: Mapping[str, Any]) -> dict[str, Any]:
    if card.get("style", "pytorch") != "pytorch":
        raise ZooError("this ResNet of mmsegmentation strides in its 1x1 convolutions (style='caffe'): timm's does not")
    if card.get("multi_grid"):
        raise ZooError(
            f"this ResNet of mmsegmentation has multi_grid={list(card['multi_grid'])}, which are dilations there and "
            "factors here: not known"
        )
    if "dilations" not in card or "strides" not in card:
        return {}
    strides = list(accumulate(card["strides"], mul))
    rates = [nominal // stride for nominal, stride in zip((1, 2, 4, 8), strides, strict=False)]
    if len(strides) != 4 or list(card["dilations"]) != rates:
        raise ZooError(
            f"this ResNet of mmsegmentation has strides {card['strides']} and dilations {card['dilations']}: here a "
            "stage that keeps its stride doubles its dilation"
        )
    said: dict[str, Any] = {"output_stride": 4 * strides[-1]}
    return said if rates[-1] == 1 else said | {"dilation": "previous" if card.get("contract_dilation") else "full"}


def _statistics(card: Mapping[str, Any]) -> dict[str, Any]:
    if not card.get("mean") or not card.get("std"):
        return {}
    said: dict[str, Any] = {key: [value / 255 for value in card[key]] for key in ("mean", "std")}
    return said | ({} if card.get("bgr_to_rgb", card.get("to_rgb", True)) else {"bgr": True})


def _head(card: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "align_corners": "align_corners", "dropout_ratio": "dropout", "dilation": "head_dilation", "pool_scales": "bins"
    }  # fmt: skip
    said = {ours: card[theirs] for theirs, ours in names.items() if card.get(theirs) is not None}
    if card.get("dilations"):
        said["rates"] = list(card["dilations"][1:])  # the first is the 1x1 convolution's
    return said


def _auxiliary(card: Mapping[str, Any]) -> dict[str, Any]:
    weight = _dict(card.get("loss_decode")).get("loss_weight")
    return {} if weight is None else {"aux_weight": float(weight)}


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
