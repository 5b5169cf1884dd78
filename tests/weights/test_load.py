"""Checkpoints of our own, checkpoints that do not fit, and files that are no checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

import zoo
from zoo.checkpoint import model_file, read, save, save_model
from zoo.errors import ZooError
from zoo.weights import build

CLASSES = ["sky", "road", "car"]


def small(classes: int | list[str] = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create_model("fcn", classes, "test_resnet", output_stride=16, **options).eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def refusal(model: nn.Module, state: object, **options: bool) -> str:
    """The error of loading `state` into `model`, which must be untouched by it."""
    before = weights(model)
    with pytest.raises(ZooError) as error:
        zoo.load_weights(model, state, **options)
    assert same(before, weights(model)), "half loaded"
    return str(error.value)


# ---- ours


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "unet"])
def test_ours_comes_back(tmp_path: Path, name: str) -> None:
    first = zoo.create_model(name, CLASSES, "test_resnet", in_channels=4, flip=True).eval()
    save_model(tmp_path / "best.ckpt", first)
    second = zoo.load(tmp_path / "best.ckpt")
    assert same(weights(first), weights(second))
    assert second.header == first.header
    assert second.classes == first.classes
    assert second.flip
    assert second.provenance == {"source": "zoo", "file": str(tmp_path / "best.ckpt"), "assumed": {}}
    images = torch.randint(0, 256, (1, 4, 33, 47), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_the_papers_unet_comes_back(tmp_path: Path) -> None:
    first = zoo.create_model("unet", 2, "unet", in_channels=1, padding="valid").eval()
    save_model(tmp_path / "best.ckpt", first)
    assert same(weights(first), weights(zoo.load(tmp_path / "best.ckpt")))


def test_build_takes_what_read_gives(tmp_path: Path) -> None:
    first = small()
    save_model(tmp_path / "best.ckpt", first)
    assert same(weights(first), weights(build(read(tmp_path / "best.ckpt"))))


def test_last_checkpoint_gives_the_average(tmp_path: Path) -> None:
    """Of a run that averages its weights it is the average that was evaluated."""
    model, average = small(), weights(small())
    for value in average.values():
        value.add_(1)
    save(tmp_path / "last.ckpt", model_file(model, training={"average": average}))
    assert same(weights(zoo.load(tmp_path / "last.ckpt")), average)
    save(tmp_path / "last.ckpt", model_file(model, training={"average": None}))
    assert same(weights(zoo.load(tmp_path / "last.ckpt")), weights(model))


def test_options_of_ours(tmp_path: Path) -> None:
    save_model(tmp_path / "best.ckpt", small())
    model = zoo.load(tmp_path / "best.ckpt", scales=[0.5, 1.0], classes=CLASSES, output_stride=32)
    assert model.scales == (0.5, 1.0)
    assert [c.name for c in model.classes] == CLASSES
    assert model.backbone.strides[-1] == 32
    with pytest.raises(ZooError, match="4 keys do not fit"):
        zoo.load(tmp_path / "best.ckpt", classes=7)
    with pytest.raises(ZooError, match="unknown option of fcn 'flipp': did you mean flip"):
        zoo.load(tmp_path / "best.ckpt", flipp=True)


def test_a_header_that_lacks_something(tmp_path: Path) -> None:
    file = model_file(small())
    file["header"] = {"name": "fcn"}
    with pytest.raises(ZooError, match="lacks classes, backbone, options"):
        zoo.load(file)
    with pytest.raises(ZooError, match="no header or no weights"):
        zoo.load({"format": "zoo", "version": 1})


# ---- what does not fit


def test_table_names_every_key() -> None:
    model = small()
    state = weights(model)
    renamed = "backbone.model.layer2.0.conv1.weight"
    state["old_name"] = state.pop(renamed)
    state["classifier.1.running_mean"] = torch.zeros(99)
    text = refusal(model, state)
    lines = [line.split() for line in text.splitlines()[1:]]
    assert "3 keys do not fit" in text.splitlines()[0]
    assert [line[:2] for line in lines] == [
        ["missing", renamed],
        ["unexpected", "old_name"],
        ["shape", "classifier.1.running_mean"],
    ]
    assert "(99,) in the checkpoint" in text


def test_another_model(tmp_path: Path) -> None:
    other = zoo.create_model("unet", 3, "test_resnet")
    save_model(tmp_path / "unet.ckpt", other)
    text = refusal(small(), tmp_path / "unet.ckpt")
    assert f"{tmp_path / 'unet.ckpt'} does not fit this fcn" in text
    assert "decoder.blocks.0.conv1.0.weight" in text


def test_another_backbone() -> None:
    text = refusal(zoo.create_model("fcn", 3, "test_efficientnet"), model_file(small()))
    assert "backbone.model.conv_stem.weight" in text


def test_counts_of_batches_may_be_missing() -> None:
    """Checkpoints older than PyTorch 0.4.1 have none."""
    model, target = small(), small()
    with torch.no_grad():
        model.classifier[4].weight.add_(1)
    zoo.load_weights(target, {k: v for k, v in weights(model).items() if not k.endswith("num_batches_tracked")})
    assert same(weights(model), weights(target))


# ---- another number of classes


def test_skip_head() -> None:
    source, target = small(3), small(7)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    before = weights(target)
    text = refusal(target, weights(source))
    assert "skip_head=True" in text
    assert "4 keys do not fit" in text
    zoo.load_weights(target, weights(source), skip_head=True)
    heads = {f"{head}.4.{kind}" for head in ("classifier", "aux_classifier") for kind in ("weight", "bias")}
    for key, value in target.state_dict().items():
        assert torch.equal(value, (before if key in heads else source.state_dict())[key]), key


def test_skip_head_with_as_many_classes() -> None:
    """Other classes, as many of them: the head is left alone all the same."""
    source, target = small(3), small(3)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    before = weights(target)
    zoo.load_weights(target, model_file(source), skip_head=True)
    assert torch.equal(target.classifier[4].weight, before["classifier.4.weight"])
    assert torch.equal(target.classifier[0].weight, source.classifier[0].weight)


def test_skip_head_is_strict_otherwise() -> None:
    state = weights(small(3))
    del state["classifier.0.weight"]
    assert "missing     classifier.0.weight" in refusal(small(7), state, skip_head=True)


# ---- foreign weights in a model of yours


def test_foreign_weights_bring_their_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    model = zoo.create_model("fcn", 5, "resnet50", backbone_options={"mean": [0.1] * 3, "dilation": "full"})
    zoo.load_weights(model, theirs.state_dict(), skip_head=True)
    assert torch.equal(model.backbone.model.layer4[0].conv2.weight, theirs.backbone.layer4[0].conv2.weight)
    assert model.backbone.config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert model.header["backbone"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    printed = capsys.readouterr().err
    assert "dilation=previous (here full)" in printed
    assert "align_corners" not in printed


# ---- files that are no checkpoints


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    trap, model = tmp_path / "executed", small()
    torch.save({"state_dict": Malicious(trap)}, tmp_path / "zip.pth", pickle_protocol=protocol)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"state_dict": Malicious(trap)}, protocol=protocol))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(ZooError, match=rf"{name} "):
            zoo.load(tmp_path / name)
        refusal(model, tmp_path / name)
    assert not trap.exists()


def test_not_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello, this is no checkpoint")
    (tmp_path / "empty").mkdir()
    torch.save({"a": 1, "b": "two"}, tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "nothing.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "classifier.pth")
    for name, reason in {
        "text.pth": "damaged or no checkpoint",
        "absent.pth": "does not exist",
        "empty": r"needs config\.json and model\.safetensors",
        "numbers.pth": "'a', which is no tensor",
        "nothing.pth": "holds nothing",
        "classifier.pth": r"no known layout \(keys such as conv1\.weight\).*backbone\.pretrained=FILE",
    }.items():
        with pytest.raises(ZooError, match=reason):
            zoo.load(tmp_path / name)
