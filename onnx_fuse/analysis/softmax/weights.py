"""From a softmax down: to the product with the values."""

from __future__ import annotations

import math
from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import Atom, Axis, size
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of, is_matrix_product
from onnx_fuse.analysis.algebra.formula import Formula
from onnx_fuse.analysis.algebra.nodes import (
    is_random,
    only_reader,
    readers,
)
from onnx_fuse.analysis.algebra.quantized_products import is_quantized_product
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.scores.bounds import may_be_infinite
from onnx_fuse.analysis.scores.chain import Chain
from onnx_fuse.analysis.scores.choices import hiding
from onnx_fuse.analysis.scores.unreached import unmatched
from onnx_fuse.analysis.softmax.ahead import (
    QUANTIZERS,
    SCALERS,
    combines_weights,
    leads_to_product,
    meets_itself,
    mixing,
)
from onnx_fuse.analysis.softmax.empty_rows import hides_any_rows, hides_rows
from onnx_fuse.analysis.softmax.guards import Guards, only_tests
from onnx_fuse.analysis.softmax.output import Output, OutputWalk
from onnx_fuse.analysis.softmax.parted import cut_weights, sum_of
from onnx_fuse.analysis.softmax.renormalised import divided_again, renormalised_of
from onnx_fuse.analysis.softmax.scalings import Scalings
from onnx_fuse.analysis.softmax.side_by_side import side_by_side
from onnx_fuse.analysis.softmax.values import ValuePart, Values
from onnx_fuse.analysis.softmax.written import Late
from onnx_fuse.analysis.softmax.zeroed import hides_before, sums_anew, without_zeros, zeroed_of
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Node, Use, Value
from onnx_fuse.report import Code


def _sum_of(product: Node) -> Use | None:
    """Return the only reader of a product, past what turns its axes."""
    follow = None if product.outputs[0] is None else only_reader(product.outputs[0])
    while follow is not None and follow.node.op == "Transpose":
        (turned,) = follow.node.outputs
        follow = None if turned is None else only_reader(turned)
    return follow


