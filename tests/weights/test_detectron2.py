"""detectron2's detectors: the layouts of its model zoo, what its files do not say, the numbers that come out.

`golden/detectron2_*.txt` are the state dicts of its configurations. On random weights of full size in double precision
its own code gives the same detections with FPN, C4, DC5, group norm, the cascade and keypoints: boxes to 0.006 pixels,
scores to 1e-5, 12 pixels of 14,726 in the masks. The numbers in `golden/detectron2_*.json` are this code's.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from golden import check, fill, shapes
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo.errors import ZooError
from zoo.models.backbone import create_backbone
from zoo.weights import _source
from zoo.weights.detectron2 import recipe
from zoo.weights.fitting import fit_state

BODY = ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "roi_heads.res5.")
THIN = {256: 16, 512: 16, 1024: 16, 12544: 16 * 49}
PIXELS = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}
HALF = {"variant": "fpn", "norm": None, "rpn_convs": 1, "box_convs": 0, "box_fcs": 2, "mask_convs": 4, "channels": 256}
FOUR = {"rpn_convs": 1, "box_convs": 4, "box_fcs": 1}
# Layout -> model, backbone, stride in the 1x1, and options that differ from HALF.
LAYOUTS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "mask_fpn": ("mask_rcnn", "resnet50", True, {}),
    "mask_c4": ("mask_rcnn", "resnet50", True, {"variant": "c4"}),
    "mask_dc5": ("mask_rcnn", "resnet50", True, {"variant": "dc5"}),
    "mask_x101": ("mask_rcnn", "resnext101_32x8d", False, {}),
    "mask_gn": ("mask_rcnn", "resnet50_gn", False, {**FOUR, "norm": "group"}),
    "mask_lsj": ("mask_rcnn", "resnet50", True, {**FOUR, "norm": "batch", "rpn_convs": 2}),
    "cascade": ("cascade_mask_rcnn", "resnet50", True, {}),
    "keypoint": ("keypoint_rcnn", "resnet50", True, {"keypoints": 17, "keypoint_convs": 8, "keypoint_channels": 512}),
}


def meta(name: str) -> dict[str, Tensor]:
    """Names and shapes; only what says how pixels are scaled has values."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes(f"detectron2_{name}").items()}
    return state | {key: torch.tensor(PIXELS[key]).view(3, 1, 1) for key in PIXELS if key in state}


def narrow(name: str) -> dict[str, Tensor]:
    """Weights for a layout with a narrow neck and narrow heads."""
    wanted = {}
    for key, shape in shapes(f"detectron2_{name}").items():
        whole = key.startswith(BODY) or (key.startswith("proposal") and name in ("mask_c4", "mask_dc5"))
        first = 1 if "fpn_lateral" in key else len(shape)
        wanted[key] = shape if whole else tuple(THIN.get(n, n) for n in shape[:first]) + shape[first:]
    return fill(wanted) | {key: torch.tensor(PIXELS[key]).view(3, 1, 1) for key in PIXELS if key in wanted}


@pytest.fixture(scope="module")
def fpn(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Any]:
    """Weights, and the model loaded from a file of them as the model zoo writes it."""
    state = narrow("mask_fpn")
    path = tmp_path_factory.mktemp("zoo") / "model_final_f10217.pkl"
    content = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, 2))
    return state, zoo.load(path)


