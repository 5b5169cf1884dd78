"""People's own data: a folder of images beside a folder of masks, in the layouts and encodings they come in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.base import Dataset, Transform
from zoo.data.files import IMAGE_SUFFIXES, Exif, has_palette, incomplete, read_image, read_labels
from zoo.data.legend import Names, read_legend
from zoo.data.pairs import Files, check_fractions, complete, drawn, read_lines, to_sample, without_suffix
from zoo.errors import ZooError, unknown
from zoo.structures import VOID, Sample, Semantic

ENCODINGS = ("index", "palette", "color", "binary")
MASK_SUFFIXES = ("", "_mask", "-mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_L", "_labelIds")
"""Tried where `mask_suffix` is not given; the one that fits most images is taken."""


class NoSplit(ZooError):
    """Nothing in the folder says which images are in the split that was asked for."""


class Folder(Dataset):
    """Images beside masks. A mask has its image's name: `a.jpg` with `a.png`, or `a_mask.png` and the like.

    Args:
        classes: names in the order of their numbers; or what the masks store for each name: a number
            (``{"road": 7}``), a colour (``{"road": "#804080"}`` or ``[128, 64, 128]``), or a list of those, which
            become one class. By default classes.json or classes.txt in `root` says it.
        encoding: what the masks store. "index" (the same as "palette"): the numbers in grey or palette PNG, TIFF and
            NumPy files; "color": colours; "binary": 0 is the first class, everything else (in a JPEG: above 127)
            the second.
        void: numbers or colours that count for nothing. By default 255 of "index" masks; with two classes it has to
            be said, since masks of 0 and 255 are nearly always binary.
        images: the folder of images under `root`; `masks` that of masks (it may be the same one).
        image_suffix: what an image's name has beyond the common part (``"_sat"``).
        mask_suffix: what a mask's name has beyond it; found out by default.
        fractions: draws the splits from one folder, as ``{"train": 0.8, "val": 0.1, "test": 0.1}``: by the hash of
            (`split_seed`, name), so that few images change sides when some are added.
        channels: of the images, see `read_image`; None takes them as they are.
        exif: "ignore" or "apply" the orientation of photographs.
        maximum: the value of 16-bit images that becomes 1.0.

    One mask per image: masks with several labels on one pixel are not supported.
    """

    layout = """
ROOT/                       one of
  images/train/a.jpg          train/images/a.jpg     images/a.jpg
  masks/train/a.png           train/masks/a.png      masks/a.png
  images/val/...              val/images/...         train.txt, val.txt (one name per line),
  masks/val/...               val/masks/...          or fractions={train: 0.8, val: 0.2}
  classes.txt               one name per line; or classes=[background, road]
