"""Binary masks as COCO run-length codes (RLE): encode, decode, measure and paste, in NumPy.

An RLE is `{"size": [H, W], "counts": bytes}`: the lengths of alternating runs of zeros and ones, zeros first, down the
columns, packed as pycocotools packs them (differences in groups of five bits). Everything here agrees with pycocotools
bit for bit; see https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c for the format's only description.

Encoding looks inside each mask's box only, and a whole list of masks is packed or unpacked by one vectorised pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from zoo.errors import ZooError, unknown

Size = tuple[int, int]
Rle = dict[str, Any]
Counts = NDArray[np.int64]
Crop = tuple[NDArray[np.bool_], int, int]

_any = np.logical_or.reduce  # `any` is a wrapper of it that costs as much as a small array


def encode(masks: NDArray[Any]) -> list[Rle]:
    """`masks` (N,H,W) of any type, non-zero inside -> N compressed RLEs, equal to `pycocotools.mask.encode`."""
    masks = np.ascontiguousarray(masks, dtype=bool)
    size = masks.shape[1], masks.shape[2]
    return pack([_runs(*crop_dense(mask), size) for mask in masks], size)


def encode_ids(ids: NDArray[np.integer[Any]], segments: Sequence[int]) -> list[Rle]:
    """One RLE for each of `segments` of an id map (H,W), from one pass over the map however many there are."""
    starts, ends, owners = runs_of_ids(ids)
    order = np.argsort(owners, kind="stable")
    first = np.searchsorted(owners[order], segments, "left")
    counts = np.searchsorted(owners[order], segments, "right") - first
    rows = order[np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)]
    return from_runs(starts[rows], ends[rows], counts, (ids.shape[0], ids.shape[1]))


def runs_of_ids(ids: NDArray[np.integer[Any]]) -> tuple[Counts, Counts, NDArray[np.integer[Any]]]:
    """The runs of equal ids of a map (H,W), down the columns: (R,) first places, places after the last, ids."""
    flat = ids.T.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    return starts, np.concatenate([starts[1:], [flat.size]])[: len(starts)], flat[starts]


def from_runs(starts: Counts, ends: Counts, counts: Counts, size: Size) -> list[Rle]:
    """N masks from their runs (R,): the first ``counts[0]`` are those of the first mask. No two of a mask may touch."""
    return pack_flat(*lengths_of_runs(starts, ends, counts, size), size)


def lengths_of_runs(starts: Counts, ends: Counts, counts: Counts, size: Size) -> tuple[Counts, Counts]:
    """The same not packed: as `unpack_flat` gives them, run lengths behind each other and how many each mask has."""
    pixels, number = size[0] * size[1], np.arange(len(counts))
    edges = np.stack([starts, ends], 1).reshape(-1)
    stops = 2 * np.cumsum(counts) + number  # where each mask's edges end if one is added to each mask
    places = np.arange(len(edges)) + np.repeat(number, 2 * counts)
    flat = np.empty(len(edges) + len(counts), np.int64)
    flat[places], flat[stops] = edges, pixels
    flat[places + 1] -= edges
    lengths = 2 * counts + 1
    full = (flat[stops] == 0) & (lengths > 1)  # ends with the image: no zeros behind
    return np.delete(flat, stops[full]) if full.any() else flat, lengths - full


def decode(rles: Sequence[Rle], size: Size) -> NDArray[np.bool_]:
    """RLEs of one image size -> masks (N,H,W) bool. A ZooError where the runs do not fill the image."""
    return draw(*unpack_flat(rles), size)


def draw(flat: Counts, lengths: Counts, size: Size) -> NDArray[np.bool_]:
    """The same from run lengths as `unpack_flat` gives them."""
    masks = np.zeros((len(lengths), *size), dtype=bool)
    for mask, counts in zip(masks, _split(flat, lengths), strict=True):
        _check_fill(counts, size)
        pairs = len(counts) // 2 * 2
        if pairs:
            _draw_runs(mask, counts[:pairs])
    return masks


def _check_fill(counts: Counts, size: Size) -> None:
    height, width = size
    if counts.sum() != height * width or counts.min() < 0:
        raise ZooError(
            f"the runs of an RLE cover {counts.sum()} pixels, the {height}x{width} image has {height * width}"
        )


def _draw_runs(mask: NDArray[np.bool_], counts: Counts) -> None:
    """Pairs of runs (zeros, ones) drawn into an empty `mask` (H,W), touching the columns they reach only."""
    height = len(mask)
    end = counts.sum()
    left, right = counts[0] // height, -(-end // height)
    lengths = np.append(counts, right * height - end)
    lengths[0] -= left * height
    values = np.arange(len(lengths)) % 2 == 1
    mask[:, left:right] = np.repeat(values, lengths).reshape(-1, height).T


def crops(rles: Sequence[Rle]) -> list[Crop]:
    """Each mask inside its box alone: bool (h,w) of the box's size, and the box's left and top; 0 x 0 if empty."""
    found: list[Crop] = []
    for rle, counts in zip(rles, unpack(rles), strict=True):
        height, width = rle["size"]
        _check_fill(counts, (height, width))
        inner = counts[: len(counts) // 2 * 2]
        if not inner.any():
            found.append((np.zeros((0, 0), bool), 0, 0))
            continue
        left = int(inner[0]) // height
        inner[0] -= left * height
        strip = np.zeros((height, -(-int(inner.sum()) // height)), bool)  # the columns between first and last run
        _draw_runs(strip, inner)
        crop, x, y = crop_dense(strip)
        found.append((crop, left + x, y))
    return found


def area(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Pixels of each mask (N,)."""
    return np.array([counts[1::2].sum() for counts in unpack(rles)], dtype=np.int64)


