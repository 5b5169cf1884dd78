"""RefineNet as DrSleep's refinenet-pytorch saves it: what its names and shapes say, and the numbers that come out."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from golden import check, fill, shapes

import zoo
from zoo.errors import ZooError

NAME = "drsleep_refinenet50"


def narrow() -> dict[str, torch.Tensor]:
    """The same layout with a decoder of 16 and 8 channels instead of 512 and 256."""
    thin = {512: 16, 256: 8}
    wanted = {}
    for key, shape in shapes(NAME).items():
        encoder = re.match(r"(conv|bn|layer)\d", key)
        first = 1 if key.startswith("p_ims1d2") else 4  # its second axis is the encoder's width
        wanted[key] = shape if encoder else tuple(thin.get(n, n) for n in shape[:first]) + shape[first:]
    return fill(wanted)


def test_the_numbers_that_were_compared_with_the_source() -> None:
    """Its network on these weights gave the same logits to the last bit, on ResNet-50, 101 and 152."""
    check(NAME, zoo.load(fill(shapes(NAME))))


def test_what_keys_and_shapes_say(capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.load({f"module.{key}": value for key, value in narrow().items()})
    assert (model.header["name"], model.backbone.name, model.backbone.strides) == (
        "refinenet",
        "resnet50",
        [4, 8, 16, 32],
    )
    options: dict[str, Any] = model.header["options"]
    assert {key: options[key] for key in ("channels", "input_units", "output_units", "crp_stages")} == {
        "channels": [16, 8],
        "input_units": 2,
        "output_units": 3,
        "crp_stages": 4,
    }
    assert model.provenance["assumed"] == {
        "align_fusion": True,
        "align_corners": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "classes": "VOC's",
    }
    assert [c.name for c in model.classes][:2] == ["background", "aeroplane"]
    assert "DrSleep's refinenet on resnet50; assumed align_fusion=True" in capsys.readouterr().err


def test_shorter_chains_and_other_classes_are_read_off() -> None:
    state = {key: value for key, value in narrow().items() if not re.search(r"pool\.0\.[34]_|_b\.0\.3_", key)}
    state["clf_conv.weight"], state["clf_conv.bias"] = state["clf_conv.weight"][:7], state["clf_conv.bias"][:7]
    model = zoo.load(state, align_corners=True)
    options = model.header["options"]
    assert (options["crp_stages"], options["output_units"], options["input_units"]) == (2, 2, 2)
    assert len(model.classes) == 7
    assert "align_corners" not in model.provenance["assumed"]
    assert "classes" not in model.provenance["assumed"]


def test_a_lost_and_an_unknown_key_are_named() -> None:
    state = narrow()
    del state["mflow_conv_g2_b3_joint_varout_dimred.weight"]
    state["adapt_stage9_b.weight"] = torch.zeros(1)
    with pytest.raises(ZooError, match="2 keys do not fit") as error:
        zoo.load(state)
    assert re.search(r"missing +blocks\.2\.fusion\.coarse\.weight", str(error.value))
    assert re.search(r"unexpected +backbone\.model\.adapt_stage9_b\.weight", str(error.value))


def test_what_is_no_refinenet_of_it_is_said() -> None:
    state = narrow()
    light = {key: value[..., :1, :1] if value.ndim == 4 else value for key, value in state.items()}
    with pytest.raises(ZooError, match="Light-Weight RefineNet"):
        zoo.load(light)
    half = {key: value for key, value in state.items() if not key.startswith("p_ims1d2_outl2")}
    with pytest.raises(ZooError, match=r"no p_ims1d2_outl2_dimred\.weight: is the file whole"):
        zoo.load(half)
    other = {key: value for key, value in state.items() if not key.startswith("layer2.1.")}
    with pytest.raises(ZooError, match="no ResNet of a known depth"):
        zoo.load(other)
