"""Segmentation zoo: one registry of semantic, instance and panoptic models, one table to compare them.

    model = zoo.create_model("deeplabv3", classes=19, backbone="resnet50", pretrained=True)
    model = zoo.load("best.ckpt")                       # ours, torchvision's, smp's
    model = zoo.load("deeplabv3-resnet50-coco-torchvision")   # public weights by name: zoo.list_weights()
    zoo.fit(model, train, val, out="runs/mine")
    zoo.evaluate(model, zoo.create_dataset("camvid", root, split="test"))

Names are imported when they are first used: `import zoo` itself loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.data import create_dataset, list_datasets
    from zoo.engine import evaluate, fit
    from zoo.errors import ZooError
    from zoo.models import create_model, list_models
    from zoo.models.backbone import create_backbone
    from zoo.structures import VOID, Batch, Class, Instances, Masks, Panoptic, Sample, Semantic
    from zoo.weights import load, load_weights
    from zoo.weights.catalogue import list_weights

    __version__: str

__all__ = [
    "VOID",
    "Batch",
    "Class",
    "Instances",
    "Masks",
    "Panoptic",
    "Sample",
    "Semantic",
    "ZooError",
    "__version__",
    "create_backbone",
    "create_dataset",
    "create_model",
    "evaluate",
    "fit",
    "list_datasets",
    "list_models",
    "list_weights",
    "load",
    "load_weights",
]

_HOMES = {
    "zoo.data": ("create_dataset", "list_datasets"),
    "zoo.engine": ("evaluate", "fit"),
    "zoo.errors": ("ZooError",),
    "zoo.models": ("create_model", "list_models"),
    "zoo.models.backbone": ("create_backbone",),
    "zoo.structures": ("VOID", "Batch", "Class", "Instances", "Masks", "Panoptic", "Sample", "Semantic"),
    "zoo.weights": ("load", "load_weights"),
    "zoo.weights.catalogue": ("list_weights",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("segmentation-zoo")
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
