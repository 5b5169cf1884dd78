"""Every reference's layout is taken for its own and for no other's."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch

from zoo.models import MODELS, create_model, model_options
from zoo.weights import SOURCES, _source

OWNERS = {"drsleep": "DrSleep", "mmseg": "mmseg", "semseg": "semseg", "vainf": "VainF", "wkentaro": "wkentaro"}
NAMES = sorted(path.stem for path in golden.FOLDER.glob("*.txt"))


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition("_")[0] in OWNERS])
def test_a_layout_is_its_owners(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in golden.shapes(name).items()}
    assert _source(state) == OWNERS[name.partition("_")[0]]


def test_owners_are_sources() -> None:
    assert set(OWNERS.values()) <= set(SOURCES)
    assert {name.partition("_")[0] for name in NAMES} >= set(OWNERS)


# What changes our models' parameters, and with them their names.
OPTIONS = [
    *((name, {"task": "instance"} if "task" in model_options(name) else {}) for name in sorted(MODELS)),
    ("fcn", {"concat_input": True, "convs": 2}),
    ("fcn", {"aux_weight": 0.0}),
    ("pspnet", {"aux_weight": 0.0, "global_norm": False}),
    ("deeplabv3", {"head": "aspp", "separable": "tf", "post_conv": False}),
    ("deeplabv3plus", {"separable": "tf", "aux_weight": 0.4}),
    ("deeplabv3plus", {"separable": "smp", "aspp_separable": False, "post_conv": True}),
    ("fcn8s", {"padding": "same"}),
    ("lraspp", {"low_module": "layer2"}),
    ("unet", {"attention": True}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_ours_is_nobodys(name: str, options: dict[str, Any]) -> None:
    """A bare state dict of ours goes into such a model as it is."""
    state = create_model(name, 3, "test_resnet", **options).state_dict()
    assert [source for source, layout in SOURCES.items() if layout.recognizes(state)] == []
    assert _source(state) is None


def test_the_papers_unet_is_nobodys() -> None:
    assert _source(create_model("unet", 3, "unet").state_dict()) is None
