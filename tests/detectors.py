"""torchvision's detectors with weights that hide no mistake: statistics of real features, heads of varied opinions."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

# Small images and few regions: seconds instead of minutes.
SMALL = {
    "min_size": 96,
    "max_size": 160,
    "rpn_post_nms_top_n_train": 48,
    "rpn_post_nms_top_n_test": 48,
    "box_batch_size_per_image": 32,
    "box_detections_per_img": 10,
}
SPREAD = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "spread.py"))["SPREAD"]


def published(name: str, frozen: bool = False) -> nn.Module:
    """A detector by the name of torchvision's function; `frozen` is how its COCO_V1 weights are used."""
    torch.manual_seed(0)
    model = calibrated(getattr(detection, name)(weights=None, weights_backbone=None, **SMALL))
    if frozen:
        body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
        body.load_state_dict({k: v for k, v in model.backbone.state_dict().items() if "num_batches" not in k})
        for layer in body.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = 0.0
        model.backbone = body
    return model.eval()


def on_resnet18(kind: str, classes: int = 4) -> nn.Module:
    """The models "v1", "v2" and "keypoint" on a ResNet-18 that learns all of its layers, with narrow heads."""
    torch.manual_seed(0)
    norm, width = (nn.BatchNorm2d if kind == "v2" else None), 32
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    channels = [64, 128, 256, 512]
    backbone = BackboneWithFPN(resnet18(weights=None), levels, channels, width, norm_layer=norm)
    heads: dict[str, Any] = {"rpn_head": RPNHead(width, 3, conv_depth=2 if kind == "v2" else 1)}
    heads["box_head"] = TwoMLPHead(width * 49, 64)
    if kind == "v2":
        heads["box_head"] = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [64], norm_layer=norm)
    heads["box_predictor"] = FastRCNNPredictor(64, 2 if kind == "keypoint" else classes)
    if kind == "keypoint":
        heads |= {"keypoint_head": KeypointRCNNHeads(width, [width] * 8)}
        heads |= {"keypoint_predictor": KeypointRCNNPredictor(width, 5)}
        return calibrated(detection.KeypointRCNN(backbone, **heads, **SMALL))
    heads |= {"mask_head": MaskRCNNHeads(width, [width] * 4, 1, norm_layer=norm)}
    heads |= {"mask_predictor": MaskRCNNPredictor(width, width, classes)}
    return calibrated(detection.MaskRCNN(backbone, **heads, **SMALL))


@torch.no_grad()
def calibrated(model: nn.Module) -> nn.Module:
    """The model with statistics of its own features on two images, and heads that spread as in SPREAD."""
    generator = torch.Generator().manual_seed(1)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0  # the next batch's statistics are kept
        layer.weight.uniform_(0.7, 1.3, generator=generator)
        layer.bias.normal_(0, 0.1, generator=generator)
    images, targets = training_pair()
    if model.roi_heads.keypoint_predictor is not None:
        count = model.roi_heads.keypoint_predictor.out_channels
        targets = [{**target, "keypoints": torch.full((3, count, 3), 40.0)} for target in targets]
    model.train()(images, [{**target, "labels": target["labels"].clamp(max=1)} for target in targets])
    for layer in norms:
        layer.momentum = 0.1
    for key, spread in SPREAD.items():
        if getattr(model.roi_heads, key.split(".")[1], True) is not None:
            _on_next_input(
                model.get_submodule(key), lambda layer, x, spread=spread: _spread(layer, x, spread, generator)
            )
    model.roi_heads.score_thresh = 0.0
    model.eval()(images[:1])
    model.roi_heads.score_thresh = 0.05
    return model


def images_of(*sizes: tuple[int, int], seed: int = 3) -> list[Tensor]:
    """Images (3, H, W) in [0, 1]: coloured blocks and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for height, width in sizes:
        coarse = torch.rand(1, 3, 1 + height // 24, 1 + width // 24, generator=generator)
        blocks = nn.functional.interpolate(coarse, (height, width), mode="nearest")[0]
        images.append((blocks + 0.2 * torch.rand(3, height, width, generator=generator)).clamp(0, 1))
    return images


def training_pair(classes: int = 3) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of two sizes, both with a short side of 96, and torchvision's truth: three objects each."""
    images, targets = images_of((96, 128), (120, 96), seed=5), []
    for number, image in enumerate(images):
        height, width = image.shape[1:]
        boxes = torch.tensor([[4.0, 8, 60, 50], [30, 20, width - 6, height - 4], [50.5, 5.25, 75, 30]])
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        across, down = ((v - middle[:, i, None, None]) / half[:, i, None, None] for i, v in ((0, x), (1, y)))
        labels = torch.arange(3).add(number).remainder(classes) + 1
        targets.append({"boxes": boxes, "labels": labels, "masks": (across**2 + down**2 < 1).to(torch.uint8)})
    return images, targets


def first_ones(matched: list[Tensor], count: int, share: float) -> tuple[list[Tensor], list[Tensor]]:
    """torchvision's sampler, but for drawing: the first ones of each kind."""
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for own in matched:
        positive, negative = (own >= 1).nonzero()[:, 0], (own == 0).nonzero()[:, 0]
        positive = positive[: int(count * share)]
        for mask, rows in zip(chosen, (positive, negative[: count - len(positive)]), strict=True):
            mask.append(torch.zeros_like(own, dtype=torch.uint8).index_fill_(0, rows, 1))
    return chosen


def _on_next_input(layer: nn.Module, function: Callable[[Any, Tensor], None]) -> None:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        handle.remove()
        function(layer, inputs[0])

    handle = layer.register_forward_pre_hook(hook)


def _spread(layer: Any, x: Tensor, spread: float, generator: torch.Generator) -> None:
    """Draw a layer's weights so that its outputs have this standard deviation."""
    layer.weight.normal_(0, 1, generator=generator)
    layer.bias.zero_()
    layer.weight *= spread / copy.deepcopy(layer)(x).std().clamp(min=1e-6)
