"""Keypoint R-CNN: Faster R-CNN with a network on each region that points at every keypoint of the object.

He, Gkioxari, Dollár, Girshick: "Mask R-CNN", ICCV 2017, arXiv 1703.06870, section 5.

    images (B, 3, H, W)
      -> Faster R-CNN, see `zoo.models.two_stage.faster_rcnn`: boxes of objects (people) and their classes
      -> pooler: RoIAlign of each box, (N, 256, 14, 14)
      -> keypoint_head: 8 x (conv3x3 512, ReLU), deconv4x4 to a map for each keypoint at 28x28, bilinear to 56x56
      -> each map resized to its box by bicubic interpolation; the keypoint is where it is largest

    training: a keypoint is one of the 56 x 56 cells of its region, a softmax over them picks it

Differences from the paper: none in the network. A batch's term is the mean over its visible keypoints inside their
regions. detectron2's recipe has a smooth L1 of the boxes (beta 0.5) and keeps 1500 proposals in training. What the
dataset calls visible or occluded (v > 0) both count.

Keypoints, in the truth and in what is predicted, are numbers of pixels as in COCO's files, the centre of the first one
at (0, 0); boxes begin at its corner. Between the two lies half a pixel by the conventions of detectron2, none by those
of torchvision, whose weights have learned it so. The third number of a predicted keypoint is the softmax at its cell,
at most 1, where detectron2 sets no limit; torchvision gives the logit beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.conventions import KEYPOINT_CONVENTIONS
from zoo.models.two_stage.faster_rcnn import FasterRCNN, Found
from zoo.models.two_stage.heads import KeypointHead, split_rows
from zoo.models.two_stage.sampling import Regions, Truth
from zoo.structures import Class, Instances, Size

CHUNK = 2**24  # values of resized maps that are held at once


class KeypointRCNN(FasterRCNN):
    """A box, a class, a score and the keypoints (N, P, 3) as x, y, confidence for each object; no masks.

    Args:
        keypoints: how many each object has (P).
        keypoint_convs, keypoint_channels: of the keypoint head.
        options: of `FasterRCNN`.
    """

    presets: ClassVar = KEYPOINT_CONVENTIONS

    def __init__(
        self,
        classes: int | Sequence[str] | Sequence[Class],
        backbone: Backbone,
        *,
        keypoints: int = 17,
        keypoint_convs: int = 8,
        keypoint_channels: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(classes, backbone, **options)
        if self.variant == "c4":
            raise ZooError("keypoint_rcnn has the variants fpn and dc5: with c4 there is no published head")
        self.keypoint_pooler = self.pooler(14)
        self.keypoint_head = KeypointHead(self.neck.channels[0], keypoints, keypoint_convs, keypoint_channels)

    def branch_loss(self, pyramid: list[Tensor], regions: Regions, truths: list[Truth]) -> dict[str, Tensor]:
        """The term `keypoint`: mean over the visible keypoints inside their regions; 0 where a batch has none."""
        boxes, owners, labels = regions.objects()
        wanted, shift = self.keypoint_head.deconv.out_channels, self.conventions.keypoint_shift
        truth = [own_keypoints(*own, wanted) for own in zip(truths, owners, strict=True)]
        if not len(labels):
            return {"keypoint": pyramid[0].new_zeros(())}
        logits = full(self.keypoint_head(self.features(self.keypoint_pooler, pyramid, boxes)))
        places = torch.cat(truth) + logits.new_tensor([shift, shift, 0])
        cells, counted = to_cells(places, torch.cat(boxes), logits.shape[-1])
        entropy = F.cross_entropy(logits.flatten(2).flatten(0, 1), cells.flatten(), reduction="none")
        total = torch.where(counted.flatten(), entropy, 0).sum()
        return {"keypoint": total / counted.sum().clamp(min=1)}

    def describe(self, pyramid: list[Tensor], found: list[Found], sizes: list[tuple[Size, Size]]) -> list[Instances]:
        """Detections with their keypoints."""
        boxes = [own.boxes for own in found]
        logits = full(self.keypoint_head(self.features(self.keypoint_pooler, pyramid, boxes)))
        points = split_rows(from_maps(logits, torch.cat(boxes)), boxes)
        shift = self.conventions.keypoint_shift
        instances = []
        for own, keypoints, (size, original) in zip(found, points, sizes, strict=True):
            scaled, keep = self.rescale(own.boxes, size, original)
            keypoints = keypoints * keypoints.new_tensor([original[1] / size[1], original[0] / size[0], 1])
            keypoints = keypoints - keypoints.new_tensor([shift, shift, 0])
            labels, scores = own.labels[keep], own.scores[keep]
            instances.append(
                Instances(None, labels, scores, boxes=scaled[keep], keypoints=keypoints[keep], size=original)
            )
        return instances

    def probe(self, pyramid: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        pooled = self.features(self.keypoint_pooler, pyramid, boxes)
        return [*super().probe(pyramid, boxes), self.keypoint_head(pooled)]


def own_keypoints(truth: Truth, owners: Tensor, count: int) -> Tensor:
    """The keypoints (n, P, 3) of the objects that own an image's regions. ZooError where the truth has others."""
    given = truth.instances.keypoints
    if given is None and len(truth.rows):
        raise ZooError("keypoint_rcnn trains on keypoints, and the truth has none: use a dataset with keypoints")
    if given is None:
        return truth.boxes.new_zeros(0, count, 3)
    if given.shape[1:] != (count, 3):
        raise ZooError(f"the truth has {given.shape[1]} keypoints an object, the model {count}: keypoints={count} says")
    return given.to(truth.boxes)[truth.rows[owners]]


