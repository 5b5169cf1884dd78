"""Mask2Former of transformers: the authors' weights with Swins under other names, and those trained with it.

Its files spell a Swin's names in the old way, its modules in the new one; both are read. ResNets come as transformers'
own or as timm's. What the state dict does not say is as in `zoo.weights.mask2former`, but for the names of the classes,
which a config.json beside the file gives. Its post-processing is not the authors', whose rules the zoo follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights import swin
from zoo.weights.conventions import under
from zoo.weights.encoders import name_encoder
from zoo.weights.mask2former import shape_options
from zoo.weights.queries import Names, assemble, rename
from zoo.weights.recipe import Recipe

ENCODER = "model.pixel_level_module.encoder."
PIXELS = r"model\.pixel_level_module\.decoder\."
LAYER = PIXELS + r"encoder\.layers\.(\d+)\."
MODULE = r"model\.transformer_module\."
DECODER = MODULE + r"decoder\.layers\.(\d+)\."
# Theirs -> ours.
NAMES = (
    (PIXELS + r"input_projections\.(\d)\.0\.", r"pixel_decoder.input.\1.conv."),
    (PIXELS + r"input_projections\.(\d)\.1\.", r"pixel_decoder.input.\1.norm."),
    (PIXELS + r"level_embed$", "pixel_decoder.level_embed"),
    (LAYER + r"self_attn\.sampling_offsets\.", r"pixel_decoder.layers.\1.attention.offsets."),
    (LAYER + r"self_attn\.attention_weights\.", r"pixel_decoder.layers.\1.attention.weights."),
    (LAYER + r"self_attn\.(value|output)_proj\.", r"pixel_decoder.layers.\1.attention.\2."),
    (LAYER + r"self_attn_layer_norm\.", r"pixel_decoder.layers.\1.norm1."),
    (LAYER + r"final_layer_norm\.", r"pixel_decoder.layers.\1.norm2."),
    (LAYER + r"fc(\d)\.", r"pixel_decoder.layers.\1.linear\2."),
    (PIXELS + r"adapter_1\.0\.", "pixel_decoder.lateral.0.conv."),
    (PIXELS + r"adapter_1\.1\.", "pixel_decoder.lateral.0.norm."),
    (PIXELS + r"layer_1\.0\.", "pixel_decoder.output.0.conv."),
    (PIXELS + r"layer_1\.1\.", "pixel_decoder.output.0.norm."),
    (PIXELS + r"mask_projection\.", "pixel_decoder.mask."),
    (MODULE + r"queries_features\.weight$", "decoder.features"),
    (MODULE + r"queries_embedder\.weight$", "decoder.places"),
    (MODULE + r"level_embed\.weight$", "decoder.level_embed"),
    (DECODER + r"cross_attn\.", r"decoder.layers.\1.cross."),
    (DECODER + r"cross_attn_layer_norm\.", r"decoder.layers.\1.norm1."),
    (DECODER + r"self_attn\.", r"decoder.layers.\1.own."),
    (DECODER + r"self_attn_layer_norm\.", r"decoder.layers.\1.norm2."),
    (DECODER + r"fc(\d)\.", r"decoder.layers.\1.linear\2."),
    (DECODER + r"final_layer_norm\.", r"decoder.layers.\1.norm3."),
    (MODULE + r"decoder\.layernorm\.", "decoder.norm."),
    (MODULE + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"decoder.embed.\1."),
    (r"class_predictor\.", "decoder.classify."),
)
# A Swin in either spelling -> the authors' names.
SWIN = (
    (r"swin\.", ""),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"encoder\.layers\.", "layers."),
    (r"(.*)\.layernorm_before\.", r"\1.norm1."),
    (r"(.*)\.layernorm_after\.", r"\1.norm2."),
    (r"(.*)\.attention\.self\.(query|key|value)\.", r"\1.attn.\2."),
    (r"(.*)\.attention\.q_proj\.", r"\1.attn.query."),
    (r"(.*)\.attention\.k_proj\.", r"\1.attn.key."),
    (r"(.*)\.attention\.v_proj\.", r"\1.attn.value."),
    (r"(.*)\.attention\.(?:self|relative_position_bias)\.relative_position", r"\1.attn.relative_position"),
    (r"(.*)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"(.*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(.*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"hidden_states_norms\.(\d)\.", r"norm\1."),  # MaskFormer's
    (r"hidden_states_norms\.stage1\.", "norm0."),
    (r"hidden_states_norms\.stage2\.", "norm1."),
    (r"hidden_states_norms\.stage3\.", "norm2."),
    (r"hidden_states_norms\.stage4\.", "norm3."),
)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of transformers' Mask2FormerForUniversalSegmentation."""
    return "model.transformer_module.queries_features.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict describes; `config` is its config.json.

    Raises:
        ZooError: a backbone that is neither a Swin nor a ResNet of the usual kind.
    """
    body, arguments, heads = taken_apart(state, NAMES, backbone)
    return assemble("transformers", body, heads, arguments, config or {}, "mask2former", shape_options(heads))


def taken_apart(
    state: Mapping[str, Tensor], names: Names, backbone: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The backbone under timm's names, its arguments, and the heads under ours, which `names` translates to.

    The criterion's weights are left out.
    """
    encoder = {key.removeprefix("model."): value for key, value in under(state, ENCODER).items()}
    body, arguments = translate_backbone(encoder, backbone)
    renamed = {rename(key, names): value for key, value in state.items() if not key.startswith((ENCODER, "criterion."))}
    heads = {key: value for key, value in renamed.items() if not re.search(r"\.(own|cross)\.[qkv]_proj\.", key)}
    for kind in ("own", "cross"):
        heads |= joined(renamed, kind + ".{}_proj.", f"{kind}.in_proj_", "qkv")
    return body, arguments, heads


