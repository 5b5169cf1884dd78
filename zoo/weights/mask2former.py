"""The authors' releases of Mask2Former (github.com/facebookresearch/Mask2Former): ResNets and Swins, every data set.

Their files are pickles with arrays. The state dict does not say: which task and data set it was trained for (assumed by
the number of classes), hence the names of the classes, what are things and the size of test images; that images are
normalised with ImageNet's mean and std.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.data import ade20k, cityscapes, coco, coco_panoptic
from zoo.errors import ZooError
from zoo.structures import Class, as_classes
from zoo.weights import swin
from zoo.weights.conventions import imagenet, under
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

PIXELS, PREDICTOR = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
LAYER = PIXELS + r"transformer\.encoder\.layers\.(\d+)\."
# Theirs -> ours.
NAMES = (
    (PIXELS + r"input_proj\.(\d)\.0\.", r"pixel_decoder.input.\1.conv."),
    (PIXELS + r"input_proj\.(\d)\.1\.", r"pixel_decoder.input.\1.norm."),
    (PIXELS + r"transformer\.level_embed$", "pixel_decoder.level_embed"),
    (LAYER + r"self_attn\.sampling_offsets\.", r"pixel_decoder.layers.\1.attention.offsets."),
    (LAYER + r"self_attn\.attention_weights\.", r"pixel_decoder.layers.\1.attention.weights."),
    (LAYER + r"self_attn\.(value|output)_proj\.", r"pixel_decoder.layers.\1.attention.\2."),
    (LAYER + r"(norm|linear)(\d)\.", r"pixel_decoder.layers.\1.\2\3."),
    (PIXELS + r"adapter_1\.norm\.", "pixel_decoder.lateral.0.norm."),
    (PIXELS + r"adapter_1\.", "pixel_decoder.lateral.0.conv."),
    (PIXELS + r"layer_1\.norm\.", "pixel_decoder.output.0.norm."),
    (PIXELS + r"layer_1\.", "pixel_decoder.output.0.conv."),
    (PIXELS + r"mask_features\.", "pixel_decoder.mask."),
    (PREDICTOR + r"(?:query_feat|static_query)\.weight$", "decoder.features"),
    (PREDICTOR + r"query_embed\.weight$", "decoder.places"),
    (PREDICTOR + r"level_embed\.weight$", "decoder.level_embed"),
    (PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r"decoder.layers.\1.cross."),
    (PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm1."),
    (PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.self_attn\.", r"decoder.layers.\1.own."),
    (PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm2."),
    (PREDICTOR + r"transformer_ffn_layers\.(\d+)\.linear(\d)\.", r"decoder.layers.\1.linear\2."),
    (PREDICTOR + r"transformer_ffn_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm3."),
    (PREDICTOR + r"decoder_norm\.", "decoder.norm."),
    (PREDICTOR + r"class_embed\.", "decoder.classify."),
    (PREDICTOR + r"mask_embed\.layers\.(\d)\.", r"decoder.embed.\1."),
)
# detectron2's ResNet -> timm's.
RESNET = (
    (r"stem\.conv1\.norm\.", "bn1."),
    (r"stem\.conv1\.", "conv1."),
    (r"res(\d)\.(\d+)\.shortcut\.norm\.", r"layer\1.\2.downsample.1."),
    (r"res(\d)\.(\d+)\.shortcut\.", r"layer\1.\2.downsample.0."),
    (r"res(\d)\.(\d+)\.conv(\d)\.norm\.", r"layer\1.\2.bn\3."),
    (r"res(\d)\.(\d+)\.conv(\d)\.", r"layer\1.\2.conv\3."),
)


class Trained(NamedTuple):
    """What a number of classes tells of a release: the data set, its classes, the task, and the short side of test
    images and the limit of the long one."""

    on: str
    classes: Sequence[Class]
    task: str
    size: int
    limit: int


def _things(classes: Sequence[Class]) -> list[Class]:
    return [c for c in classes if c.thing]


# ADE20K's panoptic releases (640, 2560) and Cityscapes' have as many classes as the semantic ones.
TRAINED_ON: dict[int, Trained] = {
    133: Trained("COCO's, panoptic", coco_panoptic.CLASSES, "panoptic", 800, 1333),
    80: Trained("COCO's", coco.CLASSES, "instance", 800, 1333),
    150: Trained("ADE20K's", ade20k.CLASSES, "semantic", 512, 2048),
    100: Trained("ADE20K's things", _things(ade20k.CLASSES), "instance", 640, 2560),
    19: Trained("Cityscapes'", cityscapes.CLASSES, "semantic", 1024, 2048),
    8: Trained("Cityscapes' things", _things(cityscapes.CLASSES), "instance", 1024, 2048),
}
MAPILLARY = 65, 2048  # Mapillary Vistas' classes, which are not named here; both sides of test images
NO_NAME = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the authors' code."""
    return any(f"sem_seg_head.predictor.{name}.weight" in state for name in ("query_feat", "static_query"))


