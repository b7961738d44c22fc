"""Draws a small sub-graph as inline SVG, top to bottom.

The layout is the usual layered one: longest paths give the rows, edges over several rows pass
through waypoints, rows are sorted by the mean of their neighbours, and boxes move towards their
neighbours as far as there is room.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.show.surroundings import constant_dims

_CHARACTER = 6.6
_ROW, _LINE, _GAP, _MARGIN = 34.0, 13.0, 14.0, 8.0
_LONGEST = 24
_SWEEPS = 8
# Smaller constants are axes and shapes: their names would hide the weights'.
_SHOWN_CONSTANT = 8

# Steps that only turn or convert a tensor: drawn paler, so that the arithmetic stands out.
_VIEWS = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(eq=False)
class _Item:
    """A box, or a waypoint of a long edge (without lines)."""

    kind: str
    lines: tuple[str, ...] = ()
    title: str = ""
    names: tuple[str, ...] = ()
    is_understood: bool = False
    row: int = 0
    x: float = 0.0
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)

    @property
    def width(self) -> float:
        longest = max((len(line) for line in self.lines), default=0)
        return longest * _CHARACTER + 14 if self.lines else 2.0

    @property
    def height(self) -> float:
        return _LINE * len(self.lines) + 8


def draw(
    nodes: Sequence[Node],
    *,
    hidden: Container[Value] = (),
    understood: Container[str] = (),
    marked: str | None,
    status: str,
) -> str:
    """Return an `<svg>` of these nodes, in an order in which producers come first.

    Large constants are written into the box that reads them. Other values from outside are boxes of
    their own, but for `hidden` ones where a shape is taken. The node called `marked` is where the
    block stands or stopped; those called as in `understood` are outlined.
    """
    items = _items(nodes, hidden, marked, status)
    for item in items:
        item.is_understood = any(name in understood for name in item.names)
    _assign_rows(items)
    rows = _with_waypoints(items)
    _sort_rows(rows)
    _place(rows)
    return _svg(rows)


def _items(
    nodes: Sequence[Node], hidden: Container[Value], marked: str | None, status: str
) -> list[_Item]:
    """Return boxes with their edges: inputs of the sub-graph, its steps, what leaves it."""
    items: list[_Item] = []
    made: dict[Value, _Item] = {}
    for node in nodes:
        lines = [node.bare_op]
        takes_shape = node.bare_op in _VIEWS and node.bare_op != "Concat"
        for slot, value in enumerate(node.inputs):
            if value is None or (slot and takes_shape and value in hidden):
                continue
            dims = constant_dims(value)
            if dims is not None:
                if math.prod(dims) >= _SHOWN_CONSTANT:
                    lines.append(_short(f"{_last(value.name)} {'x'.join(map(str, dims))}"))
            elif value not in made:
                made[value] = _Item("input", (_short(_last(value.name)),), value.name)
                items.append(made[value])
        names = (node.name, *(value.name for value in node.made))
        is_marked = marked is not None and marked in names
        kind = status if is_marked else "view" if node.bare_op in _VIEWS else "step"
        title = f"{node.bare_op} {node.name or names[1]}"
        item = _Item(kind, tuple(lines), title, names)
        for value in dict.fromkeys(node.given):
            if value in made:
                made[value].below.append(item)
                item.above.append(made[value])
        made.update((value, item) for value in node.made)
        items.append(item)
    return items


def _assign_rows(items: Sequence[_Item]) -> None:
    """Give rows by the longest paths from above, then move all down as near to its readers."""
    for item in items:
        item.row = 1 + max((other.row for other in item.above), default=-1)
    for item in reversed(items):
        if item.below:
            item.row = min(other.row for other in item.below) - 1
    first = min((item.row for item in items), default=0)
    for item in items:
        item.row -= first


def _with_waypoints(items: Sequence[_Item]) -> list[list[_Item]]:
    """Return rows of boxes, with a waypoint in each row that an edge crosses."""
    rows: list[list[_Item]] = [[] for _ in range(1 + max((i.row for i in items), default=0))]
    for item in items:
        rows[item.row].append(item)
    for item in items:
        for position, target in enumerate(list(item.below)):
            upper = item
            for row in range(item.row + 1, target.row):
                point = _Item("point", row=row, above=[upper], below=[target])
                if upper is item:
                    item.below[position] = point
                else:
                    upper.below = [point]
                rows[row].append(point)
                upper = point
            if upper is not item:
                target.above[target.above.index(item)] = upper
    return rows


def _sort_rows(rows: Sequence[list[_Item]]) -> None:
    """Sort each row by the mean position of its neighbours, downwards and upwards in turn."""
    for sweep in range(_SWEEPS):
        upwards = bool(sweep % 2)
        for row in reversed(rows) if upwards else rows:
            for index, item in enumerate(row):
                item.x = float(index)
        for row in reversed(rows[:-1]) if upwards else rows[1:]:
            row.sort(key=lambda item: _mean(item.below if upwards else item.above, item.x))
            for index, item in enumerate(row):
                item.x = float(index)


def _place(rows: Sequence[list[_Item]]) -> None:
    """Give each box its centre: near the mean of its neighbours, without touching the next box."""
    for row in rows:
        for item, x in zip(row, _packed(row, [0.0] * len(row)), strict=True):
            item.x = x
    for sweep in range(2 * _SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = [_mean([*item.above, *item.below], item.x) for item in row]
            for item, x in zip(row, _packed(row, wanted), strict=True):
                item.x = x
    left = min((item.x - item.width / 2 for row in rows for item in row), default=0.0)
    for row in rows:
        for item in row:
            item.x += _MARGIN - left


def _packed(row: Sequence[_Item], wanted: Sequence[float]) -> list[float]:
    """Return centres near the wanted ones, in order, with gaps: packed from both ends, averaged."""
    gaps = [(left.width + right.width) / 2 + _GAP for left, right in itertools.pairwise(row)]
    rightwards, leftwards = list(wanted), list(wanted)
    for index, gap in enumerate(gaps):
        rightwards[index + 1] = max(wanted[index + 1], rightwards[index] + gap)
    for index in range(len(gaps) - 1, -1, -1):
        leftwards[index] = min(wanted[index], leftwards[index + 1] - gaps[index])
    return [(a + b) / 2 for a, b in zip(rightwards, leftwards, strict=True)]


def _mean(items: Iterable[_Item], otherwise: float) -> float:
    places = [item.x for item in items]
    return sum(places) / len(places) if places else otherwise


def _svg(rows: Sequence[list[_Item]]) -> str:
    tops: list[float] = []
    y = _MARGIN
    for row in rows:
        tops.append(y)
        y += max(item.height for item in row) + _ROW
    width = max((item.x + item.width / 2 for row in rows for item in row), default=0.0) + _MARGIN
    height = y - _ROW + _MARGIN
    parts: list[str] = []
    for row in rows:
        for item in row:
            if item.kind != "point":
                parts.extend(_edge(item, first, tops) for first in item.below)
    for row in rows:
        parts.extend(_box(item, tops[item.row]) for item in row if item.kind != "point")
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img">{"".join(parts)}</svg>'
    )


def _edge(source: _Item, first: _Item, tops: Sequence[float]) -> str:
    """Return a curve from a box through the waypoints of its edge to the box that reads it."""
    path = [(source.x, tops[source.row] + source.height)]
    target = first
    while target.kind == "point":
        path.append((target.x, tops[target.row] + 8))
        target = target.below[0]
    path.append((target.x, tops[target.row] - 1))
    steps = [f"M{path[0][0]:.1f} {path[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        middle = (y0 + y1) / 2
        steps.append(f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}")
    return f'<path class="edge" marker-end="url(#tip)" d="{" ".join(steps)}"/>'


def _box(item: _Item, top: float) -> str:
    left, middle = item.x - item.width / 2, item.x
    text = "".join(
        f'<text class="{"name" if index else "op"}" x="{middle:.1f}" '
        f'y="{top + 14 + index * _LINE:.1f}">{html.escape(line)}</text>'
        for index, line in enumerate(item.lines)
    )
    radius = item.height / 2 if item.kind == "input" else 4
    classes = f"{item.kind} understood" if item.is_understood else item.kind
    return (
        f'<g class="{classes}"><title>{html.escape(item.title)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{item.width:.1f}" '
        f'height="{item.height:.1f}" rx="{radius:.1f}"/>{text}</g>'
    )


def _last(name: str) -> str:
    """Return the last part of a name that says something."""
    parts = [part for part in name.replace(".", "/").split("/") if part]
    return "/".join(parts[-2:]) if parts else name


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else "…" + text[1 - _LONGEST :]
