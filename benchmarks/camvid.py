"""Does our U-Net learn as well as the one a user would pick? Both train on CamVid in one run.

    python benchmarks/camvid.py --root data/camvid
    python benchmarks/camvid.py --root data/camvid --steps 1470     # ten times the default budget

For each seed segmentation-models-pytorch's U-Net (ResNet-18, from scratch) is initialised, ours starts from the same
weights, and both see the same batches in the same order under the same recipe: random scale and crop, flip, colour;
AdamW, poly. Both are scored by the same metric on the 233 test frames at full size. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import zoo
from zoo.data.transforms import TrainTransform
from zoo.losses import create_loss
from zoo.models.semantic import stack_labels
from zoo.structures import Batch, Class, Semantic

TARGET = 0.01  # ours may be worse by one point at most


class Peer(nn.Module):
    """smp's U-Net with the verbs of a model: normalisation, cross-entropy and argmax around it, nothing else."""

    task = "semantic"
    mean: Tensor
    std: Tensor

    def __init__(self, classes: Sequence[Class]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.network = smp.Unet("resnet18", encoder_weights=None, classes=len(self.classes))
        self.criterion = create_loss({"cross_entropy": 1.0})
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.header = {"name": "smp.Unet", "task": self.task, "backbone": {"name": "resnet18"}}

    def forward(self, images: Tensor, sizes: object = None) -> Tensor:
        return self.network((images / 255 - self.mean) / self.std)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return dict(self.criterion(self(batch.images), stack_labels(batch)))

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Semantic]:
        return [Semantic(labels) for labels in self(batch.images).argmax(1).to(torch.uint8)]


def train(model: Any, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Train `model` with the common recipe; its mIoU on the test frames and the seconds of its steps."""
    transform = TrainTransform(crop=options.crop, scale=(0.5, 1.5))
    data = zoo.create_dataset("camvid", root=options.root, split="train", transform=transform, seed=seed)
    test = zoo.create_dataset("camvid", root=options.root, split="test")
    recipe: dict[str, Any] = {
        "steps": options.steps,
        "batch_size": options.batch,
        "workers": 1,
        "eval_workers": 1,
        "evaluate_every": options.steps,
        "log_every": options.steps,
        "save_every": options.steps,
    }
    with tempfile.TemporaryDirectory() as out:
        optimizer = {"name": "adamw", "lr": options.lr, "weight_decay": 0.01}
        result = zoo.fit(model, data, None, test, out=out, seed=seed, optimizer=optimizer, **recipe)
    return result["metrics"]["mIoU"], result["cost"]["train_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--steps", type=int, default=147)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    classes = zoo.create_dataset("camvid", root=options.root, split="test").classes
    rows = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        peer = Peer(classes)
        ours = zoo.create_model("unet", classes, "resnet18")
        zoo.load_weights(ours, peer.network.state_dict())
        rows.append((seed, *train(ours, seed, options), *train(peer, seed, options)))
        print(f"seed {seed}: ours {rows[-1][1]:.4f}, smp {rows[-1][3]:.4f}", flush=True)

    print(f"\nCamVid test, 233 frames at full size; {options.steps} steps of {options.batch} crops of {options.crop}\n")
    print("| seed | ours mIoU | smp mIoU | ours s | smp s |\n|---|---|---|---|---|")
    for seed, miou, seconds, peer_miou, peer_seconds in rows:
        print(f"| {seed} | {miou:.4f} | {peer_miou:.4f} | {seconds:.0f} | {peer_seconds:.0f} |")
    ours_mean, peer_mean = (statistics.fmean(row[column] for row in rows) for column in (1, 3))
    verdict = "met" if ours_mean >= peer_mean - TARGET else "MISSED"
    print(f"| mean | {ours_mean:.4f} | {peer_mean:.4f} | | |\n")
    print(f"Difference {ours_mean - peer_mean:+.4f}; target: not below -{TARGET} ({verdict}).")


if __name__ == "__main__":
    main()
