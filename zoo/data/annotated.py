"""Images with annotated objects, whatever the format of the annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.data.annotations import Keypoints, Note
from zoo.data.base import Dataset, Images
from zoo.data.files import Exif, read_image
from zoo.data.pairs import without_suffix
from zoo.structures import Class, Instances, Sample, Size


class Source(Protocol):
    """The annotations of many images, whatever their format: what `AnnotatedImages` reads its truth from."""

    classes: tuple[Class, ...]
    keypoints: Keypoints | None
    notes: list[Note]
    has_truth: bool
    has_masks: bool
    facts: str
    """What the truth depends on, for the fingerprint."""

    def instances(self, i: int, size: Size) -> Instances:
        """The truth of image i, whose size is (H, W); `BadAnnotation` where something in it is broken."""
        ...

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) images with an object that is no crowd."""
        ...


class AnnotatedImages(Dataset):
    """Images whose objects come from a `Source`. A subclass writes `index`, which calls `use`."""

    tasks = ("instance",)
    source: Source
    channels: int | None = 3
    exif: Exif = "ignore"
    maximum: int = 65535

    def use(self, source: Source) -> None:
        """Takes classes, keypoints and notes from `source`, and what can be scored; says what is odd."""
        self.source, self.table, self.keypoints, self.notes = source, source.classes, source.keypoints, source.notes
        self.facts = f"{self.facts} {source.facts}".strip()
        if self.keypoints is not None:
            self.metric_options = {**self.metric_options, "masks": False, "keypoints": self.keypoints.sigmas}
        elif not source.has_masks:
            self.metric_options = {**self.metric_options, "masks": False}
        for note in source.notes:
            note.say()

    def name(self, i: int) -> str:
        assert isinstance(self.records, Images)
        return without_suffix(self.records.names[self.records.rows[i]].decode())

    def read(self, record: tuple[Path, int]) -> Sample:
        image = read_image(record[0], self.channels, self.exif, self.maximum)
        size = image.shape[0], image.shape[1]
        return Sample(image, self.source.instances(record[1], size) if self.source.has_truth else None, 0, size)
