"""What is known only if all of its parts are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def all_known(items: Iterable[T | None]) -> list[T] | None:
    """Return the items, None if one of them is."""
    known: list[T] = []
    for item in items:
        if item is None:
            return None
        known.append(item)
    return known
