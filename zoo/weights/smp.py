"""segmentation_models_pytorch: Unet, DeepLabV3, DeepLabV3+ and PSPNet on its ResNet, VGG and DenseNet encoders or any
of timm's (`tu-`).

The state dict does not say: that images are normalised with ImageNet's mean and std (`tu-`: timm's), that all but
Unet's logits are resized with aligned corners, that DeepLab's encoder keeps stride 8 (V3) or 16 (V3+; both have the
same keys) with every block of a dilated stage dilated (`tu-`: not the first), that its rates are 12, 24, 36 at any
stride, and that PSPNet reads the encoder at stride 8 (the stages beyond it are in the file, unused, and left out). A
config.json beside the weights, as `save_pretrained` writes it, says some of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.weights.conventions import imagenet, under
from zoo.weights.encoders import first_convolution, name_encoder
from zoo.weights.recipe import Recipe

# Its other decoders, by a key that only they have.
OTHERS = {
    "decoder.blocks.x_0_0.conv1.0.weight": "Unet++",
    "decoder.center.top_conv.": "MAnet",
    "decoder.blocks.0.block.0.0.weight": "Linknet",
    "decoder.p5.weight": "FPN",
    "decoder.fpn_lateral_blocks.": "UPerNet",  # has a pyramid pooling as well: before PSPNet
    "decoder.mlp_stage.": "Segformer",
    "decoder.fpa.": "PAN",
    "decoder.projection_blocks.": "DPT",
    "decoder.reassemble_blocks.": "DPT",
}
LOADABLE = "its Unet, DeepLabV3, DeepLabV3Plus and PSPNet load"


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of an smp model."""
    return all(any(key.startswith(part) for key in state) for part in ("encoder.", "decoder.", "segmentation_head."))


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What an smp state dict describes.

    Args:
        config: the content of config.json beside the weights, if there is one.
        backbone: timm's name of a `tu-` encoder, which keys cannot tell.

    Raises:
        ZooError: another decoder, an encoder that is not known, or an option that has no counterpart here.
    """
    config = config or {}
    state = _current_names(state)
    for key, name in OTHERS.items():
        if any(known.startswith(key) for known in state):
            raise ZooError(f"smp's {name} is not in this zoo yet: {LOADABLE}")
    encoder = under(state, "encoder.")
    stages, encoder, assumed = _describe_encoder(encoder, config, backbone)
    if "decoder.aspp.convs.0.0.weight" in state:
        name, options, heads = _deeplabv3(state, stages, config)
    elif "decoder.aspp.0.convs.0.0.weight" in state:
        name, options, heads = _deeplabv3plus(state, stages, config)
    elif "decoder.psp.blocks.0.pool.1.0.weight" in state:
        name, options, heads = _pspnet(state, stages, config)
        encoder, unused = _without_unused(encoder, stages)
        assumed |= {"encoder's unused stages": f"left out ({unused} tensors)"} if unused else {}
    elif "decoder.blocks.0.conv1.0.weight" in state:
        name, options, heads = _unet(state, stages, config)
    else:
        raise ZooError(f"this decoder of smp is not known here: {LOADABLE}")
    assumed |= _assumed(name, stages, options, config)
    if any(key.startswith("classification_head.") for key in state):
        assumed["classification_head"] = "left out"
    return Recipe(
        source="smp",
        name=name,
        classes=_weight(state, "segmentation_head.0.weight").shape[0],
        backbone=stages,
        options=options,
        state={**{f"backbone.model.{key}": value for key, value in encoder.items()}, **heads},
        assumed=assumed,
    )


def _unet(
    state: Mapping[str, Tensor], stages: dict[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    widths: list[int] = []
    while f"decoder.blocks.{len(widths)}.conv2.0.weight" in state:
        widths.append(state[f"decoder.blocks.{len(widths)}.conv2.0.weight"].shape[0])
    if len(widths) != 5:
        raise ZooError(f"smp's Unet with encoder_depth={len(widths)} has no counterpart here: depth 5 loads")
    if "decoder.blocks.0.conv1.1.running_mean" not in state:
        raise ZooError("smp's Unet without batch norm in the decoder has no counterpart here")
    stages["levels"] = 5
    options = {
        "decoder_channels": widths,
        "center": "decoder.center.0.0.weight" in state,
        "attention": "decoder.blocks.0.attention1.attention.cSE.1.weight" in state,
        "interpolation": config.get("decoder_interpolation", "nearest"),
    }
    heads = {
        f"decoder.{key.replace('.attention.', '.')}": value for key, value in under(state, "decoder.").items()
    } | _prefixed("head.", under(state, "segmentation_head.0."))
    return "unet", options, heads


def _deeplabv3(
    state: Mapping[str, Tensor], stages: dict[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    stages |= {"levels": 1, "output_stride": config.get("encoder_output_stride", 8)}
    options = {**_aspp(config), "channels": _weight(state, "decoder.conv.weight").shape[0]}
    options["separable"] = "smp" if "decoder.aspp.convs.1.0.0.weight" in state else None
    places = {"decoder.aspp.": "0.", "decoder.conv.": "1.", "decoder.bn.": "2.", "segmentation_head.0.": "4."}
    heads: dict[str, Tensor] = {}
    for theirs, ours in places.items():
        heads |= _prefixed(f"classifier.{ours}", under(state, theirs))
    return "deeplabv3", options, heads


def _deeplabv3plus(
    state: Mapping[str, Tensor], stages: dict[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if config.get("encoder_depth", 5) != 5:
        raise ZooError(
            f"smp's DeepLabV3Plus with encoder_depth={config['encoder_depth']} has no counterpart here: depth 5 loads"
        )
    stages |= {"levels": 4, "output_stride": config.get("encoder_output_stride", 16)}
    options = {
        **_aspp(config),
        "channels": _weight(state, "decoder.aspp.1.1.weight").shape[0],
        "low_channels": _weight(state, "decoder.block1.0.weight").shape[0],
        "separable": "smp",
        "aspp_separable": "decoder.aspp.0.convs.1.0.0.weight" in state,
        "post_conv": True,
        "decoder_convs": 1,
    }
    places = {
        "decoder.aspp.0.": "aspp.",
        "decoder.aspp.1.": "post.0.",
        "decoder.aspp.2.": "post.1.",
        "decoder.block1.": "project.",
        "decoder.block2.": "decoder.0.",
        "segmentation_head.0.": "classifier.",
    }
    heads: dict[str, Tensor] = {}
    for theirs, ours in places.items():
        heads |= _prefixed(ours, under(state, theirs))
    return "deeplabv3plus", options, heads


def _aspp(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options that both DeepLabs have."""
    return {
        "rates": list(config.get("decoder_atrous_rates", (12, 24, 36))),
        "dropout": config.get("decoder_aspp_dropout", 0.5),
        "align_corners": True,
        "aux_weight": 0.0,
    }


