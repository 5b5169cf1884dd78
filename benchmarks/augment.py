"""Does augmenting an image with 300 nuclei cost more than one with 3?

    python benchmarks/augment.py --root ../shared/data/dsb2018        # half a minute

For each size of image that DSB 2018 has: the image with the most nuclei and the one with the fewest, the same
augmentation (that of the dataset's card), the same random numbers, one thread, in turn. Times are of the processor, the
least of three for each random number (others on the machine empty the caches), medians over these. Beside it the usual
way: every mask warped by itself, as OpenCV's users and most libraries do. Prints a Markdown table; 1 if many nuclei
cost more than 1.5 times what few do. The reader unpacks the run lengths of masks to check them and hands them on, so
that is the reader's time and not part of this.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from zoo.data import create_dataset
from zoo.data.transforms import TrainTransform
from zoo.structures import Sample

LIMIT = 1.5
CARD = Path(__file__).resolve().parents[1] / "conf" / "dataset" / "dsb2018.yaml"


def each_mask(transform: TrainTransform, sample: Sample, dense: np.ndarray, rng: np.random.Generator) -> Any:
    """Image and masks (N, H, W) uint8 by the same warp, one call for each mask, then boxes."""
    warp = transform._draw(rng, dense.shape[1:])
    image = warp.image(sample.image)
    masks = np.stack([warp.labels(mask, 0) for mask in dense])
    boxes = [cv2.boundingRect(mask) for mask in masks]
    return image, masks, boxes


def medians(tasks: dict[str, Callable[[np.random.Generator], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of processor time of each task, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats):
        for name, task in tasks.items():
            tries = []
            for _ in range(3):
                begin = time.process_time()
                task(np.random.default_rng(repeat))
                tries.append(time.process_time() - begin)
            times[name].append(min(tries))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    dataset = create_dataset("dsb2018", arguments.root, "train", task="instance")
    transform = TrainTransform(**yaml.safe_load(CARD.read_text())["transform"])
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for i in range(len(dataset)):
        sample = dataset.plain(i)
        by_size.setdefault(sample.size, []).append(sample)
    print("| image | nuclei | ms | nuclei | ms | ratio | each mask by itself |\n|---|---|---|---|---|---|---|")
    worst = 0.0
    for size, samples in sorted(by_size.items()):
        few, many = min(samples, key=lambda s: len(s.target)), max(samples, key=lambda s: len(s.target))
        if len(many.target) < 100 or len(few.target) > 10:
            continue
        dense = many.target.masks.dense().numpy().astype(np.uint8)
        spent = medians(
            {
                "few": lambda rng, few=few: transform(few, rng),
                "many": lambda rng, many=many: transform(many, rng),
                "each": lambda rng, many=many, dense=dense: each_mask(transform, many, dense, rng),
            },
            arguments.repeats,
        )
        ratio = spent["many"] / spent["few"]
        worst = max(worst, ratio)
        print(
            f"| {size[1]}x{size[0]} | {len(few.target)} | {spent['few']:.1f} | {len(many.target)} | "
            f"{spent['many']:.1f} | {ratio:.2f} | {spent['each']:.1f} |"
        )
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
