"""The registry: every model by its name, and how one is built from plain values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.models.backbone import Backbone, create_backbone
from zoo.models.cascade_mask_rcnn import CascadeMaskRCNN
from zoo.models.deeplabv3 import DeepLabV3
from zoo.models.deeplabv3plus import DeepLabV3Plus
from zoo.models.families import OWN_BACKBONES, has_full_dilation, is_swin
from zoo.models.fcn import FCN
from zoo.models.fcn8s import FCN8s, FCN16s, FCN32s
from zoo.models.keypoint_rcnn import KeypointRCNN
from zoo.models.lraspp import LRASPP
from zoo.models.mask2former import Mask2Former
from zoo.models.mask_rcnn import MaskRCNN
from zoo.models.maskformer import MaskFormer
from zoo.models.masklab import MaskLab
from zoo.models.pspnet import PSPNet
from zoo.models.refinenet import RefineNet
from zoo.models.unet import UNet
from zoo.structures import Class

MODELS: dict[str, type] = {
    "cascade_mask_rcnn": CascadeMaskRCNN,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "fcn": FCN,
    "fcn16s": FCN16s,
    "fcn32s": FCN32s,
    "fcn8s": FCN8s,
    "keypoint_rcnn": KeypointRCNN,
    "lraspp": LRASPP,
    "mask2former": Mask2Former,
    "mask_rcnn": MaskRCNN,
    "maskformer": MaskFormer,
    "masklab": MaskLab,
    "pspnet": PSPNet,
    "refinenet": RefineNet,
    "unet": UNet,
}


def list_models(task: str | None = None) -> list[str]:
    """Names of the registered models, of those that serve `task` ("semantic", "instance", "panoptic") if given."""
    return sorted(name for name, model in MODELS.items() if task is None or task in _tasks(model))


def model_options(name: str) -> dict[str, Any]:
    """The options of a model and their defaults: its own keyword arguments, then its base class's."""
    model = _find(name)
    options: dict[str, Any] = {}
    for cls in model.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                options.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def create_model(
    name: str,
    classes: int | Sequence[str] | Sequence[Class],
    backbone: str | Backbone | None = None,
    *,
    pretrained: bool | str | Path = False,
    in_channels: int = 3,
    output_stride: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Builds a registered model.

    Args:
        name: one of `list_models()`.
        classes: how many, their names, or a dataset's table.
        backbone: a timm name, the name of a paper's own encoder ("unet"), a built `Backbone`, or None for the
            model's natural one. The four arguments that follow build it and do not go with a built one.
        pretrained: timm's weights for the backbone, or a file that holds them.
        in_channels: channels of the images.
        output_stride: of the coarsest features; None is what the model asks for.
        backbone_options: more keyword arguments of `create_backbone` (dilation, multi_grid, mean, std, timm's own).
        **options: the model's keyword arguments, see `model_options(name)`.

    Returns the model, with `model.header`: plain containers from which `zoo.load` builds it again.
    Raises ZooError for unknown names and options, and for a backbone that cannot serve.
    """
    model_class = _find(name)
    known = model_options(name)
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    if not isinstance(backbone, Backbone):
        backbone_name = backbone or model_class.natural_backbone
        needs = dict(model_class.needs)
        if hasattr(model_class, "needs_of"):
            needs |= model_class.needs_of(options)
        if not has_full_dilation(backbone_name):
            needs.pop("dilation", None)  # a preference: the others have no such blocks
        if not is_swin(backbone_name):
            needs.pop("dense", None)  # as above
        wishes = {"pretrained": pretrained, "in_channels": in_channels, **needs, **(backbone_options or {})}
        if output_stride is not None:
            wishes["output_stride"] = output_stride
        if backbone_name in OWN_BACKBONES:
            wishes |= {key: options[key] for key in model_class.encoder_options if key in options}
        backbone = create_backbone(backbone_name, **wishes)
    elif pretrained or in_channels != 3 or output_stride is not None or backbone_options:
        raise ZooError(
            "pretrained, in_channels, output_stride and backbone_options build a backbone by name; "
            "with a built one, give them to create_backbone"
        )
    model = model_class(classes, backbone, **options)
    model.header = {
        "name": name,
        "task": model.task,
        "classes": [{"name": c.name, "color": list(c.color), "thing": c.thing} for c in model.classes],
        "backbone": backbone.config,  # the dict itself: imported weights may change mean and std
        "options": _plain({**known, **options}),
    }
    return model


def _find(name: str) -> Any:
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def _tasks(model: Any) -> tuple[str, ...]:
    return model.tasks if hasattr(model, "tasks") else (model.task,)


def _plain(value: Any) -> Any:
    """`value` in containers that any checkpoint format and JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
