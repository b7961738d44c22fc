"""Scores of which some are written anew in place: ScatterND and ScatterElements.

What an edit writes where is told by the graph's own operators, on a canvas of the scores' shape.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, Expr, content, int64
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.scores.chain import Bias, Placed, Select
from onnx_fuse.ir.graph import Node, Value

_LARGEST_TABLE = 1 << 20  # scores whose places are written down, not computed by the graph


def edit_of(node: Node, ref: Ref, shapes: Facts) -> Select | Bias | None:
    """Return what a node does to the scores that it edits; None if that is neither of these two."""
    indices, updates = node.input(1), node.input(2)
    if indices is None or updates is None:
        return None
    reduction = str(node.attr("reduction", "none"))
    if reduction not in ("none", "add"):
        return None
    options = tuple((name, node.attr(name)) for name in node.attributes if name != "reduction")

    def on_canvas(number: float, what: Expr, *more: tuple[str, str]) -> Placed:
        dtype = np.bool_ if number is True else dtype_of(updates, shapes)
        canvas = Call("Expand", (np.asarray(number, dtype=dtype), extents_of(ref.value, shapes)))
        made = Call(node.op, (canvas, indices, what), (*options, *more))
        return placed(made, ref, shapes, node.graph.opset)

    if reduction == "add":
        return Bias(on_canvas(0.0, updates, ("reduction", "add")))
    number = number_of(updates, shapes)
    extents = extents_written(node, ref.value, indices, shapes)
    if extents is None:
        return None
    kept = on_canvas(True, Call("Expand", (np.asarray(False), extents)))
    fill = on_canvas(0.0, updates) if number is None else Placed.number(number)
    return Select(kept, fill)


def placed(canvas: Expr, ref: Ref, shapes: Facts, opset: int) -> Placed:
    """Return a canvas of the elements of `ref`.

    Where the graph says all of it, it is a constant, with one element along what it doesn't vary
    in.
    """
    extents = numbers_of(shapes.shape(ref.value))
    if extents is None or math.prod(extents) > _LARGEST_TABLE:
        return Placed(canvas, ref.index)
    data = content(canvas, opset, shapes.constant)
    if data is None:
        return Placed(canvas, ref.index)
    index = list(ref.index)
    for position in range(data.ndim):
        first = data.take([0], axis=position)
        if (data == first).all():
            data, index[position] = first, ()
    return Placed(data, tuple(index))


def dtype_of(updates: Value, shapes: Facts) -> np.dtype[Any]:
    """Return the type in which numbers are written: the canvas must have it, too."""
    known = shapes.dtype(updates) or TensorProto.FLOAT
    return helper.tensor_dtype_to_np_dtype(known)


def extents_of(whole: Expr, shapes: Facts) -> Expr:
    """Return a shape: a constant where it is known."""
    known = numbers_of(shapes.shape(whole)) if isinstance(whole, Value) else None
    return np.array(known, dtype=np.int64) if known else Call("Shape", (whole,))


def extents_written(node: Node, whole: Expr, indices: Value, shapes: Facts) -> Expr | None:
    """Return the shape of what is written, by those of its places and of the whole.

    None if it isn't known.
    """
    places = extents_of(indices, shapes)
    if node.op != "ScatterND":
        return places
    shape = shapes.shape(indices)
    depth = shape[-1].as_int() if shape else None
    if depth is None:
        return None
    extents = extents_of(whole, shapes)
    parts = (part_of(places, 0, -1), part_of(extents, depth, np.iinfo(np.int64).max))
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return Call("Concat", parts, (("axis", 0),))


def part_of(shape: Expr, start: int, stop: int) -> Expr:
    """Return the extents from `start` to before `stop`."""
    if isinstance(shape, np.ndarray):
        return shape[start:stop]
    return Call("Slice", (shape, int64(start), int64(stop), int64(0)))
