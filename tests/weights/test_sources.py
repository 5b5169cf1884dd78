"""Every reference's layout is taken for its own and for no other's."""

from __future__ import annotations

import golden
import pytest
import torch

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
