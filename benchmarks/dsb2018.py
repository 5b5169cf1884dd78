"""Mask R-CNN on DSB 2018 beside torchvision's, from the same weights: python benchmarks/dsb2018.py --root data/dsb2018

The network of `experiment=dsb2018_cpu`: ResNet-18, pyramid of 64 channels, narrow heads, from scratch. torchvision's is
built of its own parts and drawn anew for each seed; ours starts from those weights by `zoo.load`. Both see the same
batches, the same AdamW with the same schedule and number of steps, and are scored on the validation images, at their
own size, by the zoo's metric (mask AP as pycocotools has it, up to 1000 detections an image). Each keeps its own
conventions: anchors, sampling, losses, how masks are drawn.

Each training is a process of its own and one JSON in --out; what is there is not trained again. 1200 steps are the
recipe's half hour on two cores, for each of two models and three seeds. The exit code is 1 where the mean of ours is
more than a point of AP below theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

import zoo
from zoo.data.loader import train_loader
from zoo.data.transforms import TrainTransform
from zoo.masks import Masks
from zoo.metrics import create_metric
from zoo.optim import create_optimizer, create_schedule
from zoo.structures import Batch, Instances

CROP, BATCH, RATE, WARMUP, CLIP = 256, 4, 1e-3, 50, 10.0
PROPOSALS, DETECTIONS, ANCHORS, ROIS = 1000, 400, (8, 16, 32, 64, 128), 128
CONTENDERS = ("ours", "torchvision")


class Torchvision(nn.Module):
    """torchvision's Mask R-CNN as something that has the zoo's verbs `loss` and `predict`."""

    def __init__(self) -> None:
        super().__init__()
        width, levels = 64, {f"layer{i + 1}": str(i) for i in range(4)}
        self.model = detection.MaskRCNN(
            BackboneWithFPN(resnet18(weights=None), levels, [64, 128, 256, 512], width),
            rpn_anchor_generator=AnchorGenerator([(size,) for size in ANCHORS], [(0.5, 1.0, 2.0)] * 5),
            box_head=TwoMLPHead(width * 49, 256),
            box_predictor=FastRCNNPredictor(256, 2),
            mask_head=MaskRCNNHeads(width, [64] * 4, 1),
            mask_predictor=MaskRCNNPredictor(64, 64, 2),
            min_size=CROP,
            max_size=1 << 20,
            rpn_post_nms_top_n_test=PROPOSALS,
            box_detections_per_img=DETECTIONS,
            box_batch_size_per_image=ROIS,
        )
        self.backbone = self.model.backbone

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Its own losses of a batch of crops of one size."""
        targets = []
        for truth in batch.targets or []:
            assert isinstance(truth, Instances)
            assert truth.masks is not None
            assert truth.boxes is not None
            masks = truth.masks.dense().to(torch.uint8)
            targets.append({"boxes": truth.boxes, "labels": truth.labels + 1, "masks": masks})
        return self.model([image.float() / 255 for image in batch.images], targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Instances]:
        """Its detections, images at their own size."""
        found = []
        for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
            self.model.transform.min_size = (min(height, width),)  # no resizing
            (own,) = self.model([image[:, :height, :width].float() / 255])
            masks = Masks.from_dense(own["masks"][:, 0] > 0.5)
            found.append(Instances(masks, own["labels"] - 1, own["scores"], boxes=own["boxes"]))
        return found


def create(name: str, seed: int) -> Any:
    """One of CONTENDERS, with the initial weights of this seed."""
    torch.manual_seed(seed)
    theirs = Torchvision()
    if name == "torchvision":
        return theirs
    anchors = {"anchor_sizes": ANCHORS, "test_size": None, "frozen_stages": 0}
    counts = {"test_proposals": PROPOSALS, "detections": DETECTIONS, "roi_samples": ROIS}
    return zoo.load(theirs.model.state_dict(), conventions="detectron2", **anchors, **counts)


def train(name: str, seed: int, root: Path, steps: int, workers: int) -> dict[str, Any]:
    """Train one contender; its AP on the validation images and its seconds a step."""
    train_set = zoo.create_dataset(
        "dsb2018", root, "train", "instance", transform=TrainTransform(CROP, (0.7, 1.4), rotate=180.0), seed=seed
    )
    model = create(name, seed).train()
    optimizer, factor = create_optimizer(model, "adamw", RATE), create_schedule("poly", steps, WARMUP)
    start, spent, losses = time.time(), time.process_time(), []
    for step, batch in enumerate(train_loader(train_set, BATCH, seed, steps=steps, workers=workers)):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        loss = sum(model.loss(batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"{name}, seed {seed}: step {step + 1}, loss {statistics.mean(losses[-50:]):.3f}", flush=True)
    seconds = {"seconds": time.time() - start, "processor_seconds": time.process_time() - spent}
    return {"name": name, "seed": seed, "steps": steps, **seconds, **score(model.eval(), root)}


def score(model: Any, root: Path) -> dict[str, float]:
    """AP on the validation images."""
    val = zoo.create_dataset("dsb2018", root, "val", "instance")
    metric = create_metric("instance", val.classes, **val.metric_options)
    for number in range(len(val)):
        batch = Batch.collate([val[number]])
        metric.update(model.predict(batch), batch.targets or [], batch.ids)
    scores = metric.compute()
    return {key: scores[key] for key in ("AP", "AP50", "AP75", "AP_box")}


def main() -> int:
    """Train what is missing, print the table; 1 if ours is worse by more than a point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/dsb2018"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_dsb2018"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of the loader")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        torch.set_num_threads(options.threads)
        (seed,) = options.seeds
        result = train(options.only, seed, options.root, options.steps, options.workers)
        path = options.out / f"{options.only}_{seed}_{options.steps}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(result))
        partial.replace(path)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for seed in options.seeds:
        for name in CONTENDERS:
            path = options.out / f"{name}_{seed}_{options.steps}.json"
            if not path.is_file():
                asked = {"--only": name, "--seeds": seed, "--steps": options.steps, "--root": options.root}
                asked |= {"--out": options.out, "--threads": options.threads, "--workers": options.workers}
                arguments = [str(part) for pair in asked.items() for part in pair]
                subprocess.run([sys.executable, __file__, *arguments], check=True)
            found[name].append(json.loads(path.read_text()))
    print(f"{options.steps} steps of {BATCH} crops of {CROP}; AP on val in percent, seeds {options.seeds}\n")
    print("| | AP | mean | AP50 | AP75 | box AP | s a step |\n|---|---|--:|--:|--:|--:|--:|")
    means = {}
    for name, runs in found.items():
        own = {key: [100 * run[key] for run in runs] for key in ("AP", "AP50", "AP75", "AP_box")}
        means[name] = statistics.mean(own["AP"])
        rest = " | ".join(f"{statistics.mean(own[key]):.1f}" for key in ("AP50", "AP75", "AP_box"))
        step = statistics.median(run["processor_seconds"] / run["steps"] for run in runs)
        every = ", ".join(f"{value:.1f}" for value in own["AP"])
        print(f"| {name} | {every} | {means[name]:.1f} | {rest} | {step:.2f} |")
    return int(means["ours"] < means["torchvision"] - 1)


if __name__ == "__main__":
    raise SystemExit(main())
