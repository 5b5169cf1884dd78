"""Cityscapes' instance AP, which is not COCO's: the rules of cityscapesScripts' evalInstanceLevelSemanticLabeling.

- Overlap is IoU strictly above .5, .55, ... .95, on pixels; predictions without a pixel do not exist.
- Objects below 100 pixels and groups (crowds) are not counted, but excuse: a prediction that overlaps one above the
  threshold is ignored.
- Of several predictions on one object the surest is right, the others are wrong.
- A prediction on nothing is ignored if the share of its pixels on void, groups and small objects of its class is above
  the threshold (a small group is counted twice there).
- Precision over recall is integrated by steps at every distinct score, with no ranks, no areas and no limit of
  detections. AP is the mean over thresholds and the classes that occur.

Void is a crowd of the label 255 in the truth. https://github.com/mcordts/cityscapesScripts
"""

from __future__ import annotations

import numpy as np

from zoo.metrics.overlaps import Bools, Floats, Ints, Pairs

THRESHOLDS: Floats = np.arange(0.5, 1.0, 0.05)
SMALL = 100


def outcomes(
    common: Pairs, iou: Pairs, void: Ints, place: Ints, detected: Ints, true: Ints, crowd: Bools
) -> tuple[Ints, Ints]:
    """Right and wrong (D,) of each detection of an image, bit t for threshold t.

    Args:
        common, iou: pixels in common and plain IoU of detections and truths of one class.
        void: (D,) pixels of each detection on void.
        place: (D,) in order of falling scores.
        detected, true: (D,) and (G,) pixels.
        crowd: (G,) groups.
    """
    small = true < SMALL
    excused = void + np.bincount(
        common.detections, common.values * (crowd.astype(int) + small)[common.truths], len(detected)
    )
    share = np.divide(excused, detected, out=np.zeros(len(detected)), where=detected > 0)
    over = iou.values[:, None] > THRESHOLDS
    real = (~crowd & ~small)[iou.truths]
    touched = np.zeros((len(detected), len(THRESHOLDS)), bool)
    claims = touched.copy()
    np.logical_or.at(touched, iou.detections, over)
    np.logical_or.at(claims, iou.detections[real], over[real])
    right = np.zeros_like(touched)
    taken = np.zeros((len(true), len(THRESHOLDS)), bool)
    order = np.argsort(place[iou.detections], kind="stable")
    for pair in order[real[order]].tolist():
        d, g = iou.detections[pair], iou.truths[pair]
        right[d] |= over[pair] & ~taken[g]
        taken[g] |= over[pair]
    wrong = (claims & ~right) | (~touched & (share[:, None] <= THRESHOLDS))
    wrong &= (detected > 0)[:, None]
    weights = 1 << np.arange(len(THRESHOLDS))
    return right @ weights, wrong @ weights


def average_precision(labels: Ints, scores: Floats, right: Ints, wrong: Ints, objects: Ints) -> Floats:
    """AP (K, thresholds) of a data set's detections (D,), with (K,) true objects; nan for a class without any."""
    result = np.full((len(objects), len(THRESHOLDS)), np.nan)
    for k in np.flatnonzero(objects).tolist():
        own = labels == k
        for t in range(len(THRESHOLDS)):
            hit, miss = right[own] >> t & 1 > 0, wrong[own] >> t & 1 > 0
            result[k, t] = _steps(scores[own][hit | miss], hit[hit | miss], int(objects[k]))
    return result


def _steps(scores: Floats, hits: Bools, objects: int) -> float:
    """The area under precision over recall, by steps that are centred on the points of the curve."""
    if not len(scores):
        return 0.0
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)
    below = np.concatenate([[0], np.cumsum(hits[order])])[first]  # right ones with a lower score
    found = int(hits.sum()) - below
    precision, recall = found / (len(scores) - first), found / objects
    # A last point repeats the precision at recall 0; each point reaches half way to its neighbours.
    precision, recall = np.append(precision, precision[-1]), np.append(recall, 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, (padded[:-2] - padded[2:]) / 2))
