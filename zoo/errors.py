"""The one exception that speaks to users: a sentence that names the thing, the value and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

# Of the near names those are told that are about as near as the nearest: "unett" is unet, and hardly pspnet.
MARGIN = 0.15


class ZooError(ValueError):
    """A mistake in the input or the configuration. Command-line tools print it as one line and exit with code 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> ZooError:
    """The error for a misspelt `name` of a `kind` ("model", "dataset", ...), naming the nearest of `known`."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    ratios = [SequenceMatcher(None, other, str(name)).ratio() for other in near]
    near = [other for other, ratio in zip(near, ratios, strict=True) if ratio >= ratios[0] - MARGIN]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ZooError(f"unknown {kind} {str(name)!r}: {hint}")
