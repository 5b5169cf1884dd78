"""MaskFormer of transformers: the authors' weights with Swins under other names, and those trained with it.

As `zoo.weights.transformers_mask2former`. Trained in transformers with auxiliary losses, a decoder's layers read normed
queries, which DETR's and the authors' do not; the state dict does not say so, and it is not what is built here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.maskformer import shape_options
from zoo.weights.queries import assemble
from zoo.weights.recipe import Recipe
from zoo.weights.transformers_mask2former import taken_apart

PIXELS = r"model\.pixel_level_module\.decoder\."
MODULE = r"model\.transformer_module\."
LAYER = MODULE + r"decoder\.layers\.(\d+)\."
# Theirs, in both spellings -> ours.
NAMES = (
    (PIXELS + r"fpn\.stem\.0\.", "pixel_decoder.stem.conv."),
    (PIXELS + r"fpn\.stem\.1\.", "pixel_decoder.stem.norm."),
    (PIXELS + r"fpn\.layers\.(\d)\.proj\.0\.", r"pixel_decoder.lateral.\1.conv."),
    (PIXELS + r"fpn\.layers\.(\d)\.proj\.1\.", r"pixel_decoder.lateral.\1.norm."),
    (PIXELS + r"fpn\.layers\.(\d)\.block\.0\.", r"pixel_decoder.output.\1.conv."),
    (PIXELS + r"fpn\.layers\.(\d)\.block\.1\.", r"pixel_decoder.output.\1.norm."),
    (PIXELS + r"mask_projection\.", "pixel_decoder.mask."),
    (MODULE + r"queries_embedder\.weight$", "decoder.places"),
    (MODULE + r"input_projection\.", "decoder.project."),
    (LAYER + r"self_attn\.o(?:ut)?_proj\.", r"decoder.layers.\1.own.out_proj."),
    (LAYER + r"encoder_attn\.o(?:ut)?_proj\.", r"decoder.layers.\1.cross.out_proj."),
    (LAYER + r"self_attn\.", r"decoder.layers.\1.own."),
    (LAYER + r"self_attn_layer_norm\.", r"decoder.layers.\1.norm1."),
    (LAYER + r"encoder_attn\.", r"decoder.layers.\1.cross."),
    (LAYER + r"encoder_attn_layer_norm\.", r"decoder.layers.\1.norm2."),
    (LAYER + r"(?:mlp\.)?fc(\d)\.", r"decoder.layers.\1.linear\2."),
    (LAYER + r"final_layer_norm\.", r"decoder.layers.\1.norm3."),
    (MODULE + r"decoder\.layernorm\.", "decoder.norm."),
    (r"class_predictor\.", "decoder.classify."),
    (r"mask_embedder\.(\d)\.0\.", r"decoder.embed.\1."),
)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of transformers' MaskFormerForInstanceSegmentation."""
    return "model.pixel_level_module.decoder.fpn.stem.0.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` is its config.json.

    Raises:
        ZooError: a backbone that is neither a Swin nor a ResNet of the usual kind.
    """
    body, arguments, heads = taken_apart(state, NAMES, backbone)
    return assemble("transformers", body, heads, arguments, config or {}, "maskformer", shape_options(heads))
