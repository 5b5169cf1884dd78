"""What two implementations of one paper do differently, as two named presets.

Weights are only right with the conventions they were trained with: a box of 20 pixels pooled with the other one's
RoIAlign is half a pixel of a feature map off, which is 2 to 16 pixels of the image. So there is one choice by name, and
no switch for each row. Sources: detectron2's modeling folder and torchvision/models/detection, read line by line.

Of both presets alike, and of neither's source: background is the last class and has no offsets of its own; parameters
begin as detectron2's; the true masks are cut out of bitmaps (detectron2 draws polygons anew in each region); an object
that no anchor overlaps makes no anchor positive (theirs would make all those that miss it so); levels' strides are
those of the network (torchvision infers them from the first image that it sees, and keeps what it inferred); a box is
dropped in prediction for an offset of its own class that is not finite (detectron2: of any class); the confidence of a
keypoint is detectron2's, held to 1; c4 pools the regions of objects again for their masks (detectron2 picks them out
of those pooled for boxes: the same values, but for batch norms in training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from zoo.errors import unknown


@dataclass(frozen=True)
class Conventions:
    """One implementation's answers to what the paper leaves open.

    Attributes:
        rounded_anchors: corners of the anchors of a cell at whole pixels (46x22 instead of 45.25x22.63).
        inferred_strides: anchors are padded size // grid apart instead of the level's stride (61 at 800 pixels).
        ratio_major: of several anchor sizes on one map, all of the first ratio come first, not all of the first size.
        aligned, sampling_ratio: of RoIAlign: half-pixel shift; points per bin and side, 0: as many as it has pixels.
        inner_epsilon, outer_epsilon: level of a RoI = floor(4 + log2(sqrt(area) / 224 + inner) + outer).
        train_proposals: kept of each image in training, with a pyramid.
        least_proposal, least_box: shorter boxes are no proposals (above 0: at least this long; 0: longer than 0), and
            no detections; None keeps all.
        sampled_normalizer: the RPN's losses are divided by the sampled anchors, not by the wished number.
        rpn_beta, box_beta: where smooth L1 turns from square to straight; 0 is L1.
        soft_masks: targets of the mask loss are shares of pixels, not 0 or 1.
        paste_rule: how RoI grids are drawn, see `zoo.ops.masks.paste`.
        antialias: test-time resizing smooths and rounds sizes to the nearest; otherwise it does neither and truncates.
        clip_detections: boxes end at the border of the original image, and what is empty then is dropped.
        keypoint_shift: added to the keypoints of the truth and taken from those predicted. Half a pixel makes of COCO's
            numbers of pixels the coordinates that boxes are in; torchvision takes the numbers for coordinates.
    """

    rounded_anchors: bool
    inferred_strides: bool
    ratio_major: bool
    aligned: bool
    sampling_ratio: int
    inner_epsilon: float
    outer_epsilon: float
    train_proposals: int
    least_proposal: float
    least_box: float | None
    sampled_normalizer: bool
    rpn_beta: float
    box_beta: float
    soft_masks: bool
    paste_rule: str
    antialias: bool
    clip_detections: bool
    keypoint_shift: float


DETECTRON2 = Conventions(
    rounded_anchors=False,
    inferred_strides=False,
    ratio_major=False,
    aligned=True,
    sampling_ratio=0,
    inner_epsilon=1e-8,
    outer_epsilon=0.0,
    train_proposals=1000,
    least_proposal=0.0,
    least_box=None,
    sampled_normalizer=False,
    rpn_beta=0.0,
    box_beta=0.0,
    soft_masks=False,
    paste_rule="detectron2",
    antialias=True,
    clip_detections=True,
    keypoint_shift=0.5,
)
TORCHVISION = Conventions(
    rounded_anchors=True,
    inferred_strides=True,
    ratio_major=True,
    aligned=False,
    sampling_ratio=2,
    inner_epsilon=0.0,
    outer_epsilon=1e-6,
    train_proposals=2000,
    least_proposal=1e-3,
    least_box=1e-2,
    sampled_normalizer=True,
    rpn_beta=1 / 9,
    box_beta=1 / 9,
    soft_masks=True,
    paste_rule="torchvision",
    antialias=False,
    clip_detections=False,
    keypoint_shift=0.0,
)
CONVENTIONS: Mapping[str, Conventions] = {"detectron2": DETECTRON2, "torchvision": TORCHVISION}
# detectron2's recipes of two relatives; torchvision has one recipe for all.
KEYPOINT_CONVENTIONS = {**CONVENTIONS, "detectron2": replace(DETECTRON2, train_proposals=1500, box_beta=0.5)}
CASCADE_CONVENTIONS = {**CONVENTIONS, "detectron2": replace(DETECTRON2, train_proposals=2000)}


def choose(name: str, presets: Mapping[str, Conventions]) -> Conventions:
    """The preset of this name. Raises ZooError for another."""
    if name not in presets:
        raise unknown("conventions", name, presets)
    return presets[name]
