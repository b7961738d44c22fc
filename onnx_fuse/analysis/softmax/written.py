"""A softmax written out: powers divided by their sum, at once or behind the product with values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Axis, index_atoms
from onnx_fuse.analysis.algebra.contraction import plain_product_of
from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.algebra.formula import INVERSES, Formula, Made
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of, scaling_of
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.scores.chain import Placed, Scale, Select
from onnx_fuse.analysis.scores.choices import hiding
from onnx_fuse.analysis.softmax.renormalised import guarded_sum
from onnx_fuse.analysis.softmax.zeroed import zeroed_at
from onnx_fuse.ir.graph import Value
from onnx_fuse.report import Code

# What is added to a number of at least 1 is lost in it if it is below half of the last bit.
_LOST: dict[int | None, float] = {TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-8}
_LOST_IN_FLOAT = 2.0**-24
_NEAR = 8.0  # by how much two scores differ whose powers are of one size


@dataclass(frozen=True)
class Late:
    """Powers that meet the values undivided, and the values; `product` is what they make."""

    powers: Ref
    values: Ref
    product: Value


@dataclass(frozen=True)
class Written:
    """What a softmax is written out of.

    scores: what it is taken of; column: the axis of them that it normalises. operations: what
    applies to the scores behind everything else. sink: one more score in the sum. late: where the
    division comes after the product with the values. zero_nan: whether a row that shows nothing is
    zero. by_logarithm: whether the sum's logarithm is taken off scores that keep their size, so
    that it is lost in large ones: then all weights of a hidden row are 1. loses_rows: whether there
    is a sink, and a row that shows nothing is NaN all the same, as its maximum is taken off.
    """

    scores: Ref
    column: Axis
    operations: tuple[Select | Scale, ...] = ()
    sink: Placed | None = None
    late: Late | None = None
    zero_nan: bool = False
    by_logarithm: bool = False
    loses_rows: bool = False


@dataclass(frozen=True)
class _Powers:
    """exp(factor * exponent), zero where a mask hides."""

    ref: Ref
    exponent: Ref
    masks: tuple[Select, ...] = ()
    factor: float = 1.0


def quotient(made: Made, formula: Formula) -> Written | None:
    """Match powers / sum(powers), and (powers * values) / sum(powers). Raises: Declined."""
    if not _may_be_sum(made.node.input(1), formula):
        return None
    numerator, total = formula.operand(made, 0), formula.operand(made, 1)
    return _share(numerator, total, formula) or _late_share(numerator, total, formula)


def times_reciprocal(made: Made, formula: Formula) -> Written | None:
    """Match the same with a product by 1 / sum(powers), either way round. Raises: Declined."""
    for main in (0, 1):
        if not formula.leads_to(made.node.input(1 - main), *INVERSES):
            continue
        total = formula.divided(made, main)
        if total is None or not _may_be_sum(total.value, formula):
            continue
        numerator = formula.operand(made, main)
        found = _share(numerator, total, formula) or _late_share(numerator, total, formula)
        if found is not None:
            return found
    return None


def _may_be_sum(value: Value | None, formula: Formula) -> bool:
    kinds = ("ReduceSum", "Add", "Max", "Clip", "Where", "MatMul", "Einsum")
    return formula.leads_to(value, *kinds)


def _share(numerator: Ref | None, total: Ref | None, formula: Formula) -> Written | None:
    powers = _powers(numerator, formula)
    return None if powers is None or total is None else _normalised(powers, total, formula)


def _late_share(product: Ref | None, total: Ref | None, formula: Formula) -> Written | None:
    """Match a product of powers with anything, divided by the sum of the powers."""
    if product is None or total is None:
        return None
    at, space = formula.views.origin(product), formula.views.space
    # The division behind it would divide a bias, too.
    contraction = plain_product_of(at.value.producer, formula.views.shapes)
    operands = None if contraction is None else contraction.pull(formula.views, at)
    for side, values in () if operands is None else (operands, operands[::-1]):
        powers = _powers(side, formula)
        found = None if powers is None else _normalised(powers, total, formula)
        if found is None:
            continue
        both = space.atoms_of(*side.index) & space.atoms_of(*values.index)
        summed = both - space.atoms_of(*at.index)
        if space.atoms_of(found.column) == summed:
            return replace(found, late=Late(side, values, at.value))
    return None


def _powers(ref: Ref | None, formula: Formula) -> _Powers | None:
    """Match exp(x), exp(x) * choice, and where(c, exp(x), 0)."""
    if ref is None or not formula.leads_to(ref.value, "Exp", "Pow", "Mul", "Where"):
        return None
    plain = _power(ref, formula)
    made = formula.made(ref, "Mul", "Where") if plain is None else None
    if made is None:
        return plain
    for main in (1, 2) if made.node.op == "Where" else (0, 1):
        plain = _power(formula.operand(made, main), formula)
        zeroed = None if plain is None else zeroed_at(made, main, formula)
        if plain is not None and zeroed is not None:
            mask = hiding(zeroed.place, formula, inverted=zeroed.inverted)
            return replace(plain, ref=ref, masks=(mask,))
    return None


def _power(ref: Ref | None, formula: Formula) -> _Powers | None:
    """Match exp(x), and the powers of another number, which are exp(log(number) * x)."""
    made = formula.made(ref, "Exp", "Pow")
    if ref is None or made is None:
        return None
    exponent = formula.operand(made, 0 if made.node.op == "Exp" else 1)
    base = math.e if made.node.op == "Exp" else formula.number(made, 0)
    if exponent is None or base is None or not 1.0 < base < math.inf:
        return None
    return _Powers(ref, exponent, factor=1.0 if made.node.op == "Exp" else math.log(base))


def _normalised(powers: _Powers, total: Ref, formula: Formula) -> Written | None:
    """Return the softmax if `total` is the sum of the powers, perhaps with something added."""
    guarded = guarded_sum(total, formula)
    column = _summed(guarded or total, powers.ref, formula)
    if column is not None:
        # A row of which a mask leaves nothing has no power, and then another divisor.
        zero_nan = guarded is not None and bool(powers.masks)
        return replace(_plain(powers, column), zero_nan=zero_nan)
    made = formula.made(total, "Add", "Max", "Clip")
    is_clip = made is not None and made.node.op == "Clip"
    if is_clip and made is not None and made.node.input(2) is not None:
        return None  # an upper bound
    for main in (0,) if is_clip else (0, 1):
        own = formula.operand(made, main)
        column = None if own is None else _summed(own, powers.ref, formula)
        if made is not None and column is not None:
            return _with_rest(powers, column, made, 1 - main, formula)
    return None


def _plain(powers: _Powers, column: Axis) -> Written:
    """Return the softmax of which nothing but the powers is in the sum."""
    scales = () if powers.factor == 1.0 else (Scale(powers.factor),)
    return Written(powers.exponent, column, (*powers.masks, *scales))


def _summed(total: Ref, powers: Ref, formula: Formula) -> Axis | None:
    """Return the axis of the powers of which `total` is the sum; None if it is no such sum."""
    reduced = formula.reduced(total, "ReduceSum")
    if reduced is not None:
        return formula.runs_over(reduced.over, reduced.source, powers)
    at, views = formula.views.origin(total), formula.views
    contraction = plain_product_of(at.value.producer, views.shapes)
    operands = None if contraction is None else contraction.pull(views, at)
    for side, ones in () if operands is None else (operands, operands[::-1]):
        data = views.shapes.constant(ones.value)
        if data is None or not (data == 1).all():
            continue
        over = tuple(atom for atom in index_atoms(ones.index) if atom in index_atoms(side.index))
        return formula.runs_over(over, side, powers)
    return None


def _with_rest(
    powers: _Powers, column: Axis, made: Made, position: int, formula: Formula
) -> Written:
    """Return the softmax whose sum is combined with something else.

    Raises: Declined where that is neither lost in the sum nor a score of its own.
    """
    plain = _plain(powers, column)
    shift = _shift(powers.exponent, column, formula)
    number = formula.number(made, position)
    # A sum with the power of the maximum in it is at least 1.
    is_one = shift is not None and shift.floor is None and not powers.masks
    if made.node.op != "Add":
        if is_one and number is not None and number <= 1.0:
            return plain
        raise _not_understood(made)
    if number is not None:
        dtype = formula.views.shapes.dtype(powers.ref.value)
        lost = _LOST.get(dtype, _LOST_IN_FLOAT)
        if number == 0.0 or (is_one and 0 < number < lost):
            return plain
        if number > 0 and math.isfinite(number) and shift is None:
            return replace(plain, sink=Placed.number(math.log(number)))
        raise _not_understood(made)
    extra = formula.beside(made, position) if powers.factor == 1.0 else None
    sink = _sink(extra, shift, formula)
    if sink is None or not _holds_floor(sink, shift, formula):
        raise _not_understood(made)
    scores = powers.exponent if shift is None else shift.scores
    loses_rows = shift is not None and shift.floor is None
    return replace(plain, scores=scores, sink=sink, loses_rows=loses_rows)


def _holds_floor(sink: Placed, shift: _Shift | None, formula: Formula) -> bool:
    """Return whether a maximum's floor is about the sink: then a power in the sum is about 1."""
    if shift is None or shift.floor is None:
        return True
    if isinstance(shift.floor, Ref):
        return sink.ref is not None and formula.views.same(sink.ref, shift.floor)
    return isinstance(sink.expr, np.ndarray) and abs(sink.expr.item() - shift.floor) <= _NEAR


