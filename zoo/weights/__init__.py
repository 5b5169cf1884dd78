"""Weights, ours and foreign: `load` builds the model a checkpoint describes, `load_weights` fills a model of yours.

One file per source, each with `recognizes(state)` and `recipe(state, ...)`, a pure function from a state dict to the
model it describes and the weights under that model's names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo import checkpoint
from zoo.errors import ZooError
from zoo.weights import (
    detectron,
    detectron2,
    drsleep,
    mask2former,
    maskformer,
    mmseg,
    ours,
    pickles,
    semseg,
    smp,
    torchvision,
    torchvision_detection,
    transformers_mask2former,
    transformers_maskformer,
    vainf,
    wkentaro,
)
from zoo.weights.catalogue import Weights
from zoo.weights.differences import differences
from zoo.weights.download import locate
from zoo.weights.fitting import fit_state, head_keys, stage_keys
from zoo.weights.recipe import Recipe

SOURCES: dict[str, Any] = {
    "VainF": vainf,
    "torchvision": torchvision,
    "torchvision detection": torchvision_detection,
    "detectron2": detectron2,
    "Detectron": detectron,
    "smp": smp,
    "DrSleep": drsleep,
    "semseg": semseg,
    "wkentaro": wkentaro,
    "mmseg": mmseg,
    "Mask2Former": mask2former,
    "MaskFormer": maskformer,
    "transformers Mask2Former": transformers_mask2former,
    "transformers MaskFormer": transformers_maskformer,
}

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "blobs")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load(weights: str | Path | Weights | Mapping[str, Any], **options: Any) -> Any:
    """The model that a checkpoint describes, with its weights, in evaluation mode.

    Args:
        weights: a file (.ckpt, .pt, .pth, .pkl, .safetensors), a folder as smp's `save_pretrained` writes it, or what
            such a file holds; or what `zoo.weights.download.locate` fetches: a name of `list_weights`,
            "hf://owner/name", an address. Ours, torchvision's segmentation models and detectors, detectron2's and
            Detectron's two-stage detectors, the authors' Mask2Former and MaskFormer (pickles) and transformers' (a
            folder of `save_pretrained`), smp's that the zoo has, papers' releases: see SOURCES.
        options: what the checkpoint cannot tell, or should be otherwise: `classes` (their names), the model's own
            options (`align_corners`, `rates`, `flip`, `window`, ...), the backbone's (`output_stride`, `dilation`,
            `mean`, `std`), `backbone` (timm's name of an smp `tu-` encoder).

    What was assumed from the source's convention is printed, and kept in `model.provenance`.

    Raises:
        ZooError: a file that is damaged, unknown, unsafe or cannot be fetched; keys that do not fit; an unknown option.
    """
    content, config, where = _open(weights)
    found = _recipe(content, config, options.get("backbone"), where).override(options)
    model = found.build()
    fit_state(model, found.state, where)
    model.provenance = {"source": found.source, "file": where, "assumed": found.assumed}
    if found.assumed:
        listed = ", ".join(f"{key}={value}" for key, value in found.assumed.items())
        print(f"{where}: {found.source}'s {found.name} on {found.backbone['name']}; assumed {listed}", file=sys.stderr)
    return model.eval()


def load_weights(model: Any, weights: str | Path | Weights | Mapping[str, Any], skip_head: bool = False) -> None:
    """Fill `model` with a checkpoint's weights: all of them, or none and an error.

    Args:
        weights: as in `load`, or a bare state dict of such a model.
        skip_head: leave alone what depends on the number of classes.

    Weights bring their mean and std. Where the model is set up otherwise than theirs is (dilation, align_corners, ...),
    that is printed: such a model has the weights, not the predictions. A bare state dict of ours says none of this.

    A model that is trained in stages (FCN-16s after FCN-32s, FCN-8s after FCN-16s) takes its predecessor's weights too:
    what both have is copied, what is new stays as it was built, and that is printed.

    Raises:
        ZooError: a table of every key that is missing, unexpected or of another shape; a predecessor of another
            geometry; `skip_head` or a stage for a model that `create_model` did not build. `model` is as it was.
    """
    content, config, where = _open(weights)
    skip = head_keys(model) if skip_head else set()
    own = model.state_dict().keys()
    if content.keys() == own or (_source(content) is None and content.keys() & own):
        fit_state(model, content, where, skip)
        return
    found = _recipe(content, config, model.backbone.name, where)
    staged = found.name == getattr(model, "predecessor", None)
    new, gone = stage_keys(model) if staged else (set(), set())
    lacking = sorted(gone - found.state.keys())
    if lacking:
        raise ZooError(
            f"the {found.name} in {where} was built otherwise than this {model.header['name']} has it, and has no "
            f"{lacking[0]}: build both with the same padding"
        )
    others = differences(model, found)
    fit_state(model, found.state, where, skip | new | gone)
    if staged:
        _print_stage(model, new, found, where)
    model.provenance = {"source": found.source, "file": where, "assumed": found.assumed}
    backbone = found.backbone
    if "mean" in backbone and len(backbone["mean"]) == len(model.backbone.config["mean"]):
        model.backbone.set_statistics(backbone["mean"], backbone["std"])
    if others:
        listed = ", ".join(f"{key}={their} (here {here})" for key, (their, here) in others.items())
        print(f"{where}: {found.source}'s {found.name} has {listed}", file=sys.stderr)


def build(file: Mapping[str, Any]) -> Any:
    """The model of a checkpoint of ours, as `zoo.checkpoint.read` gives it, with its weights, in evaluation mode."""
    return load(file)


def _open(weights: str | Path | Weights | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The content of a checkpoint, unwrapped down to a state dict if it is foreign; the config beside it; its name."""
    config: dict[str, Any] = {}
    where = "the state dict"
    if isinstance(weights, (str, Path, Weights)):
        path = locate(weights)
        where = str(path)
        if path.is_dir():
            path, config = _open_folder(path)
        weights = pickles.read(path) if path.is_file() and pickles.is_pickle(path) else checkpoint.read(path)
    content = dict(weights)
    if ours.recognizes(content):
        return content, config, where
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            if isinstance(content.get("meta"), Mapping):  # mmsegmentation's config and classes
                config = config or dict(content["meta"])
            content = dict(content[key])
            break
    for prefix in _PREFIXES:
        if content and all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if not content or others:
        found = f"{others[0]!r}, which is no tensor" if others else "nothing"
        raise ZooError(f"{where} is not a state dict: it holds {found} (looked inside {', '.join(_WRAPPERS)})")
    return content, config, where


def _open_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The weights and the config of a folder written by smp's `save_pretrained`."""
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files or not (folder / "config.json").is_file():
        raise ZooError(
            f"folder {folder} is no checkpoint: it needs config.json and model.safetensors, or name the file"
        )
    try:
        return files[0], json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ZooError(f"{folder / 'config.json'} is not JSON: {error}") from error


def _source(content: Mapping[str, Any]) -> str | None:
    """Whose layout this is: "zoo" for files of ours, a name in SOURCES, or None; None for our bare state dicts too."""
    if ours.recognizes(content):
        return "zoo"
    if any(key.startswith("backbone.model.") for key in content):  # a bare state dict of a model of ours
        return None
    return next((name for name, source in SOURCES.items() if source.recognizes(content)), None)


def _recipe(content: dict[str, Any], config: dict[str, Any], backbone: str | None, where: str) -> Recipe:
    source = _source(content)
    if source == "zoo":
        return ours.recipe(content)
    if source is not None:
        return SOURCES[source].recipe(content, config, backbone)
    some = ", ".join(list(content)[:3])
    raise ZooError(
        f"{where} is of no known layout (keys such as {some}): ours, {' and '.join(SOURCES)} load; weights of a "
        "backbone alone go to backbone.pretrained=FILE"
    )


def _print_stage(model: Any, new: set[str], found: Recipe, where: str) -> None:
    state = model.state_dict()
    layers = sorted({key.rpartition(".")[0] for key in new})
    zero = {layer: not any(state[key].any() for key in new if key.startswith(f"{layer}.")) for layer in layers}
    listed = ", ".join(f"{layer} (zero)" if zero[layer] else layer for layer in layers)
    print(f"{where}: {found.name}'s weights begin this {model.header['name']}; new are {listed}", file=sys.stderr)
