"""Oxford-IIIT Pet: 7349 photographs of cats and dogs of 37 breeds, each with a trimap of the animal.

Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and dogs", 2012; trainval 3680, test 3669. The authors give no validation
set: val is every tenth name of trainval.txt, beginning with the first, and train the others (3312 / 368; the list goes
breed by breed, so all are in both; segmentation_models_pytorch's example splits the same way).

A trimap says 1 animal, 2 background, 3 not classified: a border a few pixels wide, and things such as a collar. There
is no official segmentation benchmark. By default the border is void, in training and in the score, which is mIoU over
background and pet at full size; others count it as pet (``border="pet"``): their numbers are of another task.

A dozen of the .jpg files are PNG or GIF images or have stray bytes inside; all of them are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoo.data.base import Dataset, Transform
from zoo.data.files import read_image, read_labels
from zoo.data.pairs import UNKNOWN, Files, complete, descend, read_names, renumber, to_sample, to_semantic
from zoo.errors import ZooError, unknown
from zoo.structures import VOID, Class, Sample, as_classes

BREEDS = (  # in the order of the class ids 1..37 of the lists; cats have a capital
    *("Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman"),
    *("Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel"),
    *("english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond"),
    *("leonberger", "Maine_Coon", "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll"),
    *("Russian_Blue", "saint_bernard", "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx"),
    *("staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier"),
)
BACKGROUND = Class("background", (0, 0, 0))
TABLES = {
    "pet": (BACKGROUND, Class("pet", (255, 170, 40))),
    "species": (BACKGROUND, Class("cat", (255, 170, 40)), Class("dog", (40, 120, 255))),
    "breed": (BACKGROUND, *as_classes(BREEDS)),
}
BORDERS = ("void", "pet", "background")


class OxfordPet(Dataset):
    """Oxford-IIIT Pet. `root` is the folder that holds images and annotations, or the one above it.

    Args:
        label: what the animal is: "pet" (2 classes with the background), "species" (3) or "breed" (38).
        border: what the unclassified border is: "void", "pet" (the animal's class) or "background".
    """

    layout = """
oxford-iiit-pet/
  images/NAME.jpg                        images.tar.gz
  annotations/{trainval,test}.txt        annotations.tar.gz: "NAME CLASS SPECIES BREED"
  annotations/trimaps/NAME.png           1 = pet, 2 = background, 3 = border
"""
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "trainval")

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        task: str = "semantic",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Mapping[str, str | Sequence[str]] | None = None,
        label: str = "pet",
        border: str = "void",
    ) -> None:
        if label not in TABLES:
            raise unknown("label of oxford_pet", label, TABLES)
        if border not in BORDERS:
            raise unknown("border of oxford_pet", border, BORDERS)
        self.label, self.border = label, border
        self.table = TABLES[label]
        self.facts = f"border={border}"
        super().__init__(root, split, task, transform, seed, classes)

    def index(self) -> list[tuple[Path, Path]]:
        return complete(*self.files())

    def files(self) -> tuple[Files, Files]:
        """The images and trimaps of the split by name, whether they exist or not."""
        self.root = descend(self.path(), ["oxford-iiit-pet", "oxford_pet"], ["images", "annotations"])
        images, trimaps = self.path("images"), self.path("annotations", "trimaps")
        file = self.path("annotations", "test.txt" if self.split == "test" else "trainval.txt")
        names = read_names(file)
        if self.split in ("train", "val"):
            names = [name for i, name in enumerate(names) if (i % 10 == 0) == (self.split == "val")]
        return {name: images / f"{name}.jpg" for name in names}, {name: trimaps / f"{name}.png" for name in names}

    def read(self, record: tuple[Path, Path]) -> Sample:
        image, path = record
        pet = self._class_of(path.stem)
        table = np.full(256, UNKNOWN, np.uint8)
        table[[1, 2, 3]] = pet, 0, {"void": VOID, "pet": pet, "background": 0}[self.border]
        return to_sample(read_image(image), to_semantic(renumber(read_labels(path), table, path), path), path)

    def _class_of(self, name: str) -> int:
        """The class of the animal in image `name`, such as "British_Shorthair_12"."""
        breed = name.rpartition("_")[0]
        if self.label == "pet":
            return 1
        if breed not in BREEDS:
            raise ZooError(f"{name}: names are BREED_NUMBER, and there is no breed {breed!r}")
        return 1 + BREEDS.index(breed) if self.label == "breed" else 1 + breed[0].islower()
