"""Where attention can stand: every softmax, as one operator or written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx_fuse.analysis.algebra.axes import Axis, merged
from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.analysis.softmax.ahead import leads_to_product
from onnx_fuse.analysis.softmax.logarithm import summed_in_logarithm
from onnx_fuse.analysis.softmax.written import Written, quotient, times_reciprocal
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_INTEGER_SOFTMAX = "com.microsoft:QLinearSoftmax"


@dataclass(frozen=True)
class Softmax:
    """A softmax: what it is taken of and its result, in atoms of its own."""

    node: Node
    space: Space
    written: Written
    weights: Ref

    @property
    def scores(self) -> Ref:
        """What the softmax is taken of."""
        return self.written.scores

    @property
    def column(self) -> Axis:
        """The normalised axis."""
        return self.written.column


def softmax_of(node: Node, shapes: Shapes) -> Softmax | None:
    """Return the softmax whose result a node makes; None if there is none.

    Raises: Declined if its result goes into a product, and it is one of integers, or its rank or
    its sum isn't understood.
    """
    if node.op == _INTEGER_SOFTMAX:
        _check_no_attention(node, shapes)
    if node.op not in _RULES or not node.outputs or node.outputs[0] is None:
        return None
    result, space = node.outputs[0], Space()
    formula = Formula(Views(space, shapes))
    weights = formula.views.ref(result, "x")
    if weights is None:
        if node.op == "Softmax" and _meets_values(result, shapes):
            what = "how many axes it has"
            raise Declined(Code.SHAPE_UNKNOWN, node, value=result.name, what=what)
        return None
    try:
        written = _RULES[node.op](Made(node, weights.index), formula)
    except Declined:
        if _meets_values(result, shapes):
            raise
        return None
    return None if written is None else Softmax(node, space, written, weights)


def _check_no_attention(node: Node, shapes: Shapes) -> None:
    """Raise Declined if a softmax of integers is an attention's."""
    result = node.outputs[0]
    if result is not None and _meets_values(result, shapes):
        raise Declined(Code.QUANTIZED, node)


def _meets_values(weights: Value, shapes: Shapes) -> bool:
    """Return whether a value goes into a product with another computed tensor: a hint."""
    return any(leads_to_product(use.node, shapes) for use in readers(weights))


def _operator(made: Made, formula: Formula) -> Written | None:
    """Return a softmax that is one operator; before opset 13 over all axes from `axis` on."""
    source, index = made.node.inputs[0], made.index
    if source is None:
        return None
    old = made.node.graph.opset < 13
    axis = int(made.node.attr("axis", 1 if old else -1)) % len(index)
    axes = index[axis:] if old else (index[axis],)
    return Written(Ref(source, index), merged(axes))


def _from_logarithm(made: Made, formula: Formula) -> Written | None:
    """Match exp(logsoftmax(x)), and exp(x - logsumexp(x))."""
    logarithms = formula.made(formula.operand(made, 0), "LogSoftmax")
    if logarithms is not None:
        return _operator(logarithms, formula)
    difference = formula.difference(formula.operand(made, 0))
    column = None
    if difference is not None:
        column = summed_in_logarithm(difference[1], difference[0], formula)
    if difference is None or column is None:
        return None
    return Written(difference[0], column, by_logarithm=True)


_RULES: dict[str, Callable[[Made, Formula], Written | None]] = {
    "Softmax": _operator,
    "Div": quotient,
    "Mul": times_reciprocal,
    "Exp": _from_logarithm,
}
