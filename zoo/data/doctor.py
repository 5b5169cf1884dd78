"""zoo-data: looks through a dataset before a training does, and says what to mend.

    zoo-data camvid isbi2012
    zoo-data folder --root my_data --encoding binary 'classes=[background, cell]'

Every image is read once with its truth, as training would read it. The exit code is 1 where something has to be
mended (an error), 2 for a mistake in the command or a dataset that cannot be opened, else 0: a warning is something
to look at.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from zoo.data import DATASETS, Dataset, create_dataset
from zoo.data.annotations import BadAnnotation
from zoo.data.files import DAMAGE, decode
from zoo.data.findings import Finding, Look, of_files, of_overlap
from zoo.data.findings_objects import count_objects, objects_in, of_objects
from zoo.data.findings_semantic import count_labels, of_labels
from zoo.data.folder import NoSplit
from zoo.data.pairs import Unpaired, faults
from zoo.errors import ZooError, unknown
from zoo.structures import Class, Instances, Target

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_ORIENTATION = 0x0112


@dataclass
class Examination:
    """What was seen of a dataset: the looks by split, and the findings."""

    name: str
    root: Path | None
    classes: tuple[Class, ...] = ()
    looks: dict[str, list[Look]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def examine(name: str, root: Path | None = None, splits: Sequence[str] = (), **options: Any) -> Examination:
    """Looks at every image of the `splits` (by default train, val and test, those there are) of a dataset.

    Raises:
        ZooError: an unknown dataset, split or option, a root that is not there: nothing could be looked at.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    known = DATASETS[name].splits or tuple(options.get("fractions") or ())
    for split in splits:
        if known and split not in known:
            raise unknown(f"split of {name}", split, known)
    usual = [split for split in ("train", "val", "test") if not known or split in known]
    result, refusals = Examination(name, root), []
    for split in splits or usual:
        try:
            dataset, unpaired = _open(name, root, split, options)
        except ZooError as error:
            if splits or split == "train" or not isinstance(error, NoSplit):  # a folder need not have val or test
                refusals.append(error)
                result.findings.append(Finding("error", split, "cannot be opened", 1, str(error), ""))
            continue
        result.findings += unpaired
        if dataset is None:
            continue
        result.classes = dataset.table
        result.looks[split] = _look_at_all(dataset, f"{name} {split}")
        result.findings += of_files(split, result.looks[split], getattr(dataset, "exif", "ignore"))
        result.findings += of_labels(split, result.looks[split], dataset.table)
        result.findings += of_objects(split, result.looks[split], dataset)
    if refusals and len(refusals) == len(result.findings) and not result.looks:
        raise refusals[0]
    result.findings += of_overlap(result.looks)
    result.findings.sort(key=lambda finding: list(STYLES).index(finding.severity))
    return result


def _open(name: str, root: Path | None, split: str, options: dict[str, Any]) -> tuple[Dataset | None, list[Finding]]:
    """The dataset. Where files lack their partner: one of the others, if any, and the findings about those files."""
    cls = DATASETS[name]
    options = {"task": "semantic" if "semantic" in cls.tasks else cls.tasks[0]} | options
    try:
        with redirect_stderr(StringIO()):  # what a dataset says of its annotations becomes findings
            return create_dataset(name, root, split, **options), []
    except Unpaired as error:
        paths = error.labels | error.images
        found = [
            Finding("error", split, problem, len(names), str(paths[names[0]]), error.hint)
            for problem, names in faults(error.images, error.labels).items()
            if names
        ]
        pairs = [
            (path, error.labels[name])
            for name, path in error.images.items()
            if path.is_file() and name in error.labels and error.labels[name].is_file()
        ]
    partial = type(cls.__name__, (cls,), {"index": lambda self: pairs})
    return (partial(root, split, **options) if pairs else None), found


