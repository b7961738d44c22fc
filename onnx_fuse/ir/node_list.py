"""The nodes of a graph in order: a linked list, where inserting and removing take constant time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
N = TypeVar("N", bound="Linked[Any]")

# Distance of two neighbours' ranks after numbering: an insertion takes the middle, so 64 insertions
# fit at one place.
_GAP = 1 << 64


class Linked(Generic[T]):
    """What can stand in a list: its neighbours there, and a rank that grows along the list."""

    __slots__ = ("next", "previous", "rank")

    def __init__(self) -> None:
        self.previous: T | None = None
        self.next: T | None = None
        self.rank = 0


class NodeList(Sequence[N]):
    """A sequence of nodes. Iterating walks over a snapshot: the list may change meanwhile."""

    __slots__ = ("_first", "_last", "_length")

    def __init__(self) -> None:
        self._first: N | None = None
        self._last: N | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[N]:
        snapshot: list[N] = []
        node = self._first
        while node is not None:
            snapshot.append(node)
            node = node.next
        return iter(snapshot)

    @overload
    def __getitem__(self, index: int) -> N: ...
    @overload
    def __getitem__(self, index: slice) -> list[N]: ...
    def __getitem__(self, index: int | slice) -> N | list[N]:
        return list(self)[index]

    def append(self, node: N) -> None:
        """Add `node` at the end."""
        node.previous, node.next = self._last, None
        node.rank = 0 if self._last is None else self._last.rank + _GAP
        if self._last is None:
            self._first = node
        else:
            self._last.next = node
        self._last = node
        self._length += 1

    def insert_before(self, successor: N, node: N) -> None:
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

    def remove(self, node: N) -> None:
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
