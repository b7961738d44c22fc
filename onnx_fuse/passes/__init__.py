"""Passes: each takes a model and returns it rewritten; the model is valid before and after."""

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

    def run(self, model: Model) -> Model:
        """Return the model rewritten, in place where that can be."""


def run_passes(model: Model, passes: Iterable[Pass]) -> Model:
    """Run the passes in order, checking the model after each.

    Raises: PassFailed naming the pass that left an invalid graph, or none; InvalidModel if it was
    invalid before.
    """
    check_model(model)
    for step in passes:
        model = checked(step, step.run(model))
    return model


def checked(step: Pass, made: Model) -> Model:
    """Return what a pass has made. Raises: PassFailed if it is no valid model."""
    if not isinstance(made, Model):
        raise PassFailed(f"pass '{step.name}' returned {type(made).__name__}, not a graph")
    try:
        check_model(made)
    except InvalidModel as error:
        raise PassFailed(f"pass '{step.name}' left an invalid graph: {error}") from error
    return made
