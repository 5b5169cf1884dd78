"""The one exception that speaks to users: a sentence that names the thing, the value and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ZooError(ValueError):
    """A mistake in the input or the configuration. Command-line tools print it as one line and exit with code 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> ZooError:
    """The error for a misspelt `name` of a `kind` ("model", "dataset", ...), naming the nearest of `known`."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ZooError(f"unknown {kind} {str(name)!r}: {hint}")