class Everything(nn.Module):
    """Some of what the dense part and the heads give, the latter for two boxes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        dense = self.model(images)
        boxes = torch.tensor([[3.0, 5.5, 70.2, 90.0], [20.0, 10.0, 41.0, 33.3]])
        heads = self.model.probe(dense.pyramid, [boxes])
        parts = [x.flatten() for x in (*dense.objectness, *dense.offsets, *heads)]
        some = torch.cat([x[torch.linspace(0, len(x) - 1, 60).long()] for x in parts])
        return some.sign() * some.abs().log1p()


@pytest.mark.parametrize("name", ["mask_fpn", "mask_c4", "mask_dc5", "mask_gn"])
def test_the_numbers_that_were_compared_with_the_source(name: str, fpn: tuple[dict[str, Tensor], Any]) -> None:
    model = fpn[1] if name == "mask_fpn" else zoo.load(narrow(name))
    check(f"detectron2_{name}", Everything(model))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_fits(name: str) -> None:
    model_name, backbone, stride, options = LAYOUTS[name]
    state = meta(name)
    assert _source(state) == "detectron2"
    found = recipe(state)
    assert (found.source, found.name, found.backbone["name"]) == ("detectron2", model_name, backbone)
    assert found.backbone["stride_in_1x1"] is stride
    wanted = {**HALF, **options}
    assert {key: found.options[key] for key in wanted if key in found.options} == {
        key: value for key, value in wanted.items() if key in found.options
    }
    assert options.items() <= found.options.items()
    assert len(found.classes) == (1 if name == "keypoint" else 80)
    assert (found.options["test_size"], found.options["test_limit"]) == (800, 1333)
    assert found.options["conventions"] == "detectron2"
    assert found.options["frozen_stages"] == (0 if name == "mask_lsj" else 1)
    assert found.options.get("frozen_norm") == {"mask_gn": None, "mask_lsj": False}.get(name, True)
    with torch.device("meta"):
        model = found.build()
    fit_state(model, found.state, name)
    strides = [model.backbone.model.layer2[0].get_submodule(f"conv{i}").stride for i in (1, 2)]
    assert strides == ([(2, 2), (1, 1)] if stride else [(1, 1), (2, 2)])
    assert model.anchors.per_cell == (15 if name in ("mask_c4", "mask_dc5") else 3)


def test_what_is_assumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    without = recipe(meta("mask_fpn"))
    assert without.assumed.items() >= {"channels": "BGR", "stride_in_1x1": True, "classes": "COCO's"}.items()
    assert without.backbone["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert without.backbone["std"] == pytest.approx([1 / 255] * 3)
    assert isinstance(without.classes, list)
    assert (without.classes[0], without.classes[11], without.classes[79]) == ("person", "stop sign", "toothbrush")
    told = recipe(meta("mask_c4"))
    assert not {"channels", "mean", "std"} & told.assumed.keys()
    assert told.backbone["std"] == pytest.approx([1 / 255] * 3)
    assert recipe(meta("mask_x101")).backbone["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_a_file_s_own_pixel_scale_decides() -> None:
    """torchvision's ResNet-50 in detectron2: RGB, divided by a standard deviation, stride in the 3x3."""
    state = meta("mask_fpn")
    state["backbone.bottom_up.stem.conv1.weight"] = torch.arange(3.0).view(1, 3, 1, 1).expand(64, 3, 7, 7)
    state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    state["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    rgb = recipe(state)
    assert rgb.backbone["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert rgb.backbone["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert rgb.backbone["stride_in_1x1"] is False
    assert rgb.state["backbone.model.conv1.weight"][0, :, 0, 0].tolist() == [0, 1, 2]
    state |= {key: state[key].flip(0) for key in PIXELS}
    bgr = recipe(state)
    assert bgr.backbone["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert bgr.state["backbone.model.conv1.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    changed = recipe(meta("mask_fpn")).override({"stride_in_1x1": False, "std": [0.229, 0.224, 0.225]})
    assert changed.backbone["stride_in_1x1"] is False
    assert not {"stride_in_1x1", "std"} & changed.assumed.keys()


def test_anchors_of_old_files_are_read() -> None:
    state, key = meta("mask_fpn"), "proposal_generator.anchor_generator.cell_anchors."
    for level, size in enumerate((16, 32, 64, 128, 256)):
        half = [(size / 2**0.5, size * 2**0.5), (size, size)]  # heights over widths 2 and 1
        state[f"{key}{level}"] = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in half])
    found = recipe(state)
    assert found.options["anchor_sizes"] == [16, 32, 64, 128, 256]
    assert found.options["anchor_ratios"] == [2, 1]
    assert not any("anchor" in name for name in found.state)


def test_pixels_reach_the_first_layer_as_there(fpn: tuple[dict[str, Tensor], Any]) -> None:
    """There: BGR from 0 to 255 less the mean. Here: RGB, normalised, on weights whose channels changed places."""
    state, model = fpn
    image = torch.randint(0, 256, (1, 3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bgr = image.flip(1).float() - torch.tensor(PIXELS["pixel_mean"]).view(3, 1, 1)
    wanted = F.conv2d(bgr, state["backbone.bottom_up.stem.conv1.weight"], stride=2, padding=3)
    with torch.no_grad():
        found = model.backbone.model.conv1(model.backbone.normalize(image))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_block_of_msra_halves_the_size_first(fpn: tuple[dict[str, Tensor], Any]) -> None:
    """res3's first block by hand: its first convolution leaves out every other cell, its second none."""
    state, model = fpn
    x = torch.randn(1, 256, 17, 22, generator=torch.Generator().manual_seed(0))

    def layer(name: str, x: Tensor, **options: int) -> Tensor:
        own = {key.removeprefix(f"backbone.bottom_up.res3.0.{name}."): value for key, value in state.items()}
        y = F.conv2d(x, own["weight"], **options)
        scale = own["norm.weight"] / (own["norm.running_var"] + 1e-5).sqrt()
        return y * scale.view(-1, 1, 1) + (own["norm.bias"] - own["norm.running_mean"] * scale).view(-1, 1, 1)

    y = F.relu(layer("conv2", F.relu(layer("conv1", x, stride=2)), padding=1))
    wanted = F.relu(layer("conv3", y) + layer("shortcut", x, stride=2))
    with torch.no_grad():
        found = model.backbone.model.layer2[0](x.clone())
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_block_of_resnext_halves_the_size_second_and_in_groups() -> None:
    """res3's first block of X101 by hand; all of the network was compared once with the source, in double precision."""
    key = "backbone.bottom_up.res3.0."
    own = fill({name: shape for name, shape in shapes("detectron2_mask_x101").items() if name.startswith(key)})
    found = recipe(meta("mask_x101") | own)
    with torch.device("meta"):
        block = found.build().backbone.model.layer2[0]
    block = block.to_empty(device="cpu").eval()
    ours = "backbone.model.layer2.0."
    block.load_state_dict({k.removeprefix(ours): v for k, v in found.state.items() if k.startswith(ours)}, strict=False)
    x = torch.randn(1, 256, 17, 22, generator=torch.Generator().manual_seed(0))

    def layer(name: str, x: Tensor, **options: int) -> Tensor:
        y = F.conv2d(x, own[f"{key}{name}.weight"], **options)
        norm = [own[f"{key}{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *norm, eps=1e-5)

    y = F.relu(layer("conv2", F.relu(layer("conv1", x)), stride=2, padding=1, groups=32))
    wanted = F.relu(layer("conv3", y) + layer("shortcut", x, stride=2))
    with torch.no_grad():
        got = block(x.clone())
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_stride_is_in_the_config_and_only_for_bottlenecks(fpn: tuple[dict[str, Tensor], Any]) -> None:
    config = fpn[1].header["backbone"]
    assert config["stride_in_1x1"] is True
    with torch.device("meta"):
        again = create_backbone(**config)
    assert [stage[0].conv1.stride for stage in (again.model.layer2, again.model.layer4)] == [(2, 2), (2, 2)]
    with pytest.raises(ZooError, match="resnet18 has no stride_in_1x1: it is for resnet50"):
        create_backbone("resnet18", stride_in_1x1=True)
    with pytest.raises(ZooError, match=r"unet has no .* or stride_in_1x1"):
        create_backbone("unet", stride_in_1x1=True)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("sem_seg_head.predictor.weight", "a Panoptic FPN"),
        ("backbone.bottom_up.res3.0.conv2_offset.weight", "deformable convolutions"),
    ],
)
def test_what_no_model_here_has_is_refused(part: str, what: str) -> None:
    with pytest.raises(ZooError, match=what):
        recipe(meta("mask_fpn") | {part: torch.zeros(1)})


def test_boxes_alone_are_refused() -> None:
    state = {key: value for key, value in meta("mask_fpn").items() if "mask_head" not in key}
    with pytest.raises(ZooError, match="Faster R-CNN or RPN, which draws boxes alone"):
        zoo.load(state)
    state = meta("mask_fpn")
    state["roi_heads.box_predictor.bbox_pred.weight"] = torch.empty(4, 1024, device="meta")
    with pytest.raises(ZooError, match="the same for every class"):
        recipe(state)
    cut = {key: value for key, value in meta("mask_fpn").items() if "res4" not in key}
    with pytest.raises(ZooError, match=r"no ResNet that the zoo knows: name it, zoo\.load\(x, backbone="):
        recipe(cut)
