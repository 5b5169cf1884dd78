"""Mask2Former against transformers' own on the same random weights: features, logits, masks, losses.

In double precision, so that nothing hides in rounding (who attends to what is a step function of the masks), and once
in single as it is used. transformers' network and losses are the authors'; its post-processing is not: test_readings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.models.queries import points
from zoo.models.queries.criterion import Answers, PointCriterion, Truth
from zoo.weights import load

transformers = pytest.importorskip("transformers")
from transformers.models.mask2former import modeling_mask2former as theirs  # noqa: E402

SMALL: dict[str, Any] = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 96,
    "dim_feedforward": 128,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "num_queries": 12,
    "num_labels": 5,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def swin(window: int = 7) -> Any:
    return transformers.SwinConfig(
        embed_dim=24, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8], window_size=window, out_features=STAGES
    )


def resnet(layer: str = "basic") -> Any:
    depths = [2, 2, 2, 2] if layer == "basic" else [3, 4, 6, 3]
    widths = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    return transformers.ResNetConfig(layer_type=layer, depths=depths, hidden_sizes=widths, out_features=STAGES)


def reference(backbone: Any) -> nn.Module:
    """Their model with weights that hide no mistake: no two vectors alike, none zero."""
    torch.manual_seed(0)
    model = theirs.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=backbone, **SMALL)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "queries" not in name and (parameter.ndim == 1 or "relative_position" in name):
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def largest(mine: Tensor, other: Tensor) -> float:
    """The largest difference over the spread."""
    return float((mine - other).abs().max() / other.std())


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_network_equals_theirs(kind: str) -> None:
    ref = reference(swin() if kind == "swin" else resnet()).double()
    model = load(ref.state_dict()).double()
    assert model.backbone.name == ("swin_tiny_patch4_window7_224" if kind == "swin" else "resnet18")
    for size in ((128, 160), (96, 224)) if kind == "swin" else ((64, 96),):  # hardly a multiple of the Swin's windows
        images = torch.rand(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            output = ref(pixel_values=model.backbone.normalize(images), output_auxiliary_logits=True)
            queries, answers = model(images), model.answer(model.backbone.normalize(images), every=True)
        assert largest(queries.logits, output.class_queries_logits) < 1e-10
        assert largest(queries.masks, output.masks_queries_logits) < 1e-10
        every = torch.einsum("lbqc,bchw->lbqhw", answers.embeddings, answers.pixels)
        assert len(every) == 1 + len(output.auxiliary_logits) == 5
        for number, layer in enumerate(output.auxiliary_logits):
            assert largest(answers.logits[number], layer["class_queries_logits"]) < 1e-10
            assert largest(every[number], layer["masks_queries_logits"]) < 1e-10
        assert queries.masks.std() > 0.1


def test_network_equals_theirs_in_single_precision() -> None:
    ref = reference(swin())
    model = load(ref.state_dict())
    images = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        normalized = model.backbone.normalize(images)
        output, queries = ref(pixel_values=normalized), model(images)
        features = ref.model.pixel_level_module.encoder(normalized).feature_maps
        for mine, other in zip(model.backbone(images), features, strict=True):
            assert largest(mine, other) < 1e-5
    assert largest(queries.logits, output.class_queries_logits) < 1e-4
    assert largest(queries.masks, output.masks_queries_logits) < 1e-4


def test_files_and_the_old_spelling(tmp_path: Path) -> None:
    """What save_pretrained writes has older names for the Swin; its config.json names the classes."""
    ref = reference(swin(window=4))
    ref.config.id2label = {number: f"kind_{number}" for number in range(5)}
    ref.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert [c.name for c in saved.classes] == [f"kind_{number}" for number in range(5)]
    assert saved.backbone.config["window_size"] == 4
    state, loaded = load(ref.state_dict()).state_dict(), saved.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


def drawn(*shape: Any, **_: Any) -> Tensor:
    """In place of uniform numbers: the same for every mask, the more points the others."""
    count, number = shape[:2]
    generator = torch.Generator().manual_seed(number)
    return torch.empty(number, 2).uniform_(generator=generator).expand(count, number, 2).clone()


def test_losses_and_gradients_equal_theirs_at_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    layers, queries, classes, channels, size = 3, 7, 4, 8, (64, 96)
    answers = Answers(
        *(
            torch.randn(*shape, generator=generator).requires_grad_()
            for shape in ((layers, 2, queries, classes + 1), (layers, 2, queries, channels), (2, channels, 16, 24))
        )
    )
    truths, padded = [], []
    for count, (height, width) in ((3, (60, 90)), (5, size)):
        masks = torch.rand(count, height, width, generator=generator) < 0.4
        truths.append(Truth(masks, torch.randint(0, classes, (count,), generator=generator)))
        padded.append(torch.zeros(count, *size))
        padded[-1][:, :height, :width] = masks
    config = transformers.Mask2FormerConfig(**{**SMALL, "num_labels": classes, "train_num_points": 128})
    criterion = theirs.Mask2FormerLoss(config, {})
    monkeypatch.setattr(points, "draw", lambda shape, device: drawn(*shape))
    monkeypatch.setattr(torch, "rand", drawn)
    mine = PointCriterion(points=128)(answers, truths, size)
    masks = torch.einsum("lbqc,bchw->lbqhw", answers.embeddings, answers.pixels)
    labels = [truth.labels for truth in truths]
    other = [criterion(masks[layer], answers.logits[layer], padded, labels) for layer in range(layers)]
    sums = [2 * x["loss_cross_entropy"] + 5 * x["loss_mask"] + 5 * x["loss_dice"] for x in other]
    expected = {
        "classification": 2 * other[-1]["loss_cross_entropy"],
        "mask": 5 * other[-1]["loss_mask"],
        "dice": 5 * other[-1]["loss_dice"],
        "auxiliary": sums[0] + sums[1],
    }
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5)
    gradients = zip(
        torch.autograd.grad(sum(mine.values()), list(answers), retain_graph=True),
        torch.autograd.grad(sum(sums), list(answers)),
        strict=True,
    )
    for gradient, wanted in gradients:
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
