"""The attention block as a record, and its recogniser.

An attention block is a statement about axes: scores are a product of queries and keys, a softmax runs over the keys'
axis, and the product with the values sums that axis again. From there upwards and downwards everything is accounted
for, each node being part of the record or the reason why the block ends there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_fuse.analysis.anchors import Softmax, softmax_of
from onnx_fuse.analysis.axes import Atom, Axis, Index, Space, atoms, fixed, index_atoms, size
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.expr import Call, Expr, Extents, arranged, cost, same
from onnx_fuse.analysis.lifted import Lifted, is_attention, lift
from onnx_fuse.analysis.linear import Projection, apply_steps, gathered
from onnx_fuse.analysis.meaning import check_meaning, joins, kind_of
from onnx_fuse.analysis.operand import Operand, OperandWalk, depth_positions, resolved, step_atoms
from onnx_fuse.analysis.rope import canonical_order, table_of
from onnx_fuse.analysis.scores import Declined, Masking, Scores, ScoreWalk, masking_of
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.views import BlockShapes, Facts, Ref, Views
from onnx_fuse.analysis.weights import Output, Values, WeightWalk
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.report import Code


@dataclass(frozen=True)
class Weight:
    """A matrix to be gathered from the graph's constants, lazily: one projection or several side by side."""

    parts: tuple[tuple[Projection, dict[Atom, np.ndarray], int], ...]

    @property
    def columns(self) -> int:
        """Number of columns."""
        return sum(count for _, _, count in self.parts)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(np.prod([atom.extent.as_int() or 0 for axis in self.parts[0][0].summed for atom in atoms(axis)]))

    def matrix(self, shapes: Facts) -> np.ndarray:
        """Return (rows, columns), float32."""
        return np.concatenate([part.matrix(shapes, lanes, count) for part, lanes, count in self.parts], axis=1)

    def bias(self, shapes: Facts) -> np.ndarray | None:
        """Return (columns,), float32, or None if no part has a bias."""
        found = [part.bias(shapes, lanes, count) for part, lanes, count in self.parts]
        if all(bias is None for bias in found):
            return None
        return np.concatenate(
            [
                np.zeros(count, dtype=np.float32) if bias is None else bias
                for bias, (_, _, count) in zip(found, self.parts, strict=True)
            ]
        )

    def key(self) -> tuple[object, ...]:
        """Identity of the content: the same key, the same matrix."""
        return tuple(
            (
                id(part.weight.value),
                part.alpha,
                _lanes_key(part.weight.index, part, lanes),
                tuple((step.kind, step.factor, id(step.constant.value), _lanes_key(step.constant.index, part, lanes)) for step in part.steps),
                count,
            )
            for part, lanes, count in self.parts
        )


def _lanes_key(index: Index, part: Projection, lanes: dict[Atom, np.ndarray]) -> tuple[object, ...]:
    """Describe where an index points, without the identity of atoms."""
    rows = {atom: position for position, atom in enumerate(atom for axis in part.summed for atom in atoms(axis))}

    def digit_key(digit: object) -> object:
        if isinstance(digit, Atom):
            return ("row", rows[digit], str(digit.extent)) if digit in rows else lanes[digit].tobytes()
        return repr(digit) if not index_atoms(((digit,),)) else (  # type: ignore[arg-type]
            type(digit).__name__,
            *(str(getattr(digit, name, "")) for name in ("start", "step", "extent")),
            getattr(digit, "table", np.zeros(0)).tobytes(),
            tuple(digit_key(inner) for inner in digit.inner),  # type: ignore[attr-defined]
        )

    return tuple(tuple((str(digit.extent), digit_key(digit)) for digit in axis) for axis in index)


@dataclass(frozen=True)
class NormRecord:
    """A q/k norm with its scale and shift by (heads, head_dim), float32."""

    kind: str
    over_heads: bool
    epsilon: float
    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True)
