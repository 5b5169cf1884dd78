"""A model of a few hundred weights without batch norm or dropout, for tests that compare gradients exactly."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import checkpoint
from zoo.data import Dataset, create_dataset
from zoo.engine import create_fabric, fit
from zoo.models import create_model
from zoo.structures import VOID, Batch, Class, Semantic

FAST: dict[str, Any] = {"workers": 0, "eval_workers": 0, "schedule": "constant", "batch_size": 2, "log_every": 1}
SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 0.0}


class Tiny(nn.Module):
    """Two convolutions."""

    task = "semantic"

    def __init__(self, classes: Sequence[Class]) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.classes = tuple(classes)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, len(classes), 1)
        self.header = {"name": "tiny", "backbone": {"name": "none"}}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images.float() / 255))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labels = torch.stack([target.labels for target in batch.targets]).long()
        loss = nn.functional.cross_entropy(self(batch.images), labels, ignore_index=VOID)
        return {"half": loss / 2, "other_half": loss / 2}

    def predict(self, batch: Batch) -> list[Semantic]:
        with torch.no_grad():
            return [Semantic(labels.to(torch.uint8)) for labels in self(batch.images).argmax(1)]


def scenes(split: str = "train", length: int = 12, size: int = 32, **options: Any) -> Dataset:
    return create_dataset("scenes", split=split, length=length, size=size, **options)


def small_fcn(dropout: float = 0.5) -> Any:
    """A real model with batch norms, an auxiliary head and dropout."""
    torch.manual_seed(0)
    return create_model("fcn", scenes().classes, "test_resnet", dropout=dropout)


def cpu() -> Any:
    return create_fabric("cpu")


def weights(out: Path, name: str = "last.ckpt") -> dict[str, Tensor]:
    return checkpoint.read(out / name, mmap=False)["state"]


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal bit by bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def run(out: Path, model: Any = None, val: Dataset | None = None, **options: Any) -> dict[str, Any]:
    """A short training on scenes; its result."""
    train = scenes()
    return fit(
        Tiny(train.classes) if model is None else model,
        train,
        val,
        out=out,
        fabric=options.pop("fabric", None) or cpu(),
        optimizer=options.pop("optimizer", SGD),
        **{**FAST, "steps": 4, **options},
    )


def rows(out: Path, name: str) -> dict[int, float]:
    """What metrics.csv says of `name`, by step."""
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}
