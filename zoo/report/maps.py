"""What a run keeps of some of its images for others to look at: the image, truth and prediction as maps of ids.

`pictures/maps/` of a run, made by `save` and read by `read`::

    index.json                  {"classes": [[name, [r, g, b], thing], ...], "images": [{"index", "name", ...}, ...]}
    000017.jpg                  the image as one looks at it, its longer side at most 1024 pixels
    000017_truth.png            of the same size, nearest pixels: a semantic map as class ids in 8 bits, 255 void;
    000017_prediction.png       objects and panoptic maps as ids of segments in 24 bits, red + 256 green + 65536 blue

An image's "truth" and "prediction" in index.json are None for class ids, else the tables of the segments: "labels"
(class ids, -1 for none), "scores" and "striped" (void and crowds). Id 0 is no segment. Of objects that overlap the
surer lies above, so leaving out those below a score is leaving out their pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from zoo.checkpoint import replacing
from zoo.errors import ZooError
from zoo.report.visualize import NONE, Segments, as_segments, rgb, save_png
from zoo.structures import VOID, Class, Semantic, Target

FOLDER = Path("pictures") / "maps"
LONGEST = 1024  # pixels
QUALITY = 88  # of the JPEG
LEAST_SCORE = 0.05  # surer objects are kept


@dataclass
class Seen:
    """One image of a run as read back: the JPEG file, its truth and prediction (H,W) as segments."""

    index: int
    name: str
    jpeg: bytes
    truth: Segments
    prediction: Segments


class Writer:
    """Collects the images of one evaluation; `close` writes the index."""

    def __init__(self, folder: Path, classes: Sequence[Class]) -> None:
        """`folder` is that of the run."""
        self._folder, self._classes = folder / FOLDER, tuple(classes)
        self._images: list[dict[str, Any]] = []

    def add(self, index: int, name: str, image: NDArray[Any], truth: Target, prediction: Target) -> None:
        """Write the files of one image (H,W,C), uint8 or float in [0, 1], and its truth and prediction (H,W)."""
        picture = _shrunk(rgb(image), cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        with replacing(self._folder / f"{index:06d}.jpg") as temporary:
            temporary.write_bytes(jpeg.tobytes())
        facts: dict[str, Any] = {"index": index, "name": name, "size": list(image.shape[:2])}
        for what, target in (("truth", truth), ("prediction", prediction)):
            facts[what] = self._save(self._folder / f"{index:06d}_{what}.png", target.to("cpu"))
        self._images.append(facts)

    def close(self) -> None:
        """Write index.json, without which nothing is read."""
        classes = [[c.name, list(c.color), c.thing] for c in self._classes]
        with replacing(self._folder / "index.json") as temporary:
            temporary.write_text(json.dumps({"classes": classes, "images": self._images}), encoding="utf-8")

    def _save(self, path: Path, target: Target) -> dict[str, Any] | None:
        """The map as PNG; the tables of its segments are returned."""
        if isinstance(target, Semantic):
            save_png(path, _shrunk(target.labels.numpy(), cv2.INTER_NEAREST))
            return None
        segments = as_segments(target, self._classes, LEAST_SCORE)
        ids = _shrunk(segments.ids, cv2.INTER_NEAREST)
        save_png(path, np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8))
        return {
            "labels": segments.labels.tolist(),
            "scores": [round(float(score), 4) for score in segments.scores],
            "striped": segments.striped.astype(int).tolist(),
        }


def read(folder: str | Path) -> tuple[tuple[Class, ...], dict[int, Seen]]:
    """The class table and the images by index that the run in `folder` kept; nothing where it kept none.

    Raises ZooError where files are missing or damaged.
    """
    root = Path(folder) / FOLDER
    classes = read_classes(folder)
    if not classes:
        return (), {}
    try:
        content = json.loads((root / "index.json").read_text(encoding="utf-8"))
        return classes, {int(facts["index"]): _seen(root, facts, classes) for facts in content["images"]}
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ZooError(f"{root} cannot be read back: {type(error).__name__} {error}") from None


def read_classes(folder: str | Path) -> tuple[Class, ...]:
    """The class table of the run in `folder`, () where it kept no maps. ZooError where it is damaged."""
    path = Path(folder) / FOLDER / "index.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Class(str(name), tuple(color), bool(thing)) for name, color, thing in content["classes"])
    except FileNotFoundError:
        return ()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ZooError(f"{path} cannot be read: {type(error).__name__} {error}") from None


def _seen(root: Path, facts: Mapping[str, Any], classes: Sequence[Class]) -> Seen:
    index = int(facts["index"])
    stem = f"{index:06d}"
    truth, prediction = (
        _segments(root / f"{stem}_{what}.png", facts[what], classes) for what in ("truth", "prediction")
    )
    if truth.ids.shape != prediction.ids.shape:
        raise ValueError(f"truth and prediction of image {index} differ in size")
    return Seen(index, str(facts["name"]), (root / f"{stem}.jpg").read_bytes(), truth, prediction)


def _segments(path: Path, table: Mapping[str, Any] | None, classes: Sequence[Class]) -> Segments:
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or (pixels.ndim == 2) != (table is None):
        raise ValueError(f"{path.name} is no such PNG")
    if table is None:
        return as_segments(Semantic(torch.from_numpy(pixels)), classes, 0)
    blue, green, red = (pixels[..., channel].astype(np.int32) for channel in range(3))
    ids = red + (green << 8) + (blue << 16)
    labels = np.array(table["labels"], np.int64)
    scores, striped = np.array(table["scores"], np.float32), np.array(table["striped"], bool)
    if not ids.max(initial=0) < len(labels) == len(scores) == len(striped) or labels.max(initial=NONE) > VOID:
        raise ValueError(f"{path.name} has ids beyond its tables")
    things = np.array([0 <= label < len(classes) and classes[label].thing for label in labels])
    return Segments(ids, labels, things, striped, scores)


def _shrunk(picture: NDArray[Any], interpolation: int) -> Any:
    factor = LONGEST / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=interpolation)