class AttentionBlock:
    """One attention block: what the operator needs to know, and what it replaces.

    Sources and values are expressions, (batch, sequence, size) and (batch, heads, sequence, size); weights are
    gathered lazily into the operator's column order.
    """

    node: Node  # the softmax, or the operator that already was attention
    kind: str  # "self" | "cross"
    num_heads: int
    kv_num_heads: int
    head_dim: int
    v_head_dim: int
    batch: Dim
    q_seq: Dim
    sources: dict[str, Expr]
    weights: dict[str, Weight]
    norms: dict[str, NormRecord]
    tables: dict[str, Expr]
    rotary_dim: int
    interleaved: bool
    scale: float
    softcap: float
    masking: Masking
    sinks: Expr | None
    zero_nan: bool
    is_causal: bool
    out_weight: Weight | None
    out_size: int
    output: Ref
    output_axes: tuple[Axis, ...]  # (batch, q_seq, columns) in the atoms of `output`
    replaced: Node  # the node that makes `output` today
    extents: Extents = field(repr=False)

    @property
    def rows(self) -> Dim:
        """batch * q_seq: the rows of the hidden input."""
        return self.batch * self.q_seq


@dataclass(frozen=True)
class Site:
    """An attention site: its record, or why there is none."""

    node: Node
    block: AttentionBlock | None
    declined: Declined | None
    words: dict[str, object] = field(default_factory=dict)


class _Misfit(Exception):
    """A part of an operand that doesn't fit the rest: the operand ("q", "k", "v") is to enter as a value."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


def recognise(graph: Graph, shapes: Shapes) -> Iterator[Site]:
    """Yield every attention site of a graph (not of its sub-graphs), in the order of its nodes."""
    sites: list[Site] = []
    for node in graph.nodes:
        softmax = softmax_of(node, shapes)
        if softmax is None and not is_attention(node):
            continue
        try:
            block = _Recogniser(node, softmax, shapes).block()
        except Declined as declined:
            sites.append(Site(node, None, declined))
            continue
        if block is not None:
            sites.append(Site(node, block, None))
    yield from _without_parts(sites)


def _without_parts(sites: list[Site]) -> Iterator[Site]:
    """Decline blocks whose output is joined with that of a declined one: they are parts of one attention."""
    spoilt: dict[Node, Node] = {}
    for site in sites:
        if site.block is None:
            for join in joins(site.node.outputs[0], through_products=True):
                spoilt.setdefault(join, site.node)
    for site in sites:
        found = [] if site.block is None else joins(site.block.output.value, through_products=False)
        other = next((spoilt[join] for join in found if join in spoilt), None)
        if other is None:
            yield site
        else:
            yield Site(site.node, None, Declined(Code.PARTIAL, site.node, node=site.node.name, reader=other.name))


class _Recogniser:
    """Recognises the block around one softmax or attention operator."""

    def __init__(self, node: Node, softmax: Softmax | None, shapes: Shapes) -> None:
        self.node = node
        self.softmax = softmax
        self.space = Space() if softmax is None else softmax.space
        self.shapes = BlockShapes(shapes, self.space)
        self.views = Views(self.space, self.shapes)

    def block(self) -> AttentionBlock | None:
        """Return the record, or None if the weights meet no product: then this is no attention. Raises: Declined."""
        lifted = lift(self.node, self.views) if self.softmax is None else self._written_out(self.softmax)
        if lifted is None:
            return None
        scores, values = lifted.scores, lifted.values
        check_meaning(self.views, self.node, scores, values)
        walk = OperandWalk(self.views, self.node.graph)
        depth = tuple(digit for axis in scores.depth for digit in axis)
        depth_v = self._value_depth(scores, values)
        parts = lifted.parts or {
            name: walk.operand(ref, own, lifted.steps.get(name, ()), rotates=name != "v")
            for name, ref, own in (
                ("q", scores.query, depth),
                ("k", scores.key, depth),
                ("v", values.value, depth_v),
            )
        }
        output = WeightWalk(self.views, self.node).output(values.context, depth_v)
        return self._assembled(lifted, parts, output)

    def _written_out(self, softmax: Softmax) -> Lifted | None:
        """The scores above and the values below a softmax; None if there are no values."""
        refused: Declined | None = None
        scores: Scores | None = None
        try:
            scores = ScoreWalk(self.views, self.node).scores(softmax.scores, softmax.column)
        except Declined as declined:
            refused = declined
        column = softmax.column if scores is None else scores.column
        chain = None if scores is None else scores.chain
        values = WeightWalk(self.views, self.node).values(softmax.weights, column, chain)
        if values is None:
            return None
        if scores is None:
            assert refused is not None
            raise refused
        return Lifted(scores, values)

    def _assembled(self, lifted: Lifted, parts: dict[str, Operand], output: Output) -> AttentionBlock:
        """Bring the parts together; one that doesn't fit enters as a value."""
        for _ in range(8):
            try:
                return _Assembly(self, lifted, parts, output).block()
            except _Misfit as misfit:
                plain = parts[misfit.part].plain
                if plain is None:
                    raise Declined(
                        Code.SHAPE_UNKNOWN,
                        self.node,
                        value=parts[misfit.part].source.name,
                        what="its place among batch, heads, rows and columns",
                    ) from None
                parts[misfit.part] = plain
        raise AssertionError("every operand was demoted and still something did not fit")

    def _value_depth(self, scores: Scores, values: Values) -> Axis:
        context = self.space.resolve_index(values.context.index)
        shared = {*index_atoms(self.space.resolve_index(scores.index))}
        own = {*index_atoms(self.space.resolve_index(values.value.index))}
        return tuple(atom for atom in index_atoms(context) if atom in own and atom not in shared)