def translate_backbone(state: Mapping[str, Tensor], name: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A backbone's state under timm's names, and the arguments of `create_backbone` (name None: it cannot be told)."""
    timms = under(state, "_backbone.")
    if timms:
        return timms, {"name": name or name_encoder(timms)}
    if any(key.startswith("embedder.") for key in state):
        body = {_rename_resnet(key): value for key, value in state.items()}
        return body, {"name": name or name_encoder(body)}
    theirs = {rename(key, SWIN): value for key, value in state.items()}
    theirs |= joined(theirs, "attn.{}.", "attn.qkv.", ("query", "key", "value"))
    unused = r"layernorm\.|.*\.attn\.(query|key|value)\."
    theirs = {key: value for key, value in theirs.items() if not re.match(unused, key)}
    if not swin.is_swin(theirs):
        return theirs, {"name": name}
    return swin.rename(theirs), swin.describe(theirs) | ({"name": name} if name else {})


def joined(state: Mapping[str, Tensor], spelling: str, ours: str, parts: Any) -> dict[str, Tensor]:
    """The rows of queries, keys and values, which transformers keeps apart, in one tensor each."""
    first = spelling.format(parts[0])
    return {
        key.replace(first, ours): torch.cat([state[key.replace(first, spelling.format(part))] for part in parts])
        for key in state
        if first in key
    }


def _rename_resnet(key: str) -> str:
    kinds = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}
    if found := re.match(r"embedder\.embedder\.(\w+)\.(.*)", key):
        return f"{kinds[found[1]][0]}1.{found[2]}"
    if found := re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(\w+)\.(.*)", key):
        return f"layer{int(found[1]) + 1}.{found[2]}.{kinds[found[3]][1]}.{found[4]}"
    if found := re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(\w+)\.(.*)", key):
        return f"layer{int(found[1]) + 1}.{found[2]}.{kinds[found[4]][0]}{int(found[3]) + 1}.{found[5]}"
    return key
