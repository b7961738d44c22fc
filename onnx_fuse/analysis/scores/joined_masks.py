"""Biases and masks of single sets of keys, whose scores are joined: those of all keys.

Beside the keys of the other sets, nothing is added and nothing hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.scores.chain import Bias, Chain, Operation, Placed, Scale, Sections, Select

Masks = list[Bias | Select]  # innermost first


def masks_of(chain: Chain, shapes: Facts) -> Masks | None:
    """Return what is added to one set's scores or hides them, as it comes out of the chain.

    All that is hidden becomes a number. None if anything else is done to the scores.
    """
    found: Masks = []
    for operation in reversed(chain.operations):
        match operation:
            case Scale(factor):
                found = [_scaled(mask, factor) for mask in found]
            case Bias(term, sign):
                found.append(Bias(term, sign))
            case Select(condition, fill, inverted):
                number = fill.only_number(shapes)
                if number is None:
                    return None
                found.append(Select(condition, Placed.number(number), inverted))
            case _:
                return None
    return found


def joined_masks(parts: Sequence[Masks], columns: Sequence[Axis], column: Axis) -> list[Operation]:
    """Return the masks of all sets, outermost first; theirs stand beside `columns`.

    Those of one kind are one operation, wherever their order allows it.
    """
    waiting = [[*masks] for masks in parts]
    found: list[Operation] = []
    while any(waiting):
        first = next(masks[0] for masks in waiting if masks)
        alike = [masks.pop(0) if masks and _alike(masks[0], first) else None for masks in waiting]
        terms = Sections.joined([_term(mask, first) for mask in alike], columns, column)
        found.append(Bias(terms) if isinstance(first, Bias) else Select(terms, first.fill))
    return found[::-1]


def _alike(mask: Bias | Select, other: Bias | Select) -> bool:
    if isinstance(mask, Select) and isinstance(other, Select):
        return np.array_equal(np.asarray(mask.fill.expr), np.asarray(other.fill.expr))
    return isinstance(mask, Bias) and isinstance(other, Bias)


def _term(mask: Bias | Select | None, first: Bias | Select) -> Placed:
    """Return what is added to the scores of a set, or where they are shown."""
    match mask:
        case Bias(term, sign):
            factor = np.asarray(sign, dtype=np.float32)
            return term if sign == 1.0 else replace(term, expr=Call("Mul", (term.expr, factor)))
        case Select(condition, _, inverted):
            shown = Call("Not", (condition.expr,)) if inverted else condition.expr
            return replace(condition, expr=shown)
        case None:
            nothing = np.asarray(0, np.float32) if isinstance(first, Bias) else np.asarray(True)
            return Placed(nothing, ())


def _scaled(mask: Bias | Select, factor: float) -> Bias | Select:
    if isinstance(mask, Bias):
        return replace(mask, sign=mask.sign * factor)
    return replace(mask, fill=Placed.number(float(np.asarray(mask.fill.expr)) * factor))
