"""The decoder: what is stored comes out, damaged files are named."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.data import read_image, read_labels
from zoo.data.files import images_in
from zoo.errors import ZooError


@pytest.fixture
def picture() -> np.ndarray:
    """(40, 60, 3) uint8, smooth enough for a JPEG to keep, no symmetry."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_lossless_formats_give_the_stored_rgb(tmp_path: Path, picture: np.ndarray, suffix: str, depth: type) -> None:
    stored = picture if depth == np.uint8 else picture.astype(np.uint16) * 251
    path = tmp_path / f"a{suffix}"
    np.save(path, stored) if suffix == ".npy" else cv2.imwrite(str(path), stored[..., ::-1])
    image = read_image(path)
    if depth == np.uint8:
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, picture)
    else:
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, stored.astype(np.float32) / 65535)


def test_jpeg_is_rgb_and_equals_pillow(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 2


def test_stated_range_of_a_camera(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((4, 5), 4095, np.uint16))
    assert read_image(path, channels=1, maximum=4095).max() == 1.0
    with pytest.raises(ZooError, match="maximum="):
        read_image(path, channels=1, maximum=1023)


def test_channels(tmp_path: Path, picture: np.ndarray) -> None:
    grey, rgba, many = tmp_path / "grey.png", tmp_path / "rgba.png", tmp_path / "many.npy"
    Image.fromarray(picture[..., 0]).save(grey)
    Image.fromarray(np.dstack([picture, np.full((40, 60), 7, np.uint8)])).save(rgba)
    np.save(many, np.zeros((4, 5, 7), np.float32))
    np.testing.assert_array_equal(read_image(grey), np.repeat(picture[..., :1], 3, axis=2))
    assert read_image(grey, channels=None).shape == (40, 60, 1)
    np.testing.assert_array_equal(read_image(rgba), picture)
    assert read_image(rgba, channels=None).shape == (40, 60, 4)
    assert read_image(rgba, channels=1).shape == (40, 60, 1)
    assert read_image(many, channels=7).shape == (4, 5, 7)
    with pytest.raises(ZooError, match=r"many\.npy: has 7 channels, 3 are asked for"):
        read_image(many)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_ignored_unless_asked_for(tmp_path: Path, picture: np.ndarray, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, quality=95, exif=exif)
    assert read_image(path).shape == (40, 60, 3)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path))).astype(int)
    turned = read_image(path, exif="apply")
    assert turned.shape == upright.shape
    assert np.abs(turned.astype(int) - upright).max() <= 2


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path, progressive=progressive)
    whole = path.read_bytes()
    read_image(path)
    for length in [0, 1, 2, 20, len(whole) // 4, len(whole) // 2, len(whole) - 50, len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ZooError, match=r"cut\.jpg"):
            read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_harmless(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path)
    clean = read_image(path)
    path.write_bytes(path.read_bytes() + b"trailing bytes")
    np.testing.assert_array_equal(read_image(path), clean)


def test_the_film_behind_a_motion_photo_is_harmless(tmp_path: Path, picture: np.ndarray) -> None:
    """Bytes of a film look like markers now and then; those of a thumbnail in the header are markers."""
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd8\xff\xda thumbnail \xff\xd9".encode("latin-1")
    Image.fromarray(picture).save(path, exif=exif)
    clean, whole = read_image(path), path.read_bytes()
    path.write_bytes(whole + b"film \xff\xda goes on")
    np.testing.assert_array_equal(read_image(path), clean)
    path.write_bytes(whole[:-2])
    with pytest.raises(ZooError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_other_cut_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 200, (64, 64), dtype=np.uint8)
    np.save(path, noise) if suffix == ".npy" else cv2.imwrite(str(path), noise)
    whole = path.read_bytes()
    for length in [0, 3, len(whole) // 2, len(whole) - 40]:
        path.write_bytes(whole[:length])
        for read in (read_image, read_labels):
            with pytest.raises(ZooError, match="cut"):
                read(path)


def test_missing_foreign_and_pickled_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("text.png", "object.npy", "missing.png", "missing.npy"):
        for read in (read_image, read_labels):
            with pytest.raises(ZooError, match=name.replace(".", r"\.")):
                read(tmp_path / name)


def test_a_decompression_bomb_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.data.files.MAX_PIXELS", 100)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    Image.fromarray(np.zeros((11, 10), np.uint8)).save(tmp_path / "big.png")
    with pytest.raises(ZooError, match="10x11 pixels are more than 100"):
        read_image(tmp_path / "big.png")


def test_palette_labels_are_indices(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 20], [255, 5, 3]], np.uint8)
    image = Image.fromarray(indices, mode=None)
    image = image.convert("P") if image.mode != "P" else image
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), indices)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    """Decoders scale 4-bit grey by 17: class 3 would become 51."""
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % min(2**bits, 12)
    if bits == 1:
        Image.fromarray(values.astype(bool)).save(tmp_path / "a.png")
    else:
        Image.fromarray(values).save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), values)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_sixteen_bit_ids(tmp_path: Path, suffix: str) -> None:
    ids = np.array([[0, 1, 256], [40000, 65535, 7]], np.uint16)
    path = tmp_path / f"a{suffix}"
    np.save(path, ids) if suffix == ".npy" else cv2.imwrite(str(path), ids)
    np.testing.assert_array_equal(read_labels(path), ids)


