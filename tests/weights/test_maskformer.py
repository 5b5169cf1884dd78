"""The authors' files of MaskFormer, laid out by hand from the names in them; values are those of a model of ours."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.models import create_model
from zoo.weights import load

PIXELS, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
SMALL = {"queries": 6, "channels": 32, "heads": 8, "layers": 2, "width": 48, "task": "semantic"}
# Ours, a pattern -> theirs.
HEADS = {
    r"pixel_decoder\.stem\.": "layer_4.",
    r"pixel_decoder\.lateral\.0\.": "adapter_3.",
    r"pixel_decoder\.lateral\.1\.": "adapter_2.",
    r"pixel_decoder\.lateral\.2\.": "adapter_1.",
    r"pixel_decoder\.output\.0\.": "layer_3.",
    r"pixel_decoder\.output\.1\.": "layer_2.",
    r"pixel_decoder\.output\.2\.": "layer_1.",
    r"pixel_decoder\.mask\.": "mask_features.",
    r"decoder\.places$": "query_embed.weight",
    r"decoder\.project\.": "input_proj.",
    r"decoder\.layers\.(\d)\.own\.": r"transformer.decoder.layers.\1.self_attn.",
    r"decoder\.layers\.(\d)\.cross\.": r"transformer.decoder.layers.\1.multihead_attn.",
    r"decoder\.layers\.(\d)\.": r"transformer.decoder.layers.\1.",
    r"decoder\.norm\.": "transformer.decoder.norm.",
    r"decoder\.classify\.": "class_embed.",
    r"decoder\.embed\.(\d)\.": r"mask_embed.layers.\1.",
}


def theirs(key: str) -> str:
    """Their name of a parameter of ours."""
    if key.startswith("backbone."):
        key = key.removeprefix("backbone.model.")
        key = re.sub(r"^conv1\.", "stem.conv1.", re.sub(r"^bn1\.", "stem.conv1.norm.", key))
        key = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
        key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
        return "backbone." + key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    prefix = PIXELS if key.startswith("pixel_decoder.") else PREDICTOR
    for pattern, other in HEADS.items():
        if re.match(pattern, key):
            key = re.sub(f"^{pattern}", other, key)
            return prefix + (key.replace(".conv.", ".") if prefix == PIXELS else key)
    raise AssertionError(key)


def released(classes: int = 150) -> tuple[Any, dict[str, Any]]:
    """A model and its weights as the authors' file holds them."""
    torch.manual_seed(0)
    model = create_model("maskformer", classes, "resnet18", **SMALL).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor += 0.1 * torch.rand_like(tensor)
    named = {key: value.numpy() for key, value in model.state_dict().items() if "num_batches" not in key}
    state: dict[str, Any] = {theirs(key): value for key, value in named.items()}
    assert len(state) == len(named)
    return model, {**state, "criterion.empty_weight": np.ones(classes + 1, np.float32)}


def test_their_pickles_load(tmp_path: Path) -> None:
    model, state = released()
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": state, "__author__": "theirs"}, 2))
    loaded = load(file)
    assert (loaded.header["name"], loaded.backbone.name, loaded.task) == ("maskformer", "resnet18", "semantic")
    assert (loaded.test_size, loaded.test_limit) == (512, 2048)  # 150 classes: ADE20K
    assert [loaded.classes[i].name for i in (0, 149)] == ["wall", "flag"]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for mine, other in zip(loaded(images), model(images), strict=True):
            assert torch.equal(mine, other)


def test_the_variant_with_an_encoder_is_refused() -> None:
    _, state = released(3)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    tensors[PIXELS + "transformer.encoder.layers.0.norm1.weight"] = torch.ones(32)
    with pytest.raises(ZooError, match="this MaskFormer has a transformer encoder"):
        load(tensors)
