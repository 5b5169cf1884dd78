"""wkentaro's FCNs: the reference's numbers, and the flat list of layers run as it stands beside ours."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch
import torch.nn.functional as F
from timm.models.vgg import VGG
from torch import Tensor, nn

import zoo
from zoo.errors import ZooError
from zoo.losses import create_loss
from zoo.models import create_model
from zoo.models.backbone import Backbone
from zoo.weights import wkentaro

BGR = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
NAME = {"fcn32s": "fcn32s", "fcn16s": "fcn16s", "fcn8s": "fcn8s", "fcn8s-atonce": "fcn8s"}
SCORES = {
    "fcn32s": {"upscore": 64},
    "fcn16s": {"upscore2": 4, "upscore16": 32},
    "fcn8s": {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16},
}


def layout(name: str, width: int, classes: int = 3) -> dict[str, tuple[int, ...]]:
    """The release's keys, with convolutions of `width` channels; the hidden layers have 4 and 4096."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            shapes[f"conv{stage}_{index}"] = (width, before, 3, 3)
            before = width
    shapes |= {"fc6": (4, width, 7, 7), "fc7": (4096, 4, 1, 1), "score_fr": (classes, 4096, 1, 1)}
    if name != "fcn32s":
        shapes["score_pool4"] = (classes, width, 1, 1)
    if name == "fcn8s":
        shapes["score_pool3"] = (classes, width, 1, 1)
    full = {f"{key}.{kind}": shape[: 1 if kind == "bias" else 4] for key, shape in shapes.items() for kind in KINDS}
    return full | {f"{key}.weight": (classes, classes, size, size) for key, size in SCORES[name].items()}


KINDS = ("weight", "bias")


def narrow(name: str, width: int = 5, **options: Any) -> nn.Module:
    """Our model with the trunk of `layout`."""
    stages = [[width] * count + ["M"] for count in (2, 2, 3, 3, 3)]
    model = VGG([part for stage in stages for part in stage], num_classes=0, mlp_ratio=1 / 1024)
    config = {"name": "vgg16", "in_channels": 3, "classifier": True}
    backbone = Backbone(
        "vgg16", model, [width] * 6, [1, 2, 4, 8, 16, 32], mean=[0.5] * 3, std=[0.5] * 3, config=config,
        taps="getter", indices=range(6),
    )  # fmt: skip
    return create_model(name, 3, backbone, **options).eval()


