"""Direction pooling: of each cell of a box one channel is read, by where in the box the cell lies.

Chen, Hermans, Papandreou, Schroff, Wang, Adam: "MaskLab", CVPR 2018, arXiv 1712.04837, section 3.2. The assembling is
in the spirit of InstanceFCN (Dai et al., ECCV 2016), with sectors and rings instead of a grid.

    box -> s x s cells; the cell in direction a of the box's centre, in the ring r around it, reads channel a * bins + r

So a channel learns "the centre of the object that I belong to lies there, so far away", and two objects of one class
that lie in one box come apart: the pixels of the other one point to another centre. Nothing is cut out of the channels
that a cell does not read: all boxes, cells and channels are one gather of four values each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.models.two_stage.boxes import full
from zoo.models.two_stage.conventions import Conventions
from zoo.models.two_stage.roi import neighbours

LOGITS = ("both", "semantic", "direction")
NORMS = ("l2", "linf")
# Cells on the line between two sectors belong to the second, whatever the rounding of their angle.
TIE = 1e-9


def regions(size: int, directions: int, bins: int, norm: str = "l2", edges: Sequence[float] | None = None) -> Tensor:
    """The channel that each cell of a box reads, (size, size) int64 in 0..directions * bins - 1.

    Args:
        size: of the grid of cells.
        directions: equal sectors around the centre, counted against the clock from the right (3 o'clock).
        bins: rings; with one of them distance does not matter.
        norm: distances from the centre are "l2", circles, 1 in the corners of the box, or "linf", rectangles, 1 on
            its border. In units of the box: circles are ellipses in the image.
        edges: where one ring ends and the next begins, bins - 1 rising numbers in (0, 1); None: equally thick rings.

    Raises ZooError where a channel would be read by no cell.
    """
    if norm not in NORMS:
        raise unknown("distance_norm", norm, NORMS)
    if size < 1 or directions < 1 or bins < 1:
        raise ZooError(f"crop_size={size}, directions={directions}, distance_bins={bins}: give 1 or more of each")
    edges = [(i + 1) / bins for i in range(bins - 1)] if edges is None else list(edges)
    if len(edges) != bins - 1 or sorted({0.0, 1.0, *edges}) != [0.0, *edges, 1.0]:
        raise ZooError(f"distance_edges={edges}: {bins} rings have {bins - 1} rising edges between 0 and 1")
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    up, right = -steps[:, None], steps[None]
    turns = torch.atan2(up.expand(size, size), right.expand(size, size)) / (2 * math.pi) % 1
    sector = (turns * directions + TIE).floor().long() % directions
    distance = (up**2 + right**2).sqrt() * 2**0.5 if norm == "l2" else 2 * torch.maximum(up.abs(), right.abs())
    channel = sector * bins + torch.bucketize(distance, torch.tensor(edges, dtype=torch.float64), right=True)
    if len(channel.unique()) < directions * bins:
        raise ZooError(
            f"crop_size={size} is too small for {directions} directions and {bins} rings that end at {edges}: "
            "a channel would be read by no cell"
        )
    return channel


def read_channels(x: Tensor, rois: Tensor, channels: Tensor, scale: float, points: int, aligned: bool) -> Tensor:
    """RoIAlign in which each cell reads a channel of its own.

    Args:
        x: map (B, C, h, w).
        rois: regions (R, 5), the image's number and the box.
        channels: (R, P, size, size) int64, the channel of each cell in each of P grids.
        scale, points, aligned: of RoIAlign; points of a cell and side, 1 or more.

    Returns (R, P, size, size): what `roi_align` of all channels gives, and of that the chosen ones.
    """
    wide = full(x)
    rois = rois.to(wide.dtype)
    count, height, width = x.shape[1:]
    size = channels.shape[-1]
    start = rois[:, 1:3] * scale - 0.5 * aligned
    extent = rois[:, 3:] * scale - 0.5 * aligned - start
    if not aligned:
        extent = extent.clamp(min=1)
    xs, of_x = neighbours(start[:, 0], extent[:, 0], size, points, width)  # (R, size, 2 * points) each
    ys, of_y = neighbours(start[:, 1], extent[:, 1], size, points, height)
    places = ys[:, :, None, :, None] * width + xs[:, None, :, None, :]  # (R, size, size, 2 * points, 2 * points)
    weights = of_y[:, :, None, :, None] * of_x[:, None, :, None, :]
    planes = rois[:, 0].long()[:, None, None, None] * count + channels
    index = planes[..., None, None] * (height * width) + places[:, None]
    values = wide.reshape(-1).index_select(0, index.flatten()).view(index.shape)
    return (values * weights[:, None]).sum((-2, -1)).to(x.dtype)


class DirectionMaskHead(nn.Module):
    """Semantic and direction logits, and the coarse mask of a box that they make.

    Args:
        channels, stride: of conv5.
        classes: K.
        logits: "both", "semantic" or "direction".
        region_map: (s, s), the direction channel that each cell reads.
        directions: number of direction channels.
    """

    region_map: Tensor

    def __init__(
        self,
        channels: int,
        stride: int,
        classes: int,
        logits: str,
        region_map: Tensor,
        directions: int,
        conventions: Conventions,
    ) -> None:
        super().__init__()
        if logits not in LOGITS:
            raise unknown("logits", logits, LOGITS)
        self.semantic = nn.Conv2d(channels, classes, 1) if logits != "direction" else None
        self.direction = nn.Conv2d(channels, directions, 1) if logits != "semantic" else None
        self.fuse = nn.Conv2d(2, 1, 1) if logits == "both" else None
        for layer in (self.semantic, self.direction):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if self.fuse is not None:
            with torch.no_grad():
                self.fuse.weight.copy_(torch.tensor([0.5, 1.0]).view(1, 2, 1, 1))
            nn.init.zeros_(self.fuse.bias)  # type: ignore[arg-type]
        self.register_buffer("region_map", region_map, persistent=False)
        self.scale, self.conventions = 1 / stride, conventions

    def dense(self, x: Tensor) -> Tensor:
        """conv5 (B, C, h, w) -> (B, K + 32, h, w): semantic, then direction logits."""
        return torch.cat([layer(x) for layer in (self.semantic, self.direction) if layer is not None], 1)

    def split(self, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of a map (K + 32, ...) of one image the semantic and the direction logits, None for those there are not."""
        count = 0 if self.semantic is None else self.semantic.out_channels
        return logits[:count] if count else None, None if self.direction is None else logits[count:]

    def read(self, logits: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """Of regions (R, 5) the logits of the class and those of directions, pooled: (R, 2, s, s), or one of both.

        No other class's channel is read, and none but its own direction's in any cell: no other gets a gradient.
        """
        grids, size = [], self.region_map.shape
        if self.semantic is not None:
            grids.append(labels[:, None, None].expand(-1, *size))
        if self.direction is not None:
            first = 0 if self.semantic is None else self.semantic.out_channels
            grids.append((first + self.region_map).expand(len(labels), -1, -1))
        points, aligned = self.conventions.sampling_ratio, self.conventions.aligned
        return read_channels(logits, rois, torch.stack(grids, 1), self.scale, points, aligned)

    def forward(self, logits: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """Coarse logits (R, s, s) from the map that `dense` gives."""
        x = self.read(logits, rois, labels)
        return (x if self.fuse is None else self.fuse(x))[:, 0]
