"""Panoptic scores written down from their definitions: segment by segment on boolean masks, slow and plain."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import cv2
import numpy as np

from zoo.structures import VOID, Class, Panoptic

Masks = dict[int, np.ndarray]


class Tally:
    """Of one class: the sum of IoU, matches, wrong and missed segments."""

    def __init__(self) -> None:
        self.iou, self.right, self.wrong, self.missed = 0.0, 0, 0, 0

    def quality(self) -> tuple[float, float, float] | None:
        """PQ, SQ, RQ; None for a class that does not occur."""
        if not self.right + self.wrong + self.missed:
            return None
        halves = self.right + 0.5 * self.wrong + 0.5 * self.missed
        return self.iou / halves, self.iou / self.right if self.right else 0.0, self.right / halves


def masks_of(x: Panoptic) -> Masks:
    return {i: x.ids.numpy() == i for i in range(1, len(x.labels)) if x.labels[i] != VOID}


def void_of(x: Panoptic) -> np.ndarray:
    return ~np.logical_or.reduce([np.zeros(x.size, bool), *masks_of(x).values()])


def boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """The pixels that go in d erosions by 3x3, with zeros around the image."""
    steps = max(1, round(ratio * math.hypot(*mask.shape)))
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(np.pad(mask, 1).astype(np.uint8), kernel, iterations=steps, borderValue=0)[1:-1, 1:-1]
    return mask & (inner == 0)


def overlap(true: np.ndarray, area: float, predicted: np.ndarray, void: np.ndarray) -> float:
    """IoU where void pixels leave the prediction and `area` is the truth's."""
    both = int((true & predicted).sum())
    return both / (area + int((predicted & ~void).sum()) - both)


def tallies(pairs: Sequence[tuple[Panoptic, Panoptic]], ratio: float | None = None) -> dict[int, Tally]:
    """What panopticapi counts of (prediction, truth) pairs; with `ratio`, what boundary-iou-api does."""
    found: dict[int, Tally] = defaultdict(Tally)
    for prediction, target in pairs:
        predicted, true, void = masks_of(prediction), masks_of(target), void_of(target)
        labels, classes = prediction.labels.tolist(), target.labels.tolist()
        matched: set[int] = set()
        hit: set[int] = set()
        for t, its in true.items():
            area = int(its.sum()) if target.areas is None else float(target.areas[t])
            for p, mine in predicted.items():
                if classes[t] != labels[p] or target.crowd[t] or not (its & mine).any():
                    continue
                iou = overlap(its, area, mine, void)
                if ratio is not None:
                    edge = boundary(its, ratio)
                    iou = min(iou, overlap(edge, int(edge.sum()), boundary(mine, ratio), void))
                if iou > 0.5:
                    matched.add(t)
                    hit.add(p)
                    found[classes[t]].iou += iou
                    found[classes[t]].right += 1
        crowds = {}
        for t in true:
            if target.crowd[t]:
                crowds[classes[t]] = true[t]
            elif t not in matched:
                found[classes[t]].missed += 1
        for p, mine in predicted.items():
            if p not in hit and mine.any():
                ignored = void | crowds.get(labels[p], np.zeros_like(void))
                if (mine & ignored).sum() / mine.sum() <= 0.5:
                    found[labels[p]].wrong += 1
    return found


def panoptic_quality(
    pairs: Sequence[tuple[Panoptic, Panoptic]], classes: Sequence[Class], ratio: float | None = None
) -> dict[str, float]:
    """PQ, SQ, RQ of all, things, stuff and each class."""
    found, name = tallies(pairs, ratio), "" if ratio is None else "_boundary"
    values = {}
    for group, kinds in {"": (True, False), "_th": (True,), "_st": (False,)}.items():
        own = [found[k].quality() for k, c in enumerate(classes) if c.thing in kinds]
        for i, score in enumerate(("PQ", "SQ", "RQ")):
            values[f"{score}{name}{group}"] = mean([x[i] for x in own if x is not None])
    for k, c in enumerate(classes):
        own_scores = found[k].quality() or (math.nan,) * 3
        values |= {f"{score}{name}/{c.name}": x for score, x in zip(("PQ", "SQ", "RQ"), own_scores, strict=True)}
    return values


def dagger(pairs: Sequence[tuple[Panoptic, Panoptic]], classes: Sequence[Class]) -> dict[str, float]:
    """PQ of things; of stuff the IoU of everything that overlaps, over the true segments."""
    found = tallies(pairs)
    values = {}
    for k, c in enumerate(classes):
        total, count = 0.0, 0
        for prediction, target in pairs:
            for t, its in masks_of(target).items():
                if target.labels[t] != k or target.crowd[t]:
                    continue
                count += 1
                area = int(its.sum()) if target.areas is None else float(target.areas[t])
                for p, mine in masks_of(prediction).items():
                    if prediction.labels[p] == k:
                        total += overlap(its, area, mine, void_of(target)) if (its & mine).any() else 0.0
        quality = found[k].quality()
        thing = quality[0] if quality else math.nan
        values[f"PQ_dagger/{c.name}"] = thing if c.thing else total / count if count else math.nan
    return values | {"PQ_dagger": mean(values.values())}


def covering(pairs: Sequence[tuple[Panoptic, Panoptic]], classes: Sequence[Class]) -> dict[str, float]:
    """Each true segment's best IoU, weighted by its share of its image; void and crowds are removed."""
    values = {}
    for k, c in enumerate(classes):
        part = whole = 0.0
        for prediction, target in pairs:
            true = {t: m for t, m in masks_of(target).items() if not target.crowd[t]}
            seen = np.logical_or.reduce([np.zeros(target.size, bool), *true.values()])
            for t, its in true.items():
                if target.labels[t] == k and its.any():
                    mine = [m & seen for p, m in masks_of(prediction).items() if prediction.labels[p] == k]
                    best = max([(its & m).sum() / (its | m).sum() for m in mine], default=0.0)
                    part += its.mean() * best
                    whole += its.mean()
        values[f"parsing_covering/{c.name}"] = part / whole if whole else math.nan
    return values | {"parsing_covering": mean(values.values())}


def nuclei(pairs: Sequence[tuple[Panoptic, Panoptic]], classes: Sequence[Class]) -> dict[str, float]:
    """bPQ and mPQ as PanNuke has them, mPQ+ as CoNIC has it, of the things."""
    things = [k for k, c in enumerate(classes) if c.thing]
    binary, each_class, each_image = [], defaultdict(list), []
    for prediction, target in pairs:
        found = tallies([(prediction, target)])
        own = {k: found[k].quality() for k in things if found[k].right + found[k].missed}
        for k, quality in own.items():
            each_class[k].append(quality[0])
        each_image += [mean([q[0] for q in own.values()])] if own else []
        one = tallies([(merged(prediction, things), merged(target, things))])[0]
        binary += [one.quality()[0]] if one.right + one.missed else []
    total = tallies(pairs)
    plus = [quality[0] if (quality := total[k].quality()) else 0.0 for k in things]
    values = {"bPQ": mean(binary), "mPQ": mean(each_image), "mPQ+": mean(plus)}
    return values | {f"mPQ/{classes[k].name}": mean(each_class[k]) for k in things}


def merged(x: Panoptic, things: Sequence[int]) -> Panoptic:
    """All things as class 0, all stuff as a crowd of class 1."""
    stuff = np.isin(x.labels.numpy(), [*things, VOID], invert=True)
    labels = np.where(x.labels.numpy() == VOID, VOID, np.where(stuff, 1, 0))
    return Panoptic(x.ids, labels, crowd=x.crowd.numpy() | stuff, areas=x.areas)


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
