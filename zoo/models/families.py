"""Which of timm's networks serve as backbones, by family, and what each family can do.

A family is a module of timm: its members share their code, and so what they can do. timm's own records do not say which
of them keep a stride, take any image size or give a pyramid; these tables do, and the tests try a member of each.
"""

from __future__ import annotations

from functools import cache

import timm
from timm.models import split_model_name_tag

from zoo.errors import ZooError, unknown

# Encoders of our own, imported when asked for: "module:callable". Called with in_channels, levels and options, they
# give a module with `channels` and `strides` whose forward takes normalised images and returns the list of features.
OWN_BACKBONES: dict[str, str] = {"unet": "zoo.models.unet:UNetEncoder"}

# timm's modules (families) whose members can keep a stride of 8 or 16.
DILATED_FAMILIES = (
    "byobnet", "convnext", "cspnet", "cspnext", "densenet", "efficientnet", "hardcorenas", "inception_next",
    "mobilenetv3", "mobilevit", "nfnet", "regnet", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "sknet", "vgg",
    "xception_aligned",
)  # fmt: skip
# Those of them with dilation="full": the others have no first blocks that timm leaves at the rate of the stage before,
# or none that can be told apart.
FULL_FAMILIES = ("efficientnet", "hardcorenas", "mobilenetv3", "res2net", "resnest", "resnet", "sknet")
# The family with dense=True, see `zoo.models.swin`.
SWIN_FAMILY = "swin_transformer"
# timm's modules without a pyramid of powers of two, or bound to one image size.
UNFIT_FAMILIES = (
    "beit", "byoanet", "cait", "coat", "convit", "convmixer", "crossvit", "deepseek_vit", "deit", "efficientformer",
    "efficientformer_v2", "eva", "gcvit", "gemma4_vit", "hiera", "inception_v3", "levit", "mlp_mixer", "mvitv2",
    "naflexvit", "nasnet", "nest", "pit", "pnasnet", "qwen3_vit", "sequencer", "tnt", "vision_transformer",
    "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "visformer", "vitamin", "volo",
    "xcit",
)  # fmt: skip
# Unpadded 3x3 layers, which are given their padding here.
VALID_FAMILIES = ("inception_v4", "inception_resnet_v2", "xception")
EXAMPLES = "resnet50, resnext50_32x4d, convnext_tiny, swin_tiny_patch4_window7_224, efficientnet_b0, hrnet_w18, vgg16"
DILATED_EXAMPLES = (
    "resnet*, resnext*, resnest*, res2net*, regnet*, convnext*, efficientnet*, mobilenetv2/v3*, xception41/65/71, "
    "densenet*, vgg*"
)


@cache
def backbone_names(output_stride: int = 32) -> tuple[str, ...]:
    """Names that `create_backbone` takes at this output stride, by family: ours, then timm's (without weight tags)."""
    every = timm.list_modules()
    families = DILATED_FAMILIES if output_stride < 32 else [m for m in every if m not in UNFIT_FAMILIES]
    timms = [name for family in families if family in every for name in timm.list_models(module=family)]
    return (*(OWN_BACKBONES if output_stride == 32 else ()), *sorted(timms))


def has_full_dilation(name: str) -> bool:
    """Whether `name` (a weight tag does not matter) is of a family that takes dilation="full"."""
    base = split_model_name_tag(name)[0]
    return timm.is_model(base) and _module(base) in FULL_FAMILIES


def is_swin(name: str) -> bool:
    """Whether `name` (a weight tag does not matter) is a Swin of the first version, which takes dense=True."""
    base = split_model_name_tag(name)[0]
    return timm.is_model(base) and _module(base) == SWIN_FAMILY


def family_of(name: str) -> str:
    """timm's module that defines `name`; raises for a misspelt name or tag, and for families that cannot serve."""
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        error = unknown("backbone", name, [*OWN_BACKBONES, *timm.list_models()])
        if "did you mean" not in str(error):
            error = ZooError(f"unknown backbone {name!r}: any timm model with features serves, such as {EXAMPLES}")
        raise error
    known = timm.list_pretrained(f"{base}.*")
    if tag and name not in known:
        raise unknown(f"weights of backbone {base}", name, known)
    family = _module(base)
    if family in UNFIT_FAMILIES:
        raise ZooError(
            f"backbone {name} is bound to one image size or has no pyramid of features: use one that has, such as "
            f"{EXAMPLES}"
        )
    return family


def _module(base: str) -> str:
    """The module of timm that defines a model, which is its family."""
    return timm.models.model_entrypoint(base).__module__.rpartition(".")[2]


def cannot_dilate(name: str, output_stride: int) -> ZooError:
    return ZooError(
        f"backbone {name} cannot keep an output stride of {output_stride}: use one that can ({DILATED_EXAMPLES}), or "
        "backbone.output_stride=32"
    )
