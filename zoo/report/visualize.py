"""Pictures of truth and predictions: `draw` lays any structure over its image, `panel` sets all side by side.

Things are outlined and each gets its own shade of its class's colour; void and crowds are striped. In the error
picture what is right stays grey and what is wrong is coloured by how it is wrong.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.checkpoint import replacing
from zoo.errors import ZooError
from zoo.structures import VOID, Class, Instances, Panoptic, Target

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

WRONG: dict[str, Color] = {
    "wrong class": (230, 40, 50),
    "wrong object": (240, 90, 220),
    "missed": (50, 130, 255),
    "extra": (255, 185, 0),
}
NONE = -1  # the class of pixels no segment covers
INK, PAPER, STRIPE = (35, 35, 35), (255, 255, 255), (100, 100, 100)
TILE = (240, 720)  # pixels: smaller tiles are enlarged to the first, larger ones shrunk to the second
GAP, LINE, FONT, FONT_SIZE = 6, 22, cv2.FONT_HERSHEY_SIMPLEX, 0.45


@dataclass
class Segments:
    """Any structure as one map: `ids` (H,W) index `labels`, `things`, `striped` and `scores` (S,); 0 is no segment."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int64]
    things: NDArray[np.bool_]
    striped: NDArray[np.bool_]
    scores: NDArray[np.float32]

    @property
    def class_map(self) -> NDArray[np.int64]:
        """(H,W): the class of each pixel, -1 for none."""
        return self.labels[self.ids]

    @property
    def striped_map(self) -> NDArray[np.bool_]:
        """(H,W): void, where it is not the same as nothing, and crowds."""
        return self.striped[self.ids]

    def enlarged(self, times: int) -> Segments:
        """The same with every pixel a square of `times` pixels."""
        return replace(self, ids=_enlarge(self.ids, times))


def draw(
    image: NDArray[Any], target: Target, classes: Sequence[Class], alpha: float = 0.6, min_score: float = 0.5
) -> Picture:
    """`target` laid over `image` (H,W,C), uint8 or float in [0, 1] -> (H,W,3) uint8.

    `alpha` in [0, 1] is the share of colour. Objects with a score below `min_score` are left out.
    """
    picture = rgb(image)
    _check_size(picture, target)
    return _overlay(picture, as_segments(target, classes, min_score), classes, alpha)


def panel(
    image: NDArray[Any],
    truth: Target,
    prediction: Target,
    classes: Sequence[Class],
    title: str | None = None,
    alpha: float = 0.6,
    min_score: float = 0.5,
) -> Picture:
    """Image | truth | prediction | error with headings and a legend of what occurs -> (H',W',3) uint8.

    Small images are enlarged and large ones shrunk to a size one can look at. Errors: "wrong class"; "wrong object",
    the right class on an object that is not the one there (IoU at most 0.5); "missed", nothing predicted where there is
    something; "extra", an object where there is none. Void and crowds of the truth are never wrong.
    """
    picture = rgb(image)
    for target in (truth, prediction):
        _check_size(picture, target)
    true, predicted = as_segments(truth, classes, min_score), as_segments(prediction, classes, min_score)
    kinds = errors(true, predicted)
    counted = ~true.striped_map
    share = (kinds[counted] >= 0).mean() if counted.any() else 0.0

    grow = max(1, -(-TILE[0] // max(picture.shape[:2])))
    picture = _resize(picture, grow, cv2.INTER_LINEAR)
    true, predicted, kinds = true.enlarged(grow), predicted.enlarged(grow), _enlarge(kinds, grow)
    tiles = {
        "image": picture,
        "truth": _overlay(picture, true, classes, alpha),
        "prediction": _overlay(picture, predicted, classes, alpha),
        f"error ({100 * share:.1f} %)": _error_picture(picture, kinds, true.striped_map),
    }
    row = side_by_side({heading: _shrink(tile) for heading, tile in tiles.items()}, title)
    return np.concatenate([row, _legend(_entries(true, predicted, kinds, classes), row.shape[1])])


def save_png(path: str | Path, picture: Picture) -> None:
    """Write `picture`, (H,W,3) or one channel (H,W), to `path`; its folder is made. ZooError where that fails."""
    # Through memory: OpenCV does not say when a disk is full.
    _, content = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1] if picture.ndim == 3 else picture))
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())


