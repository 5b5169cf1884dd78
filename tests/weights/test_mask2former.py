"""The authors' files of Mask2Former, laid out by hand from the names in them; values are those of a model of ours."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.weights import load, mask2former, queries, swin

SMALL = {
    "queries": 6,
    "channels": 32,
    "heads": 4,
    "layers": 3,
    "width": 48,
    "encoder_layers": 2,
    "encoder_width": 40,
    "task": "instance",
}
SWIN = {"embed_dim": 24, "depths": [1, 1, 3, 1], "num_heads": [2, 2, 4, 4], "window_size": 4}
PIXELS, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
ENCODER = PIXELS + "transformer.encoder.layers."
# Ours -> theirs, by plain replacement.
HEADS = {
    "pixel_decoder.input.{i}.conv": PIXELS + "input_proj.{i}.0",
    "pixel_decoder.input.{i}.norm": PIXELS + "input_proj.{i}.1",
    "pixel_decoder.level_embed": PIXELS + "transformer.level_embed",
    "pixel_decoder.layers.{i}.attention.offsets": ENCODER + "{i}.self_attn.sampling_offsets",
    "pixel_decoder.layers.{i}.attention.weights": ENCODER + "{i}.self_attn.attention_weights",
    "pixel_decoder.layers.{i}.attention.value": ENCODER + "{i}.self_attn.value_proj",
    "pixel_decoder.layers.{i}.attention.output": ENCODER + "{i}.self_attn.output_proj",
    "pixel_decoder.layers.{i}.": ENCODER + "{i}.",
    "pixel_decoder.lateral.0.conv": PIXELS + "adapter_1",
    "pixel_decoder.lateral.0.norm": PIXELS + "adapter_1.norm",
    "pixel_decoder.output.0.conv": PIXELS + "layer_1",
    "pixel_decoder.output.0.norm": PIXELS + "layer_1.norm",
    "pixel_decoder.mask": PIXELS + "mask_features",
    "decoder.features": PREDICTOR + "query_feat.weight",
    "decoder.places": PREDICTOR + "query_embed.weight",
    "decoder.level_embed": PREDICTOR + "level_embed.weight",
    "decoder.layers.{i}.cross": PREDICTOR + "transformer_cross_attention_layers.{i}.multihead_attn",
    "decoder.layers.{i}.norm1": PREDICTOR + "transformer_cross_attention_layers.{i}.norm",
    "decoder.layers.{i}.own": PREDICTOR + "transformer_self_attention_layers.{i}.self_attn",
    "decoder.layers.{i}.norm2": PREDICTOR + "transformer_self_attention_layers.{i}.norm",
    "decoder.layers.{i}.norm3": PREDICTOR + "transformer_ffn_layers.{i}.norm",
    "decoder.layers.{i}.linear": PREDICTOR + "transformer_ffn_layers.{i}.linear",
    "decoder.norm": PREDICTOR + "decoder_norm",
    "decoder.classify": PREDICTOR + "class_embed",
    "decoder.embed.{i}": PREDICTOR + "mask_embed.layers.{i}",
}


def theirs(key: str) -> str:
    """Their name of a parameter of ours."""
    if key.startswith("backbone."):
        return _backbone(key.removeprefix("backbone.model."))
    number = re.search(r"\.(\d+)\.", key)
    for mine, other in HEADS.items():
        mine, other = (text.replace("{i}", number[1] if number else "") for text in (mine, other))
        if key.startswith(mine):
            return key.replace(mine, other)
    raise AssertionError(key)


def _backbone(key: str) -> str:
    if key.startswith("stage_norms."):
        return f"backbone.norm{key.removeprefix('stage_norms.')}"
    if found := re.match(r"layers\.(\d)\.downsample\.(.*)", key):
        return f"backbone.layers.{int(found[1]) - 1}.downsample.{found[2]}"
    if found := re.match(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.*)", key):
        middle = ".norm" if found[3] == "bn" else ""
        return f"backbone.res{int(found[1]) + 1}.{found[2]}.conv{found[4]}{middle}.{found[5]}"
    if found := re.match(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(.*)", key):
        return f"backbone.res{int(found[1]) + 1}.{found[2]}.shortcut{('', '.norm')[int(found[3])]}.{found[4]}"
    stem = {"conv1.": "backbone.stem.conv1.", "bn1.": "backbone.stem.conv1.norm."}
    for mine, other in stem.items():
        if key.startswith(mine):
            return key.replace(mine, other)
    return f"backbone.{key}"


def released(backbone: str, classes: int, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and its weights as the authors' file holds them: arrays, buffers that we do not have, no counts."""
    torch.manual_seed(0)
    model = create_model("mask2former", classes, backbone, backbone_options=options, **SMALL).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor += 0.1 * torch.rand_like(tensor)
    state: dict[str, Any] = {
        theirs(key): value.numpy()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    state["criterion.empty_weight"] = np.ones(classes + 1, np.float32)
    if options:
        state["backbone.layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    return model, state


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.mark.parametrize(("backbone", "options"), [("resnet50", {}), ("swin_tiny_patch4_window7_224", SWIN)])
def test_the_authors_files_load(backbone: str, options: dict[str, Any]) -> None:
    model, state = released(backbone, 8, **options)
    found = mask2former.recipe(state)
    assert found.options | SMALL == found.options
    loaded = load({"model": tensors(state), "matching_heuristics": True})
    assert loaded.backbone.name == backbone
    assert loaded.backbone.config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert (loaded.task, loaded.test_size, loaded.test_limit) == ("instance", 1024, 2048)  # 8 classes: Cityscapes
    loaded.test_size = None
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for mine, other in zip(loaded(images), model(images), strict=True):
            assert torch.equal(mine, other)


def test_the_oldest_files_load() -> None:
    _, state = released("swin_tiny_patch4_window7_224", 3, **SWIN)
    old = {
        key.replace("query_feat", "static_query").replace(PIXELS, "sem_seg_head."): value
        for key, value in tensors(state).items()
    }
    new, again = load(tensors(state)).state_dict(), load(old).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in new.items())


def test_known_swins_get_their_names() -> None:
    state = {"patch_embed.proj.weight": torch.zeros(128, 3, 4, 4)}
    for stage, depth in enumerate((2, 2, 18, 2)):
        for block in range(depth):
            state[f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"] = torch.zeros(23**2, 4 << stage)
    assert swin.describe(state) == {"name": "swin_base_patch4_window12_384", "dense": True}


def test_the_number_of_classes_names_them() -> None:
    table, told = queries.class_table(133, None)
    assert not isinstance(table, int)
    assert told == {"classes": "COCO's, panoptic"}
    assert [c.thing for c in table] == [True] * 80 + [False] * 53
    assert [table[i].name for i in (0, 79, 80, 132)] == ["person", "toothbrush", "banner", "rug-merged"]
    counts = {80: 80, 150: 100, 100: 100, 19: 8, 8: 8}
    for count, things in counts.items():
        table, _ = queries.class_table(count, {str(i): f"LABEL_{i}" for i in range(count)})
        assert not isinstance(table, int)
        assert (len(table), sum(c.thing for c in table)) == (count, things)
    assert queries.class_table(65, None) == (65, {})


def test_names_beside_the_weights_come_first() -> None:
    named, told = queries.class_table(2, {"1": "b", "0": "a"})
    assert not isinstance(named, int)
    assert ([c.name for c in named], told) == (["a", "b"], {})
    coco, told = queries.class_table(133, {str(i): f"kind_{i}" for i in range(133)})
    assert not isinstance(coco, int)
    assert [c.thing for c in coco] == [True] * 80 + [False] * 53
    assert (coco[132].name, told) == ("kind_132", {})


@pytest.mark.parametrize("classes", [133, 5])
def test_their_pickles_load(tmp_path: Path, classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are released: arrays under `model`, with detectron2's marks beside them."""
    _, state = released("resnet18", classes)
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": state, "__author__": "theirs", "matching_heuristics": True}, 2))
    loaded, same = load(file), load(tensors(state))
    said = capsys.readouterr().err
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in loaded.state_dict().items())
    if classes == 133:
        assert (loaded.task, loaded.test_size, loaded.classes[81].name) == ("panoptic", 800, "blanket")
        assert "classes=COCO's, panoptic" in said
    else:
        assert (loaded.task, loaded.test_size, len(loaded.classes)) == ("semantic", None, 5)


def test_another_backbone_has_to_be_named() -> None:
    _, state = released("resnet18", 3)
    state = {key: value for key, value in state.items() if "res2.1" not in key}
    with pytest.raises(ZooError, match="neither a Swin nor a ResNet of a usual depth: name it"):
        load(tensors(state))
