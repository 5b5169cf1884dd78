"""Deformable crop and resize: a region is cut out twice, the second time in parts that moved to where it is worth it.

Chen et al.: "MaskLab", CVPR 2018, arXiv 1712.04837, section 3.3, after the deformable RoI pooling of Dai et al.:
"Deformable Convolutional Networks", ICCV 2017.

    crop (R, C, s, s) -> a linear layer: how far each of n x n parts of the box moves, in parts of the box's sides
                      -> each moved part is cut out at (s / n) x (s / n) -> put side by side, (R, C, s, s)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.two_stage.boxes import full

# What the layer says is multiplied by this and the box's side: the factor of Dai et al., section 3.
REACH = 0.1


class DeformableCrop(nn.Module):
    """The second crop. Before it is trained it gives what the first one gave: offsets begin at zero.

    Args:
        channels: of the map.
        size: of the crop, even.
        parts: the box is cut into parts x parts; a divisor of `size`.
        stride: of the map.
        aligned: whether coordinates are shifted by half a pixel, as in RoIAlign.
    """

    def __init__(self, channels: int, size: int, parts: int, stride: int, aligned: bool) -> None:
        super().__init__()
        if parts < 1 or size % parts:
            raise ZooError(f"deformable={parts}: {size} cells are cut into 1, 2, 7 or 14 parts a side, 0 for none")
        self.size, self.parts, self.stride, self.aligned = size, parts, stride, aligned
        inputs = channels * (size // 2) ** 2
        self.offset = nn.Linear(inputs, 2 * parts**2)
        # A sum of so many inputs moves by sides of the box in one step of Adam. (Dai et al. give this layer a hundredth
        # of the others' learning rate.)
        self.calm = inputs**-0.5
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor, boxes: Sequence[Tensor], crop: Tensor) -> Tensor:
        """Of a map (B, C, h, w), boxes (n, 4) of each image and their first crop (R, C, s, s) the second one."""
        moved = self.offset(self.calm * F.max_pool2d(crop, 2).flatten(1)).view(len(crop), self.parts, self.parts, 2)
        every = self.places(torch.cat(list(boxes)), full(moved))
        height, width = x.shape[-2:]
        # RoIAlign's coordinates of cells, in which 0 is the first one's middle; grid_sample's go from -1 to 1.
        shift = 0.0 if self.aligned else 0.5
        grid = 2 * (every / self.stride + shift) / every.new_tensor([width, height]) - 1
        found = []
        for image, own in enumerate(grid.split([len(own) for own in boxes])):
            if len(own):
                rows = own.view(1, -1, self.size, 2)
                cut = F.grid_sample(full(x[image : image + 1]), rows, padding_mode="border", align_corners=False)
                found.append(cut.view(-1, len(own), self.size, self.size).transpose(0, 1))
        return torch.cat(found).to(crop.dtype) if found else crop

    def places(self, boxes: Tensor, moved: Tensor) -> Tensor:
        """In the image (x, y) of the cells' middles (R, s, s, 2), with their part's offset (R, n, n, 2) of (x, y)."""
        sides = boxes[:, 2:] - boxes[:, :2]
        extent = sides if self.aligned else sides.clamp(min=self.stride)
        steps = (torch.arange(self.size, dtype=boxes.dtype, device=boxes.device) + 0.5) / self.size
        relative = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        each = self.size // self.parts
        spread = moved.repeat_interleave(each, 1).repeat_interleave(each, 2)
        return boxes[:, None, None, :2] + relative * extent[:, None, None] + REACH * spread * sides[:, None, None]
