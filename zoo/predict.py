"""Predictions of pictures, folders and videos, as files: overlays to look at and label images to work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from zoo.data import coco_panoptic
from zoo.data.files import IMAGE_SUFFIXES, Exif, images_in, read_image
from zoo.data.panoptic_file import PanopticWriter
from zoo.errors import ZooError, unknown
from zoo.report.explain import draw_explanation
from zoo.report.visualize import draw
from zoo.structures import Batch, Instances, Panoptic, Semantic

Image = np.ndarray
Target = Semantic | Instances | Panoptic


def predict_input(
    model: Any,
    source: Path,
    out: Path,
    fabric: Any,
    alpha: float = 0.6,
    exif: Exif = "ignore",
    maximum: int = 65535,
    explain: bool = False,
) -> list[Path]:
    """Predict a picture, every picture of a folder, or every frame of a video.

    Args:
        model: the model; it is moved to the fabric's device.
        source: the file or folder.
        out: folder for `<name>_labels.png` (see `label_image`) and `<name>_overlay.png`; of a video
            `<name>_labels/<frame>.png` and `<name>_overlay.mp4`. Of a panoptic model's pictures also `panoptic.json`
            and `panoptic/<name>.png` in COCO's format, to be submitted, or read as dataset=coco_panoptic.
        fabric: gives device and precision.
        alpha: share of colour in the overlay, in [0, 1].
        exif: "ignore" or "apply" the orientation of photographs, as the training did.
        maximum: the value of 16-bit pictures that becomes 1.0, as in the training.
        explain: of pictures also write `<name>_explain.png`, what leads to the best object's mask, if the model can.

    Returns the overlays. Raises ZooError where the source is neither of them or cannot be read.
    """
    if exif not in ("ignore", "apply"):
        raise unknown("exif", exif, ("ignore", "apply"))
    if explain and not hasattr(model, "explain"):
        raise ZooError(f"explain=true: {model.header['name']} has nothing to show beside its prediction; masklab has")
    if not source.exists():
        raise ZooError(f"input {source} does not exist: give a picture, a folder of pictures or a video")
    model = fabric.to_device(model).eval()
    pictures = images_in(source) if source.is_dir() else {source.stem: source}
    if not pictures:
        raise ZooError(f"input {source} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    if source.is_file() and source.suffix.lower() not in IMAGE_SUFFIXES:
        return [_predict_video(model, source, out, fabric, alpha)]
    overlays = []
    with _panoptic_file(model, out) as file:
        for name, path in pictures.items():
            image = read_image(path, model.header["backbone"].get("in_channels", 3), exif, maximum)
            target = predict_image(model, image, fabric)
            _write(out / f"{name}_labels.png", label_image(target))
            if file is not None:
                file.add(target.panoptic(), path.name)
            overlays.append(out / f"{name}_overlay.png")
            _write(overlays[-1], draw(image, target, model.classes, alpha)[..., ::-1])
            print(overlays[-1], flush=True)
            if explain:
                _explain(model, image, out / f"{name}_explain.png", fabric)
    return overlays


def _explain(model: Any, image: Image, path: Path, fabric: Any) -> None:
    """The picture of what leads to the best object's mask; none where there is no object."""
    with fabric.autocast(), torch.inference_mode():
        (found,) = model.explain(Batch.of([image]).to(fabric.device))
    if found is not None:
        _write(path, draw_explanation(image, found, model.classes)[..., ::-1])
        print(path, flush=True)


def _panoptic_file(model: Any, out: Path) -> AbstractContextManager[PanopticWriter | None]:
    """Where the segments of a panoptic model's pictures go, with COCO's category ids if its classes are COCO's."""
    if model.task != "panoptic":
        return nullcontext()
    official = [c.name for c in model.classes] == [c.name for c in coco_panoptic.CLASSES]
    return PanopticWriter(out / "panoptic.json", model.classes, coco_panoptic.IDS if official else None)


def predict_image(model: Any, image: Image, fabric: Any) -> Target:
    """The prediction of one image (H,W,C), at its size and on the CPU."""
    with fabric.autocast(), torch.inference_mode():
        return model.predict(Batch.of([image]).to(fabric.device))[0].to("cpu")


def label_image(target: Target) -> Image:
    """A prediction as one channel: class ids in uint8 with 255 for void, or segment ids in uint16 with 0 for none.

    Instances are numbered 1..N as they come; where they overlap the one with the highest score is seen.
    """
    if isinstance(target, Semantic):
        return target.labels.numpy()
    if isinstance(target, Panoptic):
        return target.ids.numpy().astype(np.uint16)
    ids = np.zeros(target.size, np.uint16)
    if target.masks is not None:
        masks = target.masks.dense().numpy()
        for i in target.scores.argsort().tolist():
            ids[masks[i]] = i + 1
    return ids


def _predict_video(model: Any, source: Path, out: Path, fabric: Any, alpha: float) -> Path:
    video = cv2.VideoCapture(str(source))
    if not video.isOpened():
        raise ZooError(f"input {source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video that opens")
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    overlay, labels = out / f"{source.stem}_overlay.mp4", out / f"{source.stem}_labels"
    labels.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(overlay), cv2.VideoWriter.fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS) or 25.0, size)
    if not writer.isOpened():
        raise ZooError(f"{overlay} could not be written: this OpenCV encodes no mp4v, or the folder cannot be written")
    try:
        for number, image in enumerate(_frames(video)):
            target = predict_image(model, image, fabric)
            _write(labels / f"{number:06d}.png", label_image(target))
            writer.write(np.ascontiguousarray(draw(image, target, model.classes, alpha)[..., ::-1]))
    finally:
        video.release()
        writer.release()
    print(overlay, flush=True)
    return overlay


def _frames(video: cv2.VideoCapture) -> Iterator[Image]:
    """RGB frames."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def _write(path: Path, image: Image) -> None:
    if not cv2.imwrite(str(path), np.ascontiguousarray(image)):
        raise ZooError(f"{path} could not be written")
