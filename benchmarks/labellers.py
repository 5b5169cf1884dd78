"""The pairs of `benchmarks/models.py` that label pixels: torchvision, segmentation-models-pytorch, and ours.

predict   uint8 image -> labels. Theirs: (x / 255 - mean) / std, forward, argmax(1), in inference_mode. Ours:
          `model.predict(batch)`
train     theirs: the same normalisation, forward, F.cross_entropy at full size (+ 0.5 auxiliary), backward, SGD.
          Ours: `model.loss(batch)`, backward, the same SGD
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

import zoo
from zoo.structures import VOID, Batch, Semantic

CLASSES = 21
SIDE, BATCH = 512, 2  # of images in pixels; images of a training step
COMPILES = True  # the other side
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_torchvision(name: str, **options: Any) -> nn.Module:
    """torchvision's network without weights."""
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **options)


def from_smp(name: str, encoder: str) -> nn.Module:
    """smp's network without weights."""
    return getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES)


PEERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision fcn_resnet50": lambda: from_torchvision("fcn_resnet50", aux_loss=True),
    "torchvision deeplabv3_resnet50": lambda: from_torchvision("deeplabv3_resnet50", aux_loss=True),
    "torchvision deeplabv3_mobilenet_v3_large": lambda: from_torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True),
    "torchvision lraspp_mobilenet_v3_large": lambda: from_torchvision("lraspp_mobilenet_v3_large"),
    "smp Unet resnet34": lambda: from_smp("Unet", "resnet34"),
    "smp DeepLabV3 resnet34": lambda: from_smp("DeepLabV3", "resnet34"),
    "smp DeepLabV3Plus resnet34": lambda: from_smp("DeepLabV3Plus", "resnet34"),
    "smp PSPNet resnet34": lambda: from_smp("PSPNet", "resnet34"),
}


@dataclass
class Case:
    """Images and labels, and how to compute with them."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B, S, S) uint8 with void
    half: bool  # bf16 and channels_last

    @classmethod
    def of(cls, batch: int, size: int, device: str) -> Case:
        """Noise, and labels in blocks with 5 % void."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        blocks = torch.randint(0, CLASSES, (batch, 1, size // 16, size // 16), generator=generator)
        labels = F.interpolate(blocks.float(), (size, size))[:, 0].to(torch.uint8)
        labels[torch.rand(labels.shape, generator=generator) < 0.05] = VOID
        return cls(images.to(device), labels.to(device), device != "cpu")

    def batch(self) -> Batch:
        """As our models take it."""
        return Batch.of(self.images, [Semantic(labels) for labels in self.labels])

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on a GPU."""
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()


class Theirs:
    """A peer as its users run it."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model = model.to(device)
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)

    def outputs(self, case: Case) -> dict[str, Tensor]:
        """Logits at full size."""
        images = (case.images / 255 - self.mean) / self.std
        if case.half:
            images = images.contiguous(memory_format=torch.channels_last)
        with case.precision():
            output = self.model(images)
        return {"out": output} if isinstance(output, Tensor) else output

    def predict(self, case: Case) -> Tensor:
        """Labels (B, S, S)."""
        with torch.inference_mode():
            return self.outputs(case)["out"].argmax(1)

    def loss(self, case: Case) -> Tensor:
        """Cross-entropy, the auxiliary head's at half weight."""
        outputs = self.outputs(case)
        losses = {k: F.cross_entropy(v.float(), case.labels.long(), ignore_index=VOID) for k, v in outputs.items()}
        return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


class Ours:
    """Our model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)

    def predict(self, case: Case) -> Tensor:
        """Labels (B, S, S)."""
        with torch.inference_mode(), case.precision():
            return torch.stack([prediction.labels for prediction in self.model.predict(case.batch())])

    def loss(self, case: Case) -> Tensor:
        """The sum of the model's terms."""
        with case.precision():
            return torch.stack([*self.model.loss(case.batch()).values()]).sum()


def randomized(model: nn.Module) -> nn.Module:
    """Batch statistics that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def network(name: str, size: int) -> nn.Module:
    """The other side's, without weights."""
    return PEERS[name]()


def first(name: str) -> str:
    """A small pair that makes either library import all it imports."""
    return "torchvision deeplabv3_mobilenet_v3_large"


def weights_of(name: str, size: int) -> dict[str, Tensor]:
    """Random weights."""
    return randomized(PEERS[name]()).state_dict()


def case_of(name: str, batch: int, size: int, device: str) -> Case:
    """Images and truth for the pair of this name."""
    return Case.of(batch, size, device)


def ours(name: str, state: dict[str, Tensor], size: int, device: str) -> Ours:
    """Our side with these weights."""
    return Ours(zoo.load(state), device)


def theirs(name: str, model: nn.Module, device: str) -> Theirs:
    """The other side, with its weights."""
    return Theirs(model, device)


def look(model: Any, case: Case) -> None:
    """One image through our network."""
    model(case.images[:1])


def same(theirs: Theirs, ours: Ours, case: Case) -> str:
    """How far the two sides are from each other; ValueError where it is too far."""
    return f"logits differ {compare(theirs, ours, case):.0e}"


def compare(theirs: Theirs, ours: Ours, case: Case) -> float:
    """The largest difference of logits, in shares of their spread; ValueError where it, labels or losses differ.

    In float32 and in evaluation mode, whatever is timed.
    """
    case = replace(case, half=False)
    with torch.no_grad():
        expected, found = theirs.outputs(case)["out"].float(), ours.model(case.images).float()
        difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
        gap = abs(float(ours.loss(case)) / float(theirs.loss(case)) - 1)
        agreement = float((ours.predict(case) == theirs.predict(case)).float().mean())
    if difference > 1e-4 or gap > 1e-4 or agreement < 0.999:
        raise ValueError(f"not the same model: logits {difference:.1e}, loss {gap:.1e}, labels {agreement:.2%} equal")
    return difference