@dataclass(frozen=True)
class _Shift:
    """The scores before their rows' maximum is taken off, which is `taken`.

    floor: what the maximum is at least, None if it is the scores' own.
    """

    scores: Ref
    taken: Ref
    floor: float | Ref | None = None


def _shift(exponent: Ref, column: Axis, formula: Formula) -> _Shift | None:
    """Return the shift if the exponent is the difference of scores and their rows' maximum."""
    difference = formula.difference(exponent)
    if difference is None:
        return None
    scores, taken = difference
    if formula.is_over(formula.largest(taken), scores, column):
        return _Shift(scores, taken)
    bounded = formula.made(taken, "Max", "Clip", "Relu")
    if bounded is None or bounded.node.input(2) is not None:
        return None
    for main in (0, 1) if bounded.node.op == "Max" else (0,):
        floor: float | Ref | None = 0.0
        if bounded.node.op != "Relu":
            number = formula.number(bounded, 1 - main)
            floor = formula.beside(bounded, 1 - main) if number is None else number
        own = formula.reduced(formula.operand(bounded, main), "ReduceMax")
        if floor is not None and formula.is_over(own, scores, column):
            return _Shift(scores, taken, floor)
    return None


def _sink(extra: Ref | None, shift: _Shift | None, formula: Formula) -> Placed | None:
    """Return the score whose power is added to the sum, before the rows' shift."""
    factor = 1.0
    product = formula.with_number(formula.made(extra, "Mul"))
    if product is not None and 0.0 < product[1] < math.inf:
        extra, factor = product
    exponent = formula.operand(formula.made(extra, "Exp"), 0)
    if exponent is None:
        return None
    if shift is None:
        return _plus_log(Placed.of(exponent), factor)
    views = formula.views
    scaled = scaling_of(views.origin(exponent), views)
    if scaled is not None and scaled[1] == -1.0 and views.same(scaled[0], shift.taken):
        return Placed.number(math.log(factor))
    difference = formula.difference(exponent)
    if difference is None or not views.same(difference[1], shift.taken):
        return None
    number = number_of(difference[0].value, views.shapes)
    if number is not None:
        return Placed.number(number + math.log(factor))
    return _plus_log(Placed.of(difference[0]), factor)


def _plus_log(score: Placed, factor: float) -> Placed:
    """Return the score of `factor` times the power of a score."""
    if factor == 1.0:
        return score
    number = np.asarray(math.log(factor), dtype=np.float32)
    return replace(score, expr=Call("Add", (score.expr, number)))


def _not_understood(made: Made) -> Declined:
    what = "the powers of a softmax and their sum"
    return Declined(Code.UNSUPPORTED_OP, made.node, what=what)