def to_cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell (N, P) of size * size, by rows, into which each keypoint of a region falls, and whether it counts.

    A keypoint on the right or lower edge belongs to the last cell; one that is outside or not labelled is not counted.
    """
    corner, extent = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    place = ((keypoints[..., :2] - corner) * (size / extent)).floor().long()
    place = torch.where(keypoints[..., :2] == boxes[:, None, 2:], size - 1, place)
    counted = ((place >= 0) & (place < size)).all(-1) & (keypoints[..., 2] > 0)
    return torch.where(counted, place[..., 1] * size + place[..., 0], 0), counted


def from_maps(logits: Tensor, boxes: Tensor) -> Tensor:
    """Keypoints (N, P, 3) as x, y, confidence from maps (N, P, s, s) on boxes (N, 4).

    As if each map were resized to its box, rounded up to whole pixels, by bicubic interpolation, and searched for its
    largest value. Both axes are resized by one product of matrices for many boxes of about one size.
    """
    count, points, size, _ = logits.shape
    result = boxes.new_zeros(count, points, 3)
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = extent.ceil().long()
    order = pixels.prod(1).argsort()
    lengths = pixels[order].tolist()  # the one wait
    start = 0
    while start < count:
        end = _chunk_end(lengths, start, points)
        rows = order[start:end]
        width, height = (max(own[axis] for own in lengths[start:end]) for axis in (0, 1))
        across, down = cubic(size, pixels[rows, 0], width), cubic(size, pixels[rows, 1], height)
        maps = torch.einsum("nhy,npyx,nwx->nphw", down.to(logits), logits[rows], across.to(logits))
        outside = torch.arange(height, device=boxes.device)[None, :, None] >= pixels[rows, 1, None, None]
        outside = outside | (torch.arange(width, device=boxes.device) >= pixels[rows, 0, None, None])
        value, index = maps.masked_fill(outside[:, None], -torch.inf).flatten(2).max(-1)
        found = torch.stack([index % width, index // width], -1) + 0.5
        spread = (logits[rows].flatten(2) - value[..., None]).exp().sum(-1)
        result[rows, :, :2] = found * (extent / pixels)[rows, None] + boxes[rows, None, :2]
        result[rows, :, 2] = (1 / spread).clamp(max=1)
        start = end
    return result


def _chunk_end(lengths: list[list[int]], start: int, points: int) -> int:
    """Where the chunk that begins at `start` ends, given the (width, height) of boxes sorted by area."""
    width = height = 0
    for end in range(start, len(lengths)):
        width, height = max(width, lengths[end][0]), max(height, lengths[end][1])
        if end > start and (end + 1 - start) * points * width * height > CHUNK:
            return end
    return len(lengths)


def cubic(size: int, lengths: Tensor, longest: int) -> Tensor:
    """Matrices (N, longest, size) that resize `size` values to `lengths` (N,) by cubic convolution (a = -0.75).

    Ends are repeated and corners not aligned, as in torch's bicubic interpolation; rows beyond a length are void.
    """
    steps = torch.arange(longest, device=lengths.device, dtype=torch.float64) + 0.5
    place = steps * (size / lengths[:, None].double()) - 0.5
    below = place.floor()
    matrix = place.new_zeros(len(lengths), longest, size)
    for tap in (-1, 0, 1, 2):
        far = (place - below - tap).abs()
        near = ((-0.75 + 2) * far - (-0.75 + 3)) * far * far + 1
        edge = ((-0.75 * far + 3.75) * far - 6.0) * far + 3.0
        weight = torch.where(far <= 1, near, edge)
        index = (below + tap).clamp(0, size - 1).long()
        matrix.scatter_add_(2, index[..., None], weight[..., None])
    return matrix
