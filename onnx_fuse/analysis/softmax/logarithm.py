"""The logarithm of a sum of powers, as one operator or written out."""

from __future__ import annotations

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.formula import Formula
from onnx_fuse.analysis.algebra.refs import Ref


def summed_in_logarithm(level: Ref, source: Ref, formula: Formula) -> Axis | None:
    """Return the axis of `source` of whose powers elements are the sum's logarithm; else None.

    logsumexp(x) = log(sum(exp(x - m))) + m for any m that is one number a row.
    """
    whole = formula.reduced(level, "ReduceLogSumExp")
    if whole is not None:
        return formula.runs_over(whole.over, whole.source, source)
    logarithm, shift = formula.made(level, "Log"), None
    if logarithm is None:
        add = formula.made(level, "Add")
        for position in (0, 1):
            found = formula.made(formula.operand(add, position), "Log")
            if found is not None:
                logarithm, shift = found, formula.operand(add, 1 - position)
    total = formula.reduced(formula.operand(logarithm, 0), "ReduceSum")
    exp = None if total is None else formula.made(total.source, "Exp")
    powered = formula.operand(exp, 0)
    if total is None or powered is None:
        return None
    if shift is None:
        return formula.runs_over(total.over, powered, source)
    shifted = formula.difference(powered)
    if shifted is None or not formula.views.same(shifted[1], shift):
        return None
    return formula.runs_over(total.over, shifted[0], source)
