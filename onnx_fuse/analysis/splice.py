"""Sequences with one place exchanged: a shape's axis, or an index's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spliced(items: Sequence[T], place: int, *others: T) -> tuple[T, ...]:
    """Return the items with others in the place of one: with none, without it."""
    return (*items[:place], *others, *items[place + 1 :])
