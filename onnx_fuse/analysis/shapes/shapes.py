"""Facts about values without running the model: symbolic shapes, types, contents, constants.

`Shapes` answers from the graph alone and never changes it. An extent is a `Dim` over the symbols of
the model's inputs; what cannot be known is a symbol of its own, so that two extents are equal only
when that is proved. What the file declares for values inside the graph is used where nothing can be
computed, and then only its numbers: names of extents are trusted on the model's inputs alone.

A fact holds for every run that succeeds and in which no tensor that is broadcast or reshaped to a
symbolic extent is empty.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_fuse.analysis.shapes.facts import Content, Shape, as_ints, elements
from onnx_fuse.analysis.shapes.folding import Array, Folder
from onnx_fuse.analysis.shapes.forced import engine_of
from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.model import Model


class Shapes:
    """Facts of one model's values, found on demand and kept: create one per pass.

    Values that are added to the graph later are answered too; facts of values whose producer was
    changed stay what they were.
    """

    def __init__(self, model: Model, bindings: Mapping[str, int] | None = None):
        """Facts of `model`; `bindings` gives numbers to named extents of its inputs."""
        self._engine = engine_of(model, bindings or {})
        self._folder = Folder(self._engine)

    def shape(self, value: Value) -> Shape | None:
        """Return the extents, None only if the rank is unknown (or it is no tensor)."""
        fact = self._engine.fact(value)
        return None if fact.shape is None else fact.extents

    def dtype(self, value: Value) -> int | None:
        """Return the element type (onnx.TensorProto), None if unknown."""
        return self._engine.fact(value).dtype

    def content(self, value: Value) -> Content | None:
        """Return the elements of a small tensor of numbers and of integers made of extents.

        Integers that only the run knows are unknowns of their own if there are few of them.
        """
        content = self._engine.fact(value).content
        return None if content is None or None in elements(content) else content

    def ints(self, value: Value) -> list[int] | None:
        """Return the content in row-major order, if all of it is plain numbers."""
        content = self._engine.fact(value).content
        return None if content is None else as_ints(content)

    def is_constant(self, value: Value) -> bool:
        """Return whether `constant` has an answer; weights are not read for that."""
        return self._folder.is_constant(value)

    def constant(self, value: Value) -> Array | None:
        """Return the value as an array, if it is the same in every run and what is known tells it.

        Large results are computed anew each time. Read-only.
        Raises: InvalidModel if the file with a constant's data cannot be read.
        """
        return self._folder.constant(value)

    def scalar(self, value: Value) -> float | None:
        """Return the number that a constant of one element holds."""
        shape = self.shape(value)
        if shape is None or any(dim != 1 for dim in shape) or not self.is_constant(value):
            return None
        array = self.constant(value)
        if array is None or (
            array.dtype.kind not in "biuf" and not np.can_cast(array.dtype, np.float64)
        ):
            return None
        return float(array.reshape(-1)[0])