def _look_at_all(dataset: Dataset, title: str) -> list[Look]:
    console = Console(stderr=True)
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        looks = pool.map(lambda i: look(dataset, i), range(len(dataset)))
        shown = track(looks, title, len(dataset), console=console, transient=True, disable=not console.is_terminal)
        return list(shown)


def look(dataset: Dataset, i: int) -> Look:
    """Image i of `dataset` with its truth, without transform."""
    record = dataset.records[i]
    paths = [part for part in (record if isinstance(record, tuple) else (record,)) if isinstance(part, Path)]
    path, stem = (str(paths[0]), paths[0].stem) if paths else (dataset.name(i), dataset.name(i))
    turned = bool(paths) and _is_turned(paths[0])
    try:
        sample = dataset.read(record)
    except (ZooError, OSError) as error:
        fault = "broken annotations" if isinstance(error, BadAnnotation) else _diagnose(paths, str(error))
        return Look(path, stem, turned=turned, fault=fault, message=str(error))
    digest = f"{sample.image.shape}{hashlib.blake2b(np.ascontiguousarray(sample.image).data).hexdigest()}"
    pixels, void, outside = _count(sample.target, len(dataset.table))
    if outside:
        said = f"{paths[-1] if paths else path}: holds {', '.join(map(str, outside))}"
        return Look(path, stem, sample.size, digest, turned=turned, fault="labels that are no class", message=said)
    objects, empty = objects_in(sample.target) if isinstance(sample.target, Instances) else (0, 0)
    return Look(path, stem, sample.size, digest, pixels, void, turned, objects, empty)


def _count(target: Target | None, classes: int) -> tuple[NDArray[np.int64] | None, int, list[int]]:
    """Pixels of each class (K,), void pixels, and the labels that are neither."""
    if target is None:
        return None, 0, []
    return count_objects(target, classes) if isinstance(target, Instances) else count_labels(target, classes)


def _is_turned(path: Path) -> bool:
    try:
        with Image.open(path) as header:
            return header.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except DAMAGE:
        return False  # NumPy files have no EXIF; damaged ones are reported by the reader


def _diagnose(paths: Sequence[Path], message: str) -> str:
    """Which of `FAULTS` it is that files could not be read together; a message begins with the file it blames."""
    sizes = set()
    try:
        for path in paths:
            if path.suffix.lower() != ".mat":
                sizes.add(decode(path).shape[:2])
    except ZooError:
        return "cannot be read"
    if len(sizes) > 1:
        return "image and mask differ in size"
    return "labels that are no class" if len(paths) > 1 and message.startswith(str(paths[-1])) else "cannot be read"


def show(result: Examination, console: Console) -> None:
    """Prints the classes of every split and the findings."""
    root = "" if result.root is None else f" in {result.root}"
    images = ", ".join(f"{split} {len(looks)}" for split, looks in result.looks.items())
    console.print(Text(f"\n{result.name}{root}: {images or 'nothing could be opened'}", style="bold"), soft_wrap=True)
    if any(look.pixels is not None for looks in result.looks.values() for look in looks):
        console.print(_class_table(result))
    if not result.findings:
        console.print("no problems found", style="green")
        return
    for finding, splits in _merged(result.findings):
        text = Text(f"{finding.severity:8}", style=STYLES[finding.severity])
        text.append(f"{', '.join(splits)}: {finding.problem} ({finding.count})", style="bold")
        text.append(f"\n{_short(finding.example, result.root)}".replace("\n", "\n" + " " * 8), style="default")
        text.append(f"\n        -> {finding.advice}" if finding.advice else "", style="green")
        console.print(text, soft_wrap=True)
    counts = Counter(finding.severity for finding in result.findings)
    console.print(f"{counts['error']} error(s), {counts['warning']} warning(s)", style="bold")


