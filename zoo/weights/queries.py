"""What importers of Mask2Former and MaskFormer share: the authors' backbones, and what a number of classes tells."""

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

Names = Sequence[tuple[str, str]]  # patterns that a key begins with, and what stands for them here

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


def taken_apart(
    state: Mapping[str, Any], names: Names, backbone: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The backbone under timm's names, its arguments, and the heads under ours, which `names` translates to.

    The criterion's weights are left out.
    """
    tensors = {_current(key): _tensor(value) for key, value in state.items() if not key.startswith("criterion.")}
    body = under(tensors, "backbone.")
    heads = {rename(key, names): value for key, value in tensors.items() if not key.startswith("backbone.")}
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


def _current(key: str) -> str:
    """The oldest files lack a level: sem_seg_head.mask_features is sem_seg_head.pixel_decoder.mask_features."""
    return re.sub(r"^sem_seg_head\.(?!pixel_decoder|predictor)", "sem_seg_head.pixel_decoder.", key)


def rename(key: str, names: Names) -> str:
    """`key` with every pattern that it begins with replaced, in order."""
    for pattern, ours in names:
        key = re.sub(f"^{pattern}", ours, key)
    return key


def _rename_resnet(key: str) -> str:
    return re.sub(r"^layer(\d)", lambda found: f"layer{int(found[1]) - 1}", rename(key, RESNET))


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
