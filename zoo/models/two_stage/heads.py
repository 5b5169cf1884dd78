"""What is said of each region: its class and box, its mask, its keypoints.

Every head takes pooled regions (R, C, s, s). Boxes: FPN, section 4.2 (two hidden layers); Wu and He, "Group
Normalization", ECCV 2018 (four convolutions, one hidden layer). Masks: He et al., "Mask R-CNN", figure 4. Keypoints:
the same, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.two_stage import boxes as box_ops
from zoo.models.two_stage.boxes import Weights
from zoo.models.two_stage.neck import Conv
from zoo.models.two_stage.sampling import Regions

ROI_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)


class BoxPredictor(nn.Module):
    """Features (R, F) -> logits (R, K + 1), the last for background, and offsets (R, K or 1, 4)."""

    def __init__(self, in_channels: int, classes: int, agnostic: bool = False) -> None:
        super().__init__()
        self.cls = nn.Linear(in_channels, classes + 1)
        self.reg = nn.Linear(in_channels, 4 * (1 if agnostic else classes))
        for layer, std in ((self.cls, 0.01), (self.reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls(x), self.reg(x).view(len(x), self.reg.out_features // 4, 4)


class BoxHead(BoxPredictor):
    """`convs` 3x3 convolutions with norm and ReLU, `fcs` hidden layers of `width`, then `cls` and `reg`.

    Parameter names: conv.{i}, fc1, fc2, ..., cls, reg.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        size: int = 7,
        convs: int = 0,
        conv_channels: int = 256,
        fcs: int = 2,
        width: int = 1024,
        norm: str | None = None,
        agnostic: bool = False,
    ) -> None:
        flat = (conv_channels if convs else in_channels) * size**2
        super().__init__(width if fcs else flat, classes, agnostic)
        self.conv = conv_stack(in_channels, conv_channels, convs, norm)
        self.hidden = [f"fc{i + 1}" for i in range(fcs)]
        for name in self.hidden:
            layer = nn.Linear(flat, width)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            self.add_module(name, layer)
            flat = width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.conv:
            x = conv(x)
        x = x.flatten(1)
        for name in self.hidden:
            x = F.relu(self.get_submodule(name)(x), inplace=True)
        return self.predict(x)


class MeanBoxHead(BoxPredictor):
    """The C4 variant's: the mean over each region of what the backbone's last stage gives, then `cls` and `reg`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x.mean((2, 3)))


class MaskHead(nn.Module):
    """`convs` 3x3 convolutions, a deconvolution to twice the size, and one logit per class (or one for all).

    Parameter names: conv.{i}, deconv, predictor.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.conv = conv_stack(in_channels, channels, convs, norm)
        self.deconv = nn.ConvTranspose2d(channels if convs else in_channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, 1 if agnostic else classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, 2s, 2s) of the classes `labels` (R,) alone: of eighty classes one is computed, not all."""
        for conv in self.conv:
            x = conv(x)
        # Windows of this deconvolution do not overlap: it is a product of matrices, with four results for each cell,
        # which are put side by side when one channel is left of them.
        assert self.deconv.bias is not None
        assert self.predictor.bias is not None
        count, _, height, width = x.shape
        weight = self.deconv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * channels, channels)
        x = F.relu(F.linear(x.permute(0, 2, 3, 1), weight, self.deconv.bias.repeat(4)), inplace=True)
        own = labels if self.predictor.out_channels > 1 else torch.zeros_like(labels)
        chosen, bias = self.predictor.weight[own, :, 0], self.predictor.bias[own]  # (R, channels, 1) and (R,)
        logits = torch.bmm(x.view(count, 4 * height * width, chosen.shape[1]), chosen)[..., 0] + bias[:, None]
        return logits.view(count, height, width, 2, 2).transpose(2, 3).reshape(count, 2 * height, 2 * width)


class KeypointHead(nn.Module):
    """`convs` 3x3 convolutions and a deconvolution, then bilinear: (R, C, 14, 14) -> logits (R, P, 56, 56).

    Parameter names: conv.{i}, deconv.
    """

    def __init__(self, in_channels: int, keypoints: int, convs: int = 8, channels: int = 512) -> None:
        super().__init__()
        self.conv = conv_stack(in_channels, channels, convs, norm=None)
        self.deconv = nn.ConvTranspose2d(channels if convs else in_channels, keypoints, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.conv:
            x = conv(x)
        return F.interpolate(self.deconv(x), scale_factor=2, mode="bilinear", align_corners=False)


def conv_stack(in_channels: int, channels: int, convs: int, norm: str | None) -> nn.ModuleList:
    """`convs` 3x3 convolutions with ReLU, initialised as He et al. (ICCV 2015)."""
    stack = nn.ModuleList([Conv(in_channels if i == 0 else channels, channels, norm=norm) for i in range(convs)])
    for conv in stack:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return stack


def box_loss(
    logits: Tensor, offsets: Tensor, regions: Regions, beta: float, weights: Weights = ROI_WEIGHTS
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all regions, and the distance of the offsets of those with an object, both over their number."""
    boxes, labels = torch.cat(regions.boxes), regions.labels
    total = max(len(labels), 1)
    classification = F.cross_entropy(box_ops.full(logits), labels, reduction="sum") / total
    rows = labels.clamp(max=offsets.shape[1] - 1)
    own = offsets[torch.arange(len(labels), device=labels.device), rows]
    found = labels < logits.shape[1] - 1
    return classification, box_ops.smooth_l1(own, box_ops.encode(regions.targets, boxes, weights), found, beta) / total


def split_rows(x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`x` (R, ...) cut into parts as long as those of `like`."""
    return list(x.split([len(part) for part in like]))
