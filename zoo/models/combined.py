"""Panoptic from parts: the things of any instance model laid over the stuff of any semantic model.

Kirillov, He, Girshick, Rother, Dollar, "Panoptic Segmentation", CVPR 2019, section 7 (machine baselines).

Idea: objects are taken by falling score. One of which more than the share `overlap` lies under surer ones is dropped,
of the others what is still free becomes a segment. What is free after all of them goes to the stuff that the semantic
model sees there; where it sees a thing, or stuff of fewer pixels than `stuff_area`, the image stays void.

    images (B,C,H,W) -> semantic model -> Semantic (H,W)      \\
                     -> instance model -> Instances of N masks -> Panoptic (H,W), S <= 1 + N + stuff classes

Differences: none from the paper. That small stuff is dropped is panopticapi's (combine_semantic_and_instance_
predictions.py), as are the three thresholds' defaults. Nothing is trained here, so it is no model of the registry:
`python evaluate.py model=combined semantic=a.ckpt instance=b.ckpt`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zoo.errors import ZooError
from zoo.structures import VOID, Batch, Class, Instances, Panoptic, Semantic


class Combined(nn.Module):
    """A trained semantic and a trained instance model as one panoptic model.

    Its classes are those of the instance model, and of the semantic model those that are stuff and not among them.

    Args:
        semantic: the model whose stuff is taken.
        instance: the model whose objects are taken.
        score: objects below it are left out, in [0, 1].
        overlap: the share of an object's pixels that surer ones may hide, in [0, 1].
        stuff_area: pixels of a stuff class in an image below which it becomes void.

    Raises:
        ZooError: models of other tasks, thresholds outside of their range, a semantic model without stuff.
    """

    task = "panoptic"

    def __init__(
        self, semantic: Any, instance: Any, score: float = 0.5, overlap: float = 0.5, stuff_area: int = 64 * 64
    ) -> None:
        super().__init__()
        for model, task in ((semantic, "semantic"), (instance, "instance")):
            if model.task != task:
                raise ZooError(f"{task}={model.header['name']} is a model for task={model.task}: give one for {task}")
        if not (0 <= score <= 1 and 0 <= overlap <= 1 and stuff_area >= 0):
            raise ZooError(
                f"score={score} and overlap={overlap} are in [0, 1], stuff_area={stuff_area} is a number of pixels"
            )
        self.semantic, self.instance = semantic, instance
        self.score, self.overlap, self.stuff_area = score, overlap, stuff_area
        things = [Class(c.name, c.color, thing=True) for c in instance.classes]
        names = {c.name for c in things}
        self.stuff = [k for k, c in enumerate(semantic.classes) if not c.thing and c.name not in names]
        if not self.stuff:
            raise ZooError(
                f"the semantic model {semantic.header['name']} has no class of stuff to lay under the things"
            )
        self.classes: tuple[Class, ...] = (*things, *(semantic.classes[k] for k in self.stuff))
        parts = [f"{m.header['name']} {m.header['backbone']['name']}" for m in (semantic, instance)]
        self.header = {"name": "combined", "backbone": {"name": " + ".join(parts)}}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Panoptic]:
        """One panoptic map for each image, at `original_sizes`."""
        both = zip(self.semantic.predict(batch), self.instance.predict(batch), strict=True)
        table = np.full(VOID + 1, VOID)
        table[self.stuff] = np.arange(len(self.stuff)) + len(self.classes) - len(self.stuff)
        thresholds = self.score, self.overlap, self.stuff_area
        return [
            combine(semantic, instances, table, *thresholds).to(batch.images.device) for semantic, instances in both
        ]


def combine(
    semantic: Semantic,
    instances: Instances,
    stuff: NDArray[np.int64],
    score: float = 0.5,
    overlap: float = 0.5,
    stuff_area: int = 64 * 64,
) -> Panoptic:
    """The rule: `stuff` (256,) gives each semantic label its panoptic one, 255 where it is void or a thing.

    Things keep the labels and the scores of `instances`; stuff has score 1. Objects without masks are refused.
    """
    if instances.masks is None:
        raise ZooError("objects without masks cannot be laid over anything: give an instance model that has masks")
    instances = instances.to("cpu")
    ids, taken = _things(instances, score, overlap)
    free = ids == 0
    seen = stuff[semantic.labels.cpu().numpy()]
    pixels = np.bincount(seen[free], minlength=VOID + 1)[:VOID]
    kept = np.flatnonzero((pixels > 0) & (pixels >= stuff_area))
    number = np.zeros(VOID + 1, np.int32)
    number[kept] = np.arange(len(kept)) + len(taken) + 1
    ids[free] = number[seen[free]]
    own = instances.labels.numpy()[taken], instances.scores.numpy()[taken]
    labels, sure = np.concatenate([[VOID], own[0], kept]), np.concatenate([[1], own[1], np.ones(len(kept))])
    return Panoptic(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(sure))


def _things(instances: Instances, score: float, overlap: float) -> tuple[NDArray[np.int32], list[int]]:
    """Segment numbers 1.. (H,W), 0 where it is free, and which object each of them is; boxes alone are looked at."""
    ids, taken = np.zeros(instances.size, np.int32), list[int]()
    scores = instances.scores.numpy()
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= score]
    assert instances.masks is not None
    for i, (mask, left, top) in zip(order, instances.masks.crops(order), strict=True):
        window = ids[top : top + mask.shape[0], left : left + mask.shape[1]]
        free = mask & (window == 0)
        area, rest = np.count_nonzero(mask), np.count_nonzero(free)
        if rest and area - rest <= overlap * area:
            taken.append(i)
            window[free] = len(taken)
    return ids, taken