def test_labels_that_are_no_labels(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "colour.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "lossy.jpg")
    np.save(tmp_path / "fractions.npy", np.zeros((3, 4), np.float32))
    for name, says in (("colour.png", "has 3"), ("lossy.jpg", "JPEG"), ("fractions.npy", "float32")):
        with pytest.raises(ZooError, match=says):
            read_labels(tmp_path / name)


def test_images_of_a_folder_by_stem(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "._b.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert {stem: path.name for stem, path in images_in(tmp_path).items()} == {"a": "a.png", "b": "b.jpg"}
    (tmp_path / "a.tif").touch()
    with pytest.raises(ZooError, match=r"a\.png and a\.tif share a name"):
        images_in(tmp_path)


def test_real_images_equal_pillow(data_root: Path) -> None:
    label = sorted((data_root / "camvid/labels/test").iterdir())[0]
    np.testing.assert_array_equal(read_labels(label), np.asarray(Image.open(label)))
    photo = sorted((data_root / "camvid/images/test").iterdir())[0]
    assert np.abs(read_image(photo).astype(int) - np.asarray(Image.open(photo)).astype(int)).mean() < 1


DEPTHS = [np.uint8, np.uint16, np.float32, np.float64]


def random_pixels(channels: int, dtype: type) -> np.ndarray:
    values = np.random.default_rng(channels).random((9, 12, channels))
    return (values if np.issubdtype(dtype, np.floating) else values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize(
    "options",
    [{}, {"planarconfig": "separate"}, {"byteorder": ">"}, {"tile": (16, 16)}, {"compression": "zlib"}],
    ids=["plain", "planes", "big-endian", "tiles", "deflate"],
)
def test_tiff_of_any_channels_and_depth(tmp_path: Path, channels: int, dtype: type, options: dict[str, Any]) -> None:
    stored = random_pixels(channels, dtype)
    layout = {"photometric": "minisblack", "planarconfig": "contig" if channels > 1 else None} | options
    pixels = np.moveaxis(stored, 2, 0) if layout["planarconfig"] == "separate" and channels > 1 else stored
    if channels == 1:
        pixels, layout = stored[..., 0], layout | {"planarconfig": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **layout)
    image = read_image(tmp_path / "a.tif", channels=None)
    expected = stored.astype(np.float32) / 65535 if dtype == np.uint16 else stored
    assert image.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(image, expected.astype(image.dtype))


@pytest.mark.parametrize("dtype", DEPTHS)
def test_colour_of_any_depth_becomes_grey(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", random_pixels(3, dtype))
    rgb, grey = read_image(tmp_path / "a.npy"), read_image(tmp_path / "a.npy", channels=1)
    scale = 255 if dtype == np.uint8 else 1
    np.testing.assert_allclose(grey[..., 0] / scale, rgb @ [0.299, 0.587, 0.114] / scale, atol=0.51 / 255)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_compressed_tiff_as_stored_and_upright(
    tmp_path: Path, picture: np.ndarray, compression: str, orientation: int
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(picture).save(path, compression=compression, tiffinfo={0x0112: orientation})
    off = 8 if compression == "jpeg" else 0
    upright = {1: picture, 3: picture[::-1, ::-1], 6: np.rot90(picture, -1)}[orientation]
    np.testing.assert_allclose(read_image(path).astype(int), picture, atol=off)
    np.testing.assert_allclose(read_image(path, exif="apply").astype(int), upright, atol=off)
    Image.fromarray(picture[..., 0] // 64).save(path, compression="tiff_lzw", tiffinfo={0x0112: orientation})
    np.testing.assert_array_equal(read_labels(path), picture[..., 0] // 64)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_palette_tiff_gives_indices_to_labels_and_colours_to_images(tmp_path: Path, compression: str | None) -> None:
    image = Image.new("P", (3, 2))
    image.putdata([0, 1, 2, 2, 1, 0])
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), [[0, 1, 2], [2, 1, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    path, page = tmp_path / "stack.tif", random_pixels(1, np.uint8)[..., 0]
    tifffile.imwrite(path, np.stack([page] * 5), photometric="minisblack")
    for read in (read_image, read_labels):
        with pytest.raises(ZooError, match=r"stack\.tif: 5 pages; store one image a file, channels last, or as \.npy"):
            read(path)
    with tifffile.TiffWriter(path) as file:
        file.write(page)
        file.write(page[::2, ::2], subfiletype=1)  # a thumbnail
    np.testing.assert_array_equal(read_labels(path), page)


@pytest.mark.parametrize("byte", range(8, 200))
def test_a_tiff_with_any_byte_of_its_header_damaged_is_read_or_refused(tmp_path: Path, byte: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(1, np.uint8)[..., 0])
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[byte] ^= 0x06
    (tmp_path / "a.tif").write_bytes(data)
    for read in (read_image, read_labels):
        with contextlib.suppress(ZooError):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 2}])
def test_a_cut_tiff_of_many_channels_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, random_pixels(5, np.uint16), photometric="minisblack", planarconfig="contig", **options)
    whole = path.read_bytes()
    for length in [4, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ZooError, match=r"cut\.tif: truncated or damaged TIFF"):
            read_image(path, channels=None)


def test_a_large_tiff_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.data.files.MAX_PIXELS", 100)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
    pixels = random_pixels(5, np.float64)
    tifffile.imwrite(tmp_path / "big.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ZooError, match="pixels are more than 100"):
        read_image(tmp_path / "big.tif", channels=None)


@pytest.mark.parametrize("alpha", [0, 200])
def test_grey_with_alpha_has_two_channels(tmp_path: Path, alpha: int) -> None:
    stored = np.dstack([np.arange(12, dtype=np.uint8).reshape(3, 4), np.full((3, 4), alpha, np.uint8)])
    Image.fromarray(stored, mode=None).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "LA"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", channels=None), stored)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), stored[..., [0, 0, 0]])


@pytest.mark.parametrize("header", [b"{'descr': (((  ", b"{'descr': ) }\n", b"", b"{1: 2}"])
def test_odd_numpy_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "odd.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ZooError, match=r"odd\.npy: not a plain NumPy array"):
        read_image(path)
