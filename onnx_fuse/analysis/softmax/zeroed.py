"""Weights put to zero after the softmax, where the same mask hid their scores before it.

They are zero there anyway, but in rows of which the mask shows nothing: those are zero as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.scores.bounds import highest_added, highest_score, may_be_infinite
from onnx_fuse.analysis.scores.chain import Bias, Chain, Operation, Placed, Scale, Select, Shift
from onnx_fuse.analysis.scores.choices import (
    Condition,
    agree,
    choice_of,
    condition_at,
    shown_by,
)
from onnx_fuse.ir.graph import Node

# exp(-104) is 0 in float32, and so in every narrower type.
_VANISHES = 104.0
# What is added to scores and not larger leaves something of exp(score - maximum).
_KEEPS = 40.0


@dataclass(frozen=True)
class Zeroed:
    """Weights that stay where a condition holds, else they are 0.

    takes_nan: whether what is no number becomes 0 there, too. place: the graph's own elements that
    are not 0 where the condition holds, with `inverted` that are.
    """

    condition: Condition
    weights: Ref
    takes_nan: bool
    place: Ref
    inverted: bool = False


def zeroed_of(node: Node, weights: Ref, formula: Formula) -> Zeroed | None:
    """Match a node that reads weights to put some of them to zero."""
    if weights.value not in node.inputs:
        return None
    return zeroed_at(Made(node, weights.index), node.inputs.index(weights.value), formula)


def zeroed_at(made: Made, at: int, formula: Formula) -> Zeroed | None:
    """Match where(c, w, 0), where(c, 0, w), and w * c, with w as the input `at`."""
    result = made.node.outputs[0]
    if result is None:
        return None
    if made.node.op == "Where" and at in (1, 2):
        asked, other = formula.beside(made, 0), formula.beside(made, 3 - at)
        if asked is None or not _is_zero(other, formula):
            return None
        condition = condition_at(asked, formula)
        kept = condition if at == 1 else condition.negated()
        return Zeroed(kept, Ref(result, made.index), True, asked, at == 2)
    place = formula.beside(made, 1 - at) if made.node.op == "Mul" else None
    choice = choice_of(place, formula)
    if place is None or choice is None or choice.amount != 1.0:
        return None
    return Zeroed(choice.condition, Ref(result, made.index), False, place)


def without_zeros(node: Node, weights: Ref, formula: Formula) -> Ref | None:
    """Return the sum of weights and zeros, if that is what a node makes."""
    result = node.outputs[0] if node.op == "Add" else None
    if result is None or weights.value not in node.inputs:
        return None
    at = node.inputs.index(weights.value)
    other = formula.beside(Made(node, weights.index), 1 - at)
    return Ref(result, weights.index) if _is_zero(other, formula) else None


def _is_zero(ref: Ref | None, formula: Formula) -> bool:
    if ref is not None and number_of(ref.value, formula.views.shapes) == 0.0:
        return True
    choice = choice_of(ref, formula)
    return choice is not None and choice.amount == 0.0


def hides_before(chain: Chain, zeroed: Zeroed, formula: Formula) -> bool | None:
    """Let a chain hide all that is put to zero behind the softmax, if its last mask is the same.

    Its fill becomes -inf, with which a row that shows nothing is NaN and not any numbers. Returns
    whether such a row is zero then; None if the mask isn't the same, or isn't proved to hide.
    """
    steps = [op for op in chain.operations if not isinstance(op, Shift)]
    outer = 1.0
    while steps and isinstance(scale := steps[0], Scale):
        outer *= scale.factor
        steps.pop(0)
    if not steps or outer <= 0:
        return None
    mask, *below = steps
    highest = highest_score(below[::-1], chain.product, formula.views.shapes)
    if isinstance(mask, Select):
        if not _is_of(mask, zeroed, formula):
            return None
        fill = _number(mask.fill, formula)
        hidden = Select(mask.condition, Placed.number(-np.inf), mask.inverted, mask.place)
        hides = fill <= -highest - _VANISHES / outer
    elif isinstance(mask, Bias):
        choice = choice_of(mask.term.ref, formula)
        if choice is None or agree(choice.condition, zeroed.condition, formula) is not False:
            return None
        fill = mask.sign * choice.amount
        if math.isinf(fill) and any(_is_above_all(op, formula) for op in below):
            return None  # their sum is NaN
        condition = Placed(_where_zero(mask.term), mask.term.index)
        hidden = Select(condition, Placed.number(-np.inf))
        hides = fill <= -2 * highest - _VANISHES / outer
    else:
        return None
    if not hides:  # nor is it known of a fill that is computed
        return None
    shapes = formula.views.shapes
    if math.isinf(fill) and zeroed.takes_nan and may_be_infinite(below, chain.product, shapes):
        return None
    chain.operations[chain.operations.index(mask)] = hidden
    return zeroed.takes_nan or math.isfinite(fill)


def _is_above_all(operation: Operation, formula: Formula) -> bool:
    return isinstance(operation, Select) and _number(operation.fill, formula) == math.inf


def sums_anew(chain: Chain, zeroed: Zeroed, formula: Formula) -> bool:
    """Return whether weights that are put to zero and divided by their sum are powers over theirs.

    A sink would have a part in the first sum and none in the new one. A mask may have left nothing
    of a weight, unless it hides just what is put to zero.
    """
    added = chain.operations
    match added:
        case [Select() as mask, *below] if _is_of(mask, zeroed, formula):
            added = below if _number(mask.fill, formula) <= _KEEPS else added
    return chain.sinks is None and highest_added(added, formula.views.shapes) <= _KEEPS


def _is_of(mask: Select, zeroed: Zeroed, formula: Formula) -> bool:
    """Return whether a mask hides what is put to zero, and nothing else."""
    shown = shown_by(mask, formula)
    return shown is not None and agree(shown, zeroed.condition, formula) is True


def _where_zero(term: Placed) -> Call:
    zero = np.asarray(0, dtype=np.float32)
    return Call("Equal", (Call("Cast", (term.expr,), (("to", 1),)), zero))


def _number(fill: Placed, formula: Formula) -> float:
    """Return the highest of a constant's numbers, NaN if it is none."""
    data = fill.constant(formula.views.shapes)
    return float(np.max(data)) if data is not None and data.size else math.nan
