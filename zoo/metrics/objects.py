"""Scores of separate objects, from the biomedical field: DSB2018's mean precision, AJI, AJI+, object F1.

They know no ranking. A detection is an object if its score reaches a threshold, and objects match within their class.

DSB2018 (Kaggle's Data Science Bowl 2018, Caicedo et al., Nature Methods 2019): per image TP / (TP + FP + FN) at IoUs
strictly above .5, .55, ... .95, averaged over thresholds, then over images.

AJI (Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation", TMI 2017): per image, every true
object takes the detection it overlaps best, which several may take; the sum of their intersections over the sum of
their unions and of all objects left over. AJI+ (Graham et al., "HoVer-Net", Medical Image Analysis 2019) pairs one to
one, by the assignment with the highest sum of IoU. Both are means over images, as in HoVer-Net's code.

Object precision, recall and F1: true positives at one IoU over the detections and the objects of the whole data set.

An image without objects and detections says nothing and is left out. Crowds are not objects; a detection that overlaps
no object by half and lies with more than half of its pixels on crowds of its class is left out too.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from zoo.metrics.matching import T, match
from zoo.metrics.overlaps import Bools, Floats, Ints, Pairs

DSB_THRESHOLDS: Floats = np.nextafter(np.round(np.arange(0.5, 1.0, 0.05), 2), 1)
"""The least IoUs that are strictly above .5, .55, ... .95."""


def on_crowds(common: Pairs, iou: Pairs, detected: Ints, crowd: Bools) -> Bools:
    """The detections (D,) that are left out: more than half on crowds, and not more than half any object."""
    ignored = crowd[common.truths]
    pixels = np.bincount(common.detections[ignored], common.values[ignored], len(detected))
    matched = np.zeros(len(detected), bool)
    matched[iou.detections[~crowd[iou.truths] & (iou.values > 0.5)]] = True
    return (2 * pixels > detected) & ~matched


def dsb2018(iou: Pairs, place: Ints, truths: int) -> float:
    """DSB2018's score of an image with detections in order `place` (D,) and a number of true objects."""
    hits = _hits(iou, place, truths, DSB_THRESHOLDS)
    return float(np.mean(hits / (len(place) + truths - hits))) if len(place) + truths else np.nan


def _hits(iou: Pairs, place: Ints, truths: int, thresholds: Floats) -> Ints:
    """Right detections at each threshold."""
    everywhere, nobody = np.full(truths, (1 << T) - 1), np.zeros(truths, bool)
    right, _ = match(iou, place, everywhere, nobody, np.zeros(len(place), np.int64), thresholds)
    return (right[:, None] >> np.arange(len(thresholds)) & 1).sum(0)


def matched(iou: Pairs, place: Ints, truths: int, threshold: float) -> Bools:
    """Which detections (D,) are right at an IoU of `threshold` or more."""
    everywhere, nobody = np.full(truths, 1), np.zeros(truths, bool)
    right, _ = match(iou, place, everywhere, nobody, np.zeros(len(place), np.int64), np.array([threshold]))
    return right > 0


def aji(common: Pairs, detected: Ints, true: Ints) -> tuple[float, float]:
    """AJI and AJI+ of an image from the pixels in common and the areas (D,) and (G,) of all its objects."""
    if not len(detected) + len(true):
        return np.nan, np.nan
    table = np.zeros((len(true), len(detected)))
    table[common.truths, common.detections] = common.values
    union = true[:, None] + detected - table
    iou = table / (union + 1e-6)  # HoVer-Net's: of equal IoUs the larger pair is first
    best = iou.argmax(1) if len(detected) else np.zeros(len(true), np.int64)
    reuse = _aggregated(table, union, (np.arange(len(true)), best), detected, true)
    return reuse, _aggregated(table, union, linear_sum_assignment(-iou), detected, true)


def _aggregated(table: Floats, union: Floats, pairing: tuple[Ints, Ints], detected: Ints, true: Ints) -> float:
    rows, columns = pairing
    if table.size:
        touching = table[rows, columns] > 0
        rows, columns = rows[touching], columns[touching]
    else:
        rows, columns = rows[:0], columns[:0]
    alone = np.delete(true, rows).sum() + np.delete(detected, np.unique(columns)).sum()
    whole = union[rows, columns].sum() + alone
    return float(table[rows, columns].sum() / whole) if whole else np.nan
