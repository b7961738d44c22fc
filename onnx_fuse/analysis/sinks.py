"""The logit of each head that stands in the softmax's sum alone."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.arrangement import Arrangement
from onnx_fuse.analysis.axes import Index, atoms, every_value, fixed, index_atoms, size
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.expr import Expr, arranged
from onnx_fuse.analysis.linear import gathered
from onnx_fuse.analysis.views import Ref
from onnx_fuse.ir.graph import Value
from onnx_fuse.report import Code


def sinks(block: Arrangement) -> Expr | None:
    """Return the sinks by heads, None if there are none. Raises: Declined."""
    found = block.scores.chain.sinks
    if found is None:
        return None
    if isinstance(found.expr, Value) and block.shapes.is_constant(found.expr):
        constant = _constant_sinks(block, found.expr, block.space.resolve_index(found.index))
        if constant is not None:
            return constant
    return _head_vector(
        block, Ref(found.expr, found.index) if isinstance(found.expr, Value) else None
    )


def _constant_sinks(block: Arrangement, value: Value, index: Index) -> np.ndarray | None:
    """Return a constant that is the same for all batches and rows, by heads."""
    data = block.shapes.constant(value)
    if data is None:
        return None
    for axis, digits in enumerate(index):
        if not {*atoms(digits)} <= {*block.roles.heads}:
            if (data != data.take([0], axis=axis)).any():
                return None
            index = (*index[:axis], fixed(0, size(digits)), *index[axis + 1 :])
    lanes, count = every_value(atoms(block.roles.heads))
    picked = gathered(Ref(value, index), block.shapes, lanes)
    return np.broadcast_to(picked, (count,)).astype(np.float32)


def _head_vector(block: Arrangement, ref: Ref | None) -> Expr:
    """A sink that the graph expands over batch and rows: the constant below the views."""
    for found in () if ref is None else block.sources(ref):
        if {*index_atoms(found.index)} <= {*block.roles.heads}:
            groups = [block.roles.heads]
            expr = arranged(found.value, found.index, groups, block.extents, whole=(True,))
            if expr is not None:
                return expr
    raise Declined(
        Code.UNSUPPORTED_OP,
        block.node,
        node=block.node.name,
        op="Concat",
        what="product and softmax",
    )
