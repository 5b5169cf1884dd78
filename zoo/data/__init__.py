"""Datasets by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from zoo.data.ade20k import ADE20K
from zoo.data.base import Dataset, Transform
from zoo.data.camvid import CamVid
from zoo.data.cityscapes import Cityscapes
from zoo.data.coco import Coco
from zoo.data.coco_json import CocoJson
from zoo.data.coco_panoptic import CocoPanoptic
from zoo.data.coco_stuff import COCOStuff
from zoo.data.dsb2018 import DSB2018
from zoo.data.files import read_image, read_labels
from zoo.data.folder import Folder
from zoo.data.isbi2012 import ISBI2012
from zoo.data.oxford_pet import OxfordPet
from zoo.data.scenes import Scenes
from zoo.data.voc import VOC
from zoo.errors import unknown

__all__ = ["DATASETS", "Dataset", "create_dataset", "list_datasets", "read_image", "read_labels"]

DATASETS: dict[str, type[Dataset]] = {
    "ade20k": ADE20K,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "coco_json": CocoJson,
    "coco_panoptic": CocoPanoptic,
    "coco_stuff": COCOStuff,
    "dsb2018": DSB2018,
    "folder": Folder,
    "isbi2012": ISBI2012,
    "oxford_pet": OxfordPet,
    "scenes": Scenes,
    "voc": VOC,
}


def create_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    task: str = "semantic",
    transform: Transform | None = None,
    **options: Any,
) -> Dataset:
    """The dataset `name` of `list_datasets`; `options` are its class's own.

    Raises:
        ZooError: an unknown name or option, and everything `Dataset` refuses.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    known = _options(DATASETS[name])
    for option in options:
        if option not in known:
            raise unknown(f"option of dataset {name}", option, known)
    return DATASETS[name](root, split, task, transform, **options)


def list_datasets(task: str | None = None) -> list[str]:
    """The names of all datasets, or of those with truth for `task`."""
    return sorted(name for name, dataset in DATASETS.items() if task is None or task in dataset.tasks)


def _options(dataset: type[Dataset]) -> set[str]:
    """The keyword arguments of a dataset beyond those `create_dataset` names, its base's included."""
    named = {"self", "root", "split", "task", "transform"}
    return {
        parameter.name
        for cls in dataset.__mro__
        if issubclass(cls, Dataset) and "__init__" in cls.__dict__
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in named
    }
