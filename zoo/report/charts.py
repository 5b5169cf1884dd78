"""The page's drawings: inline SVG whose colours come from the style sheet, so that they follow light and dark.

Models are told apart by colour and by shape or dashes: class `s0`, `s1`, ... of an element sets its colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.report.markup import Html, tag

SERIES = 8  # colours in the style sheet
SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "bar")
DASHES = (None, "6 3", "2 2", "8 3 2 3", "1 3")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40

Scale = Callable[[float], float]
Ticks = Sequence[tuple[float, str]]
Side = tuple[str, float, float]  # of a point's name: text-anchor, dx, dy
Box = tuple[float, float, float, float]  # left, top, right, bottom

CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "diamond": [(0, -1.1), (1.1, 0), (0, 1.1), (-1.1, 0)],
    "down": [(0, 1), (1, -0.8), (-1, -0.8)],
    "bar": [(-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)],
}
SIDES: list[Side] = [
    ("start", 10, 4),
    ("end", -10, 4),
    ("middle", 0, -11),
    ("middle", 0, 19),
    ("start", 8, -8),
    ("end", -8, -8),
    ("start", 8, 16),
    ("end", -8, 16),
]


@dataclass
class Series:
    """Points (x, y) of one row: its mark's number, its name."""

    place: int
    name: str
    points: Sequence[tuple[float, float]]


def mark(place: int, size: int = 12) -> Html:
    """The sign of row `place`, for text."""
    return tag(
        "svg",
        shape(place, 6, 6, 5),
        class_=f"mark s{place % SERIES}",
        viewBox="0 0 12 12",
        width=size,
        height=size,
        aria_hidden="true",
    )


