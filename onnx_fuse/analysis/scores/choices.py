"""Choices written as arithmetic: factors of zeros and ones, and sums of which one part is zero.

What chooses is compared by the elements that tell it, whatever views and casts stand in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.formula import Formula, Made, Reduced
from onnx_fuse.analysis.algebra.nodes import CASTS, is_random, made_by
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.views import carried
from onnx_fuse.analysis.scores.chain import Placed, Select

_LONGEST_SUM = 8  # numbers added one after the other
_DEEPEST = 4  # comparisons above each other that are compared with others of their kind
_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", *CASTS)


@dataclass(frozen=True)
class Condition:
    """Holds where the elements `told` are not 0 (bool: True), with `inverted` where they are."""

    told: Ref
    inverted: bool = False

    def negated(self) -> Condition:
        """Return what holds exactly where this does not."""
        return replace(self, inverted=not self.inverted)

    def holds_everywhere(self, formula: Formula) -> bool:
        """Return whether constants tell that it holds for every element."""
        data = formula.views.shapes.constant(self.told.value)
        return data is not None and bool(((data == 0) if self.inverted else (data != 0)).all())


@dataclass(frozen=True)
class Choice:
    """Elements that are `amount` where a condition holds, and 0 elsewhere."""

    condition: Condition
    amount: float = 1.0


@dataclass(frozen=True)
class Alternative:
    """`first` where `place` is not 0 (which `condition` says), `second` elsewhere."""

    condition: Condition
    place: Ref
    first: Ref
    second: Ref


def condition_of(ref: Ref, formula: Formula) -> Condition:
    """Return what the elements of a bool tensor say."""
    at = formula.views.origin(ref)
    node = made_by(at.value, "Not", "Equal", *CASTS)
    made = None if node is None else Made(node, at.index)
    source = formula.beside(made, 0)
    if made is None or source is None:
        return Condition(at)
    if made.node.op == "Not":
        return condition_of(source, formula).negated()
    if made.node.op in CASTS:
        choice = choice_of(source, formula)
        return Condition(formula.views.origin(source)) if choice is None else choice.condition
    for number, asked in ((1, 0), (0, 1)):
        told = formula.beside(made, asked)
        if told is not None and formula.number(made, number) == 0.0:
            choice = choice_of(told, formula)
            if choice is None or not choice.amount:
                return Condition(formula.views.origin(told), inverted=True)
            return choice.condition.negated()
    return Condition(at)


def choice_of(ref: Ref | None, formula: Formula) -> Choice | None:
    """Return the choice that elements stand for; None if they aren't zeros and one other number.

    The amount may be 0, then all of them are zero, or infinite.
    """
    if ref is None:
        return None
    at, shapes = formula.views.origin(ref), formula.views.shapes
    node = at.value.producer
    if shapes.is_constant(at.value):
        return _constant_choice(at, shapes.constant(at.value))
    if node is None or is_random(node, shapes):
        return None
    made = Made(node, at.index)
    match node.op:
        case "Cast" | "CastLike":
            return _cast(made, formula)
        case "Mul" | "Div":
            return _product(made, at, formula)
        case "Sub":
            return _rest(made, formula)
        case "Neg":
            whole = choice_of(formula.beside(made, 0), formula)
            return None if whole is None else replace(whole, amount=-whole.amount)
        case "Log":
            return _logarithm(made, formula)
        case "Where":
            return _chosen(made, formula)
        case "ConstantOfShape":
            number = number_of(at.value, shapes)
            return None if number is None else Choice(Condition(at), number)
        case "Trilu":  # leaves some of a matrix, and makes zeros of the others
            whole = choice_of(formula.beside(made, 0), formula)
            return None if whole is None else Choice(Condition(at), whole.amount)
    # Whatever part is taken of zeros and one number, it is zeros and that number.
    parts = [None if part is None else formula.views.ref(part) for part in carried(at.value)]
    choices = [choice_of(part, formula) for part in parts]
    amounts = {None if choice is None else choice.amount for choice in choices}
    amount = amounts.pop() if len(amounts) == 1 else None
    return None if amount is None else Choice(Condition(at), amount)


def _constant_choice(at: Ref, data: np.ndarray | None) -> Choice | None:
    if data is None or data.size == 0 or data.dtype.kind not in "biuf":
        return None
    amount = float(data.ravel()[np.argmax(data != 0)])
    if not np.isin(data, (0, amount)).all():  # as no NaN is
        return None
    return Choice(Condition(at), amount)


def _cast(made: Made, formula: Formula) -> Choice | None:
    source = formula.beside(made, 0)
    if source is None:
        return None
    if formula.views.shapes.dtype(source.value) == TensorProto.BOOL:
        return Choice(condition_of(source, formula))
    whole = choice_of(source, formula)
    return whole if whole is not None and whole.amount == 1.0 else None


def _logarithm(made: Made, formula: Formula) -> Choice | None:
    """Match the logarithm of zeros and ones, which are minus infinity and 0."""
    whole = choice_of(formula.beside(made, 0), formula)
    if whole is None or whole.amount != 1.0:
        return None
    return Choice(whole.condition.negated(), -math.inf)


def _product(made: Made, at: Ref, formula: Formula) -> Choice | None:
    """Match the product of two choices, or of one with a number; or its quotient by a number."""
    divides = made.node.op == "Div"
    for main in (0,) if divides else (0, 1):
        number = formula.number(made, 1 - main)
        if number is None or (divides and not number):
            continue
        whole = choice_of(formula.beside(made, main), formula)
        if whole is None:
            return None
        # Where nothing is left of the amount in float32, all is zero.
        amount = np.float32(whole.amount / number if divides else whole.amount * number)
        return replace(whole, amount=float(amount)) if np.isfinite(amount) else None
    parts = [choice_of(formula.beside(made, position), formula) for position in (0, 1)]
    if divides or any(part is None or part.amount != 1.0 for part in parts):
        return None
    return Choice(Condition(at))


def _rest(made: Made, formula: Formula) -> Choice | None:
    """Match amount - choice and choice - amount."""
    for main, sign in ((1, 1.0), (0, -1.0)):
        number = formula.number(made, 1 - main)
        whole = choice_of(formula.beside(made, main), formula) if number is not None else None
        if whole is not None and whole.amount == number and math.isfinite(number):
            return Choice(whole.condition.negated(), sign * number)
    return None


def _chosen(made: Made, formula: Formula) -> Choice | None:
    """Match where(c, amount, 0) and where(c, 0, amount)."""
    asked = formula.beside(made, 0)
    numbers = [formula.number(made, position) for position in (1, 2)]
    if asked is None or numbers[0] is None or numbers[1] is None or 0.0 not in numbers:
        return None
    condition = condition_of(asked, formula)
    if numbers[1] == 0.0:
        return None if math.isnan(numbers[0]) else Choice(condition, numbers[0])
    return None if math.isnan(numbers[1]) else Choice(condition.negated(), numbers[1])


def condition_at(place: Ref, formula: Formula) -> Condition:
    """Return what elements say by being 0 or not, bool or numbers."""
    choice = choice_of(place, formula)
    return condition_of(place, formula) if choice is None else choice.condition


def as_bool(ref: Ref, formula: Formula) -> Placed:
    """Return, as bool, where elements are not 0: with as few nodes as may be."""
    shapes, node = formula.views.shapes, ref.value.producer
    if shapes.dtype(ref.value) == TensorProto.BOOL:
        return Placed.of(ref)
    if shapes.is_constant(ref.value):
        # Of a single number a comparison makes no array.
        return Placed(np.asarray(np.asarray(shapes.constant(ref.value)) != 0), ref.index)
    source = made_by(ref.value, *CASTS) is not None and node is not None and node.inputs[0]
    if source and shapes.dtype(source) == TensorProto.BOOL:
        return Placed(source, ref.index)
    if made_by(ref.value, "Sub") is not None and node is not None and node.inputs[1] is not None:
        whole = choice_of(Ref(node.inputs[1], ref.index), formula)
        same = shapes.shape(node.inputs[1]) == shapes.shape(ref.value)
        if same and whole is not None and formula.number(Made(node, ref.index), 0) == whole.amount:
            inner = as_bool(Ref(node.inputs[1], ref.index), formula)
            return Placed(Call("Not", (inner.expr,)), ref.index)
    cast: Expr = Call("Cast", (ref.value,), (("to", int(TensorProto.BOOL)),))
    return Placed(cast, ref.index)


def alternative_of(made: Made, formula: Formula) -> Alternative | None:
    """Match where(c, x, y), and c * x + (1 - c) * y."""
    if made.node.op == "Where":
        place, first, second = (formula.beside(made, position) for position in range(3))
        if place is None or first is None or second is None:
            return None
        return Alternative(condition_of(place, formula), place, first, second)
    if made.node.op != "Add":
        return None
    products = [formula.made(formula.beside(made, position), "Mul") for position in (0, 1)]
    if products[0] is None or products[1] is None:
        return None
    for place, condition, first in _kept(products[0], formula):
        for _, other, second in _kept(products[1], formula):
            if agree(condition, other, formula) is False:
                return Alternative(condition, place, first, second)
    return None


def _kept(product: Made, formula: Formula) -> Iterator[tuple[Ref, Condition, Ref]]:
    """Yield (factor, condition, x) of each x * factor whose factor is zeros and ones."""
    for main in (0, 1):
        value, factor = formula.beside(product, main), formula.beside(product, 1 - main)
        choice = choice_of(factor, formula)
        if value is not None and factor is not None and choice is not None and choice.amount == 1.0:
            yield factor, choice.condition, value


def agree(one: Condition, other: Condition, formula: Formula) -> bool | None:
    """Return whether two conditions are the same (True) or opposite (False); else None."""
    if _are_alike(one.told, other.told, formula, _DEEPEST):
        return one.inverted == other.inverted
    # Of two constants one may be zero where the other is not.
    data = [formula.views.shapes.constant(ref.value) for ref in (one.told, other.told)]
    if data[0] is None or data[1] is None or data[0].shape != data[1].shape:
        return None
    if formula.views.space.match(one.told.index, other.told.index) is None:
        return None
    differ = (data[0] != 0) != (data[1] != 0)
    if not differ.all():
        return None
    return one.inverted != other.inverted


def agree_over(
    reduced: Reduced, one: Condition, other: Condition, column: Axis, formula: Formula
) -> bool | None:
    """As `agree`, where `one` is of what is reduced, and `other` of the columns of its rows.

    None if the reduction isn't over all of these.
    """
    over = formula.runs_over(reduced.over, one.told, other.told)
    atoms_of = formula.views.space.atoms_of
    if over is None or atoms_of(over) != atoms_of(column):
        return None
    return one.inverted == other.inverted


def hiding(place: Ref, formula: Formula, *, inverted: bool = False) -> Select:
    """Return the mask that hides for good where elements are 0, or with `inverted` are not."""
    return Select(as_bool(place, formula), Placed.number(-math.inf), inverted, place)


def shown_by(mask: Select, formula: Formula) -> Condition | None:
    """Return where a mask leaves scores; None where no elements of the graph's own tell."""
    if mask.place is None:
        return None
    shown = condition_at(mask.place, formula)
    return shown.negated() if mask.inverted else shown


