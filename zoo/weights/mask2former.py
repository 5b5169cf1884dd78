"""The authors' releases of Mask2Former (github.com/facebookresearch/Mask2Former): ResNets and Swins, every data set.

Their files are pickles with arrays. The state dict does not say: which task and data set it was trained for (assumed by
the number of classes), hence the names of the classes, what are things and the size of test images; that images are
normalised with ImageNet's mean and std.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.queries import assemble, taken_apart
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


def _count(state: Mapping[str, Any], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, state) if found})
