"""timm's networks with their weights: from a file, with fewer channels, with a classifier; and who does not serve."""

from __future__ import annotations

import pytest
import timm
import torch
from backbones import features, refusal

from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.models.families import backbone_names
from zoo.models.pretrained import check_complete


def test_hidden_layers_of_a_classifier(tmp_path) -> None:
    """fc6 and fc7 of VGG, with the weights of timm's file or torchvision's; the features are the same as without."""
    small = {"mlp_ratio": 1 / 64}  # 64 hidden units instead of 4096
    theirs = timm.create_model("vgg11", **small)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    hidden = theirs.pre_logits
    plain = create_backbone("vgg11", pretrained=tmp_path / "timm.pth", levels=6, **small)
    assert plain.hidden is None
    assert not any("pre_logits" in key for key in plain.state_dict())
    backbone = create_backbone("vgg11", pretrained=tmp_path / "timm.pth", levels=6, classifier=True, **small)
    assert torch.equal(backbone.hidden.fc1.weight, hidden.fc1.weight)
    assert torch.equal(backbone.state_dict()["model.pre_logits.fc2.weight"], hidden.fc2.weight)
    images = torch.rand(1, 3, 64, 96)
    maps = features(backbone, images)
    for ours, wanted in zip(maps, features(plain, images), strict=True):
        assert torch.equal(ours, wanted)
    with torch.no_grad():
        wanted = theirs.eval().forward_head(theirs.forward_features(backbone.normalize(images)), pre_logits=True)
        assert torch.equal(backbone.hidden(maps[-1]).mean((2, 3)), wanted)
    again = create_backbone(**backbone.config)
    again.load_state_dict(backbone.state_dict(), strict=True)
    assert (again.strides, again.config) == (backbone.strides, backbone.config)


def test_torchvisions_names_of_the_hidden_layers(tmp_path) -> None:
    """timm reads torchvision's files of VGG too, where these are linear layers: nothing is missing."""
    model = create_backbone("vgg11", classifier=True, mlp_ratio=1 / 64).model
    names = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}
    state = {key: value[:1].clone() for key, value in model.state_dict().items()}
    for ours, theirs in names.items():
        state |= {f"{theirs}.{kind}": state.pop(f"{ours}.{kind}") for kind in ("weight", "bias")}
    torch.save(state, tmp_path / "torchvision.pth")
    check_complete("vgg11", model, tmp_path / "torchvision.pth")
    del state["classifier.3.bias"]
    torch.save(state, tmp_path / "torchvision.pth")
    with pytest.raises(ZooError, match=r"lacks 1 of .*, such as pre_logits\.fc2\.bias"):
        check_complete("vgg11", model, tmp_path / "torchvision.pth")


def test_networks_without_hidden_layers_ignore_the_wish() -> None:
    backbone = create_backbone("test_resnet", classifier=True)
    assert backbone.hidden is None
    assert backbone.state_dict().keys() == create_backbone("test_resnet").state_dict().keys()


def test_misspelt_names() -> None:
    assert "did you mean convnext_tiny" in refusal(name="convnextt")
    assert "such as resnet50" in refusal(name="zzzz")
    assert "resnet50.a1_in1k" in refusal(name="resnet50.a1_in1kk")
    assert "swin" in refusal(name="swin_tiny_patch4_window7_225")


def test_misspelt_options() -> None:
    assert "drop_path_rat" in refusal(name="test_resnet", drop_path_rat=0.1)
    assert "8, 16 or 32, not 4" in refusal(name="test_resnet", output_stride=4)
    assert "'previous', 'full' or 'conv1', not 'ful'" in refusal(name="test_resnet", dilation="ful")


def test_no_pyramid() -> None:
    for name in ("vit_tiny_patch16_224", "convmixer_768_32", "mixer_s32_224", "hiera_tiny_224"):
        assert f"backbone {name} is bound to one image size or has no pyramid" in refusal(name=name)


def test_no_output_stride() -> None:
    message = refusal(name="swin_tiny_patch4_window7_224", output_stride=8)
    assert "cannot keep an output stride of 8" in message
    assert "resnet*" in message
    assert "densenet*" in message


def test_unreachable_weights() -> None:
    """Offline (the fixture cuts the network): which file, from where, and the way without."""
    message = refusal(name="test_resnet.r160_in1k", pretrained=True)
    for part in ("model.safetensors", "https://huggingface.co/timm/test_resnet.r160_in1k", "backbone.pretrained=false"):
        assert part in message
    assert "no pretrained weights" in refusal(name="darknet17", pretrained=True)
    assert "no file 'nowhere.pth'" in refusal(name="test_resnet", pretrained="nowhere.pth")


def test_weights_from_a_file(tmp_path) -> None:
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = create_backbone("test_resnet", pretrained=tmp_path / "weights.pth")
    assert torch.equal(backbone.model.conv1[0].weight, classifier.conv1[0].weight)
    assert "pretrained" not in backbone.config
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert "does not hold timm's weights" in refusal(name="test_resnet", pretrained=tmp_path / "other.pth")


def test_one_channel_sums_rgb_filters(tmp_path) -> None:
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    grey = create_backbone("test_resnet", pretrained=tmp_path / "weights.pth", in_channels=1)
    wanted = classifier.conv1[0].weight.sum(dim=1, keepdim=True)
    assert torch.allclose(grey.model.conv1[0].weight, wanted, atol=1e-6)


def test_what_serves() -> None:
    assert {"resnet50", "swin_tiny_patch4_window7_224"} <= set(backbone_names())
    assert "resnet50" in backbone_names(8)
    assert "swin_tiny_patch4_window7_224" not in backbone_names(8)
    assert "vit_tiny_patch16_224" not in backbone_names()
    assert set(backbone_names(16)) < set(backbone_names())
    assert len(backbone_names()) > 700
