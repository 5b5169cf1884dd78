"""`python -m zoo.weights [PATTERN]`: the table of public checkpoints; with --markdown the page docs/weights.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zoo.weights.catalogue import list_weights, to_markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit code: 1 where no name matches."""
    parser = argparse.ArgumentParser(prog="python -m zoo.weights", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names, as in a shell: 'deeplabv3*', '*cityscapes*'")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/weights.md")
    options = parser.parse_args(argv)
    if options.markdown:
        print(to_markdown(), end="")
        return 0
    rows = list_weights(options.pattern)
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        flags = [f"{row.classes} classes", f"{row.metric} {row.value}", "by hand" if row.manual else ""]
        print(f"{row.name:<{width}}  {', '.join(filter(None, flags))}; {row.licence}")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