def _merged(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that differ in nothing but the split, once."""
    splits: dict[Finding, list[str]] = defaultdict(list)
    for finding in findings:
        splits[replace(finding, split="")].append(finding.split)
    return list(splits.items())


def _class_table(result: Examination) -> Table:
    """Share of the pixels (void included) and of the images each class has, in each split."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    shares = []
    for split, looks in result.looks.items():
        table.add_column(f"{split}\npixels %", justify="right")
        table.add_column("\nimages %", justify="right")
        truths = [(look.pixels, look.void) for look in looks if look.pixels is not None]
        pixels = np.array([[*counts, void] for counts, void in truths]).reshape(-1, len(result.classes) + 1)
        shares += [100 * pixels.sum(0) / max(pixels.sum(), 1), 100 * (pixels > 0).sum(0) / max(len(pixels), 1)]
    for i, c in enumerate(result.classes):
        label = Text.assemble(("\u25a0 ", "rgb({},{},{})".format(*c.color)), f"{i} {c.name}")
        table.add_row(label, *_percents(shares, i))
    table.add_row("  void", *_percents(shares, -1))
    return table


def _percents(shares: list[NDArray[Any]], i: int) -> list[str]:
    """Row i; the columns are of pixels and images in turn."""
    return [f"{share[i]:.2f}" if column % 2 == 0 else f"{share[i]:.0f}" for column, share in enumerate(shares)]


def _short(text: str, root: Path | None) -> str:
    return text if root is None else text.replace(f"{root}{os.sep}", "")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="zoo-data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "words", nargs="+", metavar="DATASET|key=value", help=f"{', '.join(DATASETS)}; options as in its card"
    )
    parser.add_argument("--root", type=Path, help="the dataset's folder (default: $ZOO_DATA/NAME or data/NAME)")
    parser.add_argument("--split", action="append", default=[], help="train,val,...: by default train, val and test")
    parser.add_argument("--encoding", help="of the masks of dataset folder: index, color or binary")
    arguments = parser.parse_intermixed_args(argv)
    try:
        names, options = _parse(arguments)
    except ZooError as error:
        print(f"zoo-data: {error}", file=sys.stderr)
        return 2
    return max(_report(name, options) for name in names)


def _report(name: str, options: dict[str, Any]) -> int:
    """Examines a dataset and prints what came of it; returns its part of the exit code."""
    try:
        result = _examine_from(name, options)
    except ZooError as error:
        print(f"zoo-data: {error}", file=sys.stderr)
        return 2
    show(result, Console(highlight=False))
    return int(any(finding.severity == "error" for finding in result.findings))


def _parse(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The names of datasets, and the options; --root is the same as root=, and so on."""
    names = [word for word in arguments.words if "=" not in word]
    options: dict[str, Any] = {}
    for word in arguments.words:
        key, equals, value = word.partition("=")
        if equals:
            try:
                options[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ZooError(f"{word}: the value is not YAML, as [a, b] or {{a: 1}} (mind the blanks)") from error
    given = {"root": arguments.root, "split": arguments.split, "encoding": arguments.encoding}
    options |= {key: value for key, value in given.items() if value}
    if not names:
        raise ZooError(f"name a dataset: {', '.join(DATASETS)}")
    if "root" in options and len(names) > 1:
        raise ZooError("root= is the folder of one dataset; set ZOO_DATA to the folder above several")
    for name in names:  # before the first is looked through, which takes long
        if name not in DATASETS:
            raise unknown("dataset", name, DATASETS)
    return names, options


def _examine_from(name: str, options: dict[str, Any]) -> Examination:
    options = dict(options)
    root = options.pop("root", None)
    if root is None and DATASETS[name].layout:
        root = Path(os.environ.get("ZOO_DATA", "data")) / name
    splits = options.pop("split", [])
    splits = [part.strip() for text in ([splits] if isinstance(splits, str) else splits) for part in text.split(",")]
    return examine(name, None if root is None else Path(root).expanduser(), splits, **options)


if __name__ == "__main__":
    sys.exit(main())
