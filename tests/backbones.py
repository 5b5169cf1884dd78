"""What tests of backbones share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.backbone import Backbone, create_backbone


def features(backbone: Backbone, images: Tensor, sizes: list[tuple[int, int]] | None = None) -> list[Tensor]:
    with torch.no_grad():
        return backbone.eval()(images, sizes)


def refusal(**wishes: object) -> str:
    """The sentence with which `create_backbone` refuses these."""
    with pytest.raises(ZooError) as error:
        create_backbone(**wishes)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)
