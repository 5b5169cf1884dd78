"""hszhao/semseg, the PyTorch code of PSPNet's first author: PSPNet 50, 101 and 152.

Its state dict is that of our PSPNet but for the backbone's names: the first stage is one list there. It does not say:
that images are normalised with ImageNet's mean and std, that corners are aligned, that every block of a dilated stage
is dilated, and the weight of the auxiliary loss. A plain 7x7 stem, of before its change to three 3x3 convolutions, is
told from its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import ZooError
from zoo.weights.conventions import DEEP_STEM, classes_of, imagenet
from zoo.weights.encoders import name_encoder
from zoo.weights.recipe import Recipe

PLAIN_STEM = {"0": "conv1", "1": "bn1"}
CONVENTIONS = {"align_corners": True, "output_stride": 8, "dilation": "full"}


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of semseg's PSPNet (or PSANet)."""
    return "layer0.0.weight" in state and "cls.0.weight" in state


def recipe(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """What a state dict of semseg describes; `config` and `backbone` are for importers that need them.

    Raises:
        ZooError: PSANet, a file without pyramid pooling or classifier, a ResNet of unknown depth.
    """
    if any(key.startswith("psa.") for key in state):
        raise ZooError("semseg's PSANet is not in this zoo: its PSPNet loads")
    if "ppm.features.0.1.weight" not in state or "cls.4.weight" not in state:
        raise ZooError(
            "these look like weights of semseg, but have no ppm.features or no cls.4.weight: is the file whole?"
        )
    encoder, heads = _split(state)
    deep = "conv1.0.weight" in encoder
    # timm's name of the depth is told from a plain ResNet's keys.
    depth = name_encoder({**encoder, "conv1.weight": encoder["conv1.0.weight"]} if deep else encoder)
    if depth is None:
        raise ZooError("this ResNet is of no depth that semseg has: 50, 101 or 152")
    name = backbone or (f"{depth}s" if deep else depth)
    bins = sum(key.startswith("ppm.features.") and key.endswith(".1.weight") for key in state)
    if bins != 4:
        raise ZooError(f"this PSPNet pools {bins} grids, and keys cannot tell which: the papers' 1, 2, 3, 6 load")
    count, hidden = state["cls.4.weight"].shape[:2]
    classes, told = classes_of(count)
    options: dict[str, Any] = {
        "bins": [1, 2, 3, 6],
        "pool_channels": state["ppm.features.0.1.weight"].shape[0],
        "channels": hidden,
        "align_corners": CONVENTIONS["align_corners"],
        "aux_weight": 0.4 if "aux.4.weight" in state else 0.0,
    }
    if options["aux_weight"]:
        options["aux_channels"] = state["aux.4.weight"].shape[1]
    statistics = imagenet()
    stages = {key: value for key, value in CONVENTIONS.items() if key != "align_corners"}
    return Recipe(
        source="semseg",
        name="pspnet",
        classes=classes,
        backbone={"name": name, "levels": 2 if options["aux_weight"] else 1, **stages, **statistics},
        options=options,
        state={**{f"backbone.model.{key}": value for key, value in encoder.items()}, **heads},
        assumed={**CONVENTIONS, **statistics, **told},
    )


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's weights under timm's names, and the heads', which have ours.

    Names of a stem that are not known stay and show in the table of keys that do not fit.
    """
    stem = PLAIN_STEM if state["layer0.0.weight"].shape[-1] == 7 else DEEP_STEM
    encoder, heads = {}, {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "layer0":
            place, _, leaf = rest.partition(".")
            encoder[f"{stem.get(place, f'layer0.{place}')}.{leaf}"] = value
        elif part.startswith("layer"):
            encoder[key] = value
        else:
            heads[key] = value
    return encoder, heads
