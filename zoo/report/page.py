"""The comparison one can look at: one HTML file made from what runs leave on disk, which needs nothing else.

`write_page(paths, file)` puts each comparison of `zoo.report.table` into a section: leaderboard, masks side by side,
cost, classes, curves, configs, failures. The file asks for nothing over the network and says so to the browser by a
content policy that admits its own script and style alone, by their hashes; every string of a run is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from zoo.checkpoint import replacing
from zoo.errors import ZooError
from zoo.report import charts, details
from zoo.report.board import Board, differences, leaderboard
from zoo.report.gallery import Gallery, gather, viewer
from zoo.report.markup import Html, data_block, tag
from zoo.report.table import across_tasks, collect, tabulate

MAX_MB = 20.0
TASKS = {"semantic": "Semantic", "instance": "Instances", "panoptic": "Panoptic"}


def write_page(paths: Iterable[str | Path], file: str | Path, max_mb: float = MAX_MB) -> None:
    """Write the page of the results below `paths` to `file`, of at most `max_mb` million bytes.

    Where that is too little for all masks, those of the images models agree upon most are left out; the page says so.

    Raises:
        ZooError: no result there, a limit that makes no sense, or a file that cannot be written.
    """
    if not max_mb > 0:
        raise ZooError(f"report.max_mb={max_mb} is no size: give the most megabytes the page may have")
    tables = across_tasks(tabulate(collect(paths)))
    if not tables:
        raise ZooError("no result.json there: give run folders, such as runs/*")
    boards = [Board.of(f"c{number}", table) for number, table in enumerate(tables, 1)]
    content = render(boards, [gather(board) for board in boards], int(max_mb * 1e6))
    with replacing(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


def render(boards: list[Board], galleries: list[Gallery], limit: int) -> str:
    """The whole page, of at most `limit` bytes as far as leaving out images of the viewers can help."""
    sections = [_section(board, gallery) for board, gallery in zip(boards, galleries, strict=True)]
    tables = [board for whole in boards for board in (whole, *whole.parts) if board.table.columns]
    data = [data_block(f"{board.key}-data", differences(board)) for board in tables]
    plain = len(_document(boards, sections, data, []).encode())
    room = limit - plain - 4000 * len(galleries)
    shared = sum(bool(gallery.images) for gallery in galleries)
    notes, blocks = [], []
    for place, gallery in enumerate(galleries):
        left_out = gallery.fit(room // shared) if shared else 0
        if left_out:
            notes.append(f"{_title(gallery.board)}: the masks of {left_out} images, those models agree upon most")
            sections[place] = _section(boards[place], gallery)
        if gallery.images:
            blocks.append(data_block(f"{gallery.board.key}-maps", gallery.content))
    return _document(boards, sections, [*data, *blocks], notes, limit)


def _document(boards: list[Board], sections: list[Html], data: list[Html], notes: list[str], limit: int = 0) -> str:
    """The file: the policy that admits its one style and one script, the sections, the data of the script."""
    style = _asset("page.css")
    script = _asset("page.js") + _asset("viewer.js") + "start();\n"
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Segmentation report: {', '.join(_title(board) for board in boards)}"),
        tag("style", Html(style)),
    )
    left_out = f"Left out to stay below {limit / 1e6:g} MB (report.max_mb, --max-mb): {'; '.join(notes)}."
    said = tag("p", left_out, class_="note left-out") if notes else None
    body = tag("body", _top(boards, said), tag("main", sections), data, tag("script", Html(script)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en', data_theme='auto')}\n"


def _top(boards: list[Board], left_out: Html | None) -> Html:
    """The head of the page: when it was made, where each comparison is, and why there are several."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    several: list[Html] = []
    if len(boards) > 1:
        links = [tag("a", _title(board), href=f"#{board.key}") for board in boards]
        why = "their runs differ in data, classes or protocol, so no number of one may be held against one of another."
        several = [
            tag("nav", links, aria_label="comparisons"),
            tag("p", f"{len(boards)} comparisons: {why}", class_="note"),
        ]
    return tag(
        "header",
        tag("h1", "Segmentation report"),
        tag("p", f"made {made} from result files alone", class_="note"),
        tag("button", "Theme", id="theme", type="button", hidden=True),
        several,
        left_out,
        class_="top",
    )


def _section(board: Board, gallery: Gallery) -> Html:
    """All of one comparison."""
    parts = board.parts
    single = parts or [board]
    inner = [
        ("board", "Leaderboard", leaderboard(board)),
        *((f"board-{b.table.task}", f"{TASKS[b.table.task]} alone", leaderboard(b, brief=True)) for b in parts),
        ("masks", "Masks side by side", viewer(gallery)),
        ("cost", "Score against cost", details.costs(board)),
        ("classes", "Classes", _beside(single, details.classes)),
        ("confusion", "Confusion", _beside(single, details.confusions)),
        ("sizes", "AP by size", details.sizes(board)),
        ("curves", "Training", details.curves(board)),
        ("config", "What was set differently", details.configs(board)),
        ("failures", "Runs that did not end well", details.failures(board)),
    ]
    shown = [(f"{board.key}-{key}", heading, content) for key, heading, content in inner if content is not None]
    jumps = tag("nav", [tag("a", heading, href=f"#{key}-section") for key, heading, _ in shown], aria_label="sections")
    drawn = [
        tag("section", tag("h3", heading), content, id=f"{key}-section", class_=key.partition("-")[2].partition("-")[0])
        for key, heading, content in shown
    ]
    legend = charts.legend([(place, name) for place, name in zip(board.places, board.names, strict=True)])
    return tag(
        "section", tag("h2", _title(board)), details.facts(board), tag("div", jumps, legend, class_="jumps"), drawn,
        id=board.key, class_="comparison",
    )  # fmt: skip


def _beside(boards: list[Board], section: Callable[[Board], Html | None]) -> Html | None:
    """A section of each task, side by side where there are several."""
    drawn = [(board.table.task, content) for board in boards if (content := section(board)) is not None]
    heads = [tag("h4", task, class_="task") if len(boards) > 1 else None for task, _ in drawn]
    parts = [tag("div", head, content) for head, (_, content) in zip(heads, drawn, strict=True)]
    return tag("div", parts, class_="beside") if parts else None


def _title(board: Board) -> str:
    task = "" if board.table.parts else f", {board.table.task}"
    return board.table.title.partition(",")[0] + task


def _asset(name: str) -> str:
    return files("zoo.report").joinpath(name).read_text(encoding="utf-8").strip() + "\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
