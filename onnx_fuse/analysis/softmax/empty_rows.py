"""Rows of which a mask shows nothing, put to zero as a whole behind the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.formula import Formula, Made, Reduced
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.scores.bounds import may_be_infinite
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Chain,
    RowScale,
    Scale,
    Select,
    Shift,
    Tanh,
)
from onnx_fuse.analysis.scores.choices import (
    Condition,
    agree_over,
    choice_of,
    hiding,
    shown_by,
)
from onnx_fuse.analysis.softmax.zeroed import Zeroed, hides_before

_COMPARES = ("Equal", "Greater", "IsInf", "And")
_FINITE = (Scale, RowScale, Tanh)  # what makes no score infinite


def hides_rows(chain: Chain, zeroed: Zeroed, column: Axis, formula: Formula) -> bool | None:
    """Let a chain hide its empty rows if what is put to zero behind it are exactly these.

    Returns whether such a row is zero then; None if the rows are others.
    """
    infinite = _infinite(chain)
    if any(_asks_for_hidden(zeroed.condition, part, column, formula) is False for part in infinite):
        return zeroed.takes_nan
    shown = _shown(chain, formula)
    if shown is None or _asks_for_any(zeroed.condition, shown, column, formula) is not True:
        return None
    return hides_before(chain, replace(zeroed, condition=shown), formula)


def hides_any_rows(
    chain: Chain, zeroed: Zeroed, column: Axis, formula: Formula, *, is_guarded: bool
) -> bool:
    """Let a chain hide rows that are put to zero behind it, whatever it shows of them.

    They become NaN, which has to be zero from then on: no other row may be NaN, unless it is zero
    by then.
    """
    at = formula.views.space.atoms_of(*zeroed.condition.told.index)
    if at & formula.views.space.atoms_of(column):
        return False
    shapes = formula.views.shapes
    if not is_guarded and may_be_infinite(chain.operations, chain.product, shapes):
        return False
    chain.operations.insert(0, hiding(zeroed.place, formula, inverted=zeroed.inverted))
    return True


def _infinite(chain: Chain) -> list[Ref]:
    """Return the tensors that are -inf in a whole row exactly where all its scores are hidden."""
    found = [] if chain.top is None else [chain.top]
    steps = [op for op in chain.operations if not isinstance(op, Shift)]
    if steps and all(isinstance(op, _FINITE) for op in steps[1:]):
        last = steps[0]
        if isinstance(last, Bias) and last.sign == 1.0 and last.term.ref is not None:
            found.append(last.term.ref)
    return found


def _shown(chain: Chain, formula: Formula) -> Condition | None:
    """Return what a chain's last mask shows."""
    steps = [op for op in chain.operations if not isinstance(op, (Shift, Scale))]
    mask = steps[0] if steps else None
    if isinstance(mask, Select):
        return shown_by(mask, formula)
    choice = choice_of(mask.term.ref, formula) if isinstance(mask, Bias) else None
    return None if choice is None else choice.condition.negated()


def _asks_for_hidden(
    condition: Condition, scores: Ref, column: Axis, formula: Formula
) -> bool | None:
    """Return True if a condition holds exactly where a whole row of scores is -inf.

    False if it holds everywhere else; None if it asks for something else.
    """
    made = formula.made(condition.told, *_COMPARES)
    reduced = formula.largest(_compared_with_lowest(made, formula))
    if made is not None and reduced is not None and formula.is_over(reduced, scores, column):
        return (made.node.op == "Greater") == condition.inverted

    def is_hidden(part: Condition, reduced: Reduced) -> bool | None:
        made = formula.made(part.told, *_COMPARES)
        compared = _compared_with_lowest(made, formula)
        if made is None or compared is None:
            return None
        inner = Reduced(reduced.node, compared, reduced.over)
        if not formula.is_over(inner, scores, column):
            return None
        return (made.node.op == "Greater") == part.inverted

    return _asks_for_all(condition, is_hidden, formula)


def _compared_with_lowest(made: Made | None, formula: Formula) -> Ref | None:
    """Return what a node compares with -inf."""
    if made is None:
        return None
    if made.node.op == "And":
        # Below zero and infinite.
        sides = [formula.made(formula.operand(made, at), "Less", "IsInf") for at in (0, 1)]
        below = next((side for side in sides if side and side.node.op == "Less"), None)
        infinite = next((side for side in sides if side and side.node.op == "IsInf"), None)
        found, other = formula.operand(below, 0), formula.operand(infinite, 0)
        if found is None or other is None or formula.number(below, 1) != 0.0:
            return None
        return found if formula.views.same(found, other) else None
    if made.node.op == "IsInf":
        signs = (made.node.attr("detect_negative", 1), made.node.attr("detect_positive", 1))
        return formula.operand(made, 0) if signs == (1, 0) else None
    for main in (0, 1) if made.node.op == "Equal" else (0,):
        if formula.number(made, 1 - main) == -math.inf:
            return formula.operand(made, main)
    return None


def _asks_for_any(
    condition: Condition, shown: Condition, column: Axis, formula: Formula
) -> bool | None:
    """Return True if a condition holds exactly where anything of a row is shown, else False.

    None if it asks for something else.
    """

    def is_hidden(part: Condition, reduced: Reduced) -> bool | None:
        same = agree_over(reduced, part, shown, column, formula)
        return None if same is None else not same

    asks = _asks_for_all(condition, is_hidden, formula)
    return None if asks is None else not asks


def _asks_for_all(
    condition: Condition,
    is_hidden: Callable[[Condition, Reduced], bool | None],
    formula: Formula,
) -> bool | None:
    """Return True if a condition holds where all of a row is hidden, False if everywhere else.

    It is told by the least or the largest of zeros and ones, or by their sum.
    """
    at = condition.told
    made = formula.made(at, "Greater")
    if made is not None and formula.number(made, 1) == 0.0:
        at = formula.operand(made, 0) or at
    reduced = formula.reduced(at, "ReduceMax", "ReduceSum", "ReduceMin")
    if reduced is None:
        return None
    choice = choice_of(reduced.source, formula)
    if choice is None or choice.amount <= 0:
        return None
    hidden = is_hidden(choice.condition, reduced)
    of_all = reduced.node.op == "ReduceMin"
    if hidden is None or hidden is not of_all:
        return None
    return of_all is not condition.inverted
