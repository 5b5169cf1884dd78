"""FCN, DeepLabV3 and LR-ASPP equal torchvision's, weights copied over: logits, auxiliary ones, loss, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import assert_equal, normalized, randomize
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

import zoo.models
from zoo.structures import Batch, Semantic

CLASSES = 21
MOBILENET = {
    "output_stride": 16,
    "backbone_options": {"dilation": "full", "bn_eps": 1e-3, "bn_momentum": 0.01},
    "rates": (12, 24, 36),
    "aux_module": "blocks.2.0",
}
PAIRS = [
    ("fcn", "resnet50", "fcn_resnet50", {}),
    ("fcn", "resnet101", "fcn_resnet101", {}),
    ("deeplabv3", "resnet50", "deeplabv3_resnet50", {}),
    ("deeplabv3", "resnet101", "deeplabv3_resnet101", {}),
    ("deeplabv3", "mobilenetv3_large_100", "deeplabv3_mobilenet_v3_large", MOBILENET),
]


def pair(name: str, backbone: str, theirs_name: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    builder = getattr(segmentation, theirs_name)
    theirs = builder(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    randomize(theirs)
    ours = zoo.models.create_model(name, CLASSES, backbone, **options)
    state = theirs.state_dict()
    trunk = [value for key, value in state.items() if key.startswith("backbone.")]
    names = list(ours.backbone.state_dict())
    if not options:  # ResNets have the same names on both sides, MobileNetV3 the same order
        assert names == ["model." + key.removeprefix("backbone.") for key in state if key.startswith("backbone.")]
    copied = {f"backbone.{key}": value for key, value in zip(names, trunk, strict=True)}
    copied |= {key: value for key, value in state.items() if not key.startswith("backbone.")}
    ours.load_state_dict(copied)
    return ours, theirs


@pytest.mark.parametrize(("name", "backbone", "theirs_name", "options"), PAIRS, ids=[p[2] for p in PAIRS])
def test_outputs_equal(name: str, backbone: str, theirs_name: str, options: dict[str, Any]) -> None:
    ours, theirs = (model.eval() for model in pair(name, backbone, theirs_name, options))
    images = torch.rand(1, 3, 97, 130)
    with torch.no_grad():
        expected = theirs(normalized(images))
        assert_equal(ours(images), expected["out"])
        features = ours.extract(ours.backbone.normalize(images))
        ((weight, logits),) = ours.auxiliary(features)
    assert weight == 0.5
    assert_equal(F.interpolate(logits, size=(97, 130), mode="bilinear", align_corners=False), expected["aux"])


@pytest.mark.parametrize(("name", "backbone", "theirs_name", "options"), [PAIRS[0], PAIRS[4]])
def test_training_loss_equals(name: str, backbone: str, theirs_name: str, options: dict[str, Any]) -> None:
    # In double precision: batch statistics and fifty layers make 1e-4 out of the last bit of a float.
    ours, theirs = (model.train().double() for model in pair(name, backbone, theirs_name, options))
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 65, 97, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 65, 97), generator=generator, dtype=torch.uint8)
    labels[:, :20] = 255

    torch.manual_seed(3)  # dropout draws the same masks in the same order
    outputs = theirs(normalized(images.double()))
    out, aux = (F.cross_entropy(outputs[key], labels.long(), ignore_index=255) for key in ("out", "aux"))
    (out + 0.5 * aux).backward()
    torch.manual_seed(3)
    terms = ours.loss(Batch.of(images, [Semantic(row) for row in labels]))
    sum(terms.values()).backward()

    assert list(terms) == ["cross_entropy", "auxiliary"]
    torch.testing.assert_close(terms["cross_entropy"], out, rtol=1e-5, atol=0, check_dtype=False)
    torch.testing.assert_close(terms["auxiliary"], 0.5 * aux, rtol=1e-5, atol=0, check_dtype=False)
    gradients = dict(theirs.named_parameters())
    for key in ("classifier.4.weight", "classifier.0.convs.2.0.weight", "aux_classifier.0.weight"):
        if key in gradients:
            assert_equal(ours.get_parameter(key).grad, gradients[key].grad)


LRASPP_OPTIONS = {key: MOBILENET[key] for key in ("output_stride", "backbone_options")} | {"low_module": "blocks.2.0"}


def lraspp_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    randomize(theirs)
    ours = zoo.models.create_model("lraspp", CLASSES, **LRASPP_OPTIONS)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    return ours, theirs


def test_lraspp_equals() -> None:
    """Logits; then, in training and double precision, loss and gradients."""
    ours, theirs = (model.eval() for model in lraspp_pair())
    images = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_equal(ours(images), theirs(normalized(images))["out"])

    ours, theirs = (model.train().double() for model in (ours, theirs))
    labels = torch.arange(2 * 65 * 97).remainder(CLASSES).view(2, 65, 97).to(torch.uint8)
    labels[:, :20] = 255
    out = F.cross_entropy(theirs(normalized(images.double()))["out"], labels.long(), ignore_index=255)
    out.backward()
    term = ours.loss(Batch.of(images, [Semantic(row) for row in labels]))["cross_entropy"]
    term.backward()
    torch.testing.assert_close(term, out, rtol=1e-5, atol=0, check_dtype=False)
    gradients = dict(theirs.named_parameters())
    for key in ("classifier.cbr.0.weight", "classifier.scale.1.weight", "classifier.low_classifier.weight"):
        assert_equal(ours.get_parameter(key).grad, gradients[key].grad)
