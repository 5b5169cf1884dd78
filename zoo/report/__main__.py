"""`python -m zoo.report runs/...`: re-make table and page of finished runs from what they left on disk alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import ZooError
from zoo.report.table import print_table, to_csv, to_markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; with --html, --markdown or --csv also write it to a file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m zoo.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, folders of runs, or result.json files")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page: tables, charts, masks side by side")
    parser.add_argument("--max-mb", type=float, default=20.0, metavar="MB", help="largest page, in megabytes (20)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every run with every metric as CSV")
    parser.add_argument("--classes", action="store_true", help="add a table per class to the Markdown")
    options = parser.parse_args(argv)
    try:
        missing = [str(path) for path in options.runs if not path.exists()]
        if missing:
            raise ZooError(f"there is no {', '.join(missing)}: give run folders, such as runs/*")
        tables = print_table(options.runs)
        if not tables:
            return 1
        if options.html:
            from zoo.report.page import write_page  # brings torch, which the table does without

            write_page(options.runs, options.html, options.max_mb)
            print(f"the page is {options.html}")
        if options.markdown:
            options.markdown.write_text(
                "\n".join(to_markdown(table, options.classes) for table in tables), encoding="utf-8"
            )
        if options.csv:
            options.csv.write_text(to_csv(tables), encoding="utf-8")
    except (ZooError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
