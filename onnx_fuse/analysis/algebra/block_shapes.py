"""The facts of one model's values, in terms of what one attention block proves to be equal."""

from __future__ import annotations

from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.shapes.facts import Content, Shape, mapped
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Value


class BlockShapes:
    """One model's facts, with the extents that one block's products prove to be equal."""

    def __init__(self, shapes: Shapes, space: Space) -> None:
        self._shapes = shapes
        self._space = space
        self.dtype = shapes.dtype
        self.is_constant = shapes.is_constant
        self.constant = shapes.constant
        self.scalar = shapes.scalar

    def shape(self, value: Value) -> Shape | None:
        """Return the shape, as `Shapes.shape` does, in terms of what is known to be equal."""
        shape = self._shapes.shape(value)
        return None if shape is None else tuple(self._space.known(extent) for extent in shape)

    def apart(self, value: Value) -> Shape | None:
        """Return the shape without what the block proves or assumes."""
        return self._shapes.shape(value)

    def content(self, value: Value) -> Content | None:
        """Return the integers, as `Shapes.content` does, in terms of what is known to be equal."""
        content = self._shapes.content(value)
        return None if content is None else mapped(self._space.known, content)


Facts = Shapes | BlockShapes