class _Assembly:
    """Brings the parts of one block to the operator's canonical axes."""

    def __init__(
        self, owner: _Recogniser, lifted: Lifted, parts: dict[str, Operand], output: Output
    ) -> None:
        self.owner, self.views, self.space, self.shapes = owner, owner.views, owner.space, owner.shapes
        self.node = owner.node
        self.lifted, self.output = lifted, output
        self.scores, self.values = lifted.scores, lifted.values
        self.parts = {name: resolved(part, self.views) for name, part in parts.items()}
        self.column = self.space.resolve(self.scores.column)
        self.depth = tuple(digit for axis in self.scores.depth for digit in self.space.resolve(axis))
        self._roles()
        self.extents = Extents(self.views, self._known_values())

    # Which atom is what -----------------------------------------------------------------------------------------------

    def _head_atoms(self, name: str) -> list[Atom]:
        part = self.parts[name]
        if part.projection is None:
            return []
        inner = {*atoms(part.inner_depth)}
        columns = part.projection.column_atoms
        if not inner <= {*columns}:
            raise _Misfit(name)
        return [atom for atom in columns if atom not in inner]

    def _roles(self) -> None:
        """Sort the atoms into batch, heads, rows, columns and depth."""
        heads: list[Atom] = []
        for name in ("q", "k", "v"):
            heads += [atom for atom in self._head_atoms(name) if atom not in heads]
        depth_v = {*atoms(self.parts["v"].depth)}
        if self.output.weight is not None:
            summed = [atom for axis in (self.space.resolve((a,)) for a in self.output.summed) for atom in atoms(axis)]
            heads += [atom for atom in summed if atom not in heads and atom not in depth_v]
        scored = [*index_atoms(self.space.resolve_index(self.scores.index))]
        columns = {*atoms(self.column)}
        seen = {name: {*part.index_atoms()} for name, part in self.parts.items()}
        depths = {*atoms(self.depth), *depth_v, *(a for p in self.parts.values() for a in atoms(p.inner_depth))}
        if not heads:
            heads = self._heads_of_values(scored, columns)
        if columns & {*heads} or any(atom in depths for atom in heads):
            raise self._declined_channels()
        known_to_keys = seen["k"] | seen["v"]
        free = [atom for atom in self._in_order() if atom not in columns and atom not in depths]
        self.rows = tuple(a for a in free if a not in heads and a not in known_to_keys)
        self.batch = tuple(a for a in free if a not in heads and a in known_to_keys)
        self.kv_heads = tuple(a for a in heads if a in known_to_keys)
        self.group_heads = tuple(a for a in heads if a not in known_to_keys)
        self.heads = (*self.kv_heads, *self.group_heads)
        self.columns = tuple(a for a in self._in_order("k") if a in columns)
        for name, own in (("k", columns), ("v", columns)):
            if not own <= seen[name]:
                raise _Misfit(name) if self.parts[name].plain else self._declined_channels()
        for atom in self.heads:
            if atom.extent.as_int() is None:
                raise self._unknown(self.scores.query.value, "the number of heads")
        self._check_positions(columns)

    def _in_order(self, first: str = "q") -> list[Atom]:
        """Return all atoms, those of one operand's source first, in the order in which they stand there."""
        found: list[Atom] = []
        for name in (first, *(n for n in ("q", "k", "v") if n != first)):
            part = self.parts[name]
            ref = part.choices[0] if part.projection is None else part.projection.source
            summed = () if part.projection is None else index_atoms(part.projection.summed)
            found += [atom for atom in index_atoms(ref.index) if atom not in found and atom not in summed]
        return found

    def _heads_of_values(self, scored: Sequence[Atom], columns: set[Atom]) -> list[Atom]:
        """Without any projection: the axis right before rows and columns, as the operator's page has it."""
        index = self.space.resolve_index(self.scores.index)
        if len(index) < 4:
            return []
        keys = {*self.parts["k"].index_atoms(), *self.parts["v"].index_atoms()}
        candidates = [a for a in atoms(index[1]) if a not in columns and a in keys]
        return candidates if all(a.extent.as_int() is not None for a in candidates) else []

    def _check_positions(self, columns: set[Atom]) -> None:
        """A projection's source has positions only: batch and rows for the query, batch and columns for the others."""
        for name, part in self.parts.items():
            if part.projection is None:
                continue
            own = {*self.rows} if name == "q" else columns
            inner = {a for axis in part.projection.summed for a in atoms(axis)}
            positions = {*index_atoms(part.projection.source.index)} - inner
            if not positions <= own | {*self.batch}:
                raise _Misfit(name)
            if {*part.projection.column_atoms} - {*self.heads} - {*atoms(part.inner_depth)}:
                raise _Misfit(name)
            if step_atoms(part.projection.steps) - {*part.projection.column_atoms}:
                raise _Misfit(name)

    def _declined_channels(self) -> Declined:
        return Declined(Code.CHANNEL_ATTENTION, self.node, node=self.node.name)

    def _unknown(self, value: Value, what: str) -> Declined:
        return Declined(Code.SHAPE_UNKNOWN, value.producer or self.node, value=value.name, what=what)

    def _known_values(self) -> tuple[Value, ...]:
        found: list[Value] = []
        for part in self.parts.values():
            refs = part.choices if part.projection is None else (part.projection.source,)
            found += [ref.value for ref in refs if ref.value not in found]
        return tuple(found)

    # The record -------------------------------------------------------------------------------------------------------

    def block(self) -> AttentionBlock:
        """Return the record. Raises: _Misfit, Declined."""
        order, interleaved, rotary = self._rotation()
        head_dim = self._int(self.depth, "the head size")
        v_head_dim = self._int(self.parts["v"].depth, "the values' head size")
        groups = [self.batch, self.heads, self.rows, self.columns]
        masking = masking_of(self.scores.chain, groups, self.extents, self.node)
        sources, weights = self._operands(order, head_dim, v_head_dim)
        if not _uses_rotation(self.parts):
            rotary, interleaved = 0, False
        return AttentionBlock(
            node=self.node,
            kind=kind_of(self.parts["q"].source, self.parts["k"].source, self.parts["v"].source),
            num_heads=self._int(self.heads, "the number of heads"),
            kv_num_heads=self._int(self.kv_heads, "the number of key/value heads"),
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            batch=size(self.batch),
            q_seq=size(self.rows),
            sources=sources,
            weights=weights,
            norms=self._norms(order, head_dim),
            tables=self._tables(order, interleaved),
            rotary_dim=rotary,
            interleaved=interleaved,
            scale=masking.scale * self.parts["q"].scale * self.parts["k"].scale,
            softcap=masking.softcap,
            masking=masking,
            sinks=self._sinks(),
            zero_nan=self.values.zero_nan,
            is_causal=self.lifted.is_causal,
            **self._output(v_head_dim),
            extents=self.extents,
        )

    def _int(self, axis: Axis, what: str) -> int:
        number = size(axis).as_int()
        if number is None:
            raise self._unknown(self.scores.query.value, what)
        return number

    def _rotation(self) -> tuple[np.ndarray, bool, int]:
        """Return the lanes in the operator's order, whether pairs are interleaved, and how many lanes are rotated."""
        ropes = {name: part.rope for name, part in self.parts.items() if part.rope is not None}
        head_dim = self._int(self.depth, "the head size")
        if not ropes:
            return np.arange(head_dim), False, 0
        first = next(iter(ropes.values()))
        for name, rope in ropes.items():
            if len(rope.pair) != head_dim:
                raise _Misfit(name)
            if (rope.pair != first.pair).any():
                raise _Misfit(name)
        order, interleaved = canonical_order(first)
        for name in ("q", "k"):
            part = self.parts[name]
            if part.projection is None:
                straight = (order == np.arange(head_dim)).all()
                whole = part.rope is None or (
                    (part.rope.sigma == np.arange(head_dim)).all() and size(part.rope.depth).as_int() == head_dim
                )
                if not straight:
                    raise _Misfit(next(iter(ropes)))
                if not whole:
                    raise _Misfit(name)
        return order, interleaved, int(first.rotated.sum())

    def _lanes(self, name: str, order: np.ndarray, heads: Axis) -> tuple[dict[Atom, np.ndarray], int]:
        """Return each column atom's value over (heads, depth), heads outermost."""
        part = self.parts[name]
        extents = [atom.extent.as_int() or 0 for atom in atoms(heads)]
        count = int(np.prod(extents)) if extents else 1
        inner = depth_positions(part, order)
        digits = np.unravel_index(np.arange(count), extents) if extents else ()
        lanes = {atom: np.repeat(digit, len(order)) for atom, digit in zip(atoms(heads), digits, strict=True)}
        lanes |= {atom: np.tile(position, count) for atom, position in inner.items()}
        return lanes, count * len(order)

    def _operands(self, order: np.ndarray, head_dim: int, v_head_dim: int) -> tuple[dict[str, Expr], dict[str, Weight]]:
        sources: dict[str, Expr] = {}
        weights: dict[str, Weight] = {}
        names = {"q": ("hidden", "query"), "k": ("context", "key"), "v": ("value_context", "value")}
        orders = {"q": order, "k": order, "v": np.arange(v_head_dim)}
        for name, part in self.parts.items():
            positions = self.rows if name == "q" else self.columns
            heads = self.heads if name == "q" else self.kv_heads
            if part.projection is not None:
                inner = tuple(a for axis in part.projection.summed for a in atoms(axis))
                groups = [self.batch, positions, inner]
                source = arranged(
                    part.projection.source.value,
                    part.projection.source.index,
                    groups,
                    self.extents,
                    whole=(True, True, True),
                )
                if source is None:
                    raise _Misfit(name)
                sources[names[name][0]] = source
                lanes, count = self._lanes(name, orders[name], heads)
                weights[name] = Weight(((part.projection, lanes, count),))
            else:
                depth = part.inner_depth
                sources[names[name][1]] = self._value(name, part, [self.batch, heads, positions, depth])
        return self._packed(sources, weights)

    def _value(self, name: str, part: Operand, groups: list[Axis]) -> Expr:
        """Return the operand as a value, from the view of it that takes the fewest nodes."""
        found = [
            arranged(choice.value, choice.index, groups, self.extents, whole=(True, True, True, True))
            for choice in part.choices
        ]
        known = [expr for expr in found if expr is not None]
        if not known:
            raise _Misfit(name)
        return min(known, key=cost)

    def _packed(
        self, sources: dict[str, Expr], weights: dict[str, Weight]
    ) -> tuple[dict[str, Expr], dict[str, Weight]]:
        """Name what is the same once: one source for all, or one context for keys and values."""
        if {"hidden", "context", "value_context"} <= sources.keys():
            if same(sources["hidden"], sources["context"]) and same(sources["hidden"], sources["value_context"]):
                packed = Weight(tuple(part for name in "qkv" for part in weights[name].parts))
                return {"hidden": sources["hidden"]}, {"qkv": packed}
        if {"context", "value_context"} <= sources.keys() and same(sources["context"], sources["value_context"]):
            del sources["value_context"]
        return sources, weights

    def _norms(self, order: np.ndarray, head_dim: int) -> dict[str, NormRecord]:
        found: dict[str, NormRecord] = {}
        steps_left = tuple(self.scores.chain.query_steps)
        for name in ("q", "k"):
            norm = self.parts[name].norm
            if norm is None:
                continue
            heads = self.heads if name == "q" else self.kv_heads
            own = {*atoms(self.parts[name].inner_depth)}
            over = {atom for axis in norm.over for atom in atoms(axis)}
            width = size(tuple(digit for axis in norm.over for digit in axis))
            all_heads = over == own | {*heads} and bool(heads)
            if over != own and not all_heads:
                raise _Misfit(name)
            expected = head_dim * (self._int(heads, "the number of heads") if over != own else 1)
            if width.as_int() != expected:
                raise _Misfit(name)
            steps = norm.steps
            if name == "q":
                steps, steps_left = (*steps, *(replace_step(s, self.space) for s in steps_left)), ()
            if step_atoms(steps) - own - {*heads}:
                raise _Misfit(name)
            lanes, count = self._lanes(name, order, heads)
            factor, shift = apply_steps(steps, self.shapes, lanes, count)
            if shift.any() and norm.kind != "layer":
                raise _Misfit(name)
            shape = (count // head_dim, head_dim)
            bias = shift.reshape(shape).astype(np.float32) if shift.any() else None
            weight = np.broadcast_to(factor, (count,)).reshape(shape).astype(np.float32)
            found[name] = NormRecord(norm.kind, over != own, norm.epsilon, weight, bias)
        if steps_left:
            raise Declined(Code.SCALE_NOT_SCALAR, self.node, value=steps_left[0].constant.value.name)
        return found

    def _tables(self, order: np.ndarray, interleaved: bool) -> dict[str, Expr]:
        tables: dict[str, Expr] = {}
        for name in ("q", "k"):
            rope = self.parts[name].rope
            if rope is None:
                continue
            positions = self.rows if name == "q" else self.columns
            heads = self.heads if name == "q" else self.kv_heads
            for crossed, word in ((False, "cos"), (True, "sin")):
                table = table_of(rope, order, interleaved, crossed, [self.batch, heads, positions], self.extents)
                if table is None:
                    raise _Misfit(name)
                tables[f"{name}_{word}"] = table
        return tables

    def _sinks(self) -> Expr | None:
        sinks = self.scores.chain.sinks
        if sinks is None:
            return None
        if isinstance(sinks.expr, Value) and self.shapes.is_constant(sinks.expr):
            constant = self._constant_sinks(sinks.expr, self.space.resolve_index(sinks.index))
            if constant is not None:
                return constant
        return self._head_vector(Ref(sinks.expr, sinks.index) if isinstance(sinks.expr, Value) else None)

    def _constant_sinks(self, value: Value, index: Index) -> np.ndarray | None:
        """Return a constant that is the same for all batches and rows, by heads."""
        data = self.shapes.constant(value)
        if data is None:
            return None
        for axis, digits in enumerate(index):
            if not {*atoms(digits)} <= {*self.heads}:
                if (data != data.take([0], axis=axis)).any():
                    return None
                index = (*index[:axis], fixed(0, size(digits)), *index[axis + 1 :])
        extents = [atom.extent.as_int() or 0 for atom in atoms(self.heads)]
        count = int(np.prod(extents)) if extents else 1
        digits_of = np.unravel_index(np.arange(count), extents) if extents else ()
        lanes = dict(zip(atoms(self.heads), digits_of, strict=True))
        picked = gathered(Ref(value, index), self.shapes, lanes)
        return np.broadcast_to(picked, (count,)).astype(np.float32)

    def _head_vector(self, ref: Ref | None) -> Expr:
        """A sink that the graph expands over batch and rows: the constant below the views."""
        while ref is not None:
            ref = ref.resolve(self.space)
            if {*index_atoms(ref.index)} <= {*self.heads}:
                expr = arranged(ref.value, ref.index, [self.heads], self.extents, whole=(True,))
                if expr is not None:
                    return expr
            ref = self.views.pull(ref)
        raise Declined(Code.UNSUPPORTED_OP, self.node, node=self.node.name, op="Concat", what="product and softmax")

    def _output(self, v_head_dim: int) -> dict[str, object]:
        depth_v = self.space.resolve(self.parts["v"].depth)
        output = self.output
        columns: Axis = (*self.heads, *depth_v)
        out_weight: Weight | None = None
        if output.weight is not None:
            summed = {a for atom in output.summed for a in atoms(self.space.resolve((atom,)))}
            columns = tuple(a for atom in output.columns for a in atoms(self.space.resolve((atom,))))
            if summed == {*self.heads, *depth_v}:
                out_weight = self._out_weight(output, depth_v, columns)
            else:
                raise self._unknown(output.ref.value, "which heads the output projection sums")
        axes = (self.batch, self.rows, columns)
        best: tuple[int, Ref] | None = None
        for choice in output.choices:
            ref = choice.resolve(self.space)
            probe = np.zeros(())
            made = arranged(probe, axes, ref.index, replace(self.extents, values=(*self.extents.values,)))
            if made is not None and (best is None or self._output_cost(made) < best[0]):
                best = (self._output_cost(made), ref)
        if best is None:
            raise self._unknown(output.ref.value, "how the output is laid out")
        replaced = best[1].value.producer
        assert replaced is not None
        return {
            "out_weight": out_weight,
            "out_size": 0 if out_weight is None else out_weight.columns,
            "output": best[1],
            "output_axes": axes,
            "replaced": replaced,
        }

    @staticmethod
    def _output_cost(expr: Expr) -> int:
        return 2 * cost(expr) + (1 if isinstance(expr, Call) else 0)

    def _out_weight(self, output: Output, depth_v: Axis, columns: Axis) -> Weight:
        """The projection whose rows are (heads, value depth) and whose columns are the output's."""
        assert output.weight is not None
        projection = Projection(
            output.weight.resolve(self.space),
            output.weight.resolve(self.space),
            (self.heads, depth_v),
            output.alpha,
            tuple(replace_step(step, self.space) for step in output.steps),
        )
        extents = [atom.extent.as_int() or 0 for atom in atoms(columns)]
        count = int(np.prod(extents))
        digits = np.unravel_index(np.arange(count), extents) if extents else ()
        return Weight(((projection, dict(zip(atoms(columns), digits, strict=True)), count),))


def replace_step(step, space):  # type: ignore[no-untyped-def]
    """Return a step in today's atoms."""
    return replace(step, constant=step.constant.resolve(space))


def _uses_rotation(parts: dict[str, Operand]) -> bool:
    return any(part.rope is not None for part in parts.values())