def _pspnet(
    state: Mapping[str, Tensor], stages: dict[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if "decoder.conv.1.running_mean" not in state:
        raise ZooError("smp's PSPNet without batch norm in the decoder has no counterpart here")
    fuse = state["decoder.conv.0.weight"]
    width = fuse.shape[1] // 2
    stages |= {"levels": 1, "coarsest": _psp_stride(stages, config, width)}
    options = {
        "bins": [1, 2, 3, 6],
        "global_norm": False,
        "channels": fuse.shape[0],
        "fuse_kernel": 1,
        "classifier_kernel": 3,
        "dropout": config.get("psp_dropout", 0.2),
        "aux_weight": 0.0,
        "align_corners": True,
    }
    heads: dict[str, Tensor] = {}
    for branch in range(4):
        for theirs, ours in (("0", "1"), ("1", "2")):
            layer = under(state, f"decoder.psp.blocks.{branch}.pool.1.{theirs}.")
            heads |= _prefixed(f"ppm.features.{branch}.{ours}.", layer)
    heads |= _prefixed("cls.", under(state, "decoder.conv.")) | _prefixed(
        "cls.4.", under(state, "segmentation_head.0.")
    )
    width = fuse.shape[1] // 2  # smp concatenates [pools, features], we [features, pools]
    heads["cls.0.weight"] = torch.cat([fuse[:, width:], fuse[:, :width]], dim=1)
    return "pspnet", options, heads


def _psp_stride(stages: Mapping[str, Any], config: Mapping[str, Any], width: int) -> int:
    """Where PSPNet reads the encoder: as the config says, or at 8 unless only another stride has so many channels."""
    if "encoder_depth" in config:
        return 2 ** int(config["encoder_depth"])
    with torch.random.fork_rng(devices=[]):
        whole = create_backbone(**{**stages, "levels": 6})
    fitting = [stride for stride, count in zip(whole.strides, whole.channels, strict=True) if count == width]
    return 8 if 8 in fitting or not fitting else fitting[0]


def _without_unused(encoder: dict[str, Tensor], stages: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """The weights of the stages that are kept, and how many of the others there were; unknown keys stay."""
    with torch.random.fork_rng(devices=[]):
        whole = create_backbone(**{**stages, "coarsest": None, "levels": 6}).model.state_dict()
        kept = create_backbone(**stages).model.state_dict()
    unused = {key for key in encoder if key in whole and key not in kept}
    return {key: value for key, value in encoder.items() if key not in unused}, len(unused)


def _assumed(
    name: str, stages: Mapping[str, Any], options: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What smp's defaults decided, for want of a config."""
    if name == "unet":
        return {} if "decoder_interpolation" in config else {"interpolation": options["interpolation"]}
    assumed: dict[str, Any] = {"align_corners": True}
    if name == "pspnet":
        return assumed if "encoder_depth" in config else {"coarsest": stages["coarsest"], **assumed}
    own = () if "encoder_output_stride" in config else ("output_stride",)
    assumed = {key: stages[key] for key in (*own, "dilation")} | assumed
    return assumed if "decoder_atrous_rates" in config else {**assumed, "rates": options["rates"]}


def _describe_encoder(
    encoder: Mapping[str, Tensor], config: Mapping[str, Any], backbone: str | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Arguments of create_backbone, its weights under timm's names, and what was assumed."""
    named = config.get("encoder_name", "")
    if any(key.startswith("model.") for key in encoder):
        name = backbone or named.removeprefix("tu-")
        if not name:
            raise ZooError(
                "this is one of smp's timm encoders (`tu-`), and keys cannot tell which: zoo.load(x, backbone=NAME)"
            )
        renamed, in_channels = _timm_names(name, under(encoder, "model."))
        return {"name": name, "in_channels": in_channels, "dilation": "previous"}, renamed, {"mean and std": "timm's"}
    name = name_encoder(encoder) or ""
    if not name:
        raise ZooError(
            f"smp's encoder {named or 'in this checkpoint'} has no counterpart here: resnet*, resnext*, vgg*, "
            "densenet* and timm's (`tu-`) load"
        )
    stem = first_convolution(encoder)
    stages: dict[str, Any] = {"name": name, "in_channels": 3 if stem is None else stem.shape[1], "dilation": "full"}
    assumed: dict[str, Any] = {}
    if stages["in_channels"] == 3:
        assumed = imagenet()
    if name.startswith("densenet"):
        stages["taps"] = "transition"
    return {**stages, **assumed}, dict(encoder), assumed


def _timm_names(name: str, encoder: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """From the names of timm's list wrapper (`stages_0.`), which smp uses, to those of the classifier (`stages.0.`)."""
    with torch.random.fork_rng(devices=[]):
        model = create_backbone(name, levels=5).model
    ours = model.state_dict()
    theirs = {key.replace(".", "_", 1): key for key in ours}
    renamed = {key if key in ours else theirs.get(key, key): value for key, value in encoder.items()}
    stem = next((key for key, value in ours.items() if value.ndim == 4), None)
    return renamed, renamed[stem].shape[1] if stem in renamed else 3


def _current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeepLabV3's decoder was a Sequential once."""
    if "decoder.0.convs.0.0.weight" not in state:
        return dict(state)
    old = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}
    return {old.get(key[:10], key[:10]) + key[10:]: value for key, value in state.items()}


def _weight(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ZooError(f"these look like weights of smp, but have no {key}: is the file whole?")
    return state[key]


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}
