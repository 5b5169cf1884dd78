"""MaskFormer against transformers' own on the same random weights, in double precision: logits, masks, losses.

transformers' auxiliary losses feed normed queries back into the decoder, which the authors do not: they are left off.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.models.maskformer import DenseCriterion
from zoo.models.queries.criterion import Answers, Truth
from zoo.weights import load

transformers = pytest.importorskip("transformers")
from transformers.models.maskformer import modeling_maskformer as theirs  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config(kind: str = "resnet", classes: int = 5) -> Any:
    backbone = transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], out_features=STAGES
    )
    if kind == "swin":
        backbone = transformers.SwinConfig(
            embed_dim=24, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8], window_size=7, out_features=STAGES
        )
    decoder = transformers.DetrConfig(
        d_model=64, decoder_layers=3, decoder_ffn_dim=96, decoder_attention_heads=8, num_queries=9, encoder_layers=1
    )
    return transformers.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=64, mask_feature_size=64, num_labels=classes
    )


def reference(kind: str) -> nn.Module:
    """Their model with weights that hide no mistake."""
    torch.manual_seed(0)
    model = theirs.MaskFormerForInstanceSegmentation(config(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative_position" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "transformer_module" in name:
                parameter *= 10  # drawn so small that all queries would say the same
    return model.eval().double()


def largest(mine: Tensor, other: Tensor) -> float:
    """The largest difference over the spread."""
    return float((mine - other).abs().max() / other.std())


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_network_equals_theirs(kind: str) -> None:
    ref = reference(kind)
    model = load(ref.state_dict()).double()
    images = torch.rand(2, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        output, queries = ref(pixel_values=model.backbone.normalize(images)), model(images)
    assert largest(queries.logits, output.class_queries_logits) < 1e-10
    assert largest(queries.masks, output.masks_queries_logits) < 1e-10
    assert queries.logits.std(1).mean() > 1e-5  # queries differ, by far more than what is tolerated above


def test_losses_and_gradients_equal_theirs() -> None:
    generator = torch.Generator().manual_seed(3)
    layers, queries, classes, channels, size = 2, 7, 4, 8, (64, 96)
    shapes = ((layers, 2, queries, classes + 1), (layers, 2, queries, channels), (2, channels, 16, 24))
    answers = Answers(*(torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes))
    truths, padded = [], []
    for count, (height, width) in ((3, (60, 90)), (5, size)):
        masks = torch.rand(count, height, width, generator=generator) < 0.4
        truths.append(Truth(masks, torch.randint(0, classes, (count,), generator=generator)))
        padded.append(torch.zeros(count, *size))
        padded[-1][:, :height, :width] = masks
    matcher = theirs.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    criterion = theirs.MaskFormerLoss(classes, matcher, {}, 0.1)
    masks = torch.einsum("lbqc,bchw->lbqhw", answers.embeddings, answers.pixels)
    labels = [truth.labels for truth in truths]
    other = [criterion(masks[layer], answers.logits[layer], padded, labels) for layer in range(layers)]
    sums = [x["loss_cross_entropy"] + 20 * x["loss_mask"] + x["loss_dice"] for x in other]
    mine = DenseCriterion()(answers, truths, size)
    expected = {
        "classification": other[-1]["loss_cross_entropy"],
        "mask": 20 * other[-1]["loss_mask"],
        "dice": other[-1]["loss_dice"],
        "auxiliary": sums[0],
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
