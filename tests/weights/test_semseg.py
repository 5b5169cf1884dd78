"""semseg's PSPNet: its keys give our model and, with the same weights, what semseg itself put out."""

from __future__ import annotations

import golden
import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import ZooError
from zoo.weights import semseg

NAME = "semseg_pspnet50"


def described(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict that has shapes alone: enough for a recipe."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_equals() -> None:
    weights = {f"module.{key}": value for key, value in golden.fill(golden.shapes(NAME)).items()}
    model = zoo.load({"epoch": 50, "state_dict": weights, "optimizer": {}})
    assert (model.header["name"], model.backbone.name) == ("pspnet", "resnet50s")
    assert model.provenance["assumed"]["dilation"] == "full"
    assert model.classes[1].name == "aeroplane"
    golden.check(NAME, model)


def test_the_deeper_one_equals() -> None:
    model = zoo.load(golden.fill(golden.shapes("semseg_pspnet101")))
    assert model.backbone.name == "resnet101s"
    golden.check("semseg_pspnet101", model)


def test_what_shapes_tell() -> None:
    shapes = golden.shapes(NAME)
    whole = semseg.recipe(described(shapes))
    assert whole.options["aux_weight"] == 0.4
    assert (whole.options["pool_channels"], whole.options["channels"], whole.options["aux_channels"]) == (512, 512, 256)
    bare = semseg.recipe(described({key: shape for key, shape in shapes.items() if not key.startswith("aux.")}))
    assert bare.options["aux_weight"] == 0
    cityscapes = semseg.recipe(described({**shapes, "cls.4.weight": (19, 512, 1, 1)}))
    assert cityscapes.classes == 19
    assert "classes" not in cityscapes.assumed


def test_a_plain_stem_is_a_plain_resnet() -> None:
    """Issue 56 of its repository: a 7x7 stem has other names than three 3x3 convolutions, and other shapes."""
    shapes = {key: shape for key, shape in golden.shapes(NAME).items() if not key.startswith("layer0.")}
    stem = {"layer0.0.weight": (64, 3, 7, 7)} | {f"layer0.1.{key}": (64,) for key in ("weight", "bias")}
    stem |= {f"layer0.1.{key}": (64,) for key in ("running_mean", "running_var")}
    shapes |= {"layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.downsample.0.weight": (256, 64, 1, 1)}
    found = semseg.recipe(described({**shapes, **stem}))
    assert found.backbone["name"] == "resnet50"
    with torch.device("meta"):
        own = found.build().state_dict()
    counts = {key for key in own if key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in own.items() if key not in counts} == {
        key: value.shape for key, value in found.state.items() if not key.endswith("num_batches_tracked")
    }


def test_what_does_not_load_is_said() -> None:
    shapes = golden.shapes(NAME)
    with pytest.raises(ZooError, match="semseg's PSANet is not in this zoo"):
        zoo.load(described({**shapes, "psa.attention.0.weight": (1, 1, 1, 1)}))
    with pytest.raises(ZooError, match=r"no ppm.features or no cls.4.weight: is the file whole"):
        zoo.load(described({key: shape for key, shape in shapes.items() if not key.startswith("ppm.")}))
    with pytest.raises(ZooError, match="of no depth that semseg has"):
        zoo.load(described({key: shape for key, shape in shapes.items() if "layer3.5" not in key}))
    with pytest.raises(ZooError, match="pools 3 grids"):
        zoo.load(described({key: shape for key, shape in shapes.items() if "features.3" not in key}))
