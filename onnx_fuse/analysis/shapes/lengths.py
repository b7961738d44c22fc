"""Integers that are lengths of axes: never negative, though their formulas alone might be."""

from __future__ import annotations

from onnx_fuse.ir.graph import Value

# Operators that choose from the integers of their first input.
_CHOOSE = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
_DEEPEST = 12  # operators between a Shape and what reads its numbers


def are_lengths(value: Value | None, deepest: int = _DEEPEST) -> bool:
    """Return whether all integers of a value are what shapes say, or constants of no sign."""
    if value is None or not deepest:
        return False
    if value.constant is not None:
        numbers = value.constant.numpy()
        return bool(numbers.dtype.kind in "iu" and (numbers >= 0).all())
    node = value.producer
    if node is None:
        return False
    match node.op:
        case "Shape" | "Size":
            return True
        case "ConstantOfShape":
            number = node.attr("value")
            return number is None or bool((number >= 0).all())
        case "Concat":
            parts = node.inputs
        case "Where":
            parts = node.inputs[1:]
        case _:
            parts = node.inputs[:1] if node.op in _CHOOSE else []
    return bool(parts) and all(are_lengths(part, deepest - 1) for part in parts)
