"""The one decoder of image and label files, and the errors that show what a dataset's folder should look like."""

from __future__ import annotations

import os
import tokenize
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.data import tiff
from zoo.errors import ZooError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit against decompression bombs)."""

DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    SyntaxError,
    NotImplementedError,
    tokenize.TokenError,
    zlib.error,
    Image.DecompressionBombError,
)
"""What NumPy, SciPy and Pillow raise over files that are damaged or not what they seem."""

Exif = Literal["ignore", "apply"]

# EXIF orientation -> the turn that shows the picture upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


def read_image(path: str | Path, channels: int | None = 3, exif: Exif = "ignore", maximum: int = 65535) -> np.ndarray:
    """Decode a PNG, JPEG, TIFF or NumPy file.

    Args:
        path: the file. A ``.npy`` holds (H, W) or (H, W, C) of uint8, uint16 or float in [0, 1].
        channels: 3 repeats grey and drops alpha, 1 makes colour grey, None keeps what the file holds.
            Any other number must be what the file holds.
        exif: "ignore" keeps the pixels as stored, which is what annotations nearly always refer to;
            "apply" turns the picture upright.
        maximum: the 16-bit value that becomes 1.0 (65535, or 4095 for a 12-bit camera).

    Returns:
        (H, W, C) array, RGB order: uint8, or float32 in [0, 1] where the file is deeper than 8 bits.

    Raises:
        ZooError: the file is missing, truncated, not an image, too large, or has other channels.
    """
    path = Path(path)
    stored = _of_known_depth(decode(path, exif), path)
    image = _to_channels(stored if stored.ndim == 3 else stored[..., None], channels, path)
    return np.ascontiguousarray(_to_range(image, maximum, path))


def read_labels(path: str | Path) -> np.ndarray:
    """Decode a label file to the integers it stores: a palette PNG gives its indices, a 16-bit one its ids.

    Returns:
        (H, W) integer array (uint8, uint16 or int32; a NumPy file keeps its integer type).

    Raises:
        ZooError: missing, truncated or lossy file, colours instead of one channel, fractions.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        labels = _load_array(path)
    else:
        data = _read(path)
        labels = _tiff_labels(data, path) if tiff.is_tiff(data) else _png_labels(data, path)
    if labels.ndim != 2:
        raise ZooError(
            f"{path}: labels have one channel (grey or palette), this file has {labels.shape[-1]}; "
            "colour-coded masks need a dataset that names the colours (dataset=folder)"
        )
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "ui":
        raise ZooError(f"{path}: labels are integers, this file holds {labels.dtype}")
    return labels


def has_palette(path: Path) -> bool:
    """Whether an image file stores indices into a table of colours; False where it cannot be read."""
    try:
        with Image.open(path) as header:
            return header.mode in ("P", "PA")
    except DAMAGE:
        return False


def decode(path: Path, exif: Exif = "ignore") -> np.ndarray:
    """The pixels of a file as stored, (H, W) or (H, W, C) of any type; a palette gives its colours.

    Raises:
        ZooError: the file is missing, truncated, not an image, or too large.
    """
    if path.suffix.lower() == ".npy":
        return _load_array(path)
    data = _read(path)
    if tiff.is_tiff(data):
        image, orientation = _tiff_image(data, path)
    else:
        header = _header(data, path)
        image = _opencv(data, header.format or "image", path)
        if header.mode == "LA" and image.ndim == 3 and image.shape[2] == 4:
            image = image[..., [0, 3]]  # OpenCV repeats the grey
        orientation = header.getexif().get(0x0112, 1) if exif == "apply" else 1
    return _UPRIGHT.get(orientation, lambda x: x)(image) if exif == "apply" else image


def incomplete(root: Path | None, problem: str, layout: str) -> ZooError:
    """The error for a dataset folder that is missing, empty or half there: it shows the expected tree.

    Archives that lie in the folder are named: what is missing may still be inside.
    """
    where = "no root given" if root is None else str(root)
    packed = _archives_in(root) if root is not None and root.is_dir() else []
    still = f"; {', '.join(packed)} must be unpacked" if packed else ""
    return ZooError(f"{where}: {problem}{still}. Expected\n{layout.strip(chr(10))}")


