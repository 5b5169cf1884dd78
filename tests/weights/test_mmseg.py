"""mmsegmentation's layout: what its keys, and the config beside them, tell; and what its models put out."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import ZooError
from zoo.models.semantic import window_starts
from zoo.weights import mmseg
from zoo.weights.recipe import Recipe

Shapes = dict[str, tuple[int, ...]]
CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c', depth=50, dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='FCNHead', dilation=6, dropout_ratio=0.2, align_corners=True, loss_decode=dict(loss_weight=1.0)),
    auxiliary_head=dict(type='FCNHead', loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.25)))
img_norm_cfg = dict(mean=[51.0, 102.0, 153.0], std=[255.0, 51.0, 25.5], to_rgb=True)
data = dict(samples_per_gpu=2, train=dict(pipeline=[dict(type='Resize', ratio_range=(0.5, 2.0))]))
"""


def described(shapes: Shapes) -> dict[str, Tensor]:
    """A state dict that has shapes alone: enough for a recipe."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def conv_module(name: str, inner: int, outer: int, kernel: int = 1) -> Shapes:
    norms = {f"{name}.bn.{leaf}": (outer,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.conv.weight": (outer, inner, kernel, kernel), **norms}


def without_head(prefix: str = "decode_head.") -> Shapes:
    return {key: shape for key, shape in golden.shapes("mmseg_fcn50").items() if not key.startswith(prefix)}


def pspnet() -> Shapes:
    head = {"decode_head.conv_seg.weight": (19, 512, 1, 1), "decode_head.conv_seg.bias": (19,)}
    for index in range(4):
        head |= conv_module(f"decode_head.psp_modules.{index}.1", 2048, 512)
    return {**without_head(), **head, **conv_module("decode_head.bottleneck", 4096, 512, 3)}


def deeplabv3() -> Shapes:
    head = {"decode_head.conv_seg.weight": (19, 512, 1, 1), "decode_head.conv_seg.bias": (19,)}
    head |= conv_module("decode_head.image_pool.1", 2048, 512)
    for index, kernel in enumerate((1, 3, 3, 3)):
        head |= conv_module(f"decode_head.aspp_modules.{index}", 2048, 512, kernel)
    return {**without_head(), **head, **conv_module("decode_head.bottleneck", 2560, 512, 3)}


def fits(found: Recipe) -> bool:
    """Whether the model that is described has these names and shapes."""
    with torch.device("meta"):
        own = found.build().state_dict()
    mine, theirs = (
        {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (own, found.state)
    )
    return mine == theirs


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mmseg_fcn18", "fcn"),
        ("mmseg_pspnet18", "pspnet"),
        ("mmseg_deeplabv3_18", "deeplabv3"),
        ("mmseg_deeplabv3plus18", "deeplabv3plus"),
    ],
)
def test_equals(name: str, model: str) -> None:
    """Recorded once a restatement of its heads, backbone and ConvModules on plain torch had given the same."""
    ours = zoo.load({"meta": {"CLASSES": None}, "state_dict": golden.fill(golden.shapes(name))})
    assert (ours.header["name"], ours.backbone.name) == (model, "resnet18")
    assert ours.provenance["assumed"]["align_corners"] is False
    assert ours.aux_weight == 0.4
    golden.check(name, ours)


def test_basic_blocks_dilate_their_first_convolution_alone() -> None:
    found = mmseg.recipe(described(golden.shapes("mmseg_pspnet18")))
    assert found.assumed["dilation"] == "conv1"
    with torch.device("meta"):
        stages = found.build().backbone.model
    rates = [[(b.conv1.dilation[0], b.conv2.dilation[0]) for b in stage] for stage in (stages.layer3, stages.layer4)]
    assert rates == [[(1, 1), (2, 1)], [(2, 1), (4, 1)]]
    text = CONFIG.replace("contract_dilation=True", "contract_dilation=False")
    with pytest.raises(ZooError, match="this resnet18 of mmsegmentation lacks contract_dilation"):
        mmseg.recipe(described(golden.shapes("mmseg_pspnet18")), {"config": text})


def test_pspnet_module_by_module() -> None:
    state = described(pspnet())
    found = mmseg.recipe(state)
    assert fits(found)
    assert found.backbone["name"] == "resnet50c"
    assert found.options["align_corners"] is False
    assert found.backbone["dilation"] == "previous"
    for index in range(4):
        theirs = f"decode_head.psp_modules.{index}.1"
        assert found.state[f"ppm.features.{index}.1.weight"] is state[f"{theirs}.conv.weight"]
        assert found.state[f"ppm.features.{index}.2.running_mean"] is state[f"{theirs}.bn.running_mean"]
    assert found.state["aux.4.bias"] is state["auxiliary_head.conv_seg.bias"]


def test_deeplabv3_module_by_module() -> None:
    state = described(deeplabv3())
    fuse = torch.arange(2560.0).view(1, -1, 1, 1).expand(512, -1, 3, 3)
    state["decode_head.bottleneck.conv.weight"] = fuse
    found = mmseg.recipe(state)
    assert fits(found)
    for index in range(4):
        theirs = state[f"decode_head.aspp_modules.{index}.conv.weight"]
        assert found.state[f"classifier.0.convs.{index}.0.weight"] is theirs
    assert found.state["classifier.0.convs.4.1.weight"] is state["decode_head.image_pool.1.conv.weight"]
    # Theirs has the pooled branch first, ours last.
    order = found.state["classifier.0.project.0.weight"][0, :, 0, 0]
    assert order.tolist() == [*range(512, 2560), *range(512)]


def test_a_plain_stem_and_no_auxiliary_head() -> None:
    shapes = {key: shape for key, shape in without_head("auxiliary_head.").items() if ".stem." not in key}
    shapes["backbone.conv1.weight"] = (64, 3, 7, 7)
    shapes |= {f"backbone.bn1.{leaf}": (64,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    found = mmseg.recipe(described(shapes))
    assert (found.backbone["name"], found.options["aux_weight"]) == ("resnet50", 0)
    assert fits(found)


def test_the_config_beside_the_weights_is_read() -> None:
    meta = {"config": CONFIG, "CLASSES": [f"c{i}" for i in range(19)], "PALETTE": [[i, 2 * i, 0] for i in range(19)]}
    found = mmseg.recipe(described(golden.shapes("mmseg_fcn50")), meta)
    assert (found.backbone["output_stride"], found.backbone["dilation"]) == (16, "previous")
    assert found.backbone["mean"] == pytest.approx([0.2, 0.4, 0.6])
    assert found.backbone["std"] == pytest.approx([1.0, 0.2, 0.1])
    wanted = {"align_corners": True, "aux_weight": 0.25, "head_dilation": 6, "dropout": 0.2}
    assert {key: found.options[key] for key in wanted} == wanted
    assert (found.classes[3].name, found.classes[3].color) == ("c3", (3, 6, 0))
    assert found.assumed == {}
    newer = {"cfg": CONFIG.replace("img_norm_cfg", "other"), "dataset_meta": {"classes": ("a",) * 19}}
    assert set(mmseg.recipe(described(golden.shapes("mmseg_fcn50")), newer).assumed) == {"mean", "std"}


def test_bgr_weights_are_flipped() -> None:
    state = described(golden.shapes("mmseg_fcn50"))
    state["backbone.stem.0.weight"] = torch.arange(3.0).view(1, 3, 1, 1).expand(32, 3, 3, 3)
    found = mmseg.recipe(state, {"config": CONFIG.replace("to_rgb=True", "to_rgb=False")})
    assert found.state["backbone.model.conv1.0.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    assert found.backbone["mean"] == pytest.approx([0.6, 0.4, 0.2])


def test_a_config_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for text in (f"open({str(mark)!r}, 'w')", f"model = dict(a=open({str(mark)!r}, 'w'))", "model = dict(", "\0"):
        assert mmseg.recipe(described(golden.shapes("mmseg_fcn50")), {"config": text}).options["aux_weight"] == 0.4
    assert not mark.exists()


def test_windows_are_read() -> None:
    """crop and stride -> window and overlap, which give the same stride again; None where no overlap does."""
    state = described(golden.shapes("mmseg_fcn50"))
    for crop, stride in (((769, 769), (513, 513)), ((512, 1024), (341, 683)), ((512, 512), (512, 512))):
        said = f"test_cfg=dict(mode='slide', crop_size={crop}, stride={stride}), backbone="
        found = mmseg.recipe(state, {"config": CONFIG.replace("backbone=", said)})
        assert found.options["window"] == list(crop)
        assert found.assumed == {}
        for size, step in zip(crop, stride, strict=True):
            starts = window_starts(4 * size, size, found.options["overlap"])
            assert starts[1] == step
    said = "test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(256, 512)), backbone="
    found = mmseg.recipe(state, {"config": CONFIG.replace("backbone=", said)})
    assert (found.options["window"], "overlap" in found.options) == ([512, 512], False)
    assert found.assumed == {"test_cfg.stride": "not read"}
    whole = mmseg.recipe(state, {"config": CONFIG.replace("backbone=", "test_cfg=dict(mode='whole'), backbone=")})
    assert "window" not in whole.options


@pytest.mark.parametrize(
    ("old", "new", "setting"),
    [
        ("dilations=(1, 1, 1, 2)", "dilations=rates", "backbone.dilations"),
        ("dilation=6", "dilation=6, dilations=(1, rate, 24)", "decode_head.dilations"),
        ("auxiliary_head=dict(type='FCNHead', ", "auxiliary_head=[dict(), dict()], other=dict(", "auxiliary_head"),
    ],
)
def test_what_is_not_read_is_said(old: str, new: str, setting: str) -> None:
    assert old in CONFIG
    found = mmseg.recipe(described(golden.shapes("mmseg_fcn50")), {"config": CONFIG.replace(old, new)})
    assert found.assumed[setting] == "not read"


def test_a_list_of_one_auxiliary_head() -> None:
    shapes = {key.replace("auxiliary_head.", "auxiliary_head.0."): s for key, s in golden.shapes("mmseg_fcn50").items()}
    text = CONFIG.replace("auxiliary_head=dict(", "auxiliary_head=[dict(").replace("=0.25))", "=0.25))]")
    found = mmseg.recipe(described(shapes), {"config": text})
    assert (found.options["aux_weight"], found.assumed) == (0.25, {})
    assert fits(found)


def test_strides_or_dilations_alone() -> None:
    """The other has mmsegmentation's default."""
    state = described(golden.shapes("mmseg_fcn50"))
    plain = CONFIG.replace("dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1)", "dilations=(1, 1, 1, 1)")
    assert mmseg.recipe(state, {"config": plain}).backbone["output_stride"] == 32
    for left in ("dilations=(1, 1, 1, 2)", "strides=(1, 2, 2, 1)"):
        text = CONFIG.replace("dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1)", left)
        with pytest.raises(ZooError, match="here a stage that keeps its stride doubles its dilation"):
            mmseg.recipe(state, {"config": text})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dilations=(1, 1, 1, 2)", "dilations=12"),
        ("strides=(1, 2, 2, 1)", "strides='1221'"),
        ("dilation=6", "dilations=12"),
        ("dilation=6", "pool_scales=6"),
        ("dropout_ratio=0.2", "dropout_ratio='much'"),
        ("mean=[51.0, 102.0, 153.0]", "mean=51.0"),
        ("loss_weight=0.25", "loss_weight=[0.25]"),
        ("style='pytorch'", "multi_grid=4"),
        ("strides=(1, 2, 2, 1)", "strides=(0, 2, 2, 1)"),
        ("backbone=", "test_cfg=dict(mode='slide', crop_size=512, stride=341), backbone="),
    ],
)
def test_values_of_another_kind_are_one_sentence(old: str, new: str) -> None:
    assert old in CONFIG
    with pytest.raises(ZooError, match="of mmsegmentation") as error:
        mmseg.recipe(described(golden.shapes("mmseg_fcn50")), {"config": CONFIG.replace(old, new)})
    assert "\n" not in str(error.value)