def _are_alike(one: Ref, other: Ref, formula: Formula, deepest: int) -> bool:
    """Return whether elements are the same, or are compared from the same in the same way."""
    if formula.views.same(one, other):
        return True
    made = [formula.made(ref, *_COMPARISONS) for ref in (one, other)]
    if made[0] is None or made[1] is None or not deepest:
        return False
    first, second = made[0].node, made[1].node
    if first.op != second.op or len(first.inputs) != len(second.inputs):
        return False
    if any(
        first.attr(name) != second.attr(name) for name in (*first.attributes, *second.attributes)
    ):
        return False
    for position in range(len(first.inputs)):
        parts = [formula.beside(part, position) for part in made]
        if parts[0] is None or parts[1] is None:
            return False
        if not _are_alike(parts[0], parts[1], formula, deepest - 1):
            return False
    return True


def common_origin(first: Ref, second: Ref, formula: Formula) -> tuple[Ref, float, float] | None:
    """Return elements, and the numbers of which added to them each of two refs is the sum."""
    others = _sums(second, formula)
    for origin, number in _sums(first, formula):
        for other, added in others:
            if formula.views.same(origin, other):
                return origin, number, added
    return None


def _sums(ref: Ref, formula: Formula) -> list[tuple[Ref, float]]:
    """Return the elements of which some are the sum with a number, nearest first."""
    found = [(formula.views.origin(ref), 0.0)]
    while len(found) <= _LONGEST_SUM:
        at, total = found[-1]
        node = made_by(at.value, "Add", "Sub")
        added = None if node is None else _addend(Made(node, at.index), formula)
        if added is None:
            break
        found.append((formula.views.origin(added[0]), total + added[1]))
    return found


def _addend(made: Made, formula: Formula) -> tuple[Ref, float] | None:
    """Return (x, number) of x + number or x - number."""
    is_sum = made.node.op == "Add"
    for main in (0, 1) if is_sum else (0,):
        value, number = formula.operand(made, main), formula.number(made, 1 - main)
        if value is not None and number is not None and math.isfinite(number):
            return value, number if is_sum else -number
    return None