class WeightWalk:
    """Walks down from the result of one softmax, which runs over `column`.

    `chain` is what applies to its scores, None if that isn't known; masks behind the softmax join
    it. `sums_to_one` says whether the weights of each row do, or are NaN.
    """

    def __init__(
        self,
        views: Views,
        node: Node,
        trail: Trail,
        column: Axis,
        chain: Chain | None,
        *,
        sums_to_one: bool = True,
    ) -> None:
        self.column = column
        self.chain = chain
        self.sums_to_one = sums_to_one
        self.views = views
        self.trail = trail
        self.shapes = views.shapes
        self.node = node
        self.formula = Formula(views)
        self._several: Declined | None = None
        self._passed_by: list[Node] = []  # readers whose product isn't the block's

    def values(self, ref: Ref) -> Values | None:
        """Return the product with the values; None if the weights meet none (no attention).

        Of several products it is one that an output projection follows, or the first.

        Raises: Declined where a product is met that isn't one over the columns, or the weights are
        changed before.
        """
        self._passed_by = []
        operations = [] if self.chain is None else [*self.chain.operations]
        first: Values | None = None
        failed: Declined | None = None
        tried = -1
        while len(self._passed_by) > tried:  # there may be another reader
            tried = len(self._passed_by)
            try:
                found = self._next_values(ref)
            except Declined as declined:
                failed = failed or declined
            else:
                if found is None:
                    break
                if found.several is None or self._output(found.context).projection is not None:
                    return found
                first = first or found
            if self.chain is not None:
                self.chain.operations = [*operations]
        if failed is not None:
            raise failed
        return first

    def _next_values(self, ref: Ref) -> Values | None:
        """Return the next product of the weights, where several others read them.

        Raises: Declined.
        """
        self._several = None
        try:
            found = self._values_below(ref)
        except Declined as declined:
            raise self._several or declined from None
        if found is None and self._several is not None:
            raise self._several
        return found

    def _values_below(self, ref: Ref) -> Values | None:
        guards = Guards(self.views)
        scalings = Scalings(self.views, self.column)
        steps = scalings.found
        shown: Ref | None = None
        while True:
            uses = guards.readers(ref)
            product = self._product(uses, ref)
            parted = None if product or steps else self._parted(ref, guards.zero_nan)
            if parted is None and not (steps or shown):
                parted = self._side_by_side(uses, ref, guards.zero_nan)
            if parted is not None:
                return parted
            if product is None and len(uses) > 1:
                # Sinks have a part of the sum, and a row that is all 0 has none.
                may_have_sinks = self.chain is None or self.chain.sinks is not None
                is_one = self.sums_to_one and not may_have_sinks
                is_one = is_one and not (steps or guards.zero_nan or ref.value.is_output)
                again = divided_again(ref, self.column, self.views) if is_one else None
                if again is not None:
                    self.trail.add_between(again.value, ref.value)
                    ref = again
                    continue
                self._check_unchanged(uses)
            onward = self._onward(uses) if product is None else product[0]
            if onward is None:
                return None
            if ref.value.is_output or len(uses) > 1:
                self._check_shown(ref.value, onward, is_scaled=bool(steps))
                shown = shown or ref
            node = onward.node
            if product is not None:
                found = self._values(product[1], ref, self.column, guards.zero_nan)
                self.trail.add(product[1].node)
                found = replace(found, shown=shown, several=self._several)
                return scalings.applied(found)
            if shown is not None and node.op in SCALERS:  # the operator only has the last ones
                raise self._read_elsewhere(shown.value, node)
            below = guards.passed(node)
            if not steps:  # a new sum would take the scale off again
                below = below or self._masked(node, ref, guards)
            below = below or scalings.passed(node, ref)
            below = below or self._carried(node, ref)
            if below is None:
                return None
            self.trail.add_between(below.value, ref.value)
            ref = below

    def _parted(self, ref: Ref, zero_nan: bool) -> Values | None:
        """Return the products of parts of the weights, whose sum alone is read."""
        parts: list[ValuePart] = []
        for at, own in cut_weights(ref, self.column, self.views) or ():
            product = self._product(readers(at.value), at)
            if product is None or only_reader(at.value) is None or product[1].alpha != 1.0:
                return None
            found = self._values(product[1], at, own, zero_nan)
            parts.append(ValuePart(found.value, found.context, own))
        context = sum_of([part.context for part in parts], ref, self.views) if parts else None
        if context is None:
            return None
        self.trail.add_between(context.value, ref.value)
        return Values(parts[0].value, context, zero_nan, parts=tuple(parts))

    def _side_by_side(self, uses: list[Use], ref: Ref, zero_nan: bool) -> Values | None:
        """Return the products of the weights with several values, if all of them are joined."""
        if len(uses) < 2 or ref.value.is_output:
            return None
        found: list[Values] = []
        for use in uses:
            product = self._product([use], ref)
            if product is None or product[1].alpha != 1.0:
                return None
            try:
                found.append(self._values(product[1], ref, self.column, zero_nan))
            except Declined:
                return None
        contexts = [values.context for values in found]
        joined = side_by_side(contexts, ref, self.views)
        if joined is None:
            return None
        order, context, lanes = joined
        for part in contexts:
            self.trail.add_between(context.value, part.value)
        parts = tuple(ValuePart(found[number].value, contexts[number]) for number in order)
        return Values(parts[0].value, context, zero_nan, parts=parts, lanes=lanes)

    def _output(self, context: Ref) -> Output:
        return OutputWalk(self.views, self.node, Trail()).output(context)

    def _onward(self, uses: list[Use]) -> Use | None:
        """Return the reader through which weights come to a product; None if none is in sight."""
        if len(uses) == 1:
            return uses[0]
        ahead = (use for use in uses if use.node not in self._passed_by)
        return next((use for use in ahead if leads_to_product(use.node, self.shapes)), None)

    def _check_shown(self, value: Value, onward: Use, *, is_scaled: bool) -> None:
        """Check that what others read of the weights is what the operator gives.

        If they meet other values there, the weights must come to theirs as a whole, not in parts:
        `values` declines unless they do.

        Raises: Declined.
        """
        others = [use for use in readers(value) if use is not onward]
        if is_scaled:
            raise self._read_elsewhere(value, onward.node)
        meets = any(leads_to_product(use.node, self.shapes) for use in others)
        if meets and self._several is None:
            self._several = self._read_elsewhere(value, onward.node)
            self._passed_by.append(onward.node)

    def divided_late(self, late: Late, context: Ref, *, zero_nan: bool) -> Values:
        """Return the product with the values where the division by the sum comes after it.

        Raises: Declined where others read the undivided weights or that product.
        """
        product = late.product.producer
        assert product is not None
        for value, count in ((late.powers.value, 2), (late.product, 1)):
            if value.is_output or len(readers(value)) > count:
                raise self._read_elsewhere(value, product)
        self.trail.add(product)
        return Values(late.values, context, zero_nan)

    def _carried(self, node: Node, ref: Ref) -> Ref | None:
        """Return the weights as a node carries them on; None if it leads to no product.

        Raises: Declined where it changes them on the way to one.
        """
        is_quantizer = node.op in QUANTIZERS and leads_to_product(node, self.shapes)
        if is_quantizer or is_quantized_product(node, self.shapes):
            raise Declined(Code.QUANTIZED, node)
        if is_matrix_product(node):
            raise unmatched(node, self.shapes)
        below = self._follow(node, ref)
        if below is None and leads_to_product(node, self.shapes):
            raise self._changed(node)
        return below

    def _check_unchanged(self, uses: list[Use]) -> None:
        """Raise Declined if one reader combines the weights with what another computes of them."""
        for use in uses:
            if meets_itself(use, uses) and leads_to_product(use.node, self.shapes):
                raise self._changed(use.node)

    def _product(self, uses: list[Use], ref: Ref) -> tuple[Use, Contraction] | None:
        """Return the product of the weights with something, and its reader of them.

        One with what is computed from the weights (their logarithm, say) only if there is no other.
        """
        found: list[tuple[Use, Contraction]] = []
        for use in uses:
            node = use.node
            contraction = contraction_of(node, self.shapes)
            if contraction is None and node.op == "Mul":
                follow = _sum_of(node)
                contraction = None if follow is None else contraction_of(follow.node, self.shapes)
            factors = () if contraction is None else contraction.factors
            if contraction is not None and ref.value in factors and node not in self._passed_by:
                found.append((use, contraction))
        others = (each for each in found if not meets_itself(each[0], uses))
        return next(others, found[0] if found else None)

    def _masked(self, node: Node, ref: Ref, guards: Guards) -> Ref | None:
        """Return the weights after a mask that means one of the scores, which joins the chain."""
        if self.chain is None:
            return None
        chain, column, formula = self.chain, self.column, self.formula
        found = zeroed_of(node, ref, formula)
        if found is None:
            return without_zeros(node, ref, formula)
        masked = renormalised_of(node, ref, column, self.views)
        if masked is not None and sums_anew(chain, found, formula):
            # If only what is left of nothing is put to zero, no other row may be NaN.
            is_any = not masked.zero_nan or masked.takes_nan or guards.zero_nan
            if is_any or not may_be_infinite(chain.operations, chain.product, self.shapes):
                chain.operations.insert(0, hiding(found.place, formula))
                guards.zero_nan |= masked.zero_nan
                return masked.weights
        if found.condition.holds_everywhere(formula):
            return found.weights
        zero_nan = hides_before(chain, found, formula)
        if zero_nan is None:
            zero_nan = hides_rows(chain, found, column, formula)
        if zero_nan is None:
            zero_nan = hides_any_rows(chain, found, column, formula, is_guarded=guards.zero_nan)
            if not zero_nan:
                return None
        guards.zero_nan |= zero_nan
        return found.weights

    def _changed(self, node: Node) -> Declined:
        if combines_weights(node):
            return Declined(Code.WEIGHTS_COMBINED, node)
        if node.op in CARRIERS and not is_random(node, self.shapes):
            return Declined(Code.UNSUPPORTED_OP, node, what="softmax and values")
        return Declined(Code.WEIGHTS_SCALED, node)

    def _read_elsewhere(self, value: Value, product: Node) -> Declined:
        others = [
            use.node
            for use in readers(value)
            if use.node is not product and not only_tests(use.node)
        ]
        if not others and not value.is_output:  # they meet themselves there
            return self._changed(product)
        reader = others[0].label if others else ""
        if (
            others
            and not value.is_output
            and all(leads_to_product(other, self.shapes) for other in others)
        ):
            mixed = mixing(product, others, self.shapes)
            if mixed is not None:
                return Declined(Code.MIXED_SCORES, mixed)
            return Declined(Code.SEVERAL_PRODUCTS, self.node, value=value.name, reader=reader)
        what = f"read by '{reader}'" if others else "an output of the graph"
        return Declined(Code.WEIGHTS_READ, self.node, value=value.name, what=what)

    def _follow(self, node: Node, ref: Ref) -> Ref | None:
        below = self.views.onward(ref, node)
        cuts = node.op in ("Slice", "Split", "Gather")
        if below is None and cuts and self.chain is not None and self.chain.joined is not None:
            return self._cut_sink(node, ref, *self.chain.joined)
        return below

    def _cut_sink(self, node: Node, ref: Ref, atom: Atom, start: int) -> Ref | None:
        """Return the slice that drops the sink's column again.

        It was joined to the scores, which begin at `start` of the whole, `atom`.
        """
        for output in node.outputs:
            if output is None or not readers(output):
                continue
            fresh = self.views.ref(output)
            back = None if fresh is None else self.views.pull(fresh)
            if back is None or fresh is None or back.value is not ref.value:
                return None
            axes: list[Axis] = []
            for mine, theirs, new in zip(ref.index, back.index, fresh.index, strict=True):
                if mine != (atom,):
                    axes.append(mine)
                    continue
                # The joined axis: the slice must leave exactly the scores' own columns.
                known = self.views.space.known
                cut = self.views.space.ranged(new, Dim.of(start), 1, known(atom.extent))
                if known(size(new)) != known(size(self.column)):
                    return None
                if self.views.space.match((cut,), (theirs,)) is None:
                    return None
                axes.append(self.column)
            return Ref(output, tuple(axes))
        return None

    def _values(self, contraction: Contraction, ref: Ref, column: Axis, zero_nan: bool) -> Values:
        own = contraction.facing(ref.value)
        pushed = own.push(self.views, ref)
        if pushed is None:
            raise Declined(
                Code.SHAPE_UNKNOWN,
                contraction.node,
                value=own.right.name,
                what="the extents of the values",
            )
        value, context = pushed
        space = self.views.space
        if space.atoms_of(*own.summed_axes(ref.index)) != space.atoms_of(column):
            # Callers may replace some: still no values, which are computed.
            given = self.views.origin(value).value.is_initializer
            if given or self.shapes.is_constant(own.right):
                raise Declined(Code.MIXED_SCORES, contraction.node)
            raise Declined(Code.SOFTMAX_AXIS, self.node, axis=self.node.attr("axis", -1))
        self._check_alone(own)
        return Values(value, context, zero_nan, scale=own.alpha)

    @staticmethod
    def _check_alone(product: Contraction) -> None:
        """Raise Declined if something is added to a product of weights and values."""
        if not math.isfinite(product.alpha) or product.alpha == 0.0:
            facts = {"attribute": "alpha", "setting": product.alpha}
            raise Declined(Code.UNSUPPORTED_ATTRIBUTE, product.node, **facts)
        if product.bias is not None and product.beta != 0.0:
            raise Declined(Code.UNSUPPORTED_OP, product.node, what="softmax and context")
