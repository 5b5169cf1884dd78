"""ISBI 2012 EM segmentation challenge: membranes of neurons in 30 sections of electron microscopy, 512x512, grey.

Cardona et al. 2010; Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", 2015; the data of the U-Net paper. The challenge's test labels are hidden. Sections are neighbours
in a stack, so val is one block, the last six, and not drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from zoo.data.base import Dataset
from zoo.data.files import images_in, read_image, read_labels
from zoo.data.pairs import Files, complete, descend, read_names, to_sample, to_semantic
from zoo.errors import ZooError
from zoo.structures import Class, Sample

CLASSES = (Class("membrane", (32, 32, 32)), Class("cell", (235, 200, 120)))
VALIDATION = 6
"""Sections at the end of the stack that are val where no list says so."""


class ISBI2012(Dataset):
    """Images (512, 512, 1); membrane 0, cell 1; no void. `root` may also be a level above `train/`."""

    layout = """
isbi2012/
  images/NN.png
  labels/NN.png              0 = membrane, 1 = cell
  train.txt val.txt          one NN per line
or
membrane/
  train/image/N.png          sections 0..29, the last six are val
  train/label/N.png          0 = membrane, 255 = cell
"""
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    table = CLASSES

    def index(self) -> list[tuple[Path, Path]]:
        return complete(*self.files())

    def files(self) -> tuple[Files, Files]:
        """All images and all label files of the split by name, partners or not."""
        self.root = descend(
            self.path(), ["train", "membrane/train", "data/membrane/train"], ["images", "labels", "label"]
        )
        if (self.root / "label").is_dir():
            return self._sections("image"), self._sections("label")
        names = read_names(self.path(f"{self.split}.txt"))
        images, labels = self.path("images"), self.path("labels")
        return {name: images / f"{name}.png" for name in names}, {name: labels / f"{name}.png" for name in names}

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        labels = read_labels(path)
        labels = np.where(labels == 255, np.uint8(1), labels)
        return to_sample(read_image(image, channels=1), to_semantic(labels, path), path)

    def _sections(self, folder: str) -> Files:
        """The split's part of the stack in `folder`, in the order of the sections (10 after 9)."""
        found = images_in(self.path(folder))
        for name in found:
            if not name.isdigit():
                raise ZooError(f"{found[name]}: sections are named by their number in the stack")
        ordered = sorted(found, key=int)
        part = ordered[-VALIDATION:] if self.split == "val" else ordered[:-VALIDATION]
        return {name: found[name] for name in part}