def recipe(state: Mapping[str, Any], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict, of tensors or arrays, describes; `backbone` names one that its keys do not tell.

    Raises:
        ZooError: a backbone that is neither a Swin nor a ResNet of the usual kind.
    """
    body, arguments, heads = taken_apart(state, NAMES, backbone)
    return assemble("Mask2Former", body, heads, arguments, config or {}, "mask2former", shape_options(heads))


def taken_apart(
    state: Mapping[str, Any], names: Sequence[tuple[str, str]], backbone: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The backbone under timm's names, its arguments, and the heads under ours, which `names` translates to.

    The criterion's weights are left out.
    """
    tensors = {_current(key): _tensor(value) for key, value in state.items() if not key.startswith("criterion.")}
    body = under(tensors, "backbone.")
    heads = {_rename(key, names): value for key, value in tensors.items() if not key.startswith("backbone.")}
    if swin.is_swin(body):
        return swin.rename(body), swin.describe(body) | ({"name": backbone} if backbone else {}), heads
    body = {_rename_resnet(key): value for key, value in body.items()}
    return body, {"name": backbone or name_encoder(body)}, heads


def assemble(
    source: str,
    body: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    arguments: dict[str, Any],
    config: Mapping[str, Any],
    model: str,
    options: Mapping[str, Any],
) -> Recipe:
    """The recipe of a backbone with timm's names and of heads with ours; `config` is transformers', if there is one."""
    if arguments["name"] is None:
        raise ZooError("this backbone is neither a Swin nor a ResNet of a usual depth: name it, zoo.load(x, backbone=)")
    count = len(heads["decoder.classify.weight"]) - 1
    classes, told = class_table(count, config.get("id2label"))
    assumed: dict[str, Any] = {"task": "semantic", "test_size": None, "test_limit": 1333}
    if count in TRAINED_ON:
        trained = TRAINED_ON[count]
        assumed = {"task": trained.task, "test_size": trained.size, "test_limit": trained.limit}
    elif count == MAPILLARY[0]:
        assumed |= {"test_size": MAPILLARY[1], "test_limit": MAPILLARY[1]}
    statistics = imagenet()
    return Recipe(
        source=source,
        name=model,
        classes=classes,
        backbone={**arguments, "levels": 4, **statistics},
        options={**options, **assumed},
        state={**{f"backbone.model.{key}": value for key, value in body.items()}, **heads},
        assumed={**told, **assumed, **statistics},
    )


def class_table(count: int, labels: Mapping[str, str] | None) -> tuple[int | Sequence[Class], dict[str, Any]]:
    """The classes, and what is assumed with them: named by transformers' id2label if that has as many, else those of
    the data set that the number belongs to; which are things the number tells in both cases."""
    trained = TRAINED_ON.get(count)
    names = [labels[key] for key in sorted(labels, key=int)] if labels and len(labels) == count else []
    if len(set(names)) < count or all(NO_NAME.fullmatch(name) for name in names):
        return (trained.classes, {"classes": trained.on}) if trained else (count, {})
    named = as_classes(names)
    return [Class(c.name, c.color, trained is not None and trained.classes[i].thing) for i, c in enumerate(named)], {}


def shape_options(heads: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names and shapes tell."""
    queries, channels = heads["decoder.features"].shape
    return {
        "queries": queries,
        "channels": channels,
        "heads": len(heads["pixel_decoder.layers.0.attention.offsets.weight"]) // (3 * 4 * 2),
        "layers": _count(heads, r"decoder\.layers\.(\d+)\."),
        "width": len(heads["decoder.layers.0.linear1.weight"]),
        "encoder_layers": _count(heads, r"pixel_decoder\.layers\.(\d+)\."),
        "encoder_width": len(heads["pixel_decoder.layers.0.linear1.weight"]),
    }


def _current(key: str) -> str:
    """The oldest files lack a level: sem_seg_head.mask_features is sem_seg_head.pixel_decoder.mask_features."""
    return re.sub(r"^sem_seg_head\.(?!pixel_decoder|predictor)", "sem_seg_head.pixel_decoder.", key)


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, ours in names:
        key = re.sub(f"^{pattern}", ours, key)
    return key


def _rename_resnet(key: str) -> str:
    for pattern, ours in RESNET:
        key = re.sub(f"^{pattern}", ours, key)
    return re.sub(r"^layer(\d)", lambda found: f"layer{int(found[1]) - 1}", key)


def _count(state: Mapping[str, Any], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, state) if found})


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