def images_in(folder: Path) -> dict[str, Path]:
    """The image files of a folder by stem, sorted; hidden files (``._x`` of macOS too) are skipped.

    Raises:
        FileNotFoundError: there is no such folder (`Dataset` turns it into the expected tree).
        ZooError: two files share a stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ZooError(f"{folder}: {found[path.stem].name} and {path.name} share a name; keep one")
        found[path.stem] = path
    return found


def files_in(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a folder that end in `suffix` by their name without it, sorted; hidden files are skipped.

    One listing and no further question to the disk, for folders of 100 000 files on a network.

    Raises:
        FileNotFoundError: there is no such folder (`Dataset` turns it into the expected tree).
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(suffix) and not entry.name.startswith(".")]
    return {name.removesuffix(suffix): folder / name for name in sorted(names)}


def _archives_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(ARCHIVE_SUFFIXES))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ZooError(f"{path}: no such file") from error
    except OSError as error:
        raise ZooError(f"{path}: cannot be read ({error})") from error


def _header(data: bytes, path: Path) -> Image.Image:
    """The parsed header of an image file, nothing decoded yet."""
    try:
        header = Image.open(BytesIO(data))
    except UnidentifiedImageError as error:
        raise ZooError(f"{path}: not an image, or its header is damaged") from error
    except DAMAGE as error:
        raise ZooError(f"{path}: cannot be read ({error})") from error
    _check_size(header.size, path)
    return header


def _opencv(data: bytes, kind: str, path: Path) -> np.ndarray:
    # UNCHANGED everywhere: OpenCV's conversions while decoding damage 16-bit TIFF and may apply EXIF.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or _cut_short(data):
        raise ZooError(f"{path}: truncated or damaged {kind}")
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        return image
    if image.dtype not in (np.uint8, np.uint16, np.float32):  # cvtColor knows no others
        return image[..., [2, 1, 0, 3][: image.shape[2]]]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _tiff_image(data: bytes, path: Path) -> tuple[np.ndarray, int]:
    """The pixels as stored, and the orientation."""
    page = _tiff_page(data, path)
    image, colors = tiff.pixels(page, path), tiff.palette(page)
    if image is None:
        image = _opencv(tiff.unturned(data, page), f"TIFF, or one of {page.samplesperpixel} channels packed", path)
    elif colors is not None:
        if image.size and image.max() >= len(colors):
            raise ZooError(f"{path}: damaged TIFF (index {image.max()} in a palette of {len(colors)} colours)")
        image = colors[image]
    return image, tiff.orientation(page)


def _tiff_labels(data: bytes, path: Path) -> np.ndarray:
    page = _tiff_page(data, path)
    labels = tiff.pixels(page, path)
    return _pillow_array(_header(tiff.unturned(data, page), path), path) if labels is None else labels


def _tiff_page(data: bytes, path: Path) -> Any:
    page = tiff.open_page(data, path)
    _check_size((page.imagewidth, page.imagelength), path)
    return page


def _png_labels(data: bytes, path: Path) -> np.ndarray:
    header = _header(data, path)
    if header.format == "JPEG":
        raise ZooError(f"{path}: labels in a JPEG are blurred by its compression; store them as PNG")
    labels = _pillow_array(header, path)
    if data[:4] == b"\x89PNG" and data[25] == 0 and data[24] in (2, 4):
        labels = labels // (255 // (2 ** data[24] - 1))  # decoders stretch 2- and 4-bit grey to 0..255
    return labels


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG ends before its end marker; some decoders then fill the rest with grey, silently.

    The search begins where the pixels do, behind the thumbnail in the header; what follows the end (the film of a
    motion photo) may hold any bytes.
    """
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) < 0
        if marker == 0xFF:  # padding
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # no segment
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def _pillow_array(header: Image.Image, path: Path) -> np.ndarray:
    try:
        return np.array(header)
    except DAMAGE as error:
        raise ZooError(f"{path}: truncated or damaged {header.format} ({error})") from error


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ZooError(f"{path}: no such file") from error
    except DAMAGE as error:
        raise ZooError(f"{path}: not a plain NumPy array, or truncated ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise ZooError(f"{path}: expected an array (H, W) or (H, W, C)")
    _check_size((array.shape[1], array.shape[0]), path)
    return np.array(array)


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ZooError(f"{path}: {width}x{height} pixels are more than {MAX_PIXELS}; cut it into tiles")


def _to_channels(image: np.ndarray, channels: int | None, path: Path) -> np.ndarray:
    """(H, W, C) to `channels`; grey with alpha and RGBA lose the alpha."""
    have = image.shape[2]
    if channels is None or have == channels:
        return image
    if channels == 3 and have in (1, 2):
        return np.repeat(image[..., :1], 3, axis=2)
    if channels == 3 and have == 4:
        return image[..., :3]
    if channels == 1 and have == 2:
        return image[..., :1]
    if channels == 1 and have in (3, 4):
        return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)[..., None]
    raise ZooError(f"{path}: has {have} channels, {channels} are asked for; set channels={have}")


def _of_known_depth(image: np.ndarray, path: Path) -> np.ndarray:
    """uint8, uint16 or float32."""
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * 255
    if image.dtype.kind == "f":
        return image.astype(np.float32, copy=False)
    if image.dtype not in (np.uint8, np.uint16):
        raise ZooError(f"{path}: pixels are uint8, uint16 or float in [0, 1], this file holds {image.dtype}")
    return image


def _to_range(image: np.ndarray, maximum: int, path: Path) -> np.ndarray:
    """uint8 as it is, everything else float32 in [0, 1]."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        image = image.astype(np.float32) / maximum
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ZooError(f"{path}: pixel values {low:g}..{high:g} leave [0, 1]; rescale them or set maximum=")
    return image
