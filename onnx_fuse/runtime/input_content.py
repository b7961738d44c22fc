"""What made-up inputs hold.

Integers that index a table lie in its range, masks are 0/1 with nothing masked, padding on the
right, on the left, and holes, floats are normal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.runtime.signature import Input, Use

Array = npt.NDArray[Any]

MASKS = ("none", "right", "left", "holes")
# The types of inputs that can be made up.
TYPES: dict[int, type[np.generic]] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.INT16: np.int16,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.UINT16: np.uint16,
    onnx.TensorProto.UINT32: np.uint32,
    onnx.TensorProto.UINT64: np.uint64,
    onnx.TensorProto.BOOL: np.bool_,
}


def content(
    given: Input,
    shape: tuple[int, ...],
    mask: str,
    index: int,
    longest: int,
    rng: np.random.Generator,
) -> Array:
    """Return what an input holds in a case, in a type that numpy chooses.

    mask: one of MASKS; index: of the case, by which counts and switches vary; longest: the longest
    row of a batch whose rows' lengths are an input.
    """
    match given.use:
        case Use.REAL:
            return rng.standard_normal(shape)
        case Use.COUNT:
            return np.full(shape, 1 + index % 3)
        case Use.LENGTH:
            return _lengths(shape, mask, longest)
        case Use.INDEX:
            low = max(0, -given.offset)
            high = max(low + 1, (given.extent or 1) - given.offset)
            if given.is_position and shape:
                start = rng.integers(low, max(low + 1, high - shape[-1]), (*shape[:-1], 1))
                ascending: Array = start + np.arange(shape[-1])
                return ascending.clip(max=high - 1)
            return rng.integers(low, high, shape)
        case Use.ADDED_MASK:
            if mask == "none":
                return rng.standard_normal(shape)
            return np.where(_pattern(shape, mask), 0.0, -10000.0)
        case Use.FLAG:
            if given.is_position and shape:
                return np.arange(shape[-1]) + np.zeros(shape, dtype=np.int64)
            if not shape or shape == (1,):
                return np.full(shape, index % 2)
            return _pattern(shape, mask)


def _lengths(shape: tuple[int, ...], mask: str, longest: int) -> Array:
    """Return a row's length for each: the first is the longest, the others as short as a mask's."""
    others = longest if mask == "none" else max(1, longest - 1 - longest // 3)
    return np.where(np.arange(math.prod(shape)) == 0, longest, others).reshape(shape)


def _pattern(shape: tuple[int, ...], mask: str) -> Array:
    """Return a 0/1 mask over the last axis for each row of the first; no row is all 0."""
    if not shape or 0 in shape:
        return np.ones(shape, dtype=bool)
    length = shape[-1]
    column = np.arange(length)
    rows = []
    for row in range(shape[0]):
        kept = max(1, length - 1 - (length // 3) * ((row + 1) % 2) - row % 2)
        match mask:
            case "right":
                rows.append(column < kept)
            case "left":
                rows.append(column >= length - kept)
            case "holes":
                rows.append((column + row) % 3 != 1 if length > 1 else column == 0)
            case _:
                rows.append(np.ones(length, dtype=bool))
    pattern = np.stack(rows).reshape(shape[0], *[1] * (len(shape) - 2), length)
    whole: Array = np.broadcast_to(pattern if len(shape) > 1 else pattern[0], shape)
    return whole