def shape(place: int, x: float, y: float, r: float) -> Html:
    """The sign of row `place` around a point, in the current colour."""
    x, y = round(x, 1), round(y, 1)
    kind = SHAPES[(place + place // SERIES) % len(SHAPES)]
    if kind == "circle":
        return tag("circle", cx=x, cy=y, r=r, fill="currentColor")
    if kind in CORNERS:
        corners = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in CORNERS[kind])
        return tag("polygon", points=corners, fill="currentColor")
    left, right, top, low = x - r, x + r, y - r, y + r
    upright, diagonal = (
        f"M{left} {y}H{right}M{x} {top}V{low}",
        f"M{left} {top}L{right} {low}M{right} {top}L{left} {low}",
    )
    return tag(
        "path", d=upright if kind == "plus" else diagonal, stroke="currentColor", stroke_width=r / 2, fill="none"
    )


def whisker(value: float, interval: tuple[float, float] | None, span: tuple[float, float]) -> Html:
    """A score with its interval on the common scale `span`."""
    width, low, high = 120, span[0], span[1]

    def at(score: float) -> float:
        return round(6 + (width - 12) * (score - low) / (high - low), 1)

    line = None
    if interval:
        line = tag("path", d=f"M{at(interval[0])} 7H{at(interval[1])}", stroke="currentColor", stroke_width=2)
    dot = tag("circle", cx=at(value), cy=7, r=3.5, fill="currentColor")
    return tag("svg", line, dot, viewBox=f"0 0 {width} 14", width=width, height=14, aria_hidden="true")


def scatter(series: Sequence[Series], x_title: str, y_title: str) -> Html:
    """One point (x, y) of each over a logarithmic x axis, and the front: none is both cheaper and better than these."""
    points = [(s.points[0][0], s.points[0][1], s) for s in series]
    low, high = min(x for x, _, _ in points), max(x for x, _, _ in points)
    pad = max((high / low) ** 0.12, 1.15)
    xs, x_ticks = _log_scale(low / pad, high * pad)
    ys, y_ticks = _linear_scale([y for _, y, _ in points], HEIGHT - BOTTOM, TOP)
    steps = [f"H{xs(x):.1f}V{ys(y):.1f}" for x, y in _front([(x, y) for x, y, _ in points])]
    start = steps[0].replace("H", "M").replace("V", " ")
    front = tag("path", d=f"{start}{''.join(steps[1:])}H{WIDTH - RIGHT}", class_="front")
    marks = [
        tag(
            "g",
            tag("title", f"{s.name}: {y_title} {y:.2f}, {x_title} {x:,.4g}"),
            shape(s.place, xs(x), ys(y), 6),
            tag("text", s.name, x=round(xs(x) + dx, 1), y=round(ys(y) + dy, 1), text_anchor=anchor),
            class_=f"point s{s.place % SERIES}",
            data_row=s.place,
        )
        for (x, y, s), (anchor, dx, dy) in zip(points, _label_sides(points, xs, ys), strict=True)
    ]
    return _framed([front, marks], xs, x_ticks, ys, y_ticks, x_title, y_title, f"{y_title} against {x_title}")


def curves(series: Sequence[Series], x_title: str, y_title: str, log: bool = False) -> Html:
    """Lines over a linear x axis; `log` makes the y axis logarithmic."""
    xs, x_ticks = _linear_scale([x for s in series for x, _ in s.points], LEFT, WIDTH - RIGHT, pad=0)
    values = [y for s in series for _, y in s.points]
    if log:
        ys, y_ticks = _log_scale(min(values), max(values) * 1.05, HEIGHT - BOTTOM, TOP)
    else:
        ys, y_ticks = _linear_scale(values, HEIGHT - BOTTOM, TOP)
    lines = []
    for s in series:
        dash = DASHES[s.place % len(DASHES)]
        path = "M" + "L".join(f"{xs(x):.1f} {ys(y):.1f}" for x, y in s.points)
        last = s.points[-1]
        body = [tag("title", f"{s.name}: {last[1]:.4g} at {last[0]:g}")]
        if len(s.points) > 1:
            body.append(tag("path", d=path, class_="line", stroke_dasharray=dash))
        body.append(shape(s.place, xs(last[0]), ys(last[1]), 4.5))
        lines.append(tag("g", body, class_=f"point s{s.place % SERIES}", data_row=s.place))
    return _framed(lines, xs, x_ticks, ys, y_ticks, x_title, y_title, f"{y_title} over {x_title}")


def bars(groups: Sequence[str], series: Sequence[Series], y_title: str) -> Html:
    """Bars side by side: point (i, y) of a series is its bar in group i."""
    ys, y_ticks = _linear_scale([0.0, *(y for s in series for _, y in s.points)], HEIGHT - BOTTOM, TOP)
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    wide = min(28.0, 0.8 * room / max(len(series), 1))
    drawn = []
    for number, s in enumerate(series):
        for group, y in s.points:
            x = LEFT + room * (group + 0.5) + wide * (number - len(series) / 2)
            bar = tag("rect", x=round(x + 1, 1), y=round(ys(y), 1), width=round(wide - 2, 1),
                      height=round(max(ys(0) - ys(y), 0.5), 1), fill="currentColor")  # fmt: skip
            title = tag("title", f"{s.name}, {groups[int(group)]}: {y:.2f}")
            drawn.append(tag("g", title, bar, class_=f"point s{s.place % SERIES}", data_row=s.place))
    ticks = [(i + 0.5, text) for i, text in enumerate(groups)]
    return _framed(drawn, lambda i: LEFT + room * i, ticks, ys, y_ticks, "", y_title, f"{y_title} by group")


def legend(names: Sequence[tuple[int, str]]) -> Html:
    """Marks with names, (number of the row, name)."""
    items = [tag("li", mark(place), " ", name, data_row=place, class_="label") for place, name in names]
    return tag("ul", items, class_="legend")


def _framed(
    content: Any, xs: Scale, x_ticks: Ticks, ys: Scale, y_ticks: Ticks, x_title: str, y_title: str, name: str
) -> Html:
    floor = HEIGHT - BOTTOM
    grid = [tag("path", d=f"M{LEFT} {ys(y):.1f}H{WIDTH - RIGHT}", class_="grid") for y, _ in y_ticks]
    labels = [tag("text", text, x=LEFT - 6, y=round(ys(y) + 4, 1), text_anchor="end") for y, text in y_ticks]
    labels += [tag("text", text, x=round(xs(x), 1), y=floor + 16, text_anchor="middle") for x, text in x_ticks]
    titles = [tag("text", x_title, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle", class_="title")]
    axis = tag("path", d=f"M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}", class_="axis")
    drawn = tag(
        "svg", grid, axis, labels, titles, content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=name
    )
    return tag("figure", tag("figcaption", y_title), drawn, class_="chart")


def _log_scale(
    low: float, high: float, start: float = LEFT, end: float = WIDTH - RIGHT
) -> tuple[Scale, list[tuple[float, str]]]:
    low = max(low, 1e-12)
    high = max(high, low * 1.01)
    a, b = math.log10(low), math.log10(high)
    if b - a < 0.6:
        kept = [value for value, _ in _linear_scale([low, high], 0, 1, pad=0)[1] if low <= value <= high]
    else:
        steps = (1, 2, 5) if b - a < 2 else (1,)
        values = [m * 10.0**e for e in range(math.floor(a), math.ceil(b) + 1) for m in steps]
        kept = [value for value in values if low <= value <= high]
    kept = kept[:: max(1, -(-len(kept) // 7))]
    return lambda v: start + (end - start) * (math.log10(max(v, low)) - a) / (b - a), [(v, _number(v)) for v in kept]


def _linear_scale(
    values: Sequence[float], start: float, end: float, pad: float = 0.08
) -> tuple[Scale, list[tuple[float, str]]]:
    low, high = min(values), max(values)
    room = pad * (high - low) if high > low else max(abs(high) * 0.1, 0.5)
    low, high = (low - room if low else low), high + room
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    ticks = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return lambda v: start + (end - start) * (v - low) / (high - low), [(tick, _number(tick)) for tick in ticks]


def _number(value: float) -> str:
    """Short: 2, 0.5, 1500, 20k, 3M."""
    value = round(value, 10)
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if sign == 'k' else unit):g}{sign}"
    return f"{value:g}"


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is at most as dear as and better than, by rising cost."""
    best, front = -math.inf, []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            best = y
            front.append((x, y))
    return front


def _label_sides(points: Sequence[tuple[float, float, Series]], xs: Scale, ys: Scale) -> list[Side]:
    """Where each point's name goes so that names stay in the frame and off points and each other."""
    taken: list[Box] = [(xs(x) - 7, ys(y) - 7, xs(x) + 7, ys(y) + 7) for x, y, _ in points]
    placed: list[Side] = []
    for number, (x, y, series) in enumerate(points):
        others = [box for i, box in enumerate(taken) if i != number]
        boxes = {side: _text_box(xs(x), ys(y), series.name, side) for side in SIDES}
        side = min(SIDES, key=lambda side: _crowding(boxes[side], others))
        taken.append(boxes[side])
        placed.append(side)
    return placed


def _text_box(x: float, y: float, text: str, side: Side) -> Box:
    anchor, dx, dy = side
    wide = 6.2 * len(text)
    left = x + dx - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return left, y + dy - 10, left + wide, y + dy + 3


def _crowding(box: Box, others: Sequence[Box]) -> float:
    """Pixels that a box shares with others; what lies outside of the frame counts far more."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, TOP - 10 - top)
    shared = (
        max(0.0, min(right, b[2]) - max(left, b[0])) * max(0.0, min(bottom, b[3]) - max(top, b[1])) for b in others
    )
    return 50 * outside + sum(shared)
