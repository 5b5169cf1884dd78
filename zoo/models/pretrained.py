"""Building one of timm's networks, with its weights or without; whatever goes wrong becomes a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from zoo.checkpoint import read
from zoo.errors import ZooError
from zoo.models.dilation import CONVERTERS
from zoo.models.families import DILATED_FAMILIES, EXAMPLES, cannot_dilate


def build(
    name: str,
    family: str,
    pretrained: bool | str | Path,
    in_channels: int,
    output_stride: int,
    options: dict[str, Any],
    hidden: bool = False,
) -> Any:
    """timm's feature extractor with the parameter names of its classifier; errors become sentences.

    `hidden`: the classifier itself, without its last layer.
    """
    kind: dict[str, Any] = {"num_classes": 0} if hidden else {"features_only": True}
    arguments: dict[str, Any] = {**kind, "in_chans": in_channels, **options}
    if output_stride < 32 and family not in CONVERTERS:
        if family not in DILATED_FAMILIES:
            raise cannot_dilate(name, output_stride)
        arguments["output_stride"] = output_stride
    # These two have feature classes of their own, with the classifier's names and, unlike it, with output strides.
    if family not in ("mobilenetv3", "hardcorenas") and not hidden:
        arguments["feature_cls"] = "getter"
    if family.startswith("swin_transformer"):
        arguments.setdefault("strict_img_size", False)
    if isinstance(pretrained, (str, Path)):
        if not Path(pretrained).is_file():
            raise ZooError(f"no file {str(pretrained)!r} with weights of backbone {name}")
        arguments["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **arguments)
    except Exception as error:  # timm has no exception of its own: what it was asked to do tells what went wrong
        if pretrained:
            # Raises where an option is at fault.
            build(name, family, False, in_channels, output_stride, options, hidden)
            raise _no_weights(name, pretrained, error) from error
        if "output_stride" in arguments and (isinstance(error, AssertionError) or "output_stride" in str(error)):
            raise cannot_dilate(name, output_stride) from error
        raise ZooError(
            f"timm cannot build {name} as a backbone ({brief(error)}): use one with features, such as {EXAMPLES}"
        ) from error


def check_complete(name: str, model: nn.Module, file: str | Path) -> None:
    """timm takes any file and leaves what it does not find there at random: refuse one that lacks something."""
    content = read(file)
    content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    given = {key.removeprefix("module.") for key in content}
    for theirs, ours in (("classifier.0.", "pre_logits.fc1."), ("classifier.3.", "pre_logits.fc2.")):
        # torchvision's VGG, whose hidden layers timm makes into convolutions as it reads them
        given |= {key.replace(theirs, ours) for key in given if key.startswith(theirs)}
    lacking = [key for key in model.state_dict() if key not in given and not key.endswith("num_batches_tracked")]
    if lacking:
        raise ZooError(
            f"{str(file)!r} does not hold timm's weights of backbone {name}: it lacks {len(lacking)} of "
            f"{len(model.state_dict())} keys, such as {lacking[0]}"
        )


def read_caffe2(name: str, file: bool | str | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A ResNet of Detectron's or detectron2's ("R-50.pkl") for `fill`, and its `mean`, `std` and `stride_in_1x1`.

    None where `file` is no bare pickle.
    """
    from zoo.weights import detectron, pickles  # which build on the models

    if isinstance(file, bool) or not Path(file).is_file() or not pickles.is_pickle(Path(file)):
        return None
    content = pickles.read(Path(file))
    content = next((content[key] for key in ("blobs", "model") if isinstance(content.get(key), Mapping)), content)
    if not detectron.recognizes_resnet(content):
        raise ZooError(
            f"{str(file)!r} does not hold weights of backbone {name}: it is a pickle, and of these only ResNets with "
            f"Caffe2's names (conv1_w, res2_0_branch2a_w, ...) are backbones; it has {', '.join(list(content)[:3])}"
        )
    return detectron.resnet(content)


def fill(name: str, model: nn.Module, state: Mapping[str, Tensor], file: str | Path) -> None:
    """All of `state` into all of `model`, whose first convolution may be for another number of channels."""
    own = model.state_dict()
    given = dict(state)
    if "conv1.weight" in own:
        given["conv1.weight"] = adapt_input_conv(own["conv1.weight"].shape[1], state["conv1.weight"])
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    wrong = sorted(wanted ^ given.keys()) or [key for key in sorted(wanted) if own[key].shape != given[key].shape]
    if wrong:
        raise ZooError(
            f"{str(file)!r} does not hold weights of backbone {name}: {len(wrong)} of its layers are not there, not "
            f"here or of another shape, such as {wrong[0]}"
        )
    model.load_state_dict({**own, **given})


def _no_weights(name: str, pretrained: bool | str | Path, error: Exception) -> ZooError:
    if isinstance(pretrained, (str, Path)):
        return ZooError(f"{str(pretrained)!r} does not hold timm's weights of backbone {name}: {brief(error)}")
    hub = timm.models.get_pretrained_cfg(name)
    source = hub and (f"https://huggingface.co/{hub.hf_hub_id}" if hub.hf_hub_id else hub.url)
    if not source:
        return ZooError(f"timm has no pretrained weights for {name}: use backbone.pretrained=false")
    if "state_dict" in str(error):  # they are there, and are of another shape
        return ZooError(
            f"the pretrained weights of {name} do not fit its options ({' '.join(str(error).split())[:200]}): leave "
            "these out, or start from scratch with backbone.pretrained=false"
        )
    return ZooError(
        f"the pretrained weights of {name} could not be loaded ({brief(error)}): fetch model.safetensors from "
        f"{source} on a machine with network and pass backbone.pretrained=FILE, or start from scratch with "
        "backbone.pretrained=false"
    )


def brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
