"""Weights masked after the softmax and divided by their new sum: a mask before the softmax."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.scores.choices import condition_of
from onnx_fuse.ir.graph import Node

_LOST_IN_ONE = 2.0**-25  # added to 1, it is below half of the last bit in float32
_QUOTIENT_AND_SUM = 2  # who reads weights that are divided by their sum
_SURELY_BELOW_ONE = 0.5  # however weights are rounded, their sum is above


@dataclass(frozen=True)
class Renormalised:
    """The result, which is the weights again.

    zero_nan: whether a row of which nothing is left is zero; without a guard it is NaN. takes_nan:
    whether a row that was NaN before is zero, too.
    """

    weights: Ref
    zero_nan: bool
    takes_nan: bool


def renormalised_of(node: Node, ref: Ref, column: Axis, views: Views) -> Renormalised | None:
    """Match w * factor / sum(w * factor), the node being w * factor, perhaps with a guard."""
    product = node.outputs[0] if node.op == "Mul" else None
    if product is None:
        return None
    kept, formula = Ref(product, ref.index), Formula(views)
    found = _quotient_of(kept, formula)
    weights = None if found is None else found.made.node.outputs[0]
    if found is None or weights is None:
        return None
    made, divisor = found.made, found.divisor
    guarded = guarded_sum(divisor, formula)
    total = guarded or divisor
    if total is None or not formula.is_over(formula.reduced(total, "ReduceSum"), kept, column):
        return None
    result = Ref(weights, made.index)
    chosen = _chosen(result, total, formula)
    takes_nan = chosen is not None
    return Renormalised(chosen or result, takes_nan or guarded is not None, takes_nan)


def divided_again(ref: Ref, column: Axis, views: Views) -> Ref | None:
    """Match w / sum(w), perhaps with a guard against a sum of zero: weights of a sum of 1 stay."""
    formula = Formula(views)
    found = _quotient_of(ref, formula)
    weights = None if found is None else found.made.node.outputs[0]
    if found is None or weights is None:
        return None
    if views.shapes.shape(weights) != views.shapes.shape(found.numerator.value):
        return None
    total = _unguarded_one(found.divisor, formula)
    if total is None or not formula.is_over(formula.reduced(total, "ReduceSum"), ref, column):
        return None
    return Ref(weights, found.made.index)


@dataclass(frozen=True)
class _Quotient:
    """What divides the numerator, be it by the inverse of the divisor."""

    made: Made
    numerator: Ref
    divisor: Ref


def _quotient_of(ref: Ref, formula: Formula) -> _Quotient | None:
    """Return the quotient that is, beside one sum, all that reads the elements."""
    found = _read_behind_views(ref, formula.views)
    others = [pair for pair in found if pair[0].op != "ReduceSum"]
    if len(found) != _QUOTIENT_AND_SUM or len(others) != 1:
        return None
    node, numerator = others[0]
    made = Made(node, numerator.index)
    for main in (0, 1):
        if node.input(main) is numerator.value:
            divisor = formula.divided(made, main)
            return None if divisor is None else _Quotient(made, numerator, divisor)
    return None


def _unguarded_one(divisor: Ref, formula: Formula) -> Ref | None:
    """Return x where the elements are x if x is 1: with a little added, or bounded below."""
    added = formula.with_number(formula.made(divisor, "Add"))
    if added is not None:
        return added[0] if 0.0 <= added[1] <= _LOST_IN_ONE else None
    total, least = formula.at_least(divisor)
    return total if least <= _SURELY_BELOW_ONE else None


def _read_behind_views(ref: Ref, views: Views) -> list[tuple[Node, Ref]]:
    """Return who reads the elements, and as what, looking through views and casts."""
    found: list[tuple[Node, Ref]] = []
    for use in readers(ref.value):
        below = views.onward(ref, use.node)
        found += [(use.node, ref)] if below is None else _read_behind_views(below, views)
    return found


def _asks_for_some(condition: Ref | None, total: Ref, formula: Formula) -> bool | None:
    """Return True if a condition holds where a sum of no negative numbers isn't 0, else False.

    None if it asks for something else.
    """
    if condition is None:
        return None
    asked = condition_of(condition, formula)
    if formula.views.same(asked.told, total):
        return not asked.inverted
    made = formula.made(asked.told, "Greater", "Less", "LessOrEqual")
    if made is None:
        return None
    at, zero = (1, 0) if made.node.op == "Less" else (0, 1)
    compared = formula.operand(made, at)
    if compared is None or formula.number(made, zero) != 0.0:
        return None
    is_sum = formula.views.same(compared, total)
    return (made.node.op == "LessOrEqual") == asked.inverted if is_sum else None


def guarded_sum(divisor: Ref | None, formula: Formula) -> Ref | None:
    """Return the sum in where(sum > 0, sum, a positive number), either way round."""
    made = formula.made(divisor, "Where")
    for main in (1, 2):
        total, number = formula.operand(made, main), formula.number(made, 3 - main)
        if total is None or number is None or number <= 0:
            continue
        if _asks_for_some(formula.beside(made, 0), total, formula) is (main == 1):
            return total
    return None


def _chosen(weights: Ref, total: Ref, formula: Formula) -> Ref | None:
    """Return where(sum > 0, weights, 0), if that is all that reads the weights."""
    found = _read_behind_views(weights, formula.views)
    if len(found) != 1 or weights.value.is_output or found[0][1].value.is_output:
        return None
    node, read = found[0]
    if node.op != "Where" or read.value not in node.inputs[1:]:
        return None
    main = node.inputs.index(read.value)
    made, result = Made(node, read.index), node.outputs[0]
    if formula.number(made, 3 - main) != 0.0 or result is None:
        return None
    is_guard = _asks_for_some(formula.beside(made, 0), total, formula) is (main == 1)
    return Ref(result, read.index) if is_guard else None
