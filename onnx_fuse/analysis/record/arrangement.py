"""The operands of one attention on the operator's canonical axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, Lanes, atoms, every_value, size
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.linear import Step, step_atoms
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.operands.operand import Operand, depth_positions, resolved
from onnx_fuse.analysis.operators.lifted import Lifted
from onnx_fuse.analysis.record.roles import Roles
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.analysis.softmax.output import Output
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


class Arrangement:
    """What the makers of a record share: the operands, their axes' roles, sizes that can be asked.

    `factors` are, by "q" and "v", what multiplies or divides the query and the value that enter as
    values.
    """

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
        chain = self.scores.chain
        self.factors = {"q": [*chain.query_factors], "v": []}
        self._take_in_steps("q", chain.query_steps)
        self._take_in_steps("v", self.values.steps)
        if self.values.scale != 1.0 and output.projection is None:
            self.factors["v"].append(("Mul", Placed.number(self.values.scale)))
        pasts = [
            past for part in self.parts.values() if part.past is not None for past in part.past.each
        ]
        self.extents = Extents(
            self.views,
            self._known_values(),
            node.graph.opset,
            frozenset(size(past.old) for past in pasts if size(past.old).as_int() is None),
        )

    def _take_in_steps(self, name: str, constants: Sequence[Step]) -> None:
        """Give the constants that scale rows of scores, or columns of weights, to a projection.

        A scale of each head commutes with a rotation. The query's norm has a weight for them; what
        is left multiplies the operand as a value.
        """
        part = self.parts[name]
        steps = tuple(step.resolve(self.space) for step in constants)
        if not steps or part.norm is not None:
            return
        projection = None if part.past is not None else part.projection  # a cache isn't scaled
        if projection is not None and step_atoms(steps) <= {*self.heads(name)}:
            projection = replace(projection, steps=(*projection.steps, *steps))
            self.parts[name] = replace(part, projection=projection)
            return
        self.factors[name] += [(step.op, Placed.of(step.constant)) for step in steps]

    def _known_values(self) -> tuple[Value, ...]:
        """Return the tensors whose sizes can be asked.

        They are what the operands are made of, outermost view first.
        """
        found: list[Value] = []
        for part in self.parts.values():
            refs = part.choices if part.projection is None else self.sources(part.projection.source)
            values = [ref.value for ref in refs]
            if part.past is not None and isinstance(part.past.past.expr, Value):
                values.append(part.past.past.expr)
            found += [value for value in values[::-1] if value not in found]
        return tuple(found)

    def heads(self, name: str) -> Axis:
        """Return the heads of "q", "k" or "v"."""
        return self.roles.heads if name == "q" else self.roles.kv_heads

    def lanes(self, name: str, order: np.ndarray) -> Lanes:
        """Return each column atom's value over (heads, depth), heads outermost.

        `order` is that of the depth's lanes.
        """
        part = self.parts[name]
        heads = every_value(atoms(self.heads(name)))
        inner = depth_positions(part, order)
        values = {atom: np.repeat(number, len(order)) for atom, number in heads.values.items()}
        values |= {atom: np.tile(position, heads.count) for atom, position in inner.items()}
        return Lanes(values, heads.count * len(order))

    def sources(self, ref: Ref) -> tuple[Ref, ...]:
        """Return the elements that a projection reads, and the same ones before each view."""
        return tuple(found.resolve(self.space) for found in self.views.chain(ref))

    def number(self, axis: Axis, what: str) -> int:
        """Return the size of an axis. Raises: Declined if it is no number, or 0."""
        number = size(axis).as_int()
        if number is None:
            raise self.unknown(self.scores.query.value, what)
        if number == 0:
            raise Declined(Code.CONSTANT, self.node)
        return number

    def unknown(self, value: Value, what: str) -> Declined:
        """Return the error that says what of a value's shape isn't known."""
        return Declined(
            Code.SHAPE_UNKNOWN, value.producer or self.node, value=value.name, what=what
        )
