"""What the numbers or colours in somebody's masks mean: the classes of a card, of classes.json or of classes.txt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.structures import VOID, Class, as_classes

Names = Sequence[str] | Mapping[str, Any]
"""Names in the order of their numbers, or what the masks store for each name: a number, a colour, or a list of them."""


@dataclass(frozen=True)
class Legend:
    """The class table, and the class id (or void) of each stored number or colour (as 0xRRGGBB)."""

    table: tuple[Class, ...]
    stored: dict[int, int]
    void_is_said: bool
    """Whether somebody said what is void; otherwise it is 255, by custom."""


@dataclass(frozen=True)
class _Said:
    """Names and what was said about each: a number or numbers, a colour or colours."""

    source: str
    names: list[str]
    numbers: list[Any] | None = None
    colors: list[Any] | None = None
    void: Any = None


def read_legend(root: Path | None, encoding: str, classes: Names | None = None, void: Any = None) -> Legend:
    """The legend that `classes` and `void` give, or the file beside the data where `classes` is None.

    Raises:
        ZooError: no classes anywhere, a class without what `encoding` needs, a number or colour claimed twice.
    """
    said = _from_card(classes, encoding) if classes is not None else _from_file(root, encoding)
    void = said.void if void is None else void
    if not 0 < len(said.names) <= VOID:
        raise ZooError(f"{said.source}: {len(said.names)} classes; label maps hold 1 to {VOID}")
    if encoding == "binary":
        return _binary(said, void)
    codes = _codes(said, encoding)
    stored: dict[int, int] = {}
    for i, taken in enumerate(codes):
        for code in taken:
            if code in stored:
                value = f"#{code:06x}" if encoding == "color" else code
                raise ZooError(f"{said.source}: {said.names[stored[code]]} and {said.names[i]} both claim {value}")
            stored[code] = i
    ignored = _unpack(void, encoding, "void") if void is not None else [] if encoding == "color" else [VOID]
    colors = [taken[0] for taken in codes] if encoding == "color" else None
    return Legend(_table(said, colors), dict.fromkeys(ignored, VOID) | stored, void is not None)


def _codes(said: _Said, encoding: str) -> list[list[int]]:
    """The numbers or colours of each class."""
    if encoding == "color":
        if said.colors is None:
            raise ZooError(
                f"{said.source}: encoding=color needs the colour of each class, as classes={{{said.names[0]}: "
                "[128, 64, 128], ...} or '#804080'"
            )
        return [_unpack(c, encoding, name) for name, c in zip(said.names, said.colors, strict=True)]
    if said.numbers is None:
        return [[i] for i in range(len(said.names))]
    return [_unpack(n, encoding, name) for name, n in zip(said.names, said.numbers, strict=True)]


def _binary(said: _Said, void: Any) -> Legend:
    """Zero is the class said to be 0, else the first; everything else is the other one."""
    if len(said.names) != 2:
        raise ZooError(f"{said.source}: encoding=binary has 2 classes, not {len(said.names)}: {', '.join(said.names)}")
    if void is not None:
        raise ZooError(
            "encoding=binary has no void; use encoding=index with classes={background: 0, object: 255} and void="
        )
    zero = 0
    if said.numbers is not None:
        if 0 not in said.numbers:
            raise ZooError(f"{said.source}: encoding=binary: which class is 0? Use classes=[background, object]")
        zero = said.numbers.index(0)
    return Legend(_table(said, None), {0: zero, 1: 1 - zero}, True)


def _table(said: _Said, codes: list[int] | None) -> tuple[Class, ...]:
    table = as_classes(said.names)
    if codes is None and said.colors is not None:
        codes = [_unpack(color, "color", name)[0] for name, color in zip(said.names, said.colors, strict=True)]
    if codes is None:
        return table
    return tuple(Class(c.name, (code >> 16, code >> 8 & 255, code & 255)) for c, code in zip(table, codes, strict=True))


def _unpack(value: Any, encoding: str, what: str) -> list[int]:
    """The codes that a number, a colour or a list of them stands for."""
    if encoding != "color" and isinstance(value, int):
        return [value]
    if encoding == "color" and isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return [int(value[1:], 16)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if encoding == "color" and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value):
            return [value[0] << 16 | value[1] << 8 | value[2]]
        return [code for part in value for code in _unpack(part, encoding, what)]
    wanted = "a colour, [128, 64, 128] or '#804080'" if encoding == "color" else "a number"
    raise ZooError(f"{what}: encoding={encoding} wants {wanted}, or a list of them, not {value!r}")


def _from_card(classes: Names, encoding: str) -> _Said:
    names = [str(name) for name in classes]
    if not isinstance(classes, Mapping):
        return _Said("classes=", names)
    values = list(classes.values())
    return _Said("classes=", names, colors=values) if encoding == "color" else _Said("classes=", names, values)


def _from_file(root: Path | None, encoding: str) -> _Said:
    if root is not None and (root / "classes.json").is_file():
        return _from_json(root / "classes.json", encoding)
    if root is not None and (root / "classes.txt").is_file():
        return _from_text(root / "classes.txt")
    if encoding == "binary":
        return _Said("classes=", ["background", "foreground"])
    raise ZooError(
        f"{root}: no classes. Name them in the order of their numbers, as classes=[background, road], "
        "or put a classes.txt there with one name per line"
    )


def _from_json(path: Path, encoding: str) -> _Said:
    """A list of names, a mapping as in a card, or {"names": ..., "colors": ..., "ignore_index": ...}."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ZooError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("names"), list):
        names = [str(name) for name in content["names"]]
        void = content.get("ignore_index") if encoding != "color" else None
        for key in ("colors", "values"):
            if key in content and len(content[key]) != len(names):
                raise ZooError(f"{path}: {len(names)} names but {len(content[key])} {key}")
        return _Said(str(path), names, content.get("values"), content.get("colors"), void)
    if not isinstance(content, list | dict):
        raise ZooError(f"{path}: expected a list of names, or an object of names and numbers or colours")
    said = _from_card(content, encoding)
    return _Said(str(path), said.names, said.numbers, said.colors)


def _from_text(path: Path) -> _Said:
    """One class per line: ``name``, ``7 name``, ``name 7``, ``name 128 64 128`` or ``128 64 128 name``."""
    names, found = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = [word for word in re.split(r"[\s,;:]+", line.strip()) if word]
        if not words or words[0].startswith("#"):
            continue
        numbers = [int(word) for word in words if word.isdigit()]
        if len(numbers) not in (0, 1, 3) or len(numbers) == len(words):
            raise ZooError(f"{path}: {line.strip()!r} is not a name with nothing, one number or three of a colour")
        names.append(" ".join(word for word in words if not word.isdigit()))
        found.append(numbers)
    if len({len(numbers) for numbers in found}) > 1:
        raise ZooError(f"{path}: some lines give a number or colour and others do not")
    if not found or not found[0]:
        return _Said(str(path), names)
    if len(found[0]) == 1:
        return _Said(str(path), names, numbers=[numbers[0] for numbers in found])
    return _Said(str(path), names, colors=found)
