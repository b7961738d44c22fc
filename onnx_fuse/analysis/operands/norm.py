"""Norms of queries and keys: RMSNorm, LayerNorm and L2, as one operator or written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import Axis, merged, size
from onnx_fuse.analysis.algebra.formula import INVERSES, Formula, Made, Reduced
from onnx_fuse.analysis.algebra.linear import Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.ir.graph import Node

# Less than any length that float32 can give to numbers that aren't all 0.
_BELOW_ANY_LENGTH = 2.0**-75
_ALIASES = {
    "RMSNormalization": "rms",
    "SimplifiedLayerNormalization": "rms",
    "LayerNormalization": "layer",
}
_CHANGES_NOTHING = {"Mul": 1.0, "Add": 0.0}
_MOST_TERMS = 4  # of a sum that is a norm
_SUMS = ("ReduceSum", "ReduceSumSquare")
_LENGTHS = ("Sqrt", "Pow", "ReduceL2", "Max", "Clip")  # of which one makes what a norm divides by


@dataclass(frozen=True)
class Norm:
    """A norm over the axes `over`, times `factor`; the steps that follow are its scale and shift.

    "rms": x / sqrt(mean(x^2) + epsilon); "layer": (x - mean) / sqrt(variance + epsilon);
    "l2": x / max(|x|, epsilon).
    """

    kind: str
    epsilon: float
    over: tuple[Axis, ...]
    steps: tuple[Step, ...]  # innermost first
    factor: float = 1.0

    def resolve(self, views: Views) -> Norm:
        """Return the same norm with split atoms replaced by their parts."""
        space = views.space
        return replace(
            self,
            over=tuple(space.resolve(axis) for axis in self.over),
            steps=tuple(step.resolve(space) for step in self.steps),
        )


def norm_of(ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    """Return the norm whose result `ref` is, and the elements that it normalises; None if none."""
    node = ref.value.producer
    if node is None or ref.value is not node.outputs[0]:
        return None
    if node.op in _ALIASES:
        return _operator(node, ref, views)
    if node.op == "LpNormalization" and int(node.attr("p", 2)) == 2:
        axis = int(node.attr("axis", -1)) % len(ref.index)
        source = node.inputs[0]
        if source is None:
            return None
        # What is all 0 stays 0.
        return Norm("l2", _BELOW_ANY_LENGTH, (ref.index[axis],), ()), Ref(source, ref.index)
    return _written_out(node, ref, views)


def _operator(node: Node, ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    source = node.inputs[0]
    if source is None:
        return None
    first = int(node.attr("axis", -1)) % len(ref.index)
    steps: list[Step] = []
    for op, value in zip(_CHANGES_NOTHING, node.inputs[1:3], strict=False):
        # Ones of the whole shape are no weight: exporters write them where a norm has none.
        if value is None or number_of(value, views.shapes) == _CHANGES_NOTHING[op]:
            continue
        constant = views.constant(ref.index, value)
        if constant is None:
            return None
        steps.append(Step(op, constant))
    kind, below, over = _ALIASES[node.op], Ref(source, ref.index), ref.index[first:]
    centred = _centred(below, merged(over), Formula(views)) if kind == "rms" else None
    if centred is not None:
        kind, below = "layer", centred
    return Norm(kind, float(node.attr("epsilon", 1e-5)), over, tuple(steps)), below


def _written_out(node: Node, ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    """Match a norm of several nodes.

    It is x / sqrt(mean(x^2) + eps), with x perhaps centred and a sum in the place of the mean, or
    x / max(norm2(x), eps); or x times the reciprocal, perhaps with what centres it taken off behind
    that.
    """
    if node.op in ("Add", "Sub"):
        return _spread(ref, Formula(views))
    if node.op not in ("Mul", "Div"):
        return None
    formula, whole = Formula(views), Made(node, ref.index)
    is_product = node.op == "Mul"
    makers = (*INVERSES, "Mul", "Min", "Clip") if is_product else _LENGTHS
    for main in (0, 1) if is_product else (0,):
        if not formula.leads_to(node.inputs[1 - main], *makers):
            continue
        source, other = formula.operand(whole, main), formula.operand(whole, 1 - main)
        if source is None or other is None:
            continue
        steps: tuple[Step, ...] = ()
        weighted = _weighted(other, formula) if is_product else None
        if weighted is not None:
            other, steps = weighted[0], (weighted[1],)
        divisor = _inverse(other, formula) if is_product else _divisor(other, formula)
        found = None
        if divisor is not None and divisor.least == 0:
            found = _mean_square(source, divisor.square, formula)
        if found is None and divisor is not None:
            found = _length(source, divisor, formula)
        if found is not None:
            return replace(found[0], steps=steps), found[1]
    return None


def _weighted(ref: Ref, formula: Formula) -> tuple[Ref, Step] | None:
    """Match factor * constant: what a norm multiplies by, and its weight."""
    made = formula.made(ref, "Mul")
    for main in (0, 1) if made is not None else ():
        assert made is not None
        weight = made.node.input(1 - main)
        constant = None if weight is None else formula.views.constant(made.index, weight)
        factor = None if constant is None else formula.operand(made, main)
        if factor is not None and constant is not None:
            return factor, Step("Mul", constant)
    return None


@dataclass(frozen=True)
class _Divisor:
    """What a norm divides by: some elements, or the root of their `square`; at least a number."""

    itself: Ref | None
    square: Ref | None
    least: float = 0.0


def _divisor(ref: Ref | None, formula: Formula) -> _Divisor | None:
    return None if ref is None else _Divisor(ref, _root(ref, formula))


def _inverse(ref: Ref, formula: Formula) -> _Divisor | None:
    """Return d where the elements are 1 / d, perhaps min(1 / d, number)."""
    bounded = formula.bounded(ref)
    inverse, most = ref, math.inf
    if bounded is not None and bounded.low <= 0:  # nor is an inverse of a length below 0
        inverse, most = bounded.source, bounded.high
    if most <= 0:
        return None
    made = formula.made(inverse, "Pow")
    if formula.number(made, 1) == -0.5:
        return _Divisor(None, formula.operand(made, 0), 1 / most)
    divisor = _divisor(formula.inverse(inverse), formula)
    return None if divisor is None else replace(divisor, least=1 / most)


def _root(ref: Ref | None, formula: Formula) -> Ref | None:
    """Return v where the elements are sqrt(v)."""
    made = formula.made(ref, "Sqrt", "Pow")
    if made is not None and made.node.op == "Pow" and formula.number(made, 1) != 0.5:
        return None
    return formula.operand(made, 0)


def _square_of(ref: Ref | None, formula: Formula) -> Ref | None:
    """Return x where the elements are x^2."""
    made = formula.made(ref, "Pow", "Mul")
    first = formula.operand(made, 0)
    if made is None or first is None:
        return None
    if made.node.op == "Pow":
        return first if formula.number(made, 1) == 2.0 else None
    second = formula.operand(made, 1)
    return first if second is not None and formula.views.same(first, second) else None


def _mean_square(source: Ref, power: Ref | None, formula: Formula) -> tuple[Norm, Ref] | None:
    """Match power = mean(source^2) + eps, or source = x - mean(x) and power = variance(x) + eps.

    A sum of the squares may stand in the place of their mean.
    """
    parts = formula.with_number(formula.made(power, "Add"))
    if parts is None:
        return None
    moment, epsilon = parts
    variance = _variance_of(moment, formula)
    if variance is not None:
        origin = formula.operand(formula.made(source, "Sub"), 0)
        over = None if origin is None else formula.runs_over(variance[1], variance[0], origin)
        if origin is None or over is None or _centred(source, over, formula) is None:
            return None
        return Norm("layer", epsilon, (over,), ()), origin
    mean = formula.mean(moment, *_SUMS)
    reduced = mean or formula.reduced(moment, *_SUMS)
    squared = None if reduced is None else _squared(reduced, formula)
    if reduced is None or squared is None:
        return None
    over = formula.runs_over(reduced.over, squared, source)
    if over is None or mean is not None:
        return None if over is None else (Norm("rms", epsilon, (over,), ()), source)
    count = size(over).as_int()
    if not count:
        return None
    # sqrt(sum + eps) is sqrt(count) * sqrt(mean + eps / count).
    centred = _centred(source, over, formula)
    kind, normed = ("rms", source) if centred is None else ("layer", centred)
    return Norm(kind, epsilon / count, (over,), (), factor=count**-0.5), normed


def _squared(reduced: Reduced, formula: Formula) -> Ref | None:
    """Return of what elements the squares are reduced."""
    is_square = reduced.node.op == "ReduceSumSquare"
    return reduced.source if is_square else _square_of(reduced.source, formula)


def _variance_of(ref: Ref, formula: Formula) -> tuple[Ref, Axis] | None:
    """Return x, and the atoms of it over which the elements are its variance.

    That is mean((x - mean(x))^2), or mean(x^2) - mean(x)^2, perhaps with 0 below it.
    """
    mean = formula.mean(ref, *_SUMS)
    if mean is not None:
        centred = _squared(mean, formula)
        source = None if centred is None else _centred(centred, mean.over, formula)
        return None if source is None else (source, mean.over)
    level, least = formula.at_least(ref)
    moments = formula.difference(level) if least <= 0 else None
    second = None if moments is None else formula.mean(moments[0], *_SUMS)
    source = None if second is None else _squared(second, formula)
    if moments is None or second is None or source is None:
        return None
    first = formula.mean(_square_of(moments[1], formula))
    return (source, second.over) if formula.is_over(first, source, second.over) else None


def _spread(ref: Ref, formula: Formula) -> tuple[Norm, Ref] | None:
    """Match x * f - mean(x) * f, f being 1 / sqrt(variance + eps), perhaps times a weight.

    A constant may be added.
    """
    terms = _terms(ref, formula)
    is_constant = formula.views.shapes.is_constant
    shifts = [term for term in terms if is_constant(term[0].value)]
    products = [term for term in terms if term not in shifts]
    if len(products) != 2 or any(sign < 0 for _, sign in shifts):
        return None
    steps = tuple(Step("Add", formula.views.varying(shift)) for shift, _ in shifts)
    for (main, sign), (other, other_sign) in (products, products[::-1]):
        for source, factor in _factors(main, formula) if sign > 0 else ():
            for mean, same in _factors(other, formula):
                negated = formula.operand(formula.made(mean, "Neg"), 0)
                is_taken_off = (other_sign < 0) == (negated is None)
                if is_taken_off and formula.views.same(factor, same):
                    found = _centred_behind(source, negated or mean, factor, formula)
                    if found is not None:
                        return replace(found, steps=(*found.steps, *steps)), source
    return None


def _terms(ref: Ref, formula: Formula) -> list[tuple[Ref, int]]:
    """Return what elements are the sum of, each with its sign; sums in a sum are one with it."""
    found: list[tuple[Ref, int]] = []
    waiting = [(ref, 1)]
    while waiting and len(found) + len(waiting) <= _MOST_TERMS:
        at, sign = waiting.pop()
        made = formula.made(at, "Add", "Sub")
        parts = [formula.operand(made, 0), formula.operand(made, 1)]
        if made is None or parts[0] is None or parts[1] is None:
            found.append((at, sign))
            continue
        waiting += [(parts[0], sign), (parts[1], sign if made.node.op == "Add" else -sign)]
    return [*found, *waiting]


def _factors(ref: Ref, formula: Formula) -> list[tuple[Ref, Ref]]:
    """Return the two factors of a product in either order."""
    made = formula.made(ref, "Mul")
    first, second = formula.operand(made, 0), formula.operand(made, 1)
    return [] if first is None or second is None else [(first, second), (second, first)]


def _centred_behind(source: Ref, mean: Ref, factor: Ref, formula: Formula) -> Norm | None:
    """Return the norm if the factor is that of centred elements, and the mean is theirs."""
    weighted = _weighted(factor, formula)
    other, steps = (factor, ()) if weighted is None else (weighted[0], (weighted[1],))
    divisor = _inverse(other, formula)
    power = None if divisor is None else formula.made(divisor.square, "Add")
    parts = formula.with_number(power)
    variance = None if parts is None else _variance_of(parts[0], formula)
    if parts is None or variance is None:
        return None
    over = formula.runs_over(variance[1], variance[0], source)
    if over is None or not formula.is_over(formula.mean(mean), source, over):
        return None
    return Norm("layer", parts[1], (over,), steps)


def _centred(ref: Ref, over: Axis, formula: Formula) -> Ref | None:
    """Return x where the elements are x - mean(x), the mean over the same atoms."""
    made = formula.made(ref, "Sub")
    source = formula.operand(made, 0)
    average = formula.mean(formula.operand(made, 1))
    if source is None:
        return None
    return source if formula.is_over(average, source, over) else None


def _length(source: Ref, divisor: _Divisor, formula: Formula) -> tuple[Norm, Ref] | None:
    """Match max(norm2(source), eps), or the root of max(norm2(source)^2, eps); the eps may lack.

    A bound above the inverse is one below the length.
    """
    length, epsilon = formula.at_least(divisor.itself)
    square, least = formula.at_least(divisor.square or _root(length, formula))
    reduced = formula.reduced(length, "ReduceL2") or formula.reduced(square, *_SUMS)
    if reduced is None:
        return None
    is_length = reduced.node.op == "ReduceL2"
    counted = reduced.source if is_length else _squared(reduced, formula)
    over = None if counted is None else formula.runs_over(reduced.over, counted, source)
    epsilon = max(epsilon, math.sqrt(max(least, 0.0)), divisor.least)
    return None if over is None else (Norm("l2", epsilon, (over,), ()), source)
