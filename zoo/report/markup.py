"""HTML that cannot be broken into: whatever is not `Html` already is escaped on its way in.

`tag("td", name, class_="left", data_value=0.5)` -> `<td class="left" data-value="0.5">name</td>`. Inline styles are not
to be had: the page's content policy forbids them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

VOID_TAGS = {"br", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Markup that is safe to put into a page as it is."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Children are text, `Html`, None (nothing) or iterables of these.

    Attributes: None and False leave one out, True writes it without a value; underscores become hyphens (`class_` is
    class, `data_row` is data-row); `viewBox` and the like stay as they are.
    """
    written = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
        if value is not None and value is not False
    )
    if name in VOID_TAGS:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """The children of an element one after the other, escaped where they are not `Html`."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str | int | float):
            parts.append(escape(str(child)))
        else:
            parts.append(join(child))
    return Html("".join(parts))


def data_block(identifier: str, content: Any) -> Html:
    """`content` as JSON for the page's script, under the id `identifier`. Nothing in it can end the element."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')