def boxes(rles: Sequence[Rle]) -> NDArray[np.float32]:
    """Tight boxes (N,4), x0, y0, x1, y1 with exclusive right and bottom edges; 0, 0, 0, 0 for an empty mask."""
    result = np.zeros((len(rles), 4), dtype=np.float32)
    for box, rle, counts in zip(result, rles, unpack(rles), strict=True):
        runs: Any = np.cumsum(counts[: len(counts) // 2 * 2]).reshape(-1, 2)
        runs = runs[runs[:, 0] < runs[:, 1]] - [0, 1]  # first and last pixel of each run of ones
        if not len(runs):
            continue
        x, y = np.divmod(runs, int(rle["size"][0]))
        wraps = bool((x[:, 0] < x[:, 1]).any())  # goes on in the next column: touches the top and the bottom
        y0, y1 = (0, rle["size"][0]) if wraps else (y.min(), y.max() + 1)
        box[:] = x[0, 0], y0, x[-1, 1] + 1, y1
    return result


def from_polygons(polygons: Sequence[Sequence[Sequence[float]]], size: Size) -> list[Rle]:
    """N masks of any number of parts `[x0, y0, x1, y1, ...]` each -> N RLEs, the parts united, drawn by pycocotools."""
    return [_draw(parts, size) for parts in polygons]


def _draw(parts: Sequence[Sequence[float]], size: Size) -> Rle:
    if not len(parts):
        return pack([np.array([size[0] * size[1]])], size)[0]
    rows = [np.asarray(part, dtype=np.float64).reshape(-1) for part in parts]
    for row in rows:
        if len(row) < 6 or len(row) % 2 or not np.isfinite(row).all():
            raise ZooError(f"a polygon is 3 or more finite x, y pairs in one flat list, not {row[:8].tolist()}")
    return coco.merge(coco.frPyObjects([row.tolist() for row in rows], *size))


def canonical(rle: Rle, size: Size) -> Rle:
    """Any COCO spelling of an RLE (list of counts, text, bytes) as the compressed one with bytes; checks its size.

    Runs of length 0 in a list, but for the first, go: where two masks have one at the same pixel, pycocotools' `iou`
    takes no notice of what comes behind.
    """
    if tuple(rle["size"]) != tuple(size):
        raise ZooError(f"an RLE of size {list(rle['size'])} does not belong to a {size[0]}x{size[1]} image")
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if isinstance(counts, bytes):
        return {"size": list(size), "counts": counts}
    if not len(counts):
        raise ZooError(f"an RLE without counts does not fill its {size[0]}x{size[1]} image")
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.min() == 0 and not lengths[1:].all():
        edges, changes = np.unique(np.cumsum(lengths)[:-1], return_counts=True)
        edges = edges[(changes % 2 == 1) & (edges < lengths.sum())]
        lengths = np.diff(edges, prepend=0, append=lengths.sum())
    return pack([lengths], size)[0]


def pack(counts: Sequence[Counts], size: Size) -> list[Rle]:
    """Run lengths of N masks -> N compressed RLEs. All masks are packed in one pass."""
    if not len(counts):
        return []
    return pack_flat(np.concatenate(counts).astype(np.int64), np.array([len(c) for c in counts]), size)


def pack_flat(flat: Counts, lengths: Counts, size: Size) -> list[Rle]:
    """`pack` for run lengths in one array, `lengths` (N,) of them for each mask, at least one."""
    if not len(lengths):
        return []
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    delta = flat.copy()
    delta[2:] -= np.where(place[2:] > 2, flat[:-2], 0)
    # Five bits a byte, low ones first, as many as hold the number and its sign (maskApi.c, rleToString).
    size_of = np.where(delta < 0, ~delta, delta)
    used, limit = np.ones(len(delta), np.int64), 16
    while (longer := size_of >= limit).any():
        used += longer
        limit <<= 5
    stops = np.cumsum(used)
    text, starts = np.empty(stops[-1], np.uint8), stops - used
    text[starts] = (delta & 31) + 48 + 32 * (used > 1)
    rest = np.flatnonzero(used > 1)
    for k in range(1, int(used.max())):  # few lengths need more than two bytes
        text[starts[rest] + k] = (delta[rest] >> 5 * k & 31) + 48 + 32 * (used[rest] > k + 1)
        rest = rest[used[rest] > k + 1]
    packed, ends = text.tobytes(), stops[np.cumsum(lengths) - 1].tolist()
    return [{"size": list(size), "counts": packed[a:b]} for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def unpack(rles: Sequence[Rle]) -> list[Counts]:
    """The run lengths of N compressed RLEs, unpacked in one pass; the inverse of `pack`."""
    return _split(*unpack_flat(rles))


def _split(flat: Counts, lengths: Counts) -> list[Counts]:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []


def unpack_flat(rles: Sequence[Rle]) -> tuple[Counts, Counts]:
    """The run lengths of N compressed RLEs behind each other, and how many each has (N,)."""
    if not len(rles):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    text = np.frombuffer(b"".join(rle["counts"] for rle in rles), dtype=np.uint8) - np.uint8(48)
    bytes_ends = np.cumsum([len(rle["counts"]) for rle in rles])
    last = (text & 32) == 0
    if not len(text) or text.max() > 63 or not last[bytes_ends - 1].all():
        raise ZooError("an RLE's counts are not in COCO's compressed form: broken, or cut short")
    stops = np.flatnonzero(last) + 1
    used = np.diff(stops, prepend=0)
    low, starts = (text & 31).astype(np.int64), stops - used
    values = low[starts]
    longer = np.flatnonzero(used > 1)
    for k in range(1, int(used.max())):  # few lengths need more than two bytes
        values[longer] |= low[starts[longer] + k] << (5 * k)
        longer = longer[used[longer] > k + 1]
    values -= (low[stops - 1] >> 4) << (5 * used)  # the last byte's highest bit is the sign
    lengths = np.diff(np.searchsorted(stops, bytes_ends, "right"), prepend=0)
    # Beyond the first run a length is stored less the one before the last: sums along the odd and the even places.
    place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    odd = (place & 1).astype(bool)
    for chain, count in ((np.flatnonzero(odd), lengths // 2), (np.flatnonzero(~odd & (place > 0)), (lengths - 1) // 2)):
        sums = np.cumsum(values[chain])
        before = np.concatenate([[0], sums])[np.cumsum(count) - count]
        values[chain] = sums - np.repeat(before, count)
    return values, lengths


def paste(
    probabilities: Tensor, boxes: Tensor, size: Size, rule: str = "detectron2", threshold: float = 0.5
) -> list[Rle]:
    """RoI grids (N,h,w) in [0, 1] drawn at `boxes` (N,4) of an image of `size` -> N RLEs, never a full-size mask.

    `rule` says how the grid lies on the image and what is inside:
    "detectron2": the grid covers the box, a pixel takes the bilinear value at its centre, zero outside the grid, and
    is inside at `threshold` or above (detectron2/layers/mask_ops.py);
    "torchvision": the grid gets a rim of zeros, the box grows with it and is cut to whole pixels, the grid is resized
    to it, and a pixel is inside above `threshold` (torchvision/models/detection/roi_heads.py).
    """
    if rule not in PASTE_RULES:
        raise unknown("paste rule", rule, PASTE_RULES)
    crops = PASTE_RULES[rule](probabilities.detach().float().cpu(), boxes.detach().float().cpu(), size, threshold)
    return pack([_runs(*crop, size) for crop in crops], size)


def _paste_detectron2(grids: Tensor, boxes: Tensor, size: Size, threshold: float) -> list[Crop]:
    height, width = size
    # Outside the box a pixel still takes a share of the border cells, up to half a cell away.
    reach = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor(grids.shape[:0:-1]) / 2 + 1
    starts = (boxes[:, :2] - reach).floor().long().clamp(min=0).tolist()
    ends = (boxes[:, 2:] + reach).ceil().long().tolist()
    crops = []
    for grid, (x0, y0, x1, y1), (left, top), (right, bottom) in zip(grids, boxes, starts, ends, strict=True):
        right, bottom = max(min(right, width), left), max(min(bottom, height), top)
        xs = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        ys = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        where = torch.stack([xs[None].expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1)
        values = F.grid_sample(grid[None, None], where[None], align_corners=False)[0, 0]
        crops.append(((values >= threshold).numpy(), left, top))
    return crops


def _paste_torchvision(grids: Tensor, boxes: Tensor, size: Size, threshold: float) -> list[Crop]:
    height, width = size
    scale = float(grids.shape[-1] + 2) / grids.shape[-1]
    grids = F.pad(grids, (1, 1, 1, 1))
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    middle = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    crops = []
    for grid, (x0, y0, x1, y1) in zip(grids, torch.cat([middle - half, middle + half], 1).long().tolist(), strict=True):
        shape = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
        values = F.interpolate(grid[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
        left, top = max(x0, 0), max(y0, 0)
        values = values[top - y0 : max(height - y0, 0), left - x0 : max(width - x0, 0)]
        crops.append(((values > threshold).numpy(), left, top))
    return crops


PASTE_RULES: dict[str, Callable[[Tensor, Tensor, Size, float], list[Crop]]] = {
    "detectron2": _paste_detectron2,
    "torchvision": _paste_torchvision,
}


def crop_dense(mask: NDArray[np.bool_]) -> Crop:
    """One mask (H,W) inside its box alone, a view of it, and the box's left and top; 0 x 0 if it is empty."""
    top, bottom = _rows_with_pixels(mask)
    if top == bottom:
        return mask[:0, :0], 0, 0
    columns = _any(mask[top:bottom], axis=0)
    left, right = int(columns.argmax()), len(columns) - int(columns[::-1].argmax())
    return mask[top:bottom, left:right], left, top


def _rows_with_pixels(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The first row of a mask (H,W) that has a pixel, and the one after the last; equal if none has."""
    width = mask.shape[1]
    if not mask.flags.c_contiguous or not mask.size:
        rows = np.flatnonzero(_any(mask, axis=1))
        return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    flat = mask.reshape(-1)
    first = int(flat.argmax())
    if not flat[first]:
        return 0, 0
    last = first + flat[first:].tobytes().rfind(b"\1")  # NumPy finds first pixels fast, bytes last ones
    return first // width, last // width + 1


def _runs(crop: NDArray[np.bool_], left: int, top: int, size: Size) -> Counts:
    """Run lengths of an image of `size` that is zero outside a crop whose corner lies at (left, top)."""
    rows, columns = crop.shape
    padded = np.zeros((columns, rows + 1), dtype=bool)  # one zero after each column ends its last run there
    padded[:, :rows] = crop.T
    flat = padded.reshape(-1)
    changed = np.empty_like(flat)
    changed[:1] = flat[:1]
    np.not_equal(flat[1:], flat[:-1], out=changed[1:])
    x, y = np.divmod(np.flatnonzero(changed), rows + 1)
    return _counts((x + left) * size[0] + y + top, size[0] * size[1])


def _counts(edges: Counts, pixels: int) -> Counts:
    """Sorted [start, end, start, end, ...] of the runs of ones -> lengths of alternating runs, zeros first."""
    touching = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1  # ends at the bottom, goes on at the next top
    if len(touching):
        edges = np.delete(edges, np.concatenate([touching, touching + 1]))
    counts = np.diff(edges, prepend=0, append=pixels)
    return counts if len(counts) == 1 or counts[-1] else counts[:-1]
