"""Tensors that consist of one number, whatever their shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.nodes import is_float_cast
from onnx_fuse.analysis.algebra.views import carried
from onnx_fuse.ir.graph import Value

_LARGEST = 1 << 16  # elements of a constant that are looked at


def number_of(value: Value | None, shapes: Facts) -> float | None:
    """Return the one number of which a tensor consists."""
    while value is not None:
        data = shapes.constant(value) if _is_small(value, shapes) else None
        if data is not None:
            same = data.size > 0 and (data == data.ravel()[0]).all()
            return float(data.ravel()[0]) if same else None
        node = value.producer
        if node is None:
            return None
        if node.op == "ConstantOfShape":
            given: Any = node.attr("value")
            return 0.0 if given is None else float(np.asarray(given).ravel()[0])
        if node.op == "Mul":
            factors = [number_of(factor, shapes) for factor in node.inputs]
            known = [factor for factor in factors if factor is not None and math.isfinite(factor)]
            return 0.0 if 0.0 in known and len(known) == len(factors) else None
        if len(node.inputs) > 1 and node.op == "Concat":
            return None
        above = carried(value) or (node.inputs[:1] if is_float_cast(node, shapes) else ())
        value = above[0] if above else None
    return None


def _is_small(value: Value, shapes: Facts) -> bool:
    extents = [extent.as_int() for extent in shapes.shape(value) or ()]
    return math.prod(extent or 0 for extent in extents) <= _LARGEST
