"""Score maps that are made a strip of rows at a time: prediction without all classes at full size.

The classes of every pixel, (B, K, H, W), are the largest tensor of a prediction: 19 classes of a 4096x8192 image are
2.4 GiB before anything is done with them. But labels need one pixel's scores at a time, a bilinear resize two rows of
its source, an average of windows the windows that touch a row. So `Strips` says how to make any rows of a map from the
rows of another, and `labels` walks down the image, strip by strip:

    logits (B, K, h, w) --resized--> view --softmax--> --mirrored--> --resized--> image --mean of views--> labels

A strip is also small enough for the caches, which makes this faster than the textbook expression. Every operation is
per pixel, so the height of the strips does not change the result. Where the whole map is small, or the device is not
the CPU and has the memory, there is one strip: plain `F.interpolate`, softmax and argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.argmax import argmax

Reader = Callable[[int, int], Tensor]
Source = tuple[int, int, float]  # of a place in a resized row: the two places it lies between, the share of the second

# Scores of a strip. On the CPU 32 MiB, a last-level cache's worth; elsewhere 512 MiB, so that there is one strip
# unless that would be a burden. Few rows would be resized over and over along the other axis.
_SCORES = {"cpu": 1 << 23}
_SCORES_ELSEWHERE = 1 << 27
_ROWS = 32


@dataclass(frozen=True)
class Strips:
    """A map of scores (B, K, H, W) that gives its rows on demand.

    `read(top, bottom)` gives (B, K, bottom - top, W), not to be changed in place. Rows are asked for from top to
    bottom: the next `top` is never above the last one's.
    """

    shape: tuple[int, int, int, int]
    read: Reader
    full_size: bool = False  # made from a tensor that is as large in memory

    def softmax(self) -> Strips:
        """Probabilities, float32."""
        return replace(self, read=lambda top, bottom: self.read(top, bottom).float().softmax(1))

    def mirrored(self) -> Strips:
        """Left and right exchanged."""
        return replace(self, read=lambda top, bottom: self.read(top, bottom).flip(-1))

    def resized(self, size: Sequence[int], align_corners: bool = False) -> Strips:
        """At another (H, W), bilinear like `F.interpolate`, at least in float32; itself where it has that size."""
        height, width = size
        if self.shape[2:] == (height, width):
            return self
        where = sources(self.shape[2], height, align_corners)

        def read(top: int, bottom: int) -> Tensor:
            if bottom - top == height:
                whole = at_least_float(self.whole())
                return F.interpolate(whole, size=(height, width), mode="bilinear", align_corners=align_corners)
            first, last = where[top][0], where[bottom - 1][1]
            source = _widened(at_least_float(self.read(first, last + 1)), width, align_corners)
            rows = source.new_empty((*source.shape[:2], bottom - top, width))
            for row, (above, below, share) in zip(rows.unbind(-2), where[top:bottom], strict=True):
                # In the order of torch's kernel and, as there, with the last product and sum in one operation.
                torch.mul(source[..., below - first, :], share, out=row)
                row.add_(source[..., above - first, :], alpha=1 - share)
            return rows

        # A source of a quarter of the area or less is small beside the result.
        full_size = self.full_size and 4 * self.shape[2] * self.shape[3] > height * width
        return Strips((*self.shape[:2], height, width), read, full_size)

    def whole(self) -> Tensor:
        """All rows."""
        return self.read(0, self.shape[2])

    def spans(self, device: torch.device) -> Iterator[tuple[int, int]]:
        """(top, bottom) of strips of a size that suits the device."""
        batch, classes, height, width = self.shape
        scores = _SCORES.get(device.type, _SCORES_ELSEWHERE)
        rows = max(_ROWS, scores // max(1, batch * classes * width))
        for top in range(0, height, rows):
            yield top, min(top + rows, height)

    def add_to(self, total: Tensor | None, device: torch.device) -> Tensor:
        """The scores as a float32 tensor, added to `total` in place where there is one."""
        if total is None:
            total = torch.zeros(self.shape, device=device)
        for top, bottom in self.spans(device):
            total[..., top:bottom, :] += self.read(top, bottom)
        return total

    def labels(self, device: torch.device) -> Tensor:
        """The class of the highest score of every pixel, uint8 (B, H, W); equal scores give the first class."""
        batch, _, height, width = self.shape
        out = torch.empty((batch, height, width), dtype=torch.uint8, device=device)
        for top, bottom in self.spans(device):
            out[:, top:bottom] = argmax(self.read(top, bottom))
        return out


def stored(scores: Tensor) -> Strips:
    """Rows of a tensor (B, K, H, W)."""
    batch, classes, height, width = scores.shape
    # planes in one piece, whatever the memory format: what follows is fast on these, and its rounding the same
    return Strips((batch, classes, height, width), lambda top, bottom: scores[..., top:bottom, :].contiguous(), True)


def average(parts: Sequence[Strips], count: int) -> Strips:
    """The sum of maps of one shape, divided by `count`; a single one as it is."""
    if len(parts) == count == 1:
        return parts[0]

    def read(top: int, bottom: int) -> Tensor:
        total = parts[0].read(top, bottom)
        for part in parts[1:]:
            total = total + part.read(top, bottom)
        return total / count

    return Strips(parts[0].shape, read)


class WindowMean:
    """Rows of the mean of windows (B, K, h, w) that lie over an image (H, W) in a grid: `read` of a `Strips`.

    `window(rows, columns)` gives the scores of one window, and is called once for each, from left to right and top to
    bottom, when the first row that it touches is asked for. The sums that are held are as high as one window.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        tops: Sequence[int],
        lefts: Sequence[int],
        extent: Sequence[int],
        window: Callable[[slice, slice], Tensor],
    ) -> None:
        self.shape, self.extent = shape, (min(extent[0], shape[2]), min(extent[1], shape[3]))
        self.tops, self.lefts, self.window = list(tops), list(lefts), window
        self.total: Tensor | None = None  # rows from `start` on, those above `finished` complete
        self.count: Tensor  # windows per pixel of them
        self.start = self.finished = 0
        self.last: tuple[int, Tensor | None] = (0, None)  # what was read last, and where it ends: a resize reads again

    def __call__(self, top: int, bottom: int) -> Tensor:
        parts = []
        end, last = self.last
        if top < end and last is not None:
            parts.append(last[..., top - end :, :][..., : bottom - top, :])
            top = min(end, bottom)
        while top < bottom:
            while self.finished <= top:
                self._next_row_of_windows()
            stop = min(bottom, self.finished)
            rows = slice(top - self.start, stop - self.start)
            assert self.total is not None  # there is a window
            parts.append(self.total[..., rows, :] / self.count[rows])
            top = stop
        read = torch.cat(parts, -2) if len(parts) > 1 else parts[0]
        if bottom >= end:
            self.last = (bottom, read if bottom < self.shape[2] else None)
        return read

    def _next_row_of_windows(self) -> None:
        """Move the sums down to the next row of windows and add these."""
        top = self.tops.pop(0)
        if self.total is not None:
            keep = self.extent[0] - (top - self.start)
            for plane in (*self.total.flatten(0, 1), self.count):  # one by one: no second copy of the sums
                plane[:keep] = plane[-keep:].clone() if keep else 0
                plane[keep:] = 0
        rows = slice(top, top + self.extent[0])
        for left in self.lefts:
            columns = slice(left, left + self.extent[1])
            scores = self.window(rows, columns)
            if self.total is None:
                self.total = scores.new_zeros((*self.shape[:2], self.extent[0], self.shape[3]), dtype=torch.float32)
                self.count = self.total.new_zeros(self.total.shape[-2:])
            self.total[..., columns] += scores
            self.count[:, columns] += 1
        self.start, self.finished = top, self.tops[0] if self.tops else self.shape[2]


def sources(length: int, target: int, align_corners: bool) -> list[Source]:
    """For each of `target` rows: the two of `length` rows it lies between and the share of the second, as torch's."""
    rows = torch.arange(target, dtype=torch.float32)
    if align_corners:
        position = rows * (torch.tensor(length - 1.0) / max(1, target - 1))
    else:
        position = ((rows + 0.5) * (torch.tensor(float(length)) / target) - 0.5).clamp_(min=0)
    above = position.long().clamp_(max=length - 1)
    below = (above + 1).clamp_(max=length - 1)
    share = (position - above).clamp_(0, 1)
    return list(zip(above.tolist(), below.tolist(), share.tolist(), strict=True))


def _widened(source: Tensor, width: int, align_corners: bool) -> Tensor:
    """(B, K, n, w) with `width` columns."""
    if source.shape[-1] == width:
        return source
    flat = source.reshape(1, -1, source.shape[-1])
    return F.interpolate(flat, size=width, mode="linear", align_corners=align_corners).view(*source.shape[:-1], width)


def at_least_float(scores: Tensor) -> Tensor:
    """Half precision as float32: a resize in it would weigh in steps of 1/256 and make logits equal that are not."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
