"""The one search through a graph: nearest first, bounded, each value or node once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def reachable(
    start: T,
    following: Callable[[T], Iterable[T | None]],
    *,
    steps: int | None = None,
    limit: int | None = None,
) -> Iterator[T]:
    """Yield `start` and what `following` leads to from there, nearest first, each once.

    steps: how far from the start, None for any distance; limit: nothing is searched on from once so
    many were found, None for no limit.
    """
    distance = {start: 0}
    waiting = deque([start])
    yield start
    while waiting and (limit is None or len(distance) < limit):
        current = waiting.popleft()
        if distance[current] == steps:
            return
        for found in following(current):
            if found is not None and found not in distance:
                distance[found] = distance[current] + 1
                waiting.append(found)
                yield found