Other folders: images=, masks=. Files: .png .jpg .tif .npy, in subfolders too.
"""
    splits: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "semantic",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Names | None = None,
        encoding: str = "index",
        void: Any = None,
        images: str = "images",
        masks: str = "masks",
        image_suffix: str = "",
        mask_suffix: str | None = None,
        fractions: Mapping[str, float] | None = None,
        split_seed: int = 0,
        channels: int | None = 3,
        exif: Exif = "ignore",
        maximum: int = 65535,
    ) -> None:
        if encoding not in ENCODINGS:
            raise unknown("encoding", encoding, ENCODINGS)
        if exif not in ("ignore", "apply"):
            raise unknown("exif", exif, ("ignore", "apply"))
        if fractions is not None:
            check_fractions(fractions, split)
        self.encoding, self.images, self.masks = encoding, images, masks
        self.image_suffix, self.mask_suffix = image_suffix, mask_suffix
        self.fractions, self.split_seed = fractions, split_seed
        self.channels, self.exif, self.maximum = channels, exif, maximum
        self.root = None if root is None else Path(root).expanduser()
        self.path()  # a missing root is a better message than missing classes
        legend = read_legend(self.root, encoding, classes, void)
        self.table = legend.table
        self._numbers = _lookup(legend.stored, 1 << (24 if encoding == "color" else 16))
        self._perhaps_binary = len(self.table) == 2 and not legend.void_is_said and legend.stored.get(255) == VOID
        self.facts = f"{encoding} {sorted(legend.stored.items())} {channels} {exif} {maximum}"
        super().__init__(root, split, task, transform, seed)

    def index(self) -> list[tuple[Path, Path]]:
        images, masks = self.files()
        example = f"the mask of a{self.image_suffix}.jpg is looked for as a{self.mask_suffix}.png"
        hint = f"add what is missing; {example} (image_suffix= and mask_suffix= change that)"
        return complete(images, masks, hint)

    def files(self) -> tuple[Files, Files]:
        """All images and all masks of the split by the name they share, partners or not."""
        of_images, of_masks = self._places()
        images, masks = _stripped(_tree(of_images), self.image_suffix), _tree(of_masks)
        if self.mask_suffix is None:
            together = of_images == of_masks
            self.mask_suffix = _fitting(images, masks, MASK_SUFFIXES[1:] if together else MASK_SUFFIXES)
        if of_images == of_masks:
            images = {name: path for name, path in images.items() if not path.stem.endswith(self.mask_suffix)}
        masks = _stripped(masks, self.mask_suffix)
        if of_images != self.path() / self.images:  # the split has folders of its own
            return images, masks
        if self.fractions is None:
            names = self._listed(images)
            images = {name: images.get(name, of_images / name) for name in names}
        else:
            names = drawn(images.keys() | masks.keys(), self.fractions, self.split, self.split_seed)
            images = {name: images[name] for name in names if name in images}
        return images, {name: masks[name] for name in names if name in masks}

    def read(self, record: tuple[Path, Path]) -> Sample:
        path, mask = record
        image = read_image(path, self.channels, self.exif, self.maximum)
        return to_sample(image, Semantic(torch.from_numpy(self._class_ids(mask))), mask)

    def name(self, i: int) -> str:
        path: Path = self.records[i][0]
        return without_suffix(path.relative_to(self.path()).as_posix())

    def _places(self) -> tuple[Path, Path]:
        """The folders of the split's images and masks."""
        if self.fractions is None:
            for images, masks in (
                ((self.images, self.split), (self.masks, self.split)),
                ((self.split, self.images), (self.split, self.masks)),
            ):
                if self.path().joinpath(*images).is_dir():
                    return self.path(*images), self.path(*masks)
        if not (self.path() / self.images).is_dir():
            raise self._no_split(f"{self.images}/{self.split}/ and {self.images}/ are missing")
        return self.path(self.images), self.path(self.masks)

    def _listed(self, images: Files) -> list[str]:
        """The names in the split's list; a line may hold a path with other folders before, or columns behind."""
        path = self.path() / f"{self.split}.txt"
        if not path.is_file():
            raise self._no_split(f"no folder {self.images}/{self.split}/, no {path.name}, and fractions= is not set")
        names = []
        for line in read_lines(path):
            spellings = [without_suffix(text).removesuffix(self.image_suffix) for text in (line, line.split()[0])]
            tails = [tail for text in spellings for tail in _tails(text)]
            names.append(next((tail for tail in tails if tail in images), spellings[0]))
        return names

    def _no_split(self, missing: str) -> NoSplit:
        return NoSplit(str(incomplete(self.root, f"there is no split {self.split!r}: {missing}", self.layout)))

    def _class_ids(self, path: Path) -> NDArray[np.uint8]:
        """Class ids (H, W) of the mask `path`."""
        stored = self._stored(path)
        if stored.dtype != np.uint8 and stored.size and not 0 <= stored.min() <= stored.max() < len(self._numbers):
            raise self._outside(path, stored, (stored < 0) | (stored >= len(self._numbers)))
        numbers = self._numbers[stored]
        if not numbers.all():
            raise self._outside(path, stored, numbers == 0)
        ids = (numbers - 1).astype(np.uint8)
        if self._perhaps_binary and (ids == VOID).any() and not (stored == 1).any():
            raise ZooError(
                f"{path}: holds 255 and no 1 with two classes, so it looks like a binary mask: "
                "set encoding=binary (or void=255 if 255 does mean void)"
            )
        return ids

    def _stored(self, path: Path) -> NDArray[Any]:
        """What the mask stores: numbers, colours as 0xRRGGBB, or 0 and 1."""
        lossy = path.suffix.lower() in (".jpg", ".jpeg")
        if self.encoding == "color":
            if lossy:
                raise ZooError(f"{path}: the colours of a JPEG are blurred by its compression; store masks as PNG")
            colors = read_image(path).astype(np.int32)
            return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]
        if self.encoding == "binary" and path.suffix.lower() != ".npy" and not has_palette(path):
            pixels = read_image(path, channels=None)
            pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]  # without alpha
            return np.asarray((pixels > (127 if lossy else 0)).any(2), np.uint8)
        labels = read_labels(path)
        return np.asarray(labels != 0, np.uint8) if self.encoding == "binary" else labels

    def _outside(self, path: Path, stored: NDArray[Any], where: NDArray[np.bool_]) -> ZooError:
        values, counts = np.unique(stored[where], return_counts=True)
        spell = "#{:06x}".format if self.encoding == "color" else "{}".format
        found = [f"{spell(value)} ({count} pixels)" for value, count in zip(values[:4], counts[:4], strict=True)]
        more = f" and {len(values) - 4} more" if len(values) > 4 else ""
        kind = "colour" if self.encoding == "color" else "label"
        return ZooError(
            f"{path}: {kind} {', '.join(found)}{more} is in none of the {len(self.table)} classes and not void; "
            f"add it to classes= or to void="
        )


def _lookup(stored: Mapping[int, int], size: int) -> NDArray[np.uint16]:
    """(size,) class id + 1 of each stored number; 0 where nobody named it (pages of zeros take no memory)."""
    table = np.zeros(size, np.uint16)
    for code, class_id in stored.items():
        if not 0 <= code < size:
            raise ZooError(f"masks store numbers 0..{size - 1}, not {code}")
        table[code] = class_id + 1
    return table


def _tree(folder: Path) -> Files:
    """The image files under `folder`, by path without suffix; hidden ones are skipped."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        name = without_suffix(path.relative_to(folder).as_posix())
        if name in found:
            raise ZooError(f"{folder}: {found[name].name} and {path.name} share a name; keep one")
        found[name] = path
    return found


def _stripped(files: Files, suffix: str) -> Files:
    """Those of `files` whose names end in `suffix`, by the name before it."""
    return {name.removesuffix(suffix): path for name, path in files.items() if name.endswith(suffix)}


def _fitting(images: Files, masks: Files, suffixes: Iterable[str]) -> str:
    """The suffix that turns most names of images into names of masks; the first of equals."""
    return max(suffixes, key=lambda suffix: sum(name + suffix in masks for name in images))


def _tails(path: str) -> list[str]:
    """`a/b/c` as ["a/b/c", "b/c", "c"]."""
    parts = path.strip("/").split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]
