"""The nodes of a graph in order: a linked list, where inserting and removing take constant time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from onnx_fuse.ir.graph import Graph, Node

# Distance of two neighbours' ranks after numbering: an insertion takes the middle, so 64 insertions
# fit at one place.
_GAP = 1 << 64


class NodeList(Sequence["Node"]):
    """A sequence of nodes. Iterating walks over a snapshot: the list may change meanwhile."""

    __slots__ = ("_first", "_last", "_length")

    def __init__(self) -> None:
        self._first: Node | None = None
        self._last: Node | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Node]:
        snapshot = []
        node = self._first
        while node is not None:
            snapshot.append(node)
            node = node.next
        return iter(snapshot)

    def __reversed__(self) -> Iterator[Node]:
        return reversed(list(self))

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        return list(self)[index]

    def append(self, node: Node) -> None:
        """Add `node` at the end."""
        node.previous, node.next = self._last, None
        node.rank = 0 if self._last is None else self._last.rank + _GAP
        if self._last is None:
            self._first = node
        else:
            self._last.next = node
        self._last = node
        self._length += 1

    def insert_before(self, successor: Node, node: Node) -> None:
        """Add `node` directly before `successor`, a node of this list."""
        node.previous, node.next = successor.previous, successor
        if successor.previous is None:
            self._first = node
            node.rank = successor.rank - _GAP
        else:
            successor.previous.next = node
            node.rank = (successor.previous.rank + successor.rank) // 2
        successor.previous = node
        self._length += 1
        if node.previous is not None and node.rank == node.previous.rank:
            for order, each in enumerate(self):
                each.rank = order * _GAP

    def remove(self, node: Node) -> None:
        """Take `node`, a node of this list, out."""
        if node.previous is None:
            self._first = node.next
        else:
            node.previous.next = node.next
        if node.next is None:
            self._last = node.previous
        else:
            node.next.previous = node.previous
        node.previous = node.next = None
        self._length -= 1


def position(node: Node, graph: Graph) -> tuple[int, ...]:
    """Return the node's place in `graph`, where it may lie nested; places compare in node order."""
    ranks: list[int] = []
    current: Node | None = node
    while current is not None:
        ranks.append(current.rank)
        if current.graph is graph:
            break
        current = current.graph.parent
    return tuple(ranks[::-1])
