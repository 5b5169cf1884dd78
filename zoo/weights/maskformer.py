"""The authors' releases of MaskFormer (github.com/facebookresearch/MaskFormer): ResNets and Swins.

Their files are pickles with arrays, like Mask2Former's, and as little is told in them: `zoo.weights.mask2former` says
what is assumed. Those with a transformer encoder before the decoder (COCO's on ResNets) are another network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError
from zoo.weights.mask2former import PIXELS, PREDICTOR
from zoo.weights.queries import assemble, taken_apart
from zoo.weights.recipe import Recipe

LAYER = PREDICTOR + r"transformer\.decoder\.layers\.(\d+)\."
# Theirs -> ours. They number the pixel decoder's stages from the finest, we from the coarsest.
NAMES = (
    (PIXELS + r"layer_4\.norm\.", "pixel_decoder.stem.norm."),
    (PIXELS + r"layer_4\.", "pixel_decoder.stem.conv."),
    *(
        pair
        for stage in (1, 2, 3)
        for pair in (
            (PIXELS + rf"adapter_{stage}\.norm\.", f"pixel_decoder.lateral.{3 - stage}.norm."),
            (PIXELS + rf"adapter_{stage}\.", f"pixel_decoder.lateral.{3 - stage}.conv."),
            (PIXELS + rf"layer_{stage}\.norm\.", f"pixel_decoder.output.{3 - stage}.norm."),
            (PIXELS + rf"layer_{stage}\.", f"pixel_decoder.output.{3 - stage}.conv."),
        )
    ),
    (PIXELS + r"mask_features\.", "pixel_decoder.mask."),
    (PREDICTOR + r"query_embed\.weight$", "decoder.places"),
    (PREDICTOR + r"input_proj\.", "decoder.project."),
    (LAYER + r"self_attn\.", r"decoder.layers.\1.own."),
    (LAYER + r"multihead_attn\.", r"decoder.layers.\1.cross."),
    (LAYER, r"decoder.layers.\1."),  # norm1..3, linear1 and 2 are called alike
    (PREDICTOR + r"transformer\.decoder\.norm\.", "decoder.norm."),
    (PREDICTOR + r"class_embed\.", "decoder.classify."),
    (PREDICTOR + r"mask_embed\.layers\.(\d)\.", r"decoder.embed.\1."),
)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the authors' code."""
    return "sem_seg_head.predictor.transformer.decoder.layers.0.linear1.weight" in state


def recipe(state: Mapping[str, Any], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What such a state dict, of tensors or arrays, describes; `backbone` names one that its keys do not tell.

    Raises:
        ZooError: a backbone that is neither a Swin nor a ResNet of the usual kind, or a network with an encoder.
    """
    if any(".transformer.encoder." in key for key in state):
        raise ZooError(
            "this MaskFormer has a transformer encoder (transformer.encoder...), which maskformer here has not: "
            "releases with Swins have none"
        )
    body, arguments, heads = taken_apart(state, NAMES, backbone)
    return assemble("MaskFormer", body, heads, arguments, config or {}, "maskformer", shape_options(heads))


def shape_options(heads: Mapping[str, Any]) -> dict[str, Any]:
    """What names and shapes tell."""
    queries, channels = heads["decoder.places"].shape
    return {
        "queries": queries,
        "channels": channels,
        "layers": len({key.split(".")[2] for key in heads if key.startswith("decoder.layers.")}),
        "width": len(heads["decoder.layers.0.linear1.weight"]),
    }