def run(state: dict[str, Tensor], x: Tensor, at_once: bool = False) -> Tensor:
    """The reference's network on BGR in 0..255 less the mean, key by key."""

    def conv(name: str, h: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def up(name: str, h: Tensor, stride: int) -> Tensor:
        return F.conv_transpose2d(h, state[f"{name}.weight"], stride=stride)

    def at(h: Tensor, start: int, like: Tensor) -> Tensor:
        return h[:, :, start : start + like.shape[2], start : start + like.shape[3]]

    h, pools = x, []
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            h = F.relu(conv(f"conv{stage}_{index}", h, padding=100 if stage == index == 1 else 1))
        h = F.max_pool2d(h, 2, 2, ceil_mode=True)
        pools.append(h)
    h = conv("score_fr", F.relu(conv("fc7", F.relu(conv("fc6", h)))))
    if "upscore.weight" in state:
        return at(up("upscore", h, 32), 19, x)
    h = up("upscore2", h, 2)
    h = h + at(conv("score_pool4", pools[3] * (0.01 if at_once else 1)), 5, h)
    if "upscore16.weight" in state:
        return at(up("upscore16", h, 16), 27, x)
    h = up("upscore_pool4", h, 2)
    h = h + at(conv("score_pool3", pools[2] * (0.0001 if at_once else 1)), 9, h)
    return at(up("upscore8", h, 8), 31, x)


@pytest.mark.parametrize("variant", list(NAME))
@torch.no_grad()
def test_equals_layer_by_layer(variant: str) -> None:
    """Padding, crops, the order of channels and the mean, at sizes that nothing divides; and the summed loss."""
    name, at_once = NAME[variant], variant == "fcn8s-atonce"
    state = golden.fill(layout(name, 5))
    model = narrow(name, **({"at_once": True} if at_once else {}))
    zoo.load_weights(model, {"epoch": 1, "arch": "FCN", "model_state_dict": state})
    labels = torch.randint(0, 3, (1, 45, 61))
    for size in ((1, 1), (45, 61)):
        image = golden.picture(64, 64)[..., : size[0], : size[1]]
        wanted = run(state, image.flip(1).float() - BGR, at_once)
        ours = model(image)
        assert ours.shape == wanted.shape == (1, 3, *size)
        # One pixel has next to no spread: of such an image the values themselves are the measure.
        assert (ours - wanted).abs().max() <= 1e-5 * max(wanted.max() - wanted.min(), wanted.abs().max())
    summed = F.nll_loss(wanted.log_softmax(1), labels, reduction="sum")
    loss = create_loss({"cross_entropy": {"reduction": "sum"}})(ours, labels.byte())["cross_entropy"]
    torch.testing.assert_close(loss, summed, rtol=1e-5, atol=0)


@torch.no_grad()
def test_golden_and_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The reference itself, at full width, on the same weights."""
    model = zoo.load(golden.fill(golden.shapes("wkentaro_fcn8s")))
    golden.check("wkentaro_fcn8s", model)
    assert (model.header["name"], model.backbone.name, model.caffe) == ("fcn8s", "vgg16", True)
    assert [c.name for c in model.classes][:2] == ["background", "aeroplane"]
    assert model.provenance["source"] == "wkentaro"
    assert model.provenance["assumed"]["at_once"] is False
    # What the normalised image is: BGR less the mean, in 0..255, but for the order.
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(model.backbone.normalize(pixel).flip(1), pixel.flip(1).float() - BGR)
    assert "wkentaro's fcn8s on vgg16; assumed padding=caffe, at_once=False" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fcn16s", "fcn32s"])
@torch.no_grad()
def test_golden_of_the_stages_before(name: str) -> None:
    model = zoo.load(golden.fill(golden.shapes(f"wkentaro_{name}")))
    assert (model.header["name"], model.caffe) == (name, True)
    golden.check(f"wkentaro_{name}", model)


@pytest.mark.parametrize("name", sorted(set(NAME.values())))
def test_which_model_the_keys_are_of(name: str) -> None:
    state = golden.fill(layout(name, 2, classes=7))
    assert wkentaro.recognizes(state)
    recipe = wkentaro.recipe(state)
    assert (recipe.name, recipe.classes, recipe.options["padding"]) == (name, 7, "caffe")
    assert recipe.state.keys() == narrow(name, 2).state_dict().keys()
    assert zoo.weights._source(state) == "wkentaro"


def test_the_next_stage_begins_with_these_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """The authors' 32s starts a 16s, as it starts the reference's."""
    state = golden.fill(layout("fcn32s", 5))
    model = narrow("fcn16s")
    zoo.load_weights(model, state)
    assert torch.equal(model.score_fr.weight, state["score_fr.weight"])
    assert torch.equal(model.backbone.model.features[0].weight, state["conv1_1.weight"].flip(1))
    assert not model.score_pool4.weight.any()
    assert (
        "fcn32s's weights begin this fcn16s; new are score_pool4 (zero), upscore16, upscore2" in capsys.readouterr().err
    )


def test_what_does_not_load() -> None:
    state = golden.fill(layout("fcn8s", 5))
    lost = dict(state)
    del lost["conv4_2.bias"]
    with pytest.raises(ZooError, match=r"missing +backbone\.model\.features\.19\.bias"):
        zoo.load_weights(narrow("fcn8s"), lost)
    with pytest.raises(ZooError, match="this FCN reads 1 channels"):
        wkentaro.recipe({**state, "conv1_1.weight": torch.zeros(5, 1, 3, 3)})
    with pytest.raises(ZooError, match=r"unexpected +upscore2\.weight"):
        zoo.load_weights(narrow("fcn8s", padding="same"), state)
