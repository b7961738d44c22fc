"""Elements of tensors, each axis an index of one block's atoms."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fuse.analysis.algebra.axes import ONE, Axis, Index, size
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.dims.dim import Dim, product
from onnx_fuse.ir.graph import Value


@dataclass(frozen=True)
class Ref:
    """Elements of a tensor: `index` has one axis for each axis of `value`."""

    value: Value
    index: Index

    def resolve(self, space: Space) -> Ref:
        """Return the same elements with split atoms replaced by their parts."""
        return Ref(self.value, space.resolve_index(self.index))


@dataclass(frozen=True)
class Refs:
    """What can be said of elements from the tensors' shapes, over one graph's facts."""

    space: Space
    shapes: Facts

    def ref(self, value: Value, name: str = "") -> Ref | None:
        """Return a reference to a whole tensor, with one new atom for each axis."""
        shape = self.shapes.shape(value)
        if shape is None:
            return None
        return Ref(
            value,
            tuple(self.space.atom(extent, f"{name}{axis}") for axis, extent in enumerate(shape)),
        )

    def regrouped(self, ref: Ref, other: Value) -> Ref | None:
        """Return the same elements in a tensor of another shape, which must have as many."""
        shape, own = self.shapes.shape(other), self.shapes.shape(ref.value)
        index = self.space.resolve_index(ref.index)
        count = product(map(size, index))
        # What is read beside other elements may broadcast: then its index tells nothing of extents.
        if shape is None or own is None or self.space.known(product(own)) != count:
            return None
        if not self.space.equate(count, product(shape)):
            return None
        shape = self.shapes.shape(other)
        grouped = None if shape is None else self.space.regroup(index, shape)
        return None if grouped is None else Ref(other, grouped)

    def repeated(self, index: Index, source: Value) -> Ref | None:
        """Return what repeating reads of `source` at `index`; only proved equality counts."""
        pairs = self._aligned(index, source)
        if pairs is None or any(
            extent != ONE and extent != size(self.space.resolve(axis)) for axis, extent in pairs
        ):
            return None
        return Ref(source, tuple(() if extent == ONE else axis for axis, extent in pairs))

    def broadcast(self, index: Index, source: Value) -> Ref | None:
        """Return what broadcasting reads of `source` at `index`; None if it can't be proved.

        Two names are assumed to be equal; a name beside a number is not, for it may be 1.
        """
        pairs = self._aligned(index, source)
        if pairs is None:
            return None
        axes: list[Axis] = []
        for axis, extent in pairs:
            own = self.space.resolve(axis)
            if extent == ONE:
                axes.append(())
            elif extent == size(own):
                axes.append(own)
            elif _numbers(extent, size(own)):
                return None
            else:
                fitting = self.space.fit(own, extent, is_assumed=True)
                if fitting is None:
                    return None
                axes.append(fitting)
        return Ref(source, tuple(axes))

    def beside(self, index: Index, source: Value) -> Ref | None:
        """As `broadcast`, but without a claim about what is combined with elements at `index`.

        An axis with a name is taken for a full one, and so is the last one if it has a number
        beside a name. Should it be 1 in a run, broadcasting does as it would have in the graph;
        should it be anything else, the operator refuses it as the graph would have. Whoever splits
        such an axis, or merges it with others, has to make it full before.
        """
        pairs = self._aligned(index, source)
        if pairs is None:
            return None
        axes: list[Axis] = []
        for axis, extent in pairs:
            own = self.space.resolve(axis)
            axes.append(() if extent == ONE else own)
            is_last = len(axes) == len(pairs)
            if extent in (ONE, size(own)):
                continue
            if extent.as_int() is not None and (not is_last or size(own).as_int() is not None):
                return None
        return Ref(source, tuple(axes))

    def _aligned(self, index: Index, source: Value) -> list[tuple[Axis, Dim]] | None:
        """Return the axes that the axes of `source` stand beside, and its extents.

        None if it has more axes, or nobody knows.
        """
        shape = self.shapes.shape(source)
        if shape is None or len(shape) > len(index):
            return None
        return list(zip(index[len(index) - len(shape) :], shape, strict=True))


def _numbers(*extents: Dim) -> int:
    return sum(extent.as_int() is not None for extent in extents)
