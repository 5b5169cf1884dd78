"""What a checkpoint describes: the model to build and the weights under that model's names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from zoo.errors import unknown
from zoo.models import create_model, model_options
from zoo.models.backbone import create_backbone
from zoo.structures import Class

BACKBONE_OPTIONS = [
    name
    for name, parameter in inspect.signature(create_backbone).parameters.items()
    if name not in ("name", "pretrained") and parameter.kind is not parameter.VAR_KEYWORD
]


@dataclass(frozen=True)
class Recipe:
    """A model as plain values, and its weights.

    Attributes:
        source: whose checkpoint it is ("zoo", "torchvision", "smp").
        name: of `zoo.MODELS`.
        classes, options: of `create_model`.
        backbone: arguments of `create_backbone`.
        state: the weights, under the names of the model built from the rest.
        assumed: what keys and shapes cannot tell and the source's convention decided, by option.
    """

    source: str
    name: str
    classes: int | Sequence[str] | Sequence[Class]
    backbone: dict[str, Any]
    options: dict[str, Any]
    state: dict[str, Tensor]
    assumed: dict[str, Any] = field(default_factory=dict)

    def override(self, options: Mapping[str, Any]) -> Recipe:
        """The same with `options`: `classes`, the model's own, the backbone's, or timm's in `backbone_options`.

        Raises:
            ZooError: an option that neither the model nor the backbone has.
        """
        mine, its = dict(self.options), dict(self.backbone)
        classes = self.classes
        known = model_options(self.name)
        for key, value in options.items():
            if key == "classes":
                classes = value
            elif key == "backbone":
                its["name"] = value
            elif key == "backbone_options":
                its |= value
            elif key in known:
                mine[key] = value
            elif key in BACKBONE_OPTIONS:
                its[key] = value
            else:
                raise unknown(f"option of {self.name}", key, ["classes", "backbone_options", *known, *BACKBONE_OPTIONS])
        assumed = {key: value for key, value in self.assumed.items() if key not in options}
        return replace(self, classes=classes, options=mine, backbone=its, assumed=assumed)

    def build(self) -> Any:
        """The model, with fresh weights."""
        return create_model(self.name, self.classes, create_backbone(**self.backbone), **self.options)