def rgb(image: NDArray[Any]) -> Picture:
    """An image (H,W,C) of any number of channels as (H,W,3) uint8: one or two as grey, of more the first three."""
    image = image[..., :1].repeat(3, -1) if image.shape[-1] < 3 else image[..., :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    return (np.nan_to_num(image).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def errors(truth: Segments, prediction: Segments) -> NDArray[np.int64]:
    """(H,W): index into `WRONG` of each pixel's error, -1 where it is right or does not count."""
    true, predicted = truth.class_map, prediction.class_map
    kinds = np.full(true.shape, -1)
    kinds[true != predicted] = 0
    kinds[(true == predicted) & ~_matched(truth, prediction)] = 1
    kinds[(true != NONE) & (predicted == NONE)] = 2
    kinds[(true == NONE) & (predicted != NONE)] = 3
    kinds[truth.striped_map] = -1
    return kinds


def _matched(truth: Segments, prediction: Segments) -> NDArray[np.bool_]:
    """(H,W): the two segments of a pixel are no objects, or have an IoU above one half."""
    shape = len(truth.labels), len(prediction.labels)
    pairs = np.ravel_multi_index((truth.ids, prediction.ids), shape)
    both = np.bincount(pairs.reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
    either = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    fine = (both * 2 > either) | ~(truth.things[:, None] & prediction.things)
    return fine.reshape(-1)[pairs]


def _check_size(picture: Picture, target: Target) -> None:
    if target.size != picture.shape[:2]:
        (h, w), (th, tw) = picture.shape[:2], target.size
        raise ZooError(f"the image is {h}x{w} but what is drawn on it {th}x{tw} (height x width)")


def as_segments(target: Target, classes: Sequence[Class], min_score: float) -> Segments:
    """Any structure as segments. Of objects that overlap the surer hides the less sure; below `min_score` is none."""
    target = target.to("cpu")
    if isinstance(target, Instances):
        return _of_instances(target, min_score)
    if isinstance(target, Panoptic):
        labels = np.concatenate([[NONE], target.labels.numpy()[1:]])
        things = np.array([0 <= label < len(classes) and classes[label].thing for label in labels])
        striped = np.concatenate([[True], target.crowd.numpy()[1:]])
        return Segments(target.ids.numpy(), labels, things, striped, target.scores.numpy())
    ids = target.labels.numpy().astype(np.int32) + 1
    ids[ids > VOID] = 0
    labels = np.arange(NONE, VOID)
    return Segments(ids, labels, np.zeros(len(labels), dtype=bool), labels == NONE, np.ones(len(labels), np.float32))


def _of_instances(target: Instances, min_score: float) -> Segments:
    """Crowds lie lowest; above them the surer hide the less sure."""
    scores, crowd = target.scores.numpy(), target.crowd.numpy()
    order = [int(i) for i in np.lexsort((scores, ~crowd)) if scores[i] >= min_score]
    ids = np.zeros(target.size, dtype=np.int32)
    for place, i in enumerate(order, 1):
        ids[_mask_or_box(target, i)] = place
    return Segments(
        ids,
        np.concatenate([[NONE], target.labels.numpy()[order]]).astype(np.int64),
        np.arange(len(order) + 1) > 0,
        np.concatenate([[False], crowd[order]]).astype(bool),
        np.concatenate([[0], scores[order]]).astype(np.float32),
    )


def _mask_or_box(target: Instances, i: int) -> Any:
    if target.masks is not None:
        return target.masks[[i]].dense()[0].numpy()
    assert target.boxes is not None
    x0, y0, x1, y1 = target.boxes[i].round().int().clamp(min=0).tolist()
    return slice(y0, y1), slice(x0, x1)


def _colors(segments: Segments, classes: Sequence[Class]) -> NDArray[np.float32]:
    """(S,3): the class's colour, for things in a shade of their own."""
    colors = np.zeros((len(segments.labels), 3), dtype=np.float32)
    for i, label in enumerate(segments.labels):
        if 0 <= label < len(classes):
            color = classes[label].color
            colors[i] = _shade(color, i) if segments.things[i] else color
    return colors


def _shade(color: Color, index: int) -> tuple[float, ...]:
    """The same colour, a little further round the wheel and lighter or darker."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    turn = (index * 0.618034) % 1 - 0.5
    lightness = min(max(lightness + 0.24 * ((index * 0.754878) % 1 - 0.5), 0.2), 0.85)
    return tuple(255 * c for c in colorsys.hls_to_rgb((hue + 0.07 * turn) % 1, lightness, saturation))


def _overlay(picture: Picture, segments: Segments, classes: Sequence[Class], alpha: float) -> Picture:
    weights = np.where(segments.labels == NONE, 0, alpha).astype(np.float32)[:, None]
    mixed = picture * (1 - weights)[segments.ids] + (_colors(segments, classes) * weights)[segments.ids]
    mixed = np.rint(mixed).astype(np.uint8)
    _stripe(mixed, segments.striped_map)
    mixed[_outlines(segments)] = (255, 255, 255)
    return mixed


def _outlines(segments: Segments) -> NDArray[np.bool_]:
    """(H,W): the pixels of things beside another segment, on one side of each border only."""
    ids, lines = segments.ids, np.zeros(segments.ids.shape, dtype=bool)
    lines[:-1] |= ids[:-1] != ids[1:]
    lines[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    near = segments.things[ids]
    near[:-1] |= near[1:]
    near[:, :-1] |= near[:, 1:]
    return lines & near


def _stripe(picture: Picture, where: NDArray[np.bool_]) -> None:
    """Darken `where` and draw diagonal stripes on it, in place."""
    y, x = np.ogrid[: where.shape[0], : where.shape[1]]
    light = where & ((x + y) % 8 < 2)
    picture[where] //= 3
    picture[light] = STRIPE


def _error_picture(picture: Picture, kinds: NDArray[np.int64], striped: NDArray[np.bool_]) -> Picture:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    result = (255 - (255 - grey.astype(np.float32)) * 0.5).astype(np.uint8).repeat(3, -1)
    _stripe(result, striped)
    wrong = kinds >= 0
    result[wrong] = result[wrong] * 0.15 + np.array(list(WRONG.values()))[kinds[wrong]] * 0.85
    return result


def _shrink(tile: Picture) -> Picture:
    factor = TILE[1] / max(tile.shape[:2])
    return tile if factor >= 1 else _resize(tile, factor, cv2.INTER_AREA)


def _resize(picture: Picture, factor: float, interpolation: int) -> Picture:
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=interpolation), dtype=np.uint8)


def _enlarge(ids: Any, times: int) -> Any:
    return ids.repeat(times, 0).repeat(times, 1)


def side_by_side(tiles: dict[str, Picture], title: str | None) -> Picture:
    """Pictures of one size in a row, their headings above, and above all a title if there is one."""
    first = next(iter(tiles.values()))
    height, width = first.shape[0], first.shape[1]
    top = LINE * (2 if title else 1) + GAP
    row = np.full((top + height, (width + GAP) * len(tiles) + GAP, 3), PAPER, dtype=np.uint8)
    if title:
        _write(row, title, GAP, LINE)
    for i, (heading, tile) in enumerate(tiles.items()):
        left = GAP + i * (width + GAP)
        _write(row, heading, left, top - GAP)
        row[top:, left : left + width] = tile
    return row


def _entries(
    truth: Segments, prediction: Segments, kinds: NDArray[np.int64], classes: Sequence[Class]
) -> list[tuple[str, Color]]:
    """What the legend names: the classes that occur, most frequent first, then the kinds of error."""
    labels = np.concatenate([truth.class_map.reshape(-1), prediction.class_map.reshape(-1)])
    pixels = np.bincount(labels[labels >= 0], minlength=1)
    order = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    entries = [(classes[i].name, classes[i].color) for i in order if i < len(classes)]
    if truth.striped_map.any():
        entries.append(("void", STRIPE))
    return entries + [(name, color) for i, (name, color) in enumerate(WRONG.items()) if (kinds == i).any()]


def _legend(entries: list[tuple[str, Color]], width: int) -> Picture:
    """Coloured squares with names, in as many lines as they need; (h,width,3)."""
    places: list[tuple[int, int]] = []
    left, line = GAP, 0
    for name, _ in entries:
        needed = LINE + _text_width(name) + 2 * GAP
        if left > GAP and left + needed > width:
            left, line = GAP, line + 1
        places.append((left, line))
        left += needed
    legend = np.full((LINE * (line + 1) + GAP, width, 3), PAPER, dtype=np.uint8)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        top = GAP + y * LINE
        cv2.rectangle(legend, (x, top), (x + 13, top + 13), color, cv2.FILLED)
        cv2.rectangle(legend, (x, top), (x + 13, top + 13), INK, 1)
        _write(legend, name, x + LINE - 2, top + 12)
    return legend


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, FONT, FONT_SIZE, 1)[0][0])


def _write(picture: Picture, text: str, left: int, bottom: int) -> None:
    text = text.encode("ascii", "replace").decode()  # the font has no other letters
    cv2.putText(picture, text, (left, bottom), FONT, FONT_SIZE, INK, 1, cv2.LINE_AA)
