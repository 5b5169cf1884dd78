"""FCN-32s, 16s, 8s: any size in the release's geometry, cells where they belong, stages that begin where one ended."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vgg import VGG
from torch import Tensor, nn

import zoo
from zoo.checkpoint import model_file, save_model
from zoo.errors import ZooError
from zoo.models import create_model
from zoo.models.backbone import Backbone, create_backbone
from zoo.models.fcn8s import bilinear_deconvolution, crop
from zoo.structures import Batch, Semantic

STAGES = ("fcn32s", "fcn16s", "fcn8s")
SMALL: dict[str, Any] = {"backbone_options": {"mlp_ratio": 1 / 64}}  # VGG's hidden layers: 64 units, then 4096


def narrow_vgg(norm_layer: type[nn.Module] | None = None) -> Backbone:
    """A VGG with all its pools and hidden layers and few channels."""
    channels = [4, 6, 8, 10, 12]
    parts = [part for width in channels for part in (width, "M")]
    model = VGG(parts, num_classes=0, mlp_ratio=1 / 512, norm_layer=norm_layer)
    config = {"name": "vgg", "in_channels": 3, "classifier": True}
    return Backbone(
        "vgg", model, [*channels, 12], [1, 2, 4, 8, 16, 32], mean=[0.5] * 3, std=[0.25] * 3, config=config,
        taps="getter", indices=range(6), smallest=32,
    )  # fmt: skip


def small(name: str, classes: int = 3, **options: Any) -> nn.Module:
    """A model on the narrow VGG, with score layers that are not zero."""
    torch.manual_seed(0)
    model = create_model(name, classes, narrow_vgg(), **options).eval()
    for layer in scores(model).values():
        nn.init.normal_(layer.weight, std=0.1)
        nn.init.normal_(layer.bias)
    return model


def scores(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in model.named_children() if name.startswith("score_")}


def deconvolutions(model: nn.Module) -> dict[str, nn.ConvTranspose2d]:
    return {name: layer for name, layer in model.named_children() if name.startswith("upscore")}


def test_parameters_and_layers_of_the_release() -> None:
    backbone = create_backbone("vgg16", classifier=True, mlp_ratio=1 / 64)
    with torch.device("meta"):  # instead of these: 120 million numbers that nobody looks at
        hidden = nn.Sequential(nn.Conv2d(512, 4096, 7), nn.Conv2d(4096, 4096, 1))
    extra = sum(p.numel() for p in hidden.parameters()) - sum(p.numel() for p in backbone.hidden.parameters())
    for name, expected, layers in (
        ("fcn32s", 136_152_917, {"score_fr": 4096, "upscore": 64}),
        ("fcn16s", 134_815_994, {"score_fr": 4096, "score_pool4": 512, "upscore2": 4, "upscore16": 32}),
        ("fcn8s", 134_489_759, {
            "score_fr": 4096, "score_pool4": 512, "score_pool3": 256, "upscore2": 4, "upscore_pool4": 4, "upscore8": 16,
        }),
    ):  # fmt: skip
        model = create_model(name, 21, backbone)
        assert sum(p.numel() for p in model.parameters()) + extra == expected
        found = {layer: module.in_channels for layer, module in scores(model).items()}
        found |= {layer: module.kernel_size[0] for layer, module in deconvolutions(model).items()}
        assert found == layers


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [(1, 1), (2, 31), (32, 33), (97, 64), (200, 333)])
@torch.no_grad()
def test_the_releases_geometry_takes_any_size(name: str, size: tuple[int, int]) -> None:
    """Nothing is resized: the crops themselves have the image's size, and no pool's map is trimmed."""
    model = small(name)
    assert model.caffe
    x = torch.rand(1, 3, *size)
    features = model.extract(model.backbone.normalize(x))
    for feature, stride in zip(features, model.backbone.strides, strict=True):
        assert feature.shape[-2:] == tuple(-(-(length + 198) // stride) for length in size)
    assert model.decode(features, size).shape == (1, 3, *size)
    assert model(x).std() > 0 or size == (1, 1)


@torch.no_grad()
def test_equals_the_network_written_out() -> None:
    """Layer by layer as the release has it, 100 pixels of padding in the first convolution."""
    model = small("fcn8s", padding="caffe")
    image = torch.rand(1, 3, 45, 70)
    h, taps = model.backbone.normalize(image), []
    for index, layer in enumerate(model.backbone.model.features):
        if index == 0:
            h = F.conv2d(h, layer.weight, layer.bias, padding=100)
        elif isinstance(layer, nn.MaxPool2d):
            h = F.max_pool2d(h, 2, 2, ceil_mode=True)
            taps.append(h)
        else:
            h = layer(h)
    hidden = model.backbone.hidden
    h = F.relu(F.conv2d(h, hidden.fc1.weight, hidden.fc1.bias))
    h = model.score_fr(F.relu(F.conv2d(h, hidden.fc2.weight, hidden.fc2.bias)))
    h = model.upscore2(h)
    h = h + model.score_pool4(taps[3])[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
    h = model.upscore_pool4(h)
    h = h + model.score_pool3(taps[2])[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
    wanted = model.upscore8(h)[:, :, 31 : 31 + 45, 31 : 31 + 70]
    spread = wanted.max() - wanted.min()
    assert (model(image) - wanted).abs().max() <= 1e-6 * spread
    at_once = small("fcn8s", at_once=True)
    at_once.load_state_dict(model.state_dict())
    with torch.no_grad():
        model.score_pool4.weight.mul_(0.01)
        model.score_pool3.weight.mul_(0.0001)
    assert (at_once(image) - model(image)).abs().max() <= 1e-6 * spread


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_every_score_lands_on_the_pixels_it_was_computed_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps that hold the centre of each cell, in pixels of the image, come out as the pixels' own coordinates.

    conv1_1's 100 pixels shift a pool's cell by 99: cell i of stride s is centred at s*i + (s-1)/2 - 99, and fc6, seven
    cells wide, three cells further.
    """

    def cells(stride: int, length: int = 40, shift: int = 0) -> Tensor:
        centres = stride * (torch.arange(length) + shift) + (stride - 1) / 2 - 99
        return centres.double().expand(1, 1, length, length)

    model = create_model(name, 1, narrow_vgg()).eval().double()
    for layer in scores(model).values():
        layer.weight = nn.Parameter(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    fc7 = cells(32, length=20, shift=3)
    monkeypatch.setattr(model, "convolve_classifier", lambda x: fc7)
    monkeypatch.setattr(model, "finer", lambda features, index: cells(16 >> index, length=120))
    side = 32 * 18
    found = model.decode([fc7], (side, side))[0, 0, side // 2] / len(scores(model))
    inside = slice(64, -64)
    assert torch.allclose(found[inside], torch.arange(side).double()[inside], atol=1e-9, rtol=0)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_deconvolutions_are_bilinear(factor: int) -> None:
    """Away from the border, and cropped by half a cell, they are what resizing without aligned corners gives."""
    deconvolution = bilinear_deconvolution(3, factor).double()
    assert not deconvolution.weight.requires_grad
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        ours = crop(deconvolution(x), factor // 2, (7 * factor, 5 * factor))
    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    assert (ours[inside] - wanted[inside]).abs().max() < 1e-12
    assert (ours - wanted).abs().max() > 1e-3  # beyond the map the one sees zeros, the other the last cell


def test_which_deconvolutions_learn() -> None:
    frozen = create_model("fcn8s", 2, narrow_vgg())
    assert [m.weight.requires_grad for m in deconvolutions(frozen).values()] == [False] * 3
    learned = create_model("fcn8s", 2, narrow_vgg(), learn_upsampling=True)
    assert {name: m.weight.requires_grad for name, m in deconvolutions(learned).items()} == {
        "upscore2": True, "upscore_pool4": True, "upscore8": False,
    }  # fmt: skip
    with pytest.raises(ZooError, match=r"^learn_upsampling=True is for padding='caffe'"):
        create_model("fcn8s", 2, "test_resnet", learn_upsampling=True)


def test_the_releases_geometry_learns() -> None:
    """From scores of zero, through frozen deconvolutions: quadrants of four colours."""
    torch.manual_seed(0)
    model = create_model("fcn8s", 4, narrow_vgg(nn.BatchNorm2d), dropout=0.1).train()
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:32, 32:], labels[32:, :32], labels[32:, 32:] = 1, 2, 3
    image = torch.rand(4, 3)[labels.long()].permute(2, 0, 1)
    batch = Batch.of((image + 0.1 * torch.rand(2, 3, 64, 64)).clamp(0, 1), [Semantic(labels), Semantic(labels)])
    before = {name: layer.weight.clone() for name, layer in deconvolutions(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = sum(model.loss(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=1e-4)
    assert losses[-1] < 0.35 * losses[0]
    assert all(torch.equal(layer.weight, before[name]) for name, layer in deconvolutions(model).items())


# ---- the other geometry, other backbones


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [(1, 1), (20, 33), (31, 200)])
@torch.no_grad()
def test_the_same_size_geometry(name: str, size: tuple[int, int]) -> None:
    model = small(name, padding="same")
    assert not deconvolutions(model)
    assert model(torch.rand(1, 3, *size)).shape == (1, 3, *size)
    features = model.extract(torch.zeros(1, 3, 96, 64))
    assert model.convolve_classifier(features[-1]).shape[-2:] == (3, 2)
    assert model.decode(features, (96, 64)).shape[-2:] == {"fcn32s": (3, 2), "fcn16s": (6, 4), "fcn8s": (12, 8)}[name]


@torch.no_grad()
def test_one_backbone_serves_both_geometries() -> None:
    """The geometry is the model's: whoever else holds the backbone sees nothing of it."""
    backbone = narrow_vgg().eval()
    image = torch.rand(1, 3, 50, 40)
    plain = backbone.extract(image)
    models, wanted = [], []
    for padding in ("caffe", "same"):
        torch.manual_seed(0)
        alone = create_model("fcn8s", 2, deepcopy(backbone), padding=padding).eval()
        models.append(create_model("fcn8s", 2, backbone, padding=padding).eval())
        for layer in scores(alone).values():
            nn.init.normal_(layer.weight, std=0.1)
        models[-1].load_state_dict(alone.state_dict())
        wanted.append(alone(image))
    for _ in range(2):
        for model, expected in zip(models, wanted, strict=True):
            torch.testing.assert_close(model(image), expected)
    assert wanted[0].std() > 0
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(backbone.extract(image), plain, strict=True))


@torch.no_grad()
def test_vgg_pools_what_it_scores() -> None:
    """The skips of a VGG read pool4 and pool3, whose maps the backbone gives before their pools; others' are plain."""
    vgg = small("fcn8s", padding="same")
    h, taps = torch.rand(1, 3, 64, 96), []
    features = vgg.extract(h)
    for layer in vgg.backbone.model.features:
        h = layer(h)
        if isinstance(layer, nn.MaxPool2d):
            taps.append(h)
    assert torch.equal(vgg.finer(features, 0), taps[3])
    assert torch.equal(vgg.finer(features, 1), taps[2])
    other = create_model("fcn8s", 3, "test_resnet")
    features = other.extract(torch.rand(1, 3, 64, 96))
    assert other.finer(features, 0) is features[-2]
    assert other.finer(features, 1) is features[-3]
    assert other.convolve_classifier(features[-1]) is features[-1]


@pytest.mark.parametrize("stride", [8, 16])
@torch.no_grad()
def test_a_dilated_vgg(stride: int) -> None:
    model = create_model("fcn8s", 3, "vgg11", output_stride=stride, **SMALL).eval()
    assert not model.caffe
    assert model(torch.rand(1, 3, 65, 80)).shape == (1, 3, 65, 80)


@pytest.mark.parametrize("name", STAGES)
def test_a_paper_network_begins_with_scores_of_zero(name: str) -> None:
    vgg = create_model(name, 4, narrow_vgg()).eval()
    with torch.no_grad():
        assert not vgg(torch.rand(1, 3, 40, 33)).any()
    other = create_model(name, 4, "test_resnet")
    assert [bool(layer.weight.any()) for layer in scores(other).values()] == [True, *[False] * (len(scores(other)) - 1)]


def test_dropout_falls_on_elements_of_both_hidden_layers() -> None:
    model = small("fcn32s", dropout=0.75).train()
    hidden, between = model.backbone.hidden, []
    for layer in (hidden.fc1, hidden.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)
    hidden.fc2.register_forward_pre_hook(lambda module, inputs: between.append(inputs[0]))
    out = model.convolve_classifier(torch.rand(1, 12, 38, 38))
    for x in (*between, out):
        assert set(x.unique().tolist()) == {0.0, 4.0}
        assert float((x == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
        assert not (x == 0).all(dim=(2, 3)).any()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ZooError, match=r"^unknown padding 'valid' of an FCN: caffe or same$"):
        create_model("fcn8s", 2, "test_resnet", padding="valid")
    for backbone, options in (("test_resnet", {}), ("vgg11", {"output_stride": 16, **SMALL})):
        with pytest.raises(ZooError, match=rf"^padding='caffe' is the geometry of a VGG .* which {backbone} is not"):
            create_model("fcn8s", 2, backbone, padding="caffe", **options)
    with pytest.raises(ZooError, match="this FCN reads 3 levels, backbone test_resnet has 2"):
        create_model("fcn8s", 2, create_backbone("test_resnet", levels=2))


# ---- training in stages


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("padding", ["caffe", "same"])
@torch.no_grad()
def test_a_stage_begins_where_the_last_one_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], padding: str
) -> None:
    """32s -> 16s -> 8s: everything shared is copied, the new scores are zero."""
    images = torch.rand(1, 3, 64, 96)
    last = small("fcn32s", padding=padding)
    for name, new in (("fcn16s", "score_pool4"), ("fcn8s", "score_pool3")):
        save_model(tmp_path / f"{last.header['name']}.ckpt", last)
        torch.manual_seed(1)
        stage = create_model(name, 3, narrow_vgg(), padding=padding).eval()
        built = everything(stage)
        zoo.load_weights(stage, tmp_path / f"{last.header['name']}.ckpt")
        line = capsys.readouterr().err.splitlines()
        assert len(line) == 1
        assert f"{last.header['name']}'s weights begin this {name}; new are {new} (zero)" in line[0]
        before = everything(last)
        for key, value in stage.state_dict().items():
            assert torch.equal(value, before[key] if key in before else built[key]), key
        fresh = {key for key in built if key not in before}
        assert {key.partition(".")[0] for key in fresh if not key.startswith("upscore")} == {new}
        features = last.extract(images)
        a, b = (model.score_fr(model.convolve_classifier(features[-1])) for model in (last, stage))
        assert torch.equal(a, b)
        nn.init.normal_(getattr(stage, new).weight, std=0.01)
        last = stage


def test_a_start_with_other_classes() -> None:
    first, second = small("fcn32s", classes=5), create_model("fcn16s", 3, narrow_vgg())
    before = everything(second)
    with pytest.raises(ZooError, match="skip_head=True"):
        zoo.load_weights(second, model_file(first))
    assert all(torch.equal(value, before[key]) for key, value in second.state_dict().items())
    zoo.load_weights(second, model_file(first), skip_head=True)
    assert torch.equal(second.backbone.hidden.fc1.weight, first.backbone.hidden.fc1.weight)
    assert not second.score_fr.weight.any()


def test_only_a_stage_after_its_predecessor_may_lack_weights() -> None:
    fcn = {name: small(name) for name in STAGES}
    for target, source in (("fcn8s", "fcn32s"), ("fcn16s", "fcn8s"), ("fcn32s", "fcn16s")):
        with pytest.raises(ZooError, match=rf"does not fit this {target}"):
            zoo.load_weights(fcn[target], model_file(fcn[source]))
    file = model_file(fcn["fcn32s"])
    del file["state"]["score_fr.bias"]
    file["state"]["odd"] = torch.zeros(1)
    with pytest.raises(ZooError, match="2 keys do not fit") as error:
        zoo.load_weights(fcn["fcn16s"], file)
    assert "missing     score_fr.bias" in str(error.value)
    with pytest.raises(ZooError, match=r"unexpected  upscore\.weight"):
        zoo.load_weights(small("fcn16s", padding="same"), model_file(fcn["fcn32s"]))


@torch.no_grad()
def test_a_header_brings_the_geometry_back() -> None:
    """Of a real VGG, with five channels."""
    first = create_model("fcn8s", 3, "vgg11", in_channels=5, **SMALL).eval()
    for layer in scores(first).values():
        nn.init.normal_(layer.weight, std=0.1)
    second = zoo.load(model_file(first)).eval()
    images = torch.rand(1, 5, 37, 61)
    assert second.caffe
    assert torch.equal(first(images), second(images))
    with pytest.raises(zoo.ZooError, match=r"unexpected  upscore2\.weight"):  # the other geometry has no such layers
        zoo.load(model_file(first), padding="same")
