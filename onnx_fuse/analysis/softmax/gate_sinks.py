"""A sink by other words: a gate of each row, made of the sum of its powers.

exp(s_j) / (sum exp(s) + exp(sink)) = softmax(s)_j * sigmoid(logsumexp(s) - sink). The gate
multiplies the weights, or what they make of the values; or 1 + exp(sink - logsumexp(s)) divides
them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.formula import Formula
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.scores.chain import Chain, Placed, Shift
from onnx_fuse.analysis.softmax.logarithm import summed_in_logarithm
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.ir.graph import Node


@dataclass(frozen=True)
class Gate:
    """What a node, a Mul or a Div, multiplies or divides the context by, and the result."""

    node: Node
    factor: Ref
    result: Ref


def gate_of(context: Ref, views: Views) -> Gate | None:
    """Return what a context is multiplied or divided by, maybe behind views; None if nothing."""
    at: Ref | None = context
    while at is not None:
        use = only_reader(at.value)
        if use is None or not use.node.made:
            return None
        node, result = use.node, use.node.made[0]
        if node.op == "Mul" or (node.op == "Div" and use.index == 0):
            other = node.input(1 - use.index)
            factor = None if other is None else views.beside(at.index, other)
            same = views.shapes.shape(result) == views.shapes.shape(at.value)
            return None if factor is None or not same else Gate(node, factor, Ref(result, at.index))
        at = views.onward(at, node)
    return None


def with_sink(values: Values, chain: Chain, column: Axis, views: Views) -> Values:
    """Return the product behind its gate if this is a sink, which then joins the chain.

    The powers are those of the scores at the chain's top, from which no maximum is taken off below.
    Weights that are shown have no sink.
    """
    below = itertools.dropwhile(lambda op: isinstance(op, Shift), chain.operations)
    is_shifted = any(isinstance(operation, Shift) for operation in below)
    if chain.sinks is not None or values.shown is not None or is_shifted:
        return values
    for op, factor in values.factors:
        sink = _sink_of(op, factor.ref, chain, column, views)
        if sink is not None:
            chain.sinks = sink
            others = tuple(each for each in values.factors if each[1] is not factor)
            return replace(values, factors=others)
    gate = None if values.factors else gate_of(values.context, views)
    sink = None if gate is None else _sink_of(gate.node.op, gate.factor, chain, column, views)
    if gate is None or sink is None:
        return values
    chain.sinks = sink
    return replace(values, context=gate.result)


def _sink_of(op: str, gate: Ref | None, chain: Chain, column: Axis, views: Views) -> Placed | None:
    """Return the sink where a gate is sigmoid(logsumexp(scores) - sink), read once; else None.

    Without a difference it is 0.
    """
    formula = Formula(views)
    if gate is None or only_reader(views.origin(gate).value) is None:
        return None
    level, sign = _argument(op, gate, formula)
    negated = formula.operand(formula.made(level, "Neg"), 0)
    if negated is not None:
        level, sign = negated, -sign
    if level is None:
        return None
    if sign > 0 and _is_logarithm(level, chain, column, formula):
        return Placed.number(0.0)
    difference = formula.difference(level)
    if difference is None:
        return None
    total, sink = difference if sign > 0 else difference[::-1]
    return Placed.of(sink) if _is_logarithm(total, chain, column, formula) else None


def _argument(op: str, gate: Ref, formula: Formula) -> tuple[Ref | None, int]:
    """Return x, and 1, where a gate is sigmoid(x); or -1, where it is sigmoid(-x).

    The latter is 1 / (1 + exp(x)); None if it is neither.
    """
    made = formula.made(gate, "Sigmoid") if op == "Mul" else None
    if made is not None:
        return formula.operand(made, 0), 1
    divisor = formula.inverse(gate) if op == "Mul" else gate
    added = formula.with_number(formula.made(divisor, "Add"))
    power = None if added is None or added[1] != 1.0 else formula.made(added[0], "Exp")
    return formula.operand(power, 0), -1


def _is_logarithm(level: Ref, chain: Chain, column: Axis, formula: Formula) -> bool:
    """Return whether elements are the logarithm of the sum of the scores' powers."""
    over = None if chain.top is None else summed_in_logarithm(level, chain.top, formula)
    atoms_of = formula.views.space.atoms_of
    return over is not None and atoms_of(over) == atoms_of(column)
