"""An attention operator as the function body of its block keeps it."""

from __future__ import annotations

from dataclasses import replace

from onnx import TensorProto

from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.operators.lifted import Lifted, given
from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.core import Core, Takes
from onnx_fuse.op.schema import BODY_INPUT

_PAST_KEY = 6  # where MultiHeadAttention has its past
# The opset whose Attention has no kernel in onnxruntime 1.32, and the types of masks that have one.
# Without, it writes out the standard's own body of sixty nodes, and within a function takes its
# result's columns for none and refuses the model.
_NO_KERNEL = 25
_MASKS = (TensorProto.BOOL, TensorProto.FLOAT, TensorProto.FLOAT16)


def has_kernel(node: Node, views: Views) -> bool:
    """Return whether onnxruntime has a kernel for an Attention of the standard."""
    mask = node.input(3)
    is_known = mask is None or views.shapes.dtype(mask) in _MASKS
    return is_known and node.graph.opset < _NO_KERNEL


def with_core(lifted: Lifted, node: Node, taken: int, views: Views) -> Lifted:
    """Return what was lifted from `node` with the operator itself, if a body can keep it.

    `taken`: how many of its inputs hold queries, keys and values, or their weights and biases.
    """
    output = node.outputs[0]
    if output is None or views.shapes.dtype(output) != TensorProto.FLOAT:
        return lifted  # the block computes in float32, its operator would not
    settings = {name: node.attr(name) for name in node.attributes if name != "scale"}
    if any(isinstance(node.attr(name), AttributeRef) for name in node.attributes):
        return lifted  # a parameter of the function around it, which the body doesn't have
    if any(isinstance(setting, list) and not setting for setting in settings.values()):
        return lifted  # no list of an attention operator is empty: nothing tells its type
    if not node.domain and not has_kernel(node, views):
        return lifted
    repeats = False
    if lifted.parts:
        if any(part.past is not None for part in lifted.parts.values()):
            return lifted  # its caches are the halves of one tensor
        query = key = Takes.SOURCE
    else:
        shapes = [given(node, position, views)[1] for position in (0, 1)]
        query, key = (Takes.HEADS if len(shape) == 4 else Takes.ROWS for shape in shapes)
        heads = [shape[1 if len(shape) == 4 else 2] for shape in shapes]  # times a head's size
        repeats = query is not key or heads[0] == heads[1]
    joins, last = bool(lifted.pasts), len(node.inputs)
    if joins and node.domain:
        # Inside a function onnxruntime infers no type of what MultiHeadAttention joins, and refuses
        # the model. It takes keys and values of one size that are joined before; but is causal
        # without a past.
        sizes = [given(node, position, views)[1][-1] for position in (1, 2)]
        if node.attr("unidirectional", 0) or sizes[0] != sizes[1]:
            return lifted
        joins, key, last = False, Takes.HEADS, _PAST_KEY
    behind: list[Value | None] = [
        value if taken <= position < last else None
        for position, value in enumerate(node.inputs[3:], start=3)
    ]
    while behind and behind[-1] is None:
        behind.pop()
    inputs = tuple("" if value is None else f"{BODY_INPUT}{at}" for at, value in enumerate(behind))
    attributes = tuple(
        (name, tuple(setting) if isinstance(setting, list) else setting)
        for name, setting in settings.items()
    )
    width = 0
    if not node.domain and key is Takes.ROWS:
        width = given(node, 2, views)[1][2].as_int() or 0
    core = Core(node.domain, node.bare_op, query, key, inputs, attributes, joins, width, repeats)
    return replace(lifted, core=core, core_inputs=tuple(behind))