def test_a_tag_does_not_hide_basic_blocks() -> None:
    state = described(golden.shapes("mmseg_pspnet18"))
    assert mmseg.recipe(state, None, "resnet18.a1_in1k").backbone["dilation"] == "conv1"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("style='pytorch'", "style='caffe'", "strides in its 1x1 convolutions"),
        ("depth=50", "depth=50, multi_grid=(1, 2, 4)", r"multi_grid=\[1, 2, 4\], which are dilations there"),
        ("strides=(1, 2, 2, 1)", "strides=(1, 2, 2, 2)", r"strides \[1, 2, 2, 2\] and dilations \[1, 1, 1, 2\]"),
    ],
)
def test_settings_without_counterpart_are_said(old: str, new: str, sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        mmseg.recipe(described(golden.shapes("mmseg_fcn50")), {"config": CONFIG.replace(old, new)})


def test_what_does_not_load_is_said() -> None:
    shapes = golden.shapes("mmseg_fcn50")
    uper = {**pspnet(), **conv_module("decode_head.lateral_convs.0", 256, 512)}
    with pytest.raises(ZooError, match=r"head of mmsegmentation \(bottleneck, .*lateral_convs.*its FCN, PSPNet"):
        zoo.load(described(uper))
    with pytest.raises(ZooError, match="no ResNet that is known here"):
        zoo.load(described({key: shape for key, shape in shapes.items() if ".stem." not in key}))
    renamed = {key.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1"): shape
               for key, shape in shapes.items()}  # fmt: skip
    with pytest.raises(ZooError, match="ResNetV1d pools otherwise"):
        zoo.load(described(renamed))
    with pytest.raises(ZooError, match="one channel and a threshold"):
        zoo.load(described({**shapes, "decode_head.conv_seg.weight": (1, 512, 1, 1)}))
    with pytest.raises(ZooError, match=r"lacks decode_head.image_pool.1.conv.weight: is the file whole"):
        zoo.load(described({key: s for key, s in deeplabv3().items() if "image_pool.1.conv" not in key}))
    separable = {key.replace("head.bottleneck.conv", "head.bottleneck.depthwise_conv.conv"): shape
                 for key, shape in golden.shapes("mmseg_deeplabv3plus18").items()}  # fmt: skip
    with pytest.raises(ZooError, match="separable convolution after ASPP"):
        zoo.load(described(separable))
