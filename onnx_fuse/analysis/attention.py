"""The recogniser.

An attention block is a statement about axes: scores are a product of queries and keys, a softmax
runs over the keys' axis, and the product with the values sums that axis again. From there upwards
and downwards everything is accounted for, each node being part of the record or the reason why the
block ends there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import Axis, index_atoms, merged, size
from onnx_fuse.analysis.algebra.block_shapes import BlockShapes
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.gates import stays_outside
from onnx_fuse.analysis.malformed import MALFORMED
from onnx_fuse.analysis.operands.operand import (
    Operand,
    OperandWalk,
    ScaledPart,
    joined_operand,
)
from onnx_fuse.analysis.operators.attention_operators import is_attention, lift
from onnx_fuse.analysis.operators.lifted import Lifted
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.assembly import assemble
from onnx_fuse.analysis.record.content import check_content
from onnx_fuse.analysis.record.copies import check_copies
from onnx_fuse.analysis.record.dependence import is_of_constants, joins
from onnx_fuse.analysis.record.enforced import check_enforced
from onnx_fuse.analysis.record.meaning import check_factor, check_meaning, check_network
from onnx_fuse.analysis.record.records import AttentionBlock, Site
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.scores.bounds import (
    highest_score,
    keeps_logarithm,
    keeps_scores,
    may_be_infinite,
    may_hide_rows,
)
from onnx_fuse.analysis.scores.chain import Chain
from onnx_fuse.analysis.scores.scores import ScoreWalk
from onnx_fuse.analysis.scores.sums import Scores, share_positions
from onnx_fuse.analysis.scores.zero_lanes import without_zero_lanes
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.analysis.softmax.ahead import is_made_of
from onnx_fuse.analysis.softmax.anchors import Softmax, softmax_of
from onnx_fuse.analysis.softmax.cut_lanes import without_cut_lanes
from onnx_fuse.analysis.softmax.gate_sinks import with_sink
from onnx_fuse.analysis.softmax.output import Output, OutputWalk
from onnx_fuse.analysis.softmax.values import ValuePart, Values
from onnx_fuse.analysis.softmax.weights import WeightWalk
from onnx_fuse.analysis.softmax.zeroed_rows import with_zeroed_rows
from onnx_fuse.analysis.stray_weights import stray_weights
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.op.core import Takes
from onnx_fuse.report import Code

_DEEPEST_HEAD = 2**20  # of which each lane can be looked at; no real head is as deep
# Why a part of a larger attention may have been declined; other codes are of things with a meaning
# of their own.
_OTHER_PARTS = (
    Code.NO_SCORES,
    Code.SCORES_CHANGED,
    Code.WEIGHTS_READ,
    Code.SEVERAL_PRODUCTS,
    Code.SHAPE_UNKNOWN,
    Code.PARTIAL,
)


def recognise(graph: Graph, shapes: Shapes) -> Iterator[Site]:
    """Yield every attention site of a graph (not of its sub-graphs), in the order of its nodes."""
    sites: list[Site] = []
    for node in graph.nodes:
        site = _site(node, shapes)
        if site is not None:
            sites.append(site)
    for number, site in enumerate(sites):  # the later ones know which gates stay outside
        blocks = [each.block for each in sites if each.block is not None]
        if site.block is not None and stays_outside(site.block, blocks):
            sites[number] = _site(site.node, shapes, takes_gate=False) or site
    sites = _outside_blocks(sites)
    sites += stray_weights(graph, sites, shapes)
    place = {node: at for at, node in enumerate(graph.nodes)}
    yield from _without_parts(sorted(sites, key=lambda site: place[site.node]))


def _site(node: Node, shapes: Shapes, *, takes_gate: bool = True) -> Site | None:
    """Return the attention site at a node, or None if there is none."""
    trail = Trail()
    trail.enter("operator" if is_attention(node) else "softmax")
    trail.add(node)
    try:
        softmax = softmax_of(node, shapes)
        if softmax is None and not is_attention(node):
            return None
        recogniser = _Recogniser(node, softmax, shapes, trail)
        recogniser.takes_gate = takes_gate
        block = recogniser.block()
    except Declined as declined:
        if declined.code is Code.NO_SCORES and all(map(is_of_constants, node.given)):
            declined = Declined(Code.CONSTANT, node)
        return Site(node, None, declined, trail)
    except MALFORMED:  # what Python says about it is about this code, not about the model
        step = next(reversed(trail.steps))
        return Site(node, None, Declined(Code.MALFORMED, node, what=step), trail)
    return None if block is None else Site(node, block, None, trail, recogniser.without)


def _outside_blocks(sites: list[Site]) -> list[Site]:
    """Leave out what was declined on its own and is a part of a block: a second division, say."""
    taken = {node for site in sites if site.block is not None for node in site.trail.nodes}
    return [site for site in sites if site.block is not None or site.node not in taken]


def _without_parts(sites: list[Site]) -> Iterator[Site]:
    """Decline blocks whose output is joined with that of a declined one.

    They are parts of one attention.
    """
    spoilt: dict[Node, Node] = {}
    for site in sites:
        if site.declined is not None and site.declined.code in _OTHER_PARTS:
            for join in joins(site.node.outputs[0], through_products=True):
                spoilt.setdefault(join, site.node)
    for site in sites:
        found = [] if site.block is None else joins(site.block.output.value, through_products=False)
        other = next((spoilt[join] for join in found if join in spoilt), None)
        if other is None:
            yield site
        else:
            declined = Declined(Code.PARTIAL, site.node, reader=other.name)
            yield Site(site.node, None, declined, site.trail)


class _Recogniser:
    """Recognises the block around one softmax or attention operator."""

    def __init__(self, node: Node, softmax: Softmax | None, shapes: Shapes, trail: Trail) -> None:
        self.node = node
        self.trail = trail
        self.softmax = softmax
        self.space = Space() if softmax is None else softmax.space
        self.shapes = BlockShapes(shapes, self.space)
        self.views = Views(self.space, self.shapes)
        self.takes_gate = True  # what multiplies the context
        self._known: tuple[Lifted, dict[str, Operand], Output]  # since `block` found one

    def block(self) -> AttentionBlock | None:
        """Return the record, or None if the weights meet no product: then this is no attention.

        Raises: Declined.
        """
        lifted = (
            lift(self.node, self.views) if self.softmax is None else self._written_out(self.softmax)
        )
        if lifted is None:
            return None
        for axis in self._depths(lifted):
            if (size(axis).as_int() or 0) > _DEEPEST_HEAD:
                raise Declined(Code.MALFORMED, self.node, what="heads")
        lifted = self._with_meaning(self._of_needed_lanes(lifted))
        scores, values = lifted.scores, lifted.values
        depth, depth_v = self._depths(lifted)
        parts = lifted.parts or {
            name: self._operand(lifted, name, ref, own)
            for name, ref, own in (
                ("q", scores.query, depth),
                ("k", scores.key, depth),
                ("v", values.value, depth_v),
            )
        }
        self.trail.enter("output")
        trail = Trail() if values.factors else self.trail
        below = OutputWalk(self.views, self.node, trail, takes_gate=self.takes_gate)
        output = below.output(values.context)
        if values.factors:  # by them the graph multiplies the context, before any projection
            output = output.plain or output
        if values.several is not None and output.projection is None:
            # What is gained without the output's product is lost by writing the weights down.
            raise values.several
        self.trail.enter("layout")
        self._known = lifted, parts, output
        return self._assembled(*self._known)

    def without(self, names: Collection[str]) -> AttentionBlock | None:
        """Return the block with these projections left outside; None if that is none."""
        lifted, parts, output = self._known
        values = {name: parts[name].plain or parts[name] for name in names}
        try:
            return self._assembled(lifted, parts | values, output)
        except (Declined, *MALFORMED):
            return None

    def _with_meaning(self, lifted: Lifted) -> Lifted:
        """Return what was found, if it means attention.

        A bias that is a product of computed tensors stays one unless it is of their content.
        """
        self.trail.enter("meaning")
        try:
            check_meaning(self.views, self.node, lifted.scores, lifted.values)
            check_copies(self.views, self.node, lifted.scores, lifted.values)
        except Declined as declined:
            joined = self._joined() if declined.code is Code.CONTENT_BIAS else None
            if joined is None:
                raise
            return joined
        return lifted

    def _of_needed_lanes(self, lifted: Lifted) -> Lifted:
        """Return the same without lanes that only make heads as deep as a kernel wants them."""
        core = lifted.core
        takes_any = core is None or {core.query, core.key_value} == {Takes.HEADS}
        if lifted.parts or lifted.steps or lifted.pasts or not takes_any:
            return lifted  # an operator's own inputs are as deep as it takes them
        self.trail.enter("values")
        depth, graph = self._value_depth(lifted.scores, lifted.values), self.node.graph
        return replace(
            lifted,
            scores=without_zero_lanes(lifted.scores, self.views),
            values=without_cut_lanes(lifted.values, depth, graph, self.views, self.trail),
        )

    def _joined(self) -> Lifted | None:
        """Return the same with scores that are a sum of products; None if they are no such sum."""
        try:
            found = self.softmax and self._written_out(self.softmax, joins_products=True)
            if not found or not found.scores.products:
                return None
            check_meaning(self.views, self.node, found.scores, found.values)
        except Declined:
            return None
        return found if share_positions(found.scores, found.values.value, self.space) else None

    def _operand(self, lifted: Lifted, name: str, ref: Ref, depth: Axis) -> Operand:
        self.trail.enter({"q": "query", "k": "key", "v": "value"}[name])
        scores = lifted.scores
        parts = self._parts(lifted, name)
        if parts:
            return joined_operand(parts, depth, scores.column)
        queries = scores.query.index
        if name == "q" or (name == "v" and lifted.values.steps):  # which may differ by query
            queries = ()
        graph = self.node.graph
        walk = OperandWalk(self.views, graph, depth, scores.column, self.trail, queries)
        steps, past = lifted.steps.get(name, ()), lifted.pasts.get(name)
        return walk.operand(ref, steps, past, rotates=name != "v")

    def _written_out(self, softmax: Softmax, *, joins_products: bool = False) -> Lifted | None:
        """Return the scores above and the values below a softmax; None if there are no values."""
        self.trail.add_between(softmax.weights.value, softmax.scores.value)
        self.trail.enter("scores")
        written = softmax.written
        try:
            walk = ScoreWalk(self.views, self.node, self.trail, joins_products=joins_products)
            chain = Chain([*written.operations], sinks=written.sink)
            scores = walk.scores(softmax.scores, softmax.column, chain)
            self._check_numbers(chain)
        except Declined:
            # Worth a word only if there are values: else the softmax is no attention's.
            if written.late is None and not self._meets_values(softmax):
                return None
            raise
        if written.zero_nan:
            inner = chain.operations[len(written.operations) :]
            if may_be_infinite(inner, chain.product, self.shapes):
                raise Declined(Code.WEIGHTS_SCALED, self.node)
        self.trail.enter("values")
        below = WeightWalk(
            self.views,
            self.node,
            self.trail,
            scores.column,
            scores.chain,
            sums_to_one=not written.zero_nan,
        )
        operations = [*chain.operations]
        if written.late is not None:
            values = below.divided_late(written.late, softmax.weights, zero_nan=written.zero_nan)
        elif (found := self._values_below(below, scores, softmax)) is not None:
            values = found
        else:
            return None
        values = self._with_zeroed_rows(values, scores)
        is_masked = [*map(id, chain.operations)] != [*map(id, operations)]
        return Lifted(scores, self._gated(values, chain, softmax, is_masked=is_masked))

    def _values_below(self, below: WeightWalk, scores: Scores, softmax: Softmax) -> Values | None:
        """Return the values that the weights of a softmax meet; None if there are none."""
        written, chain = softmax.written, scores.chain
        try:
            values = below.values(softmax.weights)
        except Declined as declined:
            if declined.code is Code.WEIGHTS_SCALED:
                check_factor(self.views, self.node, scores, softmax.weights.value)
                for part in scores.each:
                    check_network(self.views, self.node, part)
                    check_content(self.views, part)
            raise
        if values is None or self._are_of_scores(values, softmax):
            return None
        if written.by_logarithm and not keeps_logarithm(
            chain.operations, chain.product, self.shapes
        ):
            what = "takes off a logarithm, which is lost beside what a mask adds, or may add"
            raise self._changed(self.node, what)
        return replace(values, zero_nan=values.zero_nan or written.zero_nan)

    def _with_zeroed_rows(self, values: Values, scores: Scores) -> Values:
        chain, column = scores.chain, scores.column
        return with_zeroed_rows(values, chain, column, self.node, self.views, self.trail)

    def _gated(
        self, values: Values, chain: Chain, softmax: Softmax, *, is_masked: bool = False
    ) -> Values:
        """Return the product behind its gate where that is a sink.

        is_masked: whether weights are masked behind the softmax.

        Raises: Declined where rows that a mask hides as a whole are NaN: beside a sink they are 0.
        """
        written, product = softmax.written, chain.product
        inner = chain.operations[len(written.operations) :]
        found = values
        if not (written.operations or is_masked):  # of which the gate's scores know nothing
            found = with_sink(values, chain, softmax.column, self.views)
        is_nan = (written.loses_rows or found is not values) and not values.zero_nan
        if is_nan and may_hide_rows(inner, product, softmax.column, self.views):
            what = "may hide whole rows, which are NaN then, and 0 beside a sink"
            raise self._changed(softmax.scores.value.producer or self.node, what)
        self.trail.add_between(found.context.value, values.context.value)
        return found

    def _are_of_scores(self, values: Values, softmax: Softmax) -> bool:
        """Return whether weights meet what is made of them or their scores, in its place.

        An entropy is such a sum, and a soft maximum. It is no attention: there are no values.
        """
        rows = self.space.atoms_of(*softmax.weights.index)
        sources = (softmax.weights.value, softmax.scores.value)
        return rows <= self.space.atoms_of(*values.value.index) and is_made_of(
            values.value.value, sources, self.shapes
        )

    def _check_numbers(self, chain: Chain) -> None:
        """Raise Declined where scores are lost that the block would keep.

        A Cast rounds them away, or zero times minus infinity is NaN, or their own mean is large, or
        they are beyond what should only hide them.
        """
        for outside, bounding, limit in chain.limits:
            inner = chain.operations[outside:]
            if highest_score(inner[::-1], chain.product, self.shapes) > limit:
                what = "bounds them by numbers between which they aren't proved to be"
                raise self._changed(bounding, what)
        for outside, taken in chain.centrings:
            inner = chain.operations[outside:]
            if may_be_infinite(inner, chain.product, self.shapes) or not keeps_logarithm(
                inner, chain.product, self.shapes
            ):
                what = "takes off a number of each row, which is large beside a mask, or may be"
                raise self._changed(taken, what)
        for outside, product in chain.zeroings:
            if may_be_infinite(chain.operations[outside:], chain.product, self.shapes):
                what = "makes NaN of what a mask has made infinite, or may have"
                raise self._changed(product, what)
        for outside, cast in chain.roundings:
            dtype = None if cast.outputs[0] is None else self.shapes.dtype(cast.outputs[0])
            if not keeps_scores(chain.operations[outside:], dtype, self.shapes):
                what = "rounds them, so that they are lost beside what a mask adds, or may add"
                raise self._changed(cast, what)

    @staticmethod
    def _changed(node: Node, what: str) -> Declined:
        return Declined(Code.SCORES_CHANGED, node, what=what)

    def _meets_values(self, softmax: Softmax) -> bool:
        """Return whether weights lead to products, perhaps changed. Raises: Declined."""
        below = WeightWalk(self.views, self.node, Trail(), softmax.column, None)
        try:
            found = below.values(softmax.weights)
            return found is not None and not self._are_of_scores(found, softmax)
        except Declined as declined:
            if declined.code not in (Code.WEIGHTS_SCALED, Code.SEVERAL_PRODUCTS):
                raise
            return True

    def _record(self, lifted: Lifted, parts: dict[str, Operand], output: Output) -> AttentionBlock:
        """Return the record of parts that fit. Raises: Misfit, Declined."""
        found = assemble(Arrangement(self.node, self.views, lifted, parts, output))
        queries = lifted.scores.query.value
        check_enforced(found, self.space, self.shapes, queries)
        return found

    def _assembled(
        self, lifted: Lifted, parts: dict[str, Operand], output: Output
    ) -> AttentionBlock:
        """Bring the parts together; one that doesn't fit stays outside. Raises: Declined."""
        while True:  # ends: a plain part takes in less than the one that it replaces
            try:
                return self._record(lifted, parts, output)
            except Declined:
                if output.gate is None or output.plain is None:
                    raise
                output = output.plain  # which has nothing to do with how the gate is viewed
            except Misfit as misfit:
                if misfit.part == "output" and output.plain is not None:
                    output = output.plain
                    continue
                plain = parts[misfit.part].plain
                if plain is None:
                    raise Declined(
                        Code.SHAPE_UNKNOWN,
                        self.node,
                        value=parts[misfit.part].source.name,
                        what="its place among batch, heads, rows and columns",
                    ) from None
                parts[misfit.part] = plain

    def _parts(self, lifted: Lifted, name: str) -> list[ScaledPart]:
        """Return what queries, keys or values have to be joined of; nothing if they are one."""
        scores = lifted.scores
        if name == "v":
            return [
                ScaledPart(part.value, self._value_depth(scores, part), column=part.column)
                for part in lifted.values.parts
            ]
        if not scores.are_joined:  # but a sum, in which the queries are scaled
            return [
                ScaledPart(part.query, part.lanes, part.factor)
                if name == "q"
                else ScaledPart(part.key, part.lanes)
                for part in scores.products
            ]
        if name == "q":  # all have the same
            return []
        return [
            ScaledPart(part.key, part.lanes, part.factor, part.column) for part in scores.products
        ]

    def _depths(self, lifted: Lifted) -> tuple[Axis, Axis]:
        """Return the lanes of queries and keys, and of values."""
        return merged(lifted.scores.depth), self._value_depth(lifted.scores, lifted.values)

    def _value_depth(self, scores: Scores, values: Values | ValuePart) -> Axis:
        if isinstance(values, Values) and values.lanes:
            return values.lanes
        context = self.space.resolve_index(values.context.index)
        shared = self.space.atoms_of(*scores.index)
        own = self.space.atoms_of(*values.value.index)
        return tuple(atom for atom in index_atoms(context) if atom in own and atom not in shared)
