"""Names that are taken, fresh ones, and the two spellings of one."""

from __future__ import annotations

from collections.abc import Iterable


def domain_of(spelling: str) -> str:
    """Return the domain; both spellings of ONNX's own one are ""."""
    return "" if spelling == "ai.onnx" else spelling


def op_of(domain: str, op_type: str) -> str:
    """Return what tells an operator from all others: "Softmax", "com.microsoft:Attention"."""
    return f"{domain}:{op_type}" if domain else op_type


class Names:
    """The names of one kind in a model.

    One that was taken is never given again, even if removed.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()  # asked only for membership: its order is never seen
        self._suffix: dict[str, int] = {}

    def reserve(self, names: Iterable[str]) -> None:
        """Mark names as taken."""
        self._taken.update(names)

    def take(self, hint: str) -> str:
        """Take and return `hint` if it is free, else the first free of `hint_1`, `hint_2`, ..."""
        name = hint or "value"
        suffix = self._suffix.get(name, 0)
        stem = name
        while name in self._taken:
            suffix += 1
            name = f"{stem}_{suffix}"
        self._suffix[stem] = suffix
        self._taken.add(name)
        return name
