"""Backbones: any timm model that gives a pyramid of features, behind one small interface.

A `Backbone` eats raw pixels (uint8, or float in [0, 1]) and gives a list of NCHW feature maps, fine to coarse. It owns
what differs between architectures: normalisation (a property of the weights, applied here and nowhere else), fixed
image sizes, sizes that must be multiples of something, NHWC features, output stride and its dilation conventions.

Strides and the padding an architecture needs are measured once, at construction, by running a small image through it:
timm's own record is stale after a conversion, and no table of 1,300 models stays right. What cannot serve is refused
there and then, with a sentence that names what can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import split_model_name_tag
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from zoo.checkpoint import read
from zoo.errors import ZooError, unknown
from zoo.models.dilation import CONVERTERS, dilate_first_blocks, dilate_first_convolutions
from zoo.models.padding import pad_early
from zoo.models.truncation import truncate

Size = tuple[int, int]
Dilation = Literal["previous", "full", "conv1"]

# Encoders of our own, imported when asked for: "module:callable". Called with in_channels, levels and options, they
# give a module with `channels` and `strides` whose forward takes normalised images and returns the list of features.
OWN_BACKBONES: dict[str, str] = {"unet": "zoo.models.unet:UNetEncoder"}

# timm's modules (families) whose members can keep a stride of 8 or 16.
DILATED_FAMILIES = (
    "byobnet", "convnext", "cspnet", "cspnext", "densenet", "efficientnet", "hardcorenas", "inception_next",
    "mobilenetv3", "mobilevit", "nfnet", "regnet", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "sknet", "vgg",
    "xception_aligned",
)  # fmt: skip
# Those of them with dilation="full": the others have no first blocks that timm leaves at the rate of the stage before,
# or none that can be told apart.
FULL_FAMILIES = ("efficientnet", "hardcorenas", "mobilenetv3", "res2net", "resnest", "resnet", "sknet")
# timm's modules without a pyramid of powers of two, or bound to one image size.
UNFIT_FAMILIES = (
    "beit", "byoanet", "cait", "coat", "convit", "convmixer", "crossvit", "deepseek_vit", "deit", "efficientformer",
    "efficientformer_v2", "eva", "gcvit", "gemma4_vit", "hiera", "inception_v3", "levit", "mlp_mixer", "mvitv2",
    "naflexvit", "nasnet", "nest", "pit", "pnasnet", "qwen3_vit", "sequencer", "tnt", "vision_transformer",
    "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "visformer", "vitamin", "volo",
    "xcit",
)  # fmt: skip
# Unpadded 3x3 layers, which are given their padding here.
VALID_FAMILIES = ("inception_v4", "inception_resnet_v2", "xception")
EXAMPLES = "resnet50, resnext50_32x4d, convnext_tiny, swin_tiny_patch4_window7_224, efficientnet_b0, hrnet_w18, vgg16"
DILATED_EXAMPLES = (
    "resnet*, resnext*, resnest*, res2net*, regnet*, convnext*, efficientnet*, mobilenetv2/v3*, xception41/65/71, "
    "densenet*, vgg*"
)

# Sizes are tried as multiples of these, in order: most networks take any size; windows of 7 or 8 want 224 or 256.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 224, 256)


class Backbone(nn.Module):
    """A pyramid of features: images (B, C, H, W) -> [(B, c_i, h_i, w_i)], fine to coarse, NCHW.

    `channels[i]` and `strides[i]` describe the i-th map; `h_i` is `H / strides[i]` rounded down or up, as the
    architecture does it (up, where the image had to be padded). Parameter names are `model.` + timm's own.

    Attributes:
        name: what `create_backbone` was given.
        mean, std: (1, C, 1, 1) buffers, for pixels in [0, 1]; not in the state dict, they live in `config`.
        config: plain values; `create_backbone(**config)` builds the same architecture, without weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        model: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        config: Mapping[str, Any],
        taps: Literal["getter", "own", "transition"] = "own",
        indices: Sequence[int] = (),
        multiple: int = 1,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.channels, self.strides = list(channels), list(strides)
        self.config = dict(config)
        self.taps, self.indices = taps, list(indices)
        self.multiple, self.smallest = multiple, smallest
        self._extract: Callable[[Backbone, Tensor], list[Tensor]] = _extract
        self.set_statistics(mean, std)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise with these per-channel `mean` and `std` (of pixels in [0, 1]); imported weights bring their own."""
        self.config |= {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        for key, values in (("mean", mean), ("std", std)):
            like = next(self.model.parameters())
            buffer = torch.tensor(list(values), dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
            self.register_buffer(key, buffer, persistent=False)

    @property
    def hidden(self) -> Any:
        """The hidden layers of a VGG's classifier, if it was built with `classifier=True`; else None.

        A module with `fc1` (convolution 7x7, 512 -> 4096) and `fc2` (1x1, 4096 -> 4096), with `act1` and `act2`: the
        paper's fc6 and fc7. `extract` does not run it.
        """
        layers = getattr(self.model, "pre_logits", None)
        return layers if self.config.get("classifier") and hasattr(layers, "fc1") else None

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """Features of images (B, C, H, W), uint8 or float in [0, 1]; pixels beyond `sizes` count as padding."""
        return self.extract(self.normalize(images, sizes))

    def normalize(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Tensor:
        """(images - mean) / std as a float tensor of the same shape, zero beyond each image's (H, W) in `sizes`.

        Zero after normalising is what every reference pads with; zero before it would be a dark frame.
        """
        if images.shape[1] != self.mean.shape[1]:
            raise ZooError(
                f"backbone {self.name} was built for {self.mean.shape[1]} channels, the images have {images.shape[1]}: "
                f"build it with in_channels={images.shape[1]}"
            )
        white = 1.0 if images.is_floating_point() else 255.0
        # One converted copy, then in place: a quarter of the time of the textbook expression, memory format kept.
        x = images.to(self.mean.dtype, copy=True).mul_(1 / (white * self.std)).sub_(self.mean / self.std)
        for image, (height, width) in zip(x, sizes or (), strict=sizes is not None):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return x

    def extract(self, normalized: Tensor) -> list[Tensor]:
        """Features of a normalised tensor (B, C, H, W), padded as the architecture needs and trimmed again."""
        return self._extract(self, normalized)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile `extract` in place. (Of a module torch compiles `forward`, which models here go past.)"""
        # A function of the backbone, not a method bound to this one: a copy of the model uses its own weights.
        self._extract = torch.compile(_extract, *args, **options)

    @property
    def compiled(self) -> bool:
        """Whether `extract` is compiled."""
        return self._extract is not _extract

    def _missing(self, length: int) -> int:
        """Pixels to add to `length` so that the architecture takes it."""
        return max(-length % self.multiple, self.smallest - length)

    def _features(self, x: Tensor) -> list[Tensor]:
        if self.taps == "getter":
            return self.model.forward_intermediates(  # type: ignore[operator]
                x, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        if self.taps == "transition":
            return _densenet_transitions(self.model.features, x)  # type: ignore[arg-type]
        return self.model(x)


def _extract(backbone: Backbone, normalized: Tensor) -> list[Tensor]:
    """What `Backbone.extract` does."""
    height, width = normalized.shape[-2:]
    x = normalized
    if backbone.multiple > 1 or backbone.smallest > 1:  # padding by nothing would be a copy
        x = F.pad(x, (0, backbone._missing(width), 0, backbone._missing(height)))
    features = backbone._features(x)[-len(backbone.strides) :]
    return [
        feature[..., : -(-height // stride), : -(-width // stride)]
        for feature, stride in zip(features, backbone.strides, strict=True)
    ]


def create_backbone(
    name: str,
    pretrained: bool | str | Path = False,
    in_channels: int = 3,
    output_stride: int = 32,
    levels: int = 4,
    dilation: Dilation = "previous",
    multi_grid: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classifier: bool = False,
    coarsest: int | None = None,
    **options: Any,
) -> Backbone:
    """A backbone by name: any timm model with features ("resnet50", "resnet50.tv_in1k", ...), or "unet".

    Args:
        pretrained: load timm's weights (over the network, or from its cache), or those in this file.
        in_channels: any number; timm adapts a pretrained first convolution (1: the sum of the RGB filters;
            N: the filters repeated, scaled by 3/N).
        output_stride: 8 or 16 trade stride for dilation in the last stages; 32 leaves the network as it is.
        levels: how many of the coarsest feature maps to give (4: strides 4..32 of most; 5 adds 2, 6 of a VGG adds 1);
            a network with fewer gives those it has.
        dilation: rate of the first block of a dilated stage: that of the stage before it ("previous": torchvision,
            timm) or its own ("full": semseg, smp; also torchvision's MobileNetV3). "conv1" is "previous" but that in
            basic blocks (ResNet-18, -34) the second convolution stays undilated: mmsegmentation.
        multi_grid: factors of the dilation in the blocks of a ResNet's last stage, (1, 2, 4) in DeepLab v3.
        mean, std: one value per channel, of pixels in [0, 1]. By default those of timm's weights; with one channel
            their average over RGB, with other numbers of channels RGB's repeated, as timm repeats the filters.
            Multispectral data wants its own.
        classifier: keep the two hidden layers of a VGG's classifier as convolutions, pretrained like the rest, in
            `Backbone.hidden`; other networks have none and ignore this.
        coarsest: leave out the stages with a stride above this one, with their parameters (8: a ResNet's layer3 and
            layer4, unless dilated). None keeps all. Which maps are given is for `levels` to say.
        options: handed to timm (`drop_path_rate`, `bn_eps`, ...). DenseNets also take `taps="transition"`: features
            after each transition's norm and ReLU, and without the last ReLU, as smp's encoder gives them; MobileNetV2s
            `early_padding=True`, see `zoo.models.padding`.

    Raises:
        ZooError: a misspelt name, weights that cannot be reached, a network that cannot serve.
    """
    if output_stride not in (8, 16, 32):
        raise ZooError(f"output_stride must be 8, 16 or 32, not {output_stride!r}")
    if dilation not in ("previous", "full", "conv1"):
        raise ZooError(f"dilation must be 'previous', 'full' or 'conv1', not {dilation!r}")
    if coarsest is not None and coarsest not in (1, 2, 4, 8, 16, 32, 64):
        raise ZooError(f"coarsest must be a stride such as 8, 16 or 32, or None for all stages, not {coarsest!r}")
    config = {
        "name": name, "in_channels": in_channels, "output_stride": output_stride, "levels": levels,
        "dilation": dilation, "multi_grid": None if multi_grid is None else list(multi_grid),
        "classifier": classifier, "coarsest": coarsest, **options,
    }  # fmt: skip
    if name in OWN_BACKBONES:
        if pretrained or output_stride != 32 or multi_grid is not None or coarsest is not None:
            raise ZooError(f"backbone {name} has no pretrained weights and no output_stride, multi_grid or coarsest")
        module, _, function = OWN_BACKBONES[name].partition(":")
        model = getattr(import_module(module), function)(in_channels=in_channels, levels=levels, **options)
        mean, std = _statistics(name, in_channels, mean, std, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        return Backbone(name, model, model.channels, model.strides, mean=mean, std=std, config=config)

    family = _family(name)
    taps, early_padding = options.pop("taps", None), options.pop("early_padding", False)
    if taps is not None and (taps != "transition" or family != "densenet"):
        raise ZooError(f"taps={taps!r}: only 'transition', and only densenets, have it")
    hidden = classifier and family == "vgg"
    model = _timm_model(name, family, pretrained, in_channels, output_stride, options, hidden)
    statistics = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    mean, std = _statistics(name, in_channels, mean, std, *statistics)
    indices: Sequence[int] = ()
    if isinstance(model, FeatureGetterNet):
        model, indices = model.model, tuple(cast(Any, model.out_indices))
        taps = taps or "getter"
    elif hidden:
        taps, indices = "getter", range(len(model.feature_info))
    if isinstance(pretrained, (str, Path)):
        _check_complete(name, model, pretrained)
    if output_stride < 32 and family in CONVERTERS:
        CONVERTERS[family](model, output_stride)
    if multi_grid is not None or (dilation == "full" and output_stride < 32):
        dilate_first_blocks(name, model, output_stride, full=dilation == "full", multi_grid=multi_grid)
    if dilation == "conv1" and output_stride < 32:
        dilate_first_convolutions(name, model)
    if family in VALID_FAMILIES:
        _pad_valid_layers(model)
    if early_padding:
        pad_early(name, model, levels, coarsest)
    if taps == "transition":
        model.features.norm5.act = nn.Identity()
    plan = partial(Backbone, name, model, (), (), mean=mean, std=std, config=config, taps=taps or "own")
    if coarsest is not None:
        strides = _check_strides(_measure(plan(indices=indices))).strides
        count = sum(stride <= coarsest for stride in strides)
        if count == 0:
            raise ZooError(f"backbone {name} has strides {strides}, none of them {coarsest} or less")
        if count < len(strides):
            indices = truncate(name, model, taps or "own", indices, count)
        return _measure(plan(indices=indices[-levels:]), levels)
    return _check_strides(_measure(plan(indices=indices[-levels:]), levels))


@cache
def backbone_names(output_stride: int = 32) -> tuple[str, ...]:
    """Names that `create_backbone` takes at this output stride, by family: ours, then timm's (without weight tags)."""
    every = timm.list_modules()
    families = DILATED_FAMILIES if output_stride < 32 else [m for m in every if m not in UNFIT_FAMILIES]
    timms = [name for family in families if family in every for name in timm.list_models(module=family)]
    return (*(OWN_BACKBONES if output_stride == 32 else ()), *sorted(timms))


def supports(name: str, output_stride: int = 32) -> bool:
    """Whether `name` (a weight tag does not matter) is of a family that serves at this output stride."""
    return split_model_name_tag(name)[0] in backbone_names(output_stride)


def has_full_dilation(name: str) -> bool:
    """Whether `name` (a weight tag does not matter) is of a family that takes dilation="full"."""
    base = split_model_name_tag(name)[0]
    return timm.is_model(base) and _module(base) in FULL_FAMILIES


def _family(name: str) -> str:
    """timm's module that defines `name`; raises for a misspelt name or tag, and for families that cannot serve."""
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        error = unknown("backbone", name, [*OWN_BACKBONES, *timm.list_models()])
        if "did you mean" not in str(error):
            error = ZooError(f"unknown backbone {name!r}: any timm model with features serves, such as {EXAMPLES}")
        raise error
    known = timm.list_pretrained(f"{base}.*")
    if tag and name not in known:
        raise unknown(f"weights of backbone {base}", name, known)
    family = _module(base)
    if family in UNFIT_FAMILIES:
        raise ZooError(
            f"backbone {name} is bound to one image size or has no pyramid of features: use one that has, such as "
            f"{EXAMPLES}"
        )
    return family


def _module(base: str) -> str:
    """The module of timm that defines a model, which is its family."""
    return timm.models.model_entrypoint(base).__module__.rpartition(".")[2]


def _timm_model(
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
            raise _cannot_dilate(name, output_stride)
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
            _timm_model(name, family, False, in_channels, output_stride, options, hidden)
            raise _no_weights(name, pretrained, error) from error
        if "output_stride" in arguments and (isinstance(error, AssertionError) or "output_stride" in str(error)):
            raise _cannot_dilate(name, output_stride) from error
        raise ZooError(
            f"timm cannot build {name} as a backbone ({_brief(error)}): use one with features, such as {EXAMPLES}"
        ) from error


def _check_complete(name: str, model: nn.Module, file: str | Path) -> None:
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


def _no_weights(name: str, pretrained: bool | str | Path, error: Exception) -> ZooError:
    if isinstance(pretrained, (str, Path)):
        return ZooError(f"{str(pretrained)!r} does not hold timm's weights of backbone {name}: {_brief(error)}")
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
        f"the pretrained weights of {name} could not be loaded ({_brief(error)}): fetch model.safetensors from "
        f"{source} on a machine with network and pass backbone.pretrained=FILE, or start from scratch with "
        "backbone.pretrained=false"
    )


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__


def _cannot_dilate(name: str, output_stride: int) -> ZooError:
    return ZooError(
        f"backbone {name} cannot keep an output stride of {output_stride}: use one that can ({DILATED_EXAMPLES}), or "
        "backbone.output_stride=32"
    )


def _statistics(
    name: str,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default_mean: Sequence[float],
    default_std: Sequence[float],
) -> tuple[list[float], list[float]]:
    """What was given, checked, or RGB's adapted to the number of channels."""
    adapted = []
    for key, given, default in (("mean", mean, default_mean), ("std", std, default_std)):
        if given is None:
            rgb = [sum(default) / len(default)] if channels == 1 else default
            given = list(islice(cycle(rgb), channels))
        if len(given) != channels:
            raise ZooError(f"backbone {name}: {key} has {len(given)} values for {channels} channels")
        adapted.append([float(value) for value in given])
    if min(adapted[1]) <= 0:
        raise ZooError(f"backbone {name}: std must be positive, not {adapted[1]}")
    return adapted[0], adapted[1]


def _measure(backbone: Backbone, levels: int = 0) -> Backbone:
    """Run small images through it: fills in channels, strides and padding, or refuses. No levels: all of them."""
    training = backbone.model.training
    backbone.model.eval()
    refusal = "it gives no features"
    for multiple in MULTIPLES:
        size = probe_size(multiple)
        try:
            features = _probe(backbone, size, levels)
            strides = [map_stride(size, feature) for feature in features]
            # A second size, so that none is accepted because one happened to round well, and wide enough to leave
            # tables of relative positions made for 224 pixels.
            wide = size[0] + multiple, size[1] + -(-404 // multiple) * multiple
            again = [map_stride(wide, feature) for feature in _probe(backbone, wide, levels)]
        except Exception as error:  # asserts and shape errors of 90 families: this size does not suit, try the next
            refusal = _brief(error)
            continue
        if None not in strides and strides == again:
            break
        refusal = f"maps of {[tuple(f.shape[-2:]) for f in features]} for an image of {size}"
    else:
        raise ZooError(
            f"backbone {backbone.name} does not take images of any size ({refusal}): use one such as {EXAMPLES}"
        )
    backbone.channels = [feature.shape[1] for feature in features]
    backbone.strides = [stride for stride in strides if stride is not None]
    backbone.multiple = multiple
    backbone.smallest = _smallest(backbone)
    backbone.model.train(training)
    return backbone


def _smallest(backbone: Backbone) -> int:
    """The side of the smallest image that leaves something in every map: 1 for most, more where layers round down."""
    for side in (1, 8, 16, 32, 64, 128):
        side += -side % backbone.multiple
        with suppress(Exception):  # as above
            if all(feature.numel() for feature in _probe(backbone, (side, side), len(backbone.strides))):
                return side
    raise ZooError(f"backbone {backbone.name} fails on small images: use one such as {EXAMPLES}")


def _check_strides(backbone: Backbone) -> Backbone:
    """`backbone`, if its coarsest map has the stride that was asked for and the finest another one."""
    wanted, strides = backbone.config["output_stride"], backbone.strides
    if wanted < 32 and strides[-1] != wanted:
        raise _cannot_dilate(backbone.name, wanted)
    if wanted == 32 and len(strides) > 1 and len(set(strides)) == 1:
        raise ZooError(
            f"backbone {backbone.name} has a single resolution (stride {strides[-1]}), not a pyramid: use one such as "
            f"{EXAMPLES}"
        )
    return backbone


def _probe(backbone: Backbone, size: Size, levels: int) -> list[Tensor]:
    with torch.no_grad():
        return backbone._features(backbone.mean.new_zeros(1, backbone.mean.shape[1], *size))[-levels:]


def probe_size(multiple: int) -> Size:
    """About (67, 101), as odd multiples of `multiple`, so that only what truly divides is accepted."""
    rows, columns = (-(-length // multiple) | 1 for length in (67, 101))
    return rows * multiple, columns * multiple


def map_stride(size: Size, feature: Tensor) -> int | None:
    """The power of two by which `feature` is coarser than `size`, whichever way it rounds; None if there is none."""
    for stride in (1, 2, 4, 8, 16, 32, 64, 128):
        if all(n // stride <= m <= -(-n // stride) for n, m in zip(size, feature.shape[-2:], strict=True)):
            return stride
    return None


def _pad_valid_layers(model: nn.Module) -> None:
    """Pad unpadded 3x3 layers, whose maps are shifted and shrink to nothing (smp does the same)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding = (1, 1)
        elif isinstance(layer, nn.MaxPool2d):
            layer.padding = 1


def _densenet_transitions(features: nn.Module, x: Tensor) -> list[Tensor]:
    """A DenseNet tapped after the norm and ReLU of its transitions and after its last norm (smp's encoder)."""
    taps = []
    for name, layer in features.named_children():
        if name.startswith("transition"):
            x = layer.norm(x)  # type: ignore[operator]
            taps.append(x)
            x = layer.pool(layer.conv(x))  # type: ignore[operator]
            continue
        x = layer(x)
        if name in ("norm0", "norm5"):
            taps.append(x)
    return taps
