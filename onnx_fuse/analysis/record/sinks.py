"""The logit of each head that stands in the softmax's sum alone."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.axes import Index, atoms, every_value, fixed, size
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.linear import gathered
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Value
from onnx_fuse.report import Code


def sinks(block: Arrangement) -> Expr | None:
    """Return the sinks by heads, None if there are none. Raises: Declined."""
    found = block.scores.chain.sinks
    return None if found is None else _by_heads(block, found.expr, found.index)


def _by_heads(block: Arrangement, expr: Expr, index: Index) -> Expr:
    """Return the logits of an expression, whose tensors all stand at one index."""
    if isinstance(expr, np.ndarray):
        return np.full(every_value(atoms(block.roles.heads)).count, expr.item(), np.float32)
    if isinstance(expr, Call):
        parts = tuple(_by_heads(block, part, index) for part in expr.inputs)
        return Call(expr.op_type, parts, expr.attributes)
    number = number_of(expr, block.shapes)
    if number is not None:
        return _by_heads(block, np.asarray(number), index)
    constant = _constant_sinks(block, expr, block.space.resolve_index(index))
    if constant is not None:
        return constant
    return _head_vector(block, Ref(expr, index))


def _constant_sinks(block: Arrangement, value: Value, index: Index) -> np.ndarray | None:
    """Return a constant that is the same for all batches and rows, by heads."""
    data = block.shapes.constant(value)
    if data is None:
        return None
    for axis, digits in enumerate(index):
        if not {*atoms(digits)} <= {*block.roles.heads}:
            if (data != data.take([0], axis=axis)).any():
                return None
            index = spliced(index, axis, fixed(0, size(digits)))
    heads = every_value(atoms(block.roles.heads))
    picked = gathered(Ref(value, index), block.shapes, heads.values)
    return np.broadcast_to(picked, (heads.count,)).astype(np.float32)


def _head_vector(block: Arrangement, ref: Ref) -> Expr:
    """A sink that the graph expands over batch and rows: what stands below views and casts."""
    below: Ref | None = ref
    while below is not None:
        sources = block.sources(below)
        for found in sources:
            groups = [block.roles.heads]
            expr = arranged(found.value, found.index, groups, block.extents, whole=(True,))
            if expr is not None:
                return expr
        below = block.views.before_cast(sources[-1])
    node = ref.value.producer or block.node
    what = "the score beside the others and the softmax"
    raise Declined(Code.UNSUPPORTED_OP, node, what=what)
