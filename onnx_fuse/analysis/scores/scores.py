"""The scores of an attention: from the softmax's input up to the product of query and key.

Scalings, biases, masks, caps and shifts between the two are read in the order in which they apply.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Atom, Axis, index_atoms
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of
from onnx_fuse.analysis.algebra.expr import SCATTERS, Call
from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.linear import scale_by
from onnx_fuse.analysis.algebra.nodes import HALVES, is_float_cast
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import LARGEST_FLOAT, limits_of, number_of, scaling_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.scores.bounds import magnitude
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Chain,
    Clamp,
    Keep,
    Placed,
    RowScale,
    Scale,
    Select,
    Shift,
    Tanh,
)
from onnx_fuse.analysis.scores.choices import (
    agree_over,
    alternative_of,
    as_bool,
    choice_of,
    common_origin,
    condition_of,
    shown_by,
)
from onnx_fuse.analysis.scores.edited_parts import edited_parts_of
from onnx_fuse.analysis.scores.edits import edit_of
from onnx_fuse.analysis.scores.joined_keys import joined_keys
from onnx_fuse.analysis.scores.leads import Leads
from onnx_fuse.analysis.scores.repeated_operands import without_repeats
from onnx_fuse.analysis.scores.sink_column import JOINS, sink_column
from onnx_fuse.analysis.scores.sums import Scores, addends_of, is_whole, joined
from onnx_fuse.analysis.scores.unreached import quantized_above, unmatched, unreached
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

# Below this a finite score counts as "masked": no product of real activations comes near it, so
# that a lower bound at or under it changes nothing else.
LOWEST_REAL_SCORE = -1e30


def _has_rows(first: Ref, second: Ref) -> bool:
    """Return whether only the first of two operands has positions of its own."""
    own = [{*index_atoms(ref.index)} for ref in (first, second)]
    return bool(own[0] - own[1]) and not own[1] - own[0]


class ScoreWalk:
    """Walks up from one softmax; with `joins_products`, scores may be a sum of products."""

    def __init__(
        self, views: Views, node: Node, trail: Trail, *, joins_products: bool = False
    ) -> None:
        self.views = views
        self.formula = Formula(views)
        self.trail = trail
        self.shapes = views.shapes
        self.leads = Leads(views.shapes)
        self.node = node
        self.joins_products = joins_products

    def scores(self, ref: Ref, column: Axis, chain: Chain) -> Scores:
        """Return the scores of which `ref` is the softmax's input, `column` its normalised axis.

        `chain` has what applies to them between `ref` and the softmax.

        Raises: Declined where no product of query and key is reached.
        """
        chain.top = ref
        if self.shapes.is_constant(ref.value):
            raise Declined(Code.CONSTANT, self.node)
        while True:
            node = ref.value.producer
            if node is None:
                raise self._no_scores(ref)
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                scores = self._product(contraction, ref, chain, column)
                self.trail.add(node)
                return scores
            summed = self._summed(ref, chain, column) if self.joins_products else None
            if summed is not None:
                return summed
            with_sink = self._sink(node, ref, chain, column)
            if with_sink is not None:
                ref, column = with_sink
            else:
                below = self.views.pull(ref)
                if below is None and node.op == "Concat":
                    below = self._of_parts(node, ref, chain)
                    joined = None if below else joined_keys(node, ref, column, chain, self)
                    if joined is not None:
                        self.trail.add(node)
                        return joined
                ref = below or self._step(node, ref, chain, column)
            self.trail.add(node)

    def _no_scores(self, ref: Ref) -> Declined:
        quantized = quantized_above(ref.value)
        if quantized is not None:
            return Declined(Code.QUANTIZED, quantized)
        return unreached(self.node, ref, self.leads, self.shapes)

    def _product(self, contraction: Contraction, ref: Ref, chain: Chain, column: Axis) -> Scores:
        operands = contraction.pull(self.views, ref)
        if operands is None:
            raise unmatched(contraction.node, self.shapes)
        left, right = operands[0].resolve(self.views.space), operands[1].resolve(self.views.space)
        columns = self.views.space.atoms_of(column)
        sides = [columns & set(index_atoms(side.index)) for side in (left, right)]
        if all(sides):
            scored = index_atoms(self.views.space.resolve_index(ref.index))
            left, right = (without_repeats(side, scored, self.views) for side in (left, right))
            sides = [columns & set(index_atoms(side.index)) for side in (left, right)]
        if sides[0] and sides[1]:
            raise self._no_scores(ref)
        is_swapped = bool(sides[0]) or (not columns and _has_rows(right, left))
        query, key = (right, left) if is_swapped else (left, right)
        own = contraction.swapped() if is_swapped else contraction
        free = [
            atom
            for atom in index_atoms(self.views.space.resolve_index(ref.index))
            if atom not in columns
        ]
        depth = own.summed_axes(query.index)
        if not sides[0] | sides[1] >= columns:
            raise self._no_scores(ref)
        if free and not any(atom in index_atoms(query.index) for atom in free):
            raise self._no_scores(ref)
        bias = contraction.added(ref.index)
        if bias is not None:
            chain.operations.append(Bias(Placed.of(bias), contraction.beta))
        if contraction.alpha != 1.0:
            chain.operations.append(Scale(contraction.alpha))
            if not abs(chain.factor) <= LARGEST_FLOAT:
                alpha = {"attribute": "alpha", "setting": contraction.alpha}
                raise Declined(Code.UNSUPPORTED_ATTRIBUTE, contraction.node, **alpha)
        chain.product = ref.value
        return Scores(query, key, depth, ref.index, chain, column)

    def _summed(self, ref: Ref, chain: Chain, column: Axis) -> Scores | None:
        """Read scores that are a sum of several products, and perhaps of biases."""
        addends = addends_of(ref, self.views, self.leads) or []
        found: list[Scores] = []
        factors: list[float] = []
        biases: list[Bias] = []
        for part in addends:
            contraction = contraction_of(part.ref.value.producer, self.shapes)
            if not part.is_product or contraction is None:
                biases.append(Bias(Placed.of(part.ref), part.factor))
                continue
            if not is_whole(part.ref, self.views):
                return None
            found.append(self._product(contraction, part.ref, Chain(), column))
            own = found[-1].chain
            factors.append(part.factor * own.factor)
            added = (each for each in own.operations if isinstance(each, Bias))
            biases += [replace(bias, sign=bias.sign * part.factor) for bias in added]
            self.trail.add_between(ref.value, part.ref.value)
            self.trail.add(contraction.node)
        whole = joined(found, factors, self.views.space) if found else None
        if whole is None:
            return None
        chain.operations += [*biases, Scale(factors[0])]
        chain.product = whole.chain.product
        return replace(whole, index=ref.index, chain=chain)

    def _sink(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> tuple[Ref, Axis] | None:
        """Read one more column beside the scores: the softmax sees it, the values don't."""
        if node.op not in JOINS or chain.sinks is not None:
            return None
        found = sink_column(node, len(ref.index), self.leads, self.shapes)
        resolved = self.views.space.resolve(column)
        if found is None or not chain.consists_of(Scale, Shift):
            return None
        axis, whole = found.axis % len(ref.index), resolved[0] if len(resolved) == 1 else None
        shape = self.shapes.shape(found.scores)
        if self.views.space.resolve(ref.index[axis]) != resolved or shape is None:
            return None
        if not isinstance(whole, Atom):
            return None
        new = self.views.space.atom(shape[axis], "column")
        scaled = found.column
        if chain.factor != 1.0:
            scaled = Call("Mul", (scaled, np.asarray(chain.factor, dtype=np.float32)))
        chain.sinks = Placed(scaled, spliced(ref.index, axis, ()))
        chain.joined = (whole, found.start)
        return Ref(found.scores, spliced(ref.index, axis, new)), new

    def _step(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        """Account for one pointwise operator and return its main input."""
        match node.op:
            case "Cast" | "CastLike" if is_float_cast(node, self.shapes):
                if self.shapes.dtype(ref.value) in HALVES:
                    chain.roundings.append((len(chain.operations), node))
                return Ref(node.given[0], ref.index)
            case "Tanh":
                chain.operations.append(Tanh(node))
                return Ref(node.given[0], ref.index)
            case "Add" | "Sub":
                return self._alternative(node, ref, chain) or self._sum(node, ref, chain, column)
            case "Sum":
                return self._of_several(node, ref, chain)
            case "Mul" | "Div" | "Neg":
                return self._scaled(node, ref, chain, column)
            case "Where":
                return self._alternative(node, ref, chain) or self._where(node, ref, chain)
            case "Max" | "Min" | "Clip":
                return self._bounded(node, ref, chain)
            case op_type if op_type in SCATTERS:
                return self._edited(node, ref, chain)
        raise self._no_scores(ref)

    def _main(self, node: Node, ref: Ref, candidates: list[int]) -> int:
        ranks = [self.leads(node.inputs[position]) for position in candidates]
        if not any(ranks):
            raise self._no_scores(ref)
        return candidates[ranks.index(max(ranks))]

    def _at(self, value: Value | None, ref: Ref) -> Ref:
        """Return the elements of the main input, whose symbolic extents are those of the result."""
        below = None if value is None else self.views.broadcast(ref.index, value)
        if below is None:
            raise self._unknown(value, ref)
        return below

    def _unknown(self, value: Value | None, ref: Ref) -> Declined:
        return Declined(
            Code.SHAPE_UNKNOWN,
            ref.value.producer,
            value=ref.value.name if value is None else value.name,
            what=f"how it broadcasts to '{ref.value.name}'",
        )

    def beside(self, value: Value | None, ref: Ref) -> Placed:
        """Return the elements of what is combined with the scores. Raises: Declined."""
        found = None if value is None else self.views.beside(ref.index, value)
        if found is None:
            raise self._unknown(value, ref)
        return Placed.of(found)

    def _of_several(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        """Read a sum of more than two: the scores and biases."""
        values = list(node.inputs)
        main = values.pop(self._main(node, ref, [*range(len(values))]))
        below = self._at(main, ref)
        ref = ref.resolve(self.views.space)
        chain.operations += [Bias(self.beside(value, ref)) for value in values]
        return below

    def _sum(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        main = self._main(node, ref, [0, 1])
        below = self._at(node.inputs[main], ref)
        ref = ref.resolve(self.views.space)
        other = self.beside(node.inputs[1 - main], ref)
        is_negated = node.op == "Sub" and main == 1
        if number_of(node.inputs[1 - main], self.shapes) == 0.0:
            chain.operations += [Scale(-1.0)] if is_negated else []
        elif is_negated:
            chain.operations += [Bias(other), Scale(-1.0)]
        elif (
            chain.sinks is None
            and chain.keeps_shifts(self.shapes)
            and self._is_of_row(node, other, below, column, chain)
        ):
            # The softmax takes off a number of a row anyway, if it is taken off a sink, too. Others
            # would go unseen, were it not for rounding: scores vanish in -3e38.
            chain.operations.append(Shift())
            if chain.consists_of(Shift):
                chain.top = below  # where a whole row may be -inf: behind the shift it is NaN
        else:
            chain.operations.append(Bias(other, -1.0 if node.op == "Sub" else 1.0))
        return below

    def _is_of_row(
        self, node: Node, other: Placed, scores: Ref, column: Axis, chain: Chain
    ) -> bool:
        """Return whether a number of each row is no larger than that row's scores, or minus it.

        It is the maximum, minimum or mean, or the logarithm of the sum of powers. Any but the
        maximum rounds the scores where a mask has made one of them large; the chain notes that.
        """
        if self._is_maximum(other, scores, column, chain):
            return True
        formula = self.formula
        at = formula.operand(formula.made(other.ref, "Neg"), 0) or other.ref
        reduced = formula.mean(at) or formula.reduced(at, "ReduceMin", "ReduceLogSumExp")
        if not formula.is_over(reduced, scores, column):
            return False
        chain.centrings.append((len(chain.operations) + 1, node))
        return True

    def _is_maximum(self, other: Placed, scores: Ref, column: Axis, chain: Chain) -> bool:
        """Return whether a number of each row is the maximum of that row of `scores`, or minus it.

        Under masks that hide for good, it may be the maximum of what one of them shows.
        """
        formula = self.formula
        negated = formula.operand(formula.made(other.ref, "Neg"), 0)
        reduced = formula.largest(negated or other.ref)
        if reduced is None or formula.is_over(reduced, scores, column):
            return reduced is not None
        made = formula.made(reduced.source, "Where")
        if made is None:
            return False
        asked, kept = formula.beside(made, 0), formula.operand(made, 1)
        if asked is None or kept is None or formula.number(made, 2) != -math.inf:
            return False
        shown = condition_of(asked, formula)
        masks = (op for op in chain.operations if isinstance(op, Select) and op.hides_for_good)
        others = (shown_by(mask, formula) for mask in masks)
        return formula.is_over(replace(reduced, source=kept), scores, column) and any(
            other is not None and agree_over(reduced, shown, other, column, formula)
            for other in others
        )

    def _scaled(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        main = self._main(node, ref, [0, 1]) if node.op == "Mul" else 0
        scaled = scaling_of(ref, self.views)
        if scaled is not None:
            chain.operations.append(Scale(scaled[1]))
            if abs(chain.factor) > LARGEST_FLOAT:
                what = "makes, with the others, more than float32 holds"
                raise self._no_scale(node.given[1 - main], what)
            return scaled[0]
        factor = node.inputs[1 - main]
        assert factor is not None
        below = self._at(node.inputs[main], ref)
        kept = self._kept(factor, ref) if node.op == "Mul" else None
        if kept is not None:
            chain.operations += [Scale(kept[1])] if kept[1] != 1.0 else []
            chain.operations.append(Keep(kept[0]))
            chain.zeroings.append((len(chain.operations), node))
            return below
        other = self.beside(factor, ref)
        if self.views.space.atoms_of(column) & set(index_atoms(other.index)):
            raise self._no_scale(factor, "has numbers of their own for the keys of one query")
        if self.shapes.is_constant(factor):
            step = scale_by(node.op, Ref(factor, other.index), self.shapes)
            if step is None:
                raise self._no_scale(factor, "is not finite, or its inverse isn't")
            chain.query_steps.append(step)
            numbers = np.abs(np.asarray(self.shapes.constant(factor), dtype=np.float64))
            highest = float((1.0 / numbers if node.op == "Div" else numbers).max(initial=0.0))
        else:
            chain.query_factors.append((node.op, other))
            highest = magnitude(factor, self.shapes) if node.op == "Mul" else math.inf
        chain.operations.append(RowScale(node, highest))
        return below

    def _no_scale(self, factor: Value, what: str) -> Declined:
        reader = factor.producer or self.node
        return Declined(Code.SCALE_NOT_SCALAR, reader, value=factor.name, what=what)

    def _kept(self, factor: Value, ref: Ref) -> tuple[Placed, float] | None:
        """Return where a factor of the elements `ref` is not 0, if there it is one number."""
        place = self.views.beside(ref.index, factor)
        choice = choice_of(place, self.formula)
        if place is None or choice is None or not choice.amount or math.isinf(choice.amount):
            return None
        return as_bool(place, self.formula), choice.amount

    def _alternative(self, node: Node, ref: Ref, chain: Chain) -> Ref | None:
        """A choice between two sums of the same scores with a number: a number to add to them.

        As a sum of two products it may also be one between the scores and something else.
        """
        made = alternative_of(Made(node, ref.index), self.formula)
        if made is None:
            return None
        first, second = made.first, made.second
        ranks = self.leads(first.value), self.leads(second.value)
        if not all(ranks):
            main, other = (first, second) if ranks[0] else (second, first)
            if node.op == "Where" or not any(ranks) or self._is_infinite(other.value):
                return None
            shown = as_bool(made.place, self.formula)
            chain.operations.append(Select(shown, Placed.of(other), not ranks[0], made.place))
            chain.zeroings.append((len(chain.operations), node))
            return self._at(main.value, main)
        found = common_origin(first, second, self.formula)
        if found is None:
            return None
        shown = as_bool(made.place, self.formula)
        numbers = (np.asarray(number, dtype=np.float32) for number in found[1:])
        added = Call("Where", (shown.expr, *numbers))
        chain.operations.append(Bias(replace(shown, expr=added)))
        if node.op != "Where":
            chain.zeroings.append((len(chain.operations), node))
        return found[0]

    def _hidden(self, node: Node, main: int, ref: Ref, chain: Chain) -> bool:
        """Read min(score, where(c, high, low)), which is a mask if all scores lie in between."""
        formula = self.formula
        made = formula.made(formula.beside(Made(node, ref.index), 1 - main), "Where")
        place, numbers = formula.beside(made, 0), [formula.number(made, at) for at in (1, 2)]
        if place is None or numbers[0] is None or numbers[1] is None:
            return False
        low, high = sorted((numbers[0], numbers[1]))
        shown, is_inverted = as_bool(place, formula), numbers[0] < numbers[1]
        chain.operations.append(Select(shown, Placed.number(low), is_inverted, place))
        chain.limits.append((len(chain.operations), node, min(high, -low)))
        return True

    def _is_infinite(self, value: Value) -> bool:
        """Return whether a constant isn't finite: times 0 it is NaN, which no choice makes."""
        data = self.shapes.constant(value)
        return data is not None and not np.isfinite(data).all()

    def _where(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        main = self._main(node, ref, [1, 2])
        below = self._at(node.inputs[main], ref)
        condition = self.beside(node.inputs[0], ref)
        fill = self._fill(node.inputs[3 - main], ref)
        place = None if node.inputs[0] is None else Ref(node.inputs[0], condition.index)
        chain.operations.append(Select(condition, fill, main == 2, place))
        return below

    def _fill(self, value: Value | None, ref: Ref) -> Placed:
        """Return what is chosen instead of scores: of a tensor filled with a number, the number."""
        is_constant = value is None or self.shapes.is_constant(value)
        number = None if is_constant else number_of(value, self.shapes)
        return self.beside(value, ref) if number is None else Placed.number(number)

    def _edited(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        """Read scores of which some are written anew."""
        source, updates = node.inputs[0], node.input(2)
        if source is None or not self.leads(source):
            raise self._not_understood(node)
        before = self._of_parts(node, ref, chain) if self.leads(updates) else None
        if before is not None:
            return before
        found = edit_of(node, Ref(source, ref.index), self.shapes)
        if found is None:
            raise self._not_understood(node)
        chain.operations.append(found)
        return Ref(source, ref.index)

    def _of_parts(self, node: Node, ref: Ref, chain: Chain) -> Ref | None:
        """Read scores of which parts were edited apart; None if a node brings back none."""
        found = edited_parts_of(node, ref, self.views, self.leads)
        if found is None:
            return None
        chain.operations += found.operations
        self.trail.add_between(ref.value, found.before.value)
        return found.before

    def _not_understood(self, node: Node) -> Declined:
        what = "product and softmax"
        return Declined(Code.UNSUPPORTED_OP, node, what=what)

    def _bounded(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        """Read a lower bound that only masked scores reach, or an upper one that none does."""
        main = 0 if node.op == "Clip" else self._main(node, ref, list(range(len(node.inputs))))
        if node.op == "Min" and len(node.inputs) == 2 and self._hidden(node, main, ref, chain):
            return self._at(node.inputs[main], ref)
        low, high = limits_of(node, main, self.shapes)
        if not (low <= LOWEST_REAL_SCORE and high >= -LOWEST_REAL_SCORE):
            known = not (math.isnan(low) or math.isnan(high))
            what = f"bounds them by {low:g} and {high:g}" if known else "bounds them"
            raise Declined(Code.SCORES_CHANGED, node, what=what)
        if math.isfinite(low):
            chain.operations.append(Clamp(low))
        return self._at(node.inputs[main], ref)
