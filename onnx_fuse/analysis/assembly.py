"""Brings the parts of one attention to the operator's canonical axes, and records them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.axes import (
    Atom,
    Axis,
    Index,
    atoms,
    evaluate,
    every_value,
    fixed,
    index_atoms,
    size,
)
from onnx_fuse.analysis.chain import Placed
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.expr import (
    Call,
    Expr,
    Extents,
    arranged,
    in_layout,
    leaves,
    nodes_added,
    same,
)
from onnx_fuse.analysis.lifted import Lifted
from onnx_fuse.analysis.linear import Projection, apply_steps, gathered
from onnx_fuse.analysis.masking import masking_of
from onnx_fuse.analysis.meaning import kind_of, needs
from onnx_fuse.analysis.operand import Operand, depth_positions, resolved, step_atoms
from onnx_fuse.analysis.records import AttentionBlock, NormRecord, Present, Weight
from onnx_fuse.analysis.roles import Misfit, Roles
from onnx_fuse.analysis.rope import canonical_order
from onnx_fuse.analysis.rope_table import table_of
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.analysis.weights import Output
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


class Assembly:
    """Brings the parts of one block to the operator's canonical axes."""

    def __init__(
        self, node: Node, views: Views, lifted: Lifted, parts: dict[str, Operand], output: Output
    ) -> None:
        self.node = node
        self.views, self.space, self.shapes = views, views.space, views.shapes
        self.lifted, self.output = lifted, output
        self.scores, self.values = lifted.scores, lifted.values
        self.parts = {name: resolved(part, self.views) for name, part in parts.items()}
        heads = self.scores.index[1] if lifted.has_heads else ()
        self.roles = Roles(node, self.space, self.scores, self.parts, output, heads)
        self.query_factors = list(self.scores.chain.query_factors)
        self._take_in_query_steps()
        self.extents = Extents(self.views, self._known_values())

    def _take_in_query_steps(self) -> None:
        """Give the constants that scale rows of scores to the query's projection, if it has one.

        A scale of each head commutes with a rotation. The query's norm has a weight for them; what
        is left multiplies the query as a value.
        """
        query = self.parts["q"]
        steps = tuple(step.resolve(self.space) for step in self.scores.chain.query_steps)
        if not steps or query.norm is not None:
            return
        if query.projection is not None and step_atoms(steps) <= {*self.roles.heads}:
            projection = replace(query.projection, steps=(*query.projection.steps, *steps))
            self.parts["q"] = replace(query, projection=projection)
            return
        self.query_factors += [
            (step.kind, Placed(step.constant.value, step.constant.index)) for step in steps
        ]

    def _unknown(self, value: Value, what: str) -> Declined:
        return Declined(
            Code.SHAPE_UNKNOWN, value.producer or self.node, value=value.name, what=what
        )

    def _known_values(self) -> tuple[Value, ...]:
        """Return the tensors whose sizes can be asked.

        They are what the operands are made of, outermost view first.
        """
        found: list[Value] = []
        for part in self.parts.values():
            refs = (
                part.choices if part.projection is None else self._sources(part.projection.source)
            )
            values = [ref.value for ref in refs]
            if part.past is not None and isinstance(part.past.past.expr, Value):
                values.append(part.past.past.expr)
            found += [value for value in values[::-1] if value not in found]
        return tuple(found)

    def _sources(self, ref: Ref) -> tuple[Ref, ...]:
        """Return the elements that a projection reads, and the same ones before each view."""
        return tuple(found.resolve(self.space) for found in self.views.chain(ref))

    def block(self) -> AttentionBlock:
        """Return the record. Raises: Misfit, Declined."""
        self._check_causal()
        order, interleaved, rotary = self._rotation()
        head_dim = self._int(self.roles.depth, "the head size")
        v_head_dim = self._int(self.parts["v"].depth, "the values' head size")
        groups = [self.roles.batch, self.roles.heads, self.roles.rows, self.roles.columns]
        masking = masking_of(self.scores.chain, groups, self.extents, self.node)
        sources, weights = self._operands(order, head_dim, v_head_dim)
        sources |= self._pasts()
        out_weight, output, output_axes = self._output()
        replaced = output.value.producer
        assert replaced is not None
        block = AttentionBlock(
            node=self.node,
            kind=kind_of(self.parts["q"].source, self.parts["k"].source, self.parts["v"].source),
            num_heads=self._int(self.roles.heads, "the number of heads"),
            kv_num_heads=self._int(self.roles.kv_heads, "the number of key/value heads"),
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            batch=size(self.roles.batch),
            q_seq=size(self.roles.rows),
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
            out_weight=out_weight,
            output=output,
            output_axes=output_axes,
            replaced=replaced,
            presents=self._presents(),
            lengths=self.lifted.lengths,
            core=self.lifted.core,
            core_inputs=self.lifted.core_inputs,
            extents=self.extents,
        )
        self._check_order(block)
        return block

    def _check_causal(self) -> None:
        """The operator's causal order is that of its own rows and columns. Raises: Misfit."""
        if not self.lifted.is_causal:
            return
        rows, columns = (self.space.resolve(axis) for axis in self.scores.index[-2:])
        if self.roles.rows != rows:
            raise Misfit("q")
        if self.roles.columns != columns:
            raise Misfit("k")

    def _check_order(self, block: AttentionBlock) -> None:
        """What the operator reads isn't computed from the joined keys and values that it makes."""
        if not block.presents:
            return
        shown = [present.ref for present in block.presents if present.ref is not None]
        made = {ref.value for ref in shown}
        masking = block.masking
        others = [masking.bias, masking.keep, masking.fill, block.sinks]
        exprs = [
            *block.sources.values(),
            *block.tables.values(),
            *(e for e in others if e is not None),
        ]
        if any(needs(value, made) for expr in exprs for value in leaves(expr)):
            raise Misfit("k")
        for ref in shown:
            # Who asks for the shape of an operator's own output stands behind it anyway.
            if ref.value.producer is not self.node and any(
                self.extents.expr(extent) is None for extent in self.shapes.shape(ref.value) or ()
            ):
                raise Misfit("k")

    def _pasts(self) -> dict[str, Expr]:
        found: dict[str, Expr] = {}
        for name, word in (("k", "past_key"), ("v", "past_value")):
            part = self.parts[name]
            if part.past is None:
                continue
            groups = [self.roles.batch, self.roles.kv_heads, part.past.old, part.depth]
            past = part.past.past
            expr = arranged(past.expr, past.index, groups, self.extents, whole=(True,) * 4)
            if expr is None:
                raise Misfit(name)
            found[word] = expr
        return found

    def _presents(self) -> tuple[Present, ...]:
        found: list[Present] = []
        for name in ("k", "v"):
            part = self.parts[name]
            if part.past is None:
                continue
            axes = (self.roles.batch, self.roles.kv_heads, self.roles.column, part.depth)
            ref = part.past.present
            present = Present(None if ref is None else ref.resolve(self.space), axes)
            shown = None if ref is None else Ref(ref.value, present.part_index)
            if shown is not None and in_layout(np.zeros(()), axes, shown, self.extents) is None:
                raise Misfit(name)
            found.append(present)
        if found and not _are_whole(*found):
            raise Misfit("k")
        return tuple(found)

    def _int(self, axis: Axis, what: str) -> int:
        number = size(axis).as_int()
        if number is None:
            raise self._unknown(self.scores.query.value, what)
        return number

    def _rotation(self) -> tuple[np.ndarray, bool, int]:
        """Return (order, interleaved, rotated) of the rotation that queries and keys share.

        order: the lanes in the operator's order; interleaved: whether pairs stand side by side;
        rotated: the number of lanes that are rotated. Raises: Misfit.
        """
        ropes = {name: part.rope for name, part in self.parts.items() if part.rope is not None}
        head_dim = self._int(self.roles.depth, "the head size")
        own = self.lifted.rotation
        if own is not None:
            if ropes:
                raise Misfit(next(iter(ropes)))
            return np.arange(head_dim), own.is_interleaved, own.dims
        if not ropes:
            return np.arange(head_dim), False, 0
        first = next(iter(ropes.values()))
        for name, rope in ropes.items():
            if len(rope.pair) != head_dim:
                raise Misfit(name)
            if (rope.pair != first.pair).any():
                raise Misfit(name)
        order, interleaved = canonical_order(first)
        if self.parts["k"].past is not None and (order != np.arange(head_dim)).any():
            raise Misfit("k")
        for name in ("q", "k"):
            part = self.parts[name]
            if part.projection is None:
                straight = (order == np.arange(head_dim)).all()
                whole = part.rope is None or (
                    (part.rope.sigma == np.arange(head_dim)).all()
                    and size(part.rope.depth).as_int() == head_dim
                )
                if not straight:
                    raise Misfit(next(iter(ropes)))
                if not whole:
                    raise Misfit(name)
        return order, interleaved, int(first.rotated.sum())

    def _lanes(
        self, name: str, order: np.ndarray, heads: Axis
    ) -> tuple[dict[Atom, np.ndarray], int]:
        """Return each column atom's value over (heads, depth), heads outermost."""
        part = self.parts[name]
        outer, count = every_value(atoms(heads))
        inner = depth_positions(part, order)
        lanes = {atom: np.repeat(number, len(order)) for atom, number in outer.items()}
        lanes |= {atom: np.tile(position, count) for atom, position in inner.items()}
        return lanes, count * len(order)

    def _operands(
        self, order: np.ndarray, head_dim: int, v_head_dim: int
    ) -> tuple[dict[str, Expr], dict[str, Weight]]:
        query = self.parts["q"]
        if self.query_factors and (query.projection or query.norm or query.rope):
            raise Misfit("q")
        sources: dict[str, Expr] = {}
        weights: dict[str, Weight] = {}
        names = {"q": ("hidden", "query"), "k": ("context", "key"), "v": ("value_context", "value")}
        orders = {"q": order, "k": order, "v": np.arange(v_head_dim)}
        for name, part in self.parts.items():
            positions = self.roles.positions(name)
            heads = self.roles.heads if name == "q" else self.roles.kv_heads
            if part.projection is not None:
                inner = tuple(a for axis in part.projection.summed for a in atoms(axis))
                groups = [self.roles.batch, positions, inner]
                source = self._source(part.projection.source, groups)
                if source is None:
                    raise Misfit(name)
                sources[names[name][0]] = source
                lanes, count = self._lanes(name, orders[name], heads)
                weights[name] = Weight(((part.projection, lanes, count),))
            else:
                depth = part.inner_depth
                sources[names[name][1]] = self._value(
                    name, part, [self.roles.batch, heads, positions, depth]
                )
        side_by_side = self._side_by_side(orders)
        if side_by_side is not None:
            return {"qkv": side_by_side}, {}
        return self._packed(sources, weights)

    def _side_by_side(self, orders: dict[str, np.ndarray]) -> Value | None:
        """Return the tensor in which Q, K and V stand side by side, if they are values of one."""
        if self.scores.chain.query_factors:
            return None
        lanes: dict[str, tuple[dict[Atom, np.ndarray], int]] = {}
        for name, part in self.parts.items():
            if part.projection is not None:
                return None
            heads = self.roles.heads if name == "q" else self.roles.kv_heads
            lanes[name] = self._lanes(name, orders[name], heads)
        start, total = 0, sum(count for _, count in lanes.values())
        found: list[Value] = []
        for name, part in self.parts.items():
            rows = self.space.resolve_index((self.roles.batch, self.roles.positions(name)))
            numbers, count = lanes[name]
            stands = [
                choice.value
                for choice in part.choices
                if choice.index[:2] == rows
                and [size(axis).as_int() for axis in choice.index[2:]] == [total]
                and {*atoms(choice.index[2])} <= numbers.keys()
                and (evaluate(choice.index[2], numbers) == start + np.arange(count)).all()
            ]
            found = [value for value in stands if name == "q" or value in found]
            start += count
        return found[0] if found else None

    def _source(self, ref: Ref, groups: list[Axis]) -> Expr | None:
        """Return what a projection reads, from the view of it that takes the fewest nodes."""
        whole = (True,) * len(groups)
        found = [
            arranged(view.value, view.index, groups, self.extents, whole=whole)
            for view in self._sources(ref)
        ]
        known = [expr for expr in found if expr is not None]
        return min(reversed(known), key=nodes_added) if known else None

    def _value(self, name: str, part: Operand, groups: list[Axis]) -> Expr:
        """Return the operand as a value, from the view of it that takes the fewest nodes."""
        found = [
            arranged(
                choice.value, choice.index, groups, self.extents, whole=(True, True, True, True)
            )
            for choice in part.choices
        ]
        known = [expr for expr in found if expr is not None]
        if not known:
            raise Misfit(name)
        value = min(reversed(known), key=nodes_added)
        if part.steps:
            lanes, count = self._lanes(name, np.arange(size(groups[3]).as_int() or 0), groups[1])
            _, shift = apply_steps(part.steps, self.shapes, lanes, count)
            added = shift.reshape(size(groups[1]).as_int() or 1, 1, -1).astype(np.float32)
            value = Call("Add", (value, added))
        for kind, factor in self.query_factors if name == "q" else ():
            scaling = factor.arranged([*groups[:-1], ()], self.extents)
            value = Call("Div" if kind == "div" else "Mul", (value, scaling))
        return value

    def _packed(
        self, sources: dict[str, Expr], weights: dict[str, Weight]
    ) -> tuple[dict[str, Expr], dict[str, Weight]]:
        """Name what is the same once: one source for all, or one context for keys and values."""
        if all(
            name in sources and same(sources[name], sources["hidden"])
            for name in ("hidden", "context", "value_context")
        ):
            packed = Weight(tuple(part for name in "qkv" for part in weights[name].parts))
            return {"hidden": sources["hidden"]}, {"qkv": packed}
        if {"context", "value_context"} <= sources.keys() and same(
            sources["context"], sources["value_context"]
        ):
            del sources["value_context"]
        return sources, weights

    def _norms(self, order: np.ndarray, head_dim: int) -> dict[str, NormRecord]:
        found: dict[str, NormRecord] = {}
        for name in ("q", "k"):
            norm = self.parts[name].norm
            if norm is None:
                continue
            heads = self.roles.heads if name == "q" else self.roles.kv_heads
            own = {*atoms(self.parts[name].inner_depth)}
            over = {atom for axis in norm.over for atom in atoms(axis)}
            width = size(tuple(digit for axis in norm.over for digit in axis))
            all_heads = over == own | {*heads} and bool(heads)
            if over != own and not all_heads:
                raise Misfit(name)
            expected = head_dim * (self._int(heads, "the number of heads") if over != own else 1)
            if width.as_int() != expected:
                raise Misfit(name)
            steps = norm.steps
            if name == "q":
                steps = (*steps, *(s.resolve(self.space) for s in self.scores.chain.query_steps))
            if step_atoms(steps) - own - {*heads}:
                raise Misfit(name)
            lanes, count = self._lanes(name, order, heads)
            factor, shift = apply_steps(steps, self.shapes, lanes, count)
            if shift.any() and norm.kind != "layer":
                raise Misfit(name)
            shape = (count // head_dim, head_dim)
            bias = shift.reshape(shape).astype(np.float32) if shift.any() else None
            weight = np.broadcast_to(factor, (count,)).reshape(shape).astype(np.float32)
            found[name] = NormRecord(norm.kind, over != own, norm.epsilon, weight, bias)
        return found

    def _tables(self, order: np.ndarray, interleaved: bool) -> dict[str, Expr]:
        tables: dict[str, Expr] = {}
        if self.lifted.rotation is not None:
            tables |= self.lifted.rotation.tables
        for name in ("q", "k"):
            rope = self.parts[name].rope
            if rope is None:
                continue
            positions = self.roles.positions(name)
            heads = self.roles.heads if name == "q" else self.roles.kv_heads
            for crossed, word in ((False, "cos"), (True, "sin")):
                table = table_of(
                    rope,
                    order,
                    interleaved,
                    crossed,
                    [self.roles.batch, heads, positions],
                    self.extents,
                )
                if table is None:
                    raise Misfit(name)
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
        return self._head_vector(
            Ref(sinks.expr, sinks.index) if isinstance(sinks.expr, Value) else None
        )

    def _constant_sinks(self, value: Value, index: Index) -> np.ndarray | None:
        """Return a constant that is the same for all batches and rows, by heads."""
        data = self.shapes.constant(value)
        if data is None:
            return None
        for axis, digits in enumerate(index):
            if not {*atoms(digits)} <= {*self.roles.heads}:
                if (data != data.take([0], axis=axis)).any():
                    return None
                index = (*index[:axis], fixed(0, size(digits)), *index[axis + 1 :])
        lanes, count = every_value(atoms(self.roles.heads))
        picked = gathered(Ref(value, index), self.shapes, lanes)
        return np.broadcast_to(picked, (count,)).astype(np.float32)

    def _head_vector(self, ref: Ref | None) -> Expr:
        """A sink that the graph expands over batch and rows: the constant below the views."""
        for found in () if ref is None else self._sources(ref):
            if {*index_atoms(found.index)} <= {*self.roles.heads}:
                groups = [self.roles.heads]
                expr = arranged(found.value, found.index, groups, self.extents, whole=(True,))
                if expr is not None:
                    return expr
        raise Declined(
            Code.UNSUPPORTED_OP,
            self.node,
            node=self.node.name,
            op="Concat",
            what="product and softmax",
        )

    def _output(self) -> tuple[Weight | None, Ref, tuple[Axis, ...]]:
        """Return the output projection, the value that the block takes over, and its axes.

        The value is the one of its views that takes the fewest nodes to make.
        """
        depth_v = self.space.resolve(self.parts["v"].depth)
        output = self.output
        columns: Axis = (*self.roles.heads, *depth_v)
        out_weight: Weight | None = None
        if output.weight is not None:
            summed = {a for atom in output.summed for a in atoms(self.space.resolve((atom,)))}
            columns = tuple(
                a for atom in output.columns for a in atoms(self.space.resolve((atom,)))
            )
            if summed == {*self.roles.heads, *depth_v}:
                out_weight = self._out_weight(output, depth_v, columns)
            else:
                raise self._unknown(output.ref.value, "which heads the output projection sums")
        axes = (self.roles.batch, self.roles.rows, columns)
        best: tuple[int, Ref] | None = None
        for choice in output.choices:
            ref = choice.resolve(self.space)
            probe = np.zeros(())
            made = in_layout(probe, axes, ref, self.extents)
            if made is not None and (best is None or nodes_added(made) <= best[0]):
                best = (nodes_added(made), ref)
        if best is None:
            raise self._unknown(output.ref.value, "how the output is laid out")
        return out_weight, best[1], axes

    def _out_weight(self, output: Output, depth_v: Axis, columns: Axis) -> Weight:
        """The projection whose rows are (heads, value depth) and whose columns are the output's."""
        assert output.weight is not None
        projection = Projection(
            output.weight.resolve(self.space),
            output.weight.resolve(self.space),
            (self.roles.heads, depth_v),
            output.alpha,
            tuple(step.resolve(self.space) for step in output.steps),
        )
        lanes, count = every_value(atoms(columns))
        return Weight(((projection, lanes, count),))


def _are_whole(keys: Present, values: Present) -> bool:
    """Return whether two caches become two tensors, or the two parts of one."""
    if keys.stack_axis is None and values.stack_axis is None:
        return keys.ref is None or values.ref is None or keys.ref.value is not values.ref.value
    if keys.ref is None or values.ref is None or keys.ref.value is not values.ref.value:
        return False
    return keys.stack_axis == values.stack_axis and {keys.part, values.part} == {0, 1}
