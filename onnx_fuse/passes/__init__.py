"""Passes: each takes a graph and returns it rewritten; the graph is valid before and after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from onnx_fuse.errors import InvalidModel, PassFailed
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.model import Model


@runtime_checkable
class Pass(Protocol):
    """A rewrite. Its options are its fields; it keeps no state between runs."""

    @property
    def name(self) -> str:
        """A stable name, for messages."""

    def run(self, graph: Model) -> Model:
        """Rewrite `graph` in place and return it."""


def run_passes(graph: Model, passes: Iterable[Pass]) -> Model:
    """Run the passes in order, checking the graph after each.

    Raises: PassFailed naming the pass that left an invalid graph, or none; InvalidModel if it was
    invalid before.
    """
    check_model(graph)
    for step in passes:
        graph = step.run(graph)
        if not isinstance(graph, Model):
            raise PassFailed(f"pass '{step.name}' returned {type(graph).__name__}, not a graph")
        try:
            check_model(graph)
        except InvalidModel as error:
            raise PassFailed(f"pass '{step.name}' left an invalid graph: {error}") from error
    return graph
