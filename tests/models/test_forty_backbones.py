"""Backbones of many families, every model, odd sizes: what goes in comes out at its size, or is refused when built.

Both tables are exact: a network that stops serving, or starts to, shows here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models import MODELS, create_model, list_models
from zoo.models.backbone import Backbone, create_backbone
from zoo.models.semantic import SemanticModel

torch.set_num_threads(1)

# One small member of each family. True: keeps a stride of 8.
SERVING = {
    "convnext_atto": True,
    "convnextv2_atto": True,
    "cs3darknet_focus_s": True,
    "csatv2": False,
    "cspresnet50": True,
    "cspnext_tiny": True,
    "darknet17": True,
    "davit_tiny": False,
    "densenet121": True,
    "dla46_c": False,
    "dpn48b": False,
    "edgenext_xx_small": False,
    "efficientnet_lite0": True,
    "efficientvit_b0": False,
    "efficientvit_m0": False,
    "ese_vovnet19b_slim_dw": False,
    "fasternet_t0": False,
    "fastvit_t8": False,
    "focalnet_tiny_srf": False,
    "gernet_s": True,
    "ghostnet_050": False,
    "hardcorenas_a": True,
    "hgnetv2_b0": False,
    "hrnet_w18_small": False,
    "iformer_t": False,
    "inception_next_atto": True,
    "inception_v4": False,
    "lcnet_035": True,
    "legacy_seresnet18": False,
    "legacy_xception": False,
    "mambaout_femto": False,
    "maxvit_rmlp_pico_rw_256": False,
    "mnasnet_small": True,
    "mobilenetv2_035": True,
    "mobilenetv3_small_050": True,
    "mobilenetv4_conv_small_035": True,
    "mobileone_s0": True,
    "mobilevit_xxs": True,
    "nextvit_small": False,
    "poolformer_s12": False,
    "pvt_v2_b0": False,
    "regnetx_002": True,
    "repghostnet_050": False,
    "repvgg_a0": True,
    "repvit_m0_9": False,
    "res2net50d": True,
    "resnest14d": True,
    "resnet10t": True,
    "resnetv2_18": True,
    "resnext26ts": True,
    "rexnet_100": True,
    "sam2_hiera_tiny": False,
    "selecsls42": False,
    "seresnext26d_32x4d": True,
    "shvit_s1": False,
    "skresnet18": True,
    "starnet_s050": False,
    "swiftformer_xs": False,
    "swin_tiny_patch4_window7_224": False,
    "swinv2_cr_tiny_ns_224": False,
    "swinv2_tiny_window8_256": False,
    "test_nfnet": True,
    "tf_mobilenetv3_small_minimal_100": True,
    "tiny_vit_5m_224": False,
    "tinynet_e": True,
    "tresnet_m": False,
    "twins_pcpvt_small": False,
    "vgg11": True,
    "xception41": True,
}
# No model can use these: the sentence says why and names some that serve.
ONE_SIZE = "bound to one image size or has no pyramid"
REFUSED = {
    "botnet26t_256": ONE_SIZE,
    "coat_lite_mini": ONE_SIZE,
    "coatnet_nano_rw_224": "does not take images of any size",
    "convmixer_768_32": ONE_SIZE,
    "crossvit_9_240": ONE_SIZE,
    "efficientformer_l1": ONE_SIZE,
    "efficientformerv2_s0": ONE_SIZE,
    "gcvit_xxtiny": ONE_SIZE,
    "hiera_tiny_224": ONE_SIZE,
    "inception_v3": ONE_SIZE,
    "levit_128s": ONE_SIZE,
    "mixer_s32_224": ONE_SIZE,
    "mvitv2_tiny": ONE_SIZE,
    "nest_tiny": ONE_SIZE,
    "pit_ti_224": ONE_SIZE,
    "sequencer2d_s": ONE_SIZE,
    "test_vit": ONE_SIZE,
    "visformer_tiny": ONE_SIZE,
    "xcit_nano_12_p16_224": ONE_SIZE,
}
# Strides to 64: U-Net's default of five decoder blocks is one too few, which it says.
DEEP = {"csatv2", "efficientvit_m0", "shvit_s1"}
SIX_BLOCKS = (256, 128, 64, 32, 16, 16)
SIZES = [(33, 33), (61, 90)]  # no multiple of anything; larger ones cost a minute a network
LARGE = (250, 333)  # for the backbone and one model
SEMANTIC = [name for name in list_models("semantic") if issubclass(MODELS[name], SemanticModel)]
# Decoders that cost much whatever the backbone.
NARROW: dict[str, dict[str, Any]] = {"refinenet": {"channels": (16, 16)}, "pspnet": {"channels": 16}}


def remember(backbone: Backbone) -> Backbone:
    """The same, but features of an image size are computed once for all models."""
    seen: dict[tuple[int, ...], list[Tensor]] = {}
    extract = backbone.extract

    def extract_once(normalized: Tensor) -> list[Tensor]:
        shape = tuple(normalized.shape)
        if shape not in seen:
            seen[shape] = extract(normalized)
        return list(seen[shape])

    backbone.extract = extract_once  # type: ignore[method-assign]
    return backbone.eval()


def backbones(name: str) -> dict[int, Backbone]:
    """One backbone per output stride that the models want; where it cannot keep that, the refusal is checked."""
    found = {}
    for stride in {32} | {MODELS[model].needs.get("output_stride", 32) for model in SEMANTIC}:
        if stride == 32 or SERVING[name]:
            found[stride] = remember(create_backbone(name, output_stride=stride, levels=5))
            assert stride == 32 or found[stride].strides[-1] == stride
        else:
            with pytest.raises(ZooError, match=rf"{name} cannot keep an output stride of {stride}.*resnet\*.*vgg\*"):
                create_backbone(name, output_stride=stride)
    return found


@pytest.mark.parametrize("name", SERVING)
@torch.no_grad()
def test_output_size_is_input_size(name: str) -> None:
    torch.manual_seed(0)
    built = backbones(name)
    for model_name in SEMANTIC:
        model_class = MODELS[model_name]
        backbone = built.get(model_class.needs.get("output_stride", 32), built[32])
        options = dict(NARROW.get(model_name, {}))
        if model_name == "unet" and name in DEEP:
            with pytest.raises(ZooError, match=rf"{name} with strides \[.*64\] needs 6 numbers"):
                create_model(model_name, 2, backbone)
            options = {"decoder_channels": SIX_BLOCKS}
        model = create_model(model_name, 2, backbone, **options).eval()
        for size in [*SIZES, LARGE] if model_name == "fcn" else SIZES:
            logits = model(torch.rand(1, 3, *size))
            assert logits.shape == (1, 2, *size), model_name
            assert logits.isfinite().all(), model_name


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_refused_when_built(name: str, reason: str) -> None:
    for model in MODELS:
        with pytest.raises(ZooError, match=rf"{name}.*{reason}.*resnet50") as error:
            create_model(model, 2, name, output_stride=32)
        assert "\n" not in str(error.value)
