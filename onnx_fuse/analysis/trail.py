"""What a recogniser went through, for those who want to see it.

No block is decided by it: only which declined sites are left out, as they are parts of one.
"""

from __future__ import annotations

from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value

_LONGEST_WAY = 300  # values looked at between two ends


class Trail:
    """The nodes understood so far, by step; the last step is the one that the recogniser is in."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[Node, None]] = {}
        self._current: dict[Node, None] = {}

    @property
    def nodes(self) -> set[Node]:
        """The nodes of all steps."""
        return {node for nodes in self.steps.values() for node in nodes}

    def enter(self, step: str) -> None:
        """Begin a step."""
        self._current = self.steps.setdefault(step, {})

    def add(self, *nodes: Node | None) -> None:
        """Note nodes that the step went through."""
        self._current.update((node, None) for node in nodes if node is not None)

    def add_between(self, top: Value, bottom: Value) -> None:
        """Note the nodes on all ways from one value down to another."""

        def above(value: Value) -> tuple[Value | None, ...]:
            inside = value is not bottom and value.producer is not None
            return tuple(value.producer.inputs) if inside and value.producer else ()

        leading = {bottom}
        found = [value for value in reachable(top, above, limit=_LONGEST_WAY) if value.producer]
        for value in sorted(found, key=lambda v: v.producer.rank if v.producer else 0):
            node = value.producer
            if node is not None and node.graph is top.graph and not leading.isdisjoint(node.inputs):
                leading.add(value)
                self.add(node)
