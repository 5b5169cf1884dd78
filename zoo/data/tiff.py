"""TIFF of any number of channels and depth; OpenCV and Pillow stop at four channels of 8 or 16 bits."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSLESS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, PackBits, deflate by its old number
_WHITE_IS_ZERO, _PALETTE = 0, 3
_PLAIN = (_WHITE_IS_ZERO, 1, 2, _PALETTE)  # the rest, such as CMYK and YCbCr, has to be converted to RGB
_ORIENTATION = 0x0112


def is_tiff(data: bytes) -> bool:
    """Whether these are the bytes of a TIFF or BigTIFF."""
    return data[:4] in _MAGIC


def open_page(data: bytes, path: Path) -> Any:
    """The header of the one image in a TIFF (a `tifffile.TiffPage`); its thumbnails and masks do not count.

    Raises:
        ZooError: the header is damaged, or the file holds several images.
    """
    import tifffile  # here because only TIFF needs it

    try:
        pages: list[Any] = list(tifffile.TiffFile(BytesIO(data)).pages)
        images = [page for page in pages if not page.subfiletype & 0b101]  # reduced, or a mask
        page = (images or pages)[0]
        _ = page.shape, page.samplesperpixel, int(page.imagewidth), int(page.imagelength)  # what is asked for later
    except Exception as error:  # damaged bytes raise anything in a parser
        raise ZooError(f"{path}: truncated or damaged TIFF ({error})") from error
    if len(images) > 1:
        raise ZooError(f"{path}: {len(images)} pages; store one image a file, channels last, or as .npy")
    return page


def pixels(page: Any, path: Path) -> NDArray[Any] | None:
    """What a page stores, (H, W) or (H, W, C), palette indices too; None where it takes another decoder.

    That is one for JPEG and the like, for samples of 2 and 4 bits, for colours that are not RGB, and for LZW where
    `imagecodecs` is not installed.

    Raises:
        ZooError: the pixels are truncated or damaged.
    """
    if page.compression not in _LOSSLESS or page.photometric not in _PLAIN or page.bitspersample in (2, 4):
        return None
    try:
        stored = np.asarray(page.asarray(maxworkers=1))
    except Exception as error:
        if "imagecodecs" in str(error):
            return None
        raise ZooError(f"{path}: truncated or damaged TIFF ({error})") from error
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        stored = np.moveaxis(stored, 0, -1)
    if stored.ndim not in (2, 3):
        raise ZooError(f"{path}: holds an array of shape {stored.shape}; store one image (H, W, C) a file")
    if page.photometric == _PALETTE and stored.ndim == 3:
        stored = stored[..., 0]  # without alpha
    if page.photometric == _WHITE_IS_ZERO and stored.dtype.kind in "bu":
        stored = np.invert(stored)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def palette(page: Any) -> NDArray[np.uint8] | None:
    """The colours (N, 3) of a page that stores indices."""
    if page.photometric != _PALETTE or page.colormap is None:
        return None
    return (np.asarray(page.colormap) >> 8).astype(np.uint8).T


def orientation(page: Any) -> int:
    """The EXIF number of the turn that shows the picture upright; 1 is none."""
    tag = page.tags.get(_ORIENTATION)
    return tag.value if tag is not None and isinstance(tag.value, int) else 1


def unturned(data: bytes, page: Any) -> bytes:
    """The file with its orientation set to 1: other decoders would turn the picture."""
    tag = page.tags.get(_ORIENTATION)
    if tag is None:
        return data
    one = (1).to_bytes(2, "little" if page.parent.byteorder == "<" else "big")
    return data[: tag.valueoffset] + one + data[tag.valueoffset + 2 :]
