"""The scores of an attention: from the softmax's input up to the product of query and key.

Scalings, biases, masks, caps and shifts between the two are read in the order in which they apply
and brought to one form: where(keep, cap * tanh(scale * q.k / cap) + bias, fill).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.axes import ONE, Atom, Axis, Index, atoms, index_atoms, size
from onnx_fuse.analysis.contraction import Contraction, contraction_of
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.expr import Call, Expr, Extents, arranged
from onnx_fuse.analysis.linear import Step
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

# Below this a finite score counts as "masked": no product of real activations comes near it, so
# that a lower bound at or under it changes nothing else.
LOWEST_REAL_SCORE = -1e30
_POINTWISE = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Where",
        "Max",
        "Min",
        "Clip",
        "Tanh",
        "Cast",
        "Identity",
        "Dropout",
    }
)
_QUANTIZED = frozenset({"MatMulInteger", "QLinearMatMul", "DequantizeLinear", "MatMulNBits"})
_SEARCHED = 200  # values searched for the product on one side of a sum


@dataclass(frozen=True)
class Placed:
    """A tensor and the index at which it is read."""

    expr: Expr
    index: Index

    def arranged(self, groups: list[Axis], extents: Extents) -> Expr:
        """Return it with one axis for each group of atoms. Raises: Declined."""
        result = arranged(self.expr, self.index, groups, extents, trailing=True)
        if result is None:
            value = self.expr if isinstance(self.expr, Value) else None
            shape = None if value is None else extents.views.shapes.shape(value)
            raise Declined(
                Code.MASK_SHAPE,
                None if value is None else value.producer,
                value=getattr(self.expr, "name", "a computed mask"),
                shape=f"({', '.join(map(str, shape or ()))})",
            )
        return result


@dataclass(frozen=True)
class Select:
    """where(condition, score, fill), or with `inverted` where(condition, fill, score)."""

    condition: Placed
    fill: Placed
    inverted: bool


@dataclass
class Chain:
    """What applies to the product, outermost first while it is collected."""

    operations: list[tuple[str, object]] = field(default_factory=list)
    query_steps: list[Step] = field(default_factory=list)  # constants by which a row is scaled
    query_factors: list[tuple[str, Placed]] = field(default_factory=list)  # computed ones
    sinks: Placed | None = None
    joined: tuple[Atom, int] | None = (
        None  # the softmax's own column atom where a sink was joined; where scores begin
    )


@dataclass(frozen=True)
class Scores:
    """The product of query and key, and what applies to it in order."""

    query: Ref
    key: Ref
    depth: tuple[Axis, ...]
    index: Index
    chain: Chain
    column: Axis


def _quantized_above(value: Value) -> Node | None:
    """Return a quantized product from which pointwise operators lead to a value."""
    queue, seen = [value], {value}
    while queue and len(seen) < _SEARCHED:
        node = queue.pop().producer
        if node is None:
            continue
        if node.op_type in _QUANTIZED:
            return node
        if node.op_type in _POINTWISE:
            fresh = [source for source in node.inputs if source is not None and source not in seen]
            seen.update(fresh)
            queue += fresh
    return None


class ScoreWalk:
    """Walks up from one softmax."""

    def __init__(self, views: Views, node: Node) -> None:
        self.views = views
        self.shapes = views.shapes
        self.node = node
        self._leads: dict[Value, int] = {}

    def scores(self, ref: Ref, column: Axis) -> Scores:
        """Return the scores of which `ref` is the softmax's input, `column` its normalised axis.

        Raises: Declined where no product of query and key is reached.
        """
        chain = Chain()
        if self.shapes.is_constant(ref.value):
            raise Declined(Code.CONSTANT, self.node, node=self.node.name)
        while True:
            node = ref.value.producer
            if node is None:
                raise self._no_scores(ref)
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                return self._product(contraction, ref, chain, column)
            joined = self._sink(node, ref, chain, column)
            if joined is not None:
                ref, column = joined
                continue
            pulled = self.views.pull(ref)
            if pulled is None:
                pulled = self._step(node, ref, chain, column)
            ref = pulled

    def _no_scores(self, ref: Ref) -> Declined:
        node = ref.value.producer
        quantized = _quantized_above(ref.value)
        if quantized is not None:
            return Declined(Code.QUANTIZED, quantized, node=quantized.name, op=quantized.op_type)
        source = "a graph input" if node is None else node.op_type
        return Declined(
            Code.NO_SCORES,
            node or self.node,
            node=self.node.name,
            value=ref.value.name,
            op=source,
        )

    def _product(self, contraction: Contraction, ref: Ref, chain: Chain, column: Axis) -> Scores:
        operands = contraction.pull(self.views, ref)
        if operands is None:
            raise self._no_scores(ref)
        left, right = operands[0].resolve(self.views.space), operands[1].resolve(self.views.space)
        columns = set(atoms(self.views.space.resolve(column)))
        sides = [columns & set(index_atoms(side.index)) for side in (left, right)]
        if (sides[0] and sides[1]) or not (sides[0] or sides[1]):
            raise self._no_scores(ref)
        query, key = (right, left) if sides[0] else (left, right)
        own = contraction.swapped() if sides[0] else contraction
        free = [
            atom
            for atom in index_atoms(self.views.space.resolve_index(ref.index))
            if atom not in columns
        ]
        depth = tuple(query.index[own.left_labels.index(label)] for label in own.summed)
        inner = {atom for axis in depth for atom in atoms(axis)}
        if not sides[0] | sides[1] >= columns or not inner:
            raise self._no_scores(ref)
        if free and not any(atom in index_atoms(query.index) for atom in free):
            raise self._no_scores(ref)
        if contraction.alpha != 1.0:
            chain.operations.append(("mul", contraction.alpha))
        if contraction.bias is not None:
            raise self._no_scores(ref)
        return Scores(query, key, depth, ref.index, chain, column)

    def leads(self, value: Value) -> int:
        """Say how surely a value holds the scores.

        2 if a product of two computed tensors makes it, 1 if one of them is constant, 0 if no
        product is found among pointwise operators and views.
        """
        queue, seen, best = [value], {value}, 0
        if value in self._leads:
            return self._leads[value]
        while queue and len(seen) < _SEARCHED:
            current = queue.pop()
            node = current.producer
            if node is None:
                continue
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                constants = sum(map(self.shapes.is_constant, (contraction.left, contraction.right)))
                best = max(best, 2 - constants)
                continue
            if node.domain:
                continue
            if node.op_type in _POINTWISE:
                sources = node.inputs[1:] if node.op_type == "Where" else node.inputs
            elif node.op_type in (
                "Concat",
                "Reshape",
                "Transpose",
                "Squeeze",
                "Unsqueeze",
                "Slice",
                "Expand",
                "Split",
            ):
                sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            else:
                continue
            for source in sources:
                if source is not None and source not in seen:
                    seen.add(source)
                    queue.append(source)
        self._leads[value] = best
        return best

    def _sink(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> tuple[Ref, Axis] | None:
        """Concat(scores, one more column): the softmax sees it, the values don't."""
        resolved = self.views.space.resolve(column)
        if (
            node.op_type != "Concat"
            or len(node.inputs) != 2
            or len(resolved) != 1
            or chain.joined is not None
        ):
            return None
        axis = int(node.attr("axis", 1)) % len(ref.index)
        if self.views.space.resolve(ref.index[axis]) != resolved or not isinstance(
            resolved[0], Atom
        ):
            return None
        shapes = [None if value is None else self.shapes.shape(value) for value in node.inputs]
        widths = [None if shape is None else shape[axis].as_int() for shape in shapes]
        ranks = [0 if value is None else self.leads(value) for value in node.inputs]
        main = 0 if ranks[0] > ranks[1] else 1
        if ranks[0] == ranks[1] or widths[1 - main] != 1 or shapes[main] is None:
            return None
        if any(kind not in ("mul", "shift") for kind, _ in chain.operations):
            return None
        source, sink = node.inputs[main], node.inputs[1 - main]
        assert source is not None
        assert sink is not None
        new = self.views.space.atom(shapes[main][axis], "column")  # type: ignore[index]
        factor = math.prod(number for kind, number in chain.operations if isinstance(number, float))
        chain.sinks = Placed(sink, (*ref.index[:axis], (), *ref.index[axis + 1 :]))
        if factor != 1.0:
            chain.sinks = Placed(
                Call("Mul", (sink, np.asarray(factor, dtype=np.float32))), chain.sinks.index
            )
        chain.joined = (resolved[0], 0 if main == 0 else 1)
        return Ref(source, (*ref.index[:axis], new, *ref.index[axis + 1 :])), new

    def _step(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        """Account for one pointwise operator and return its main input."""
        match "" if node.domain else node.op_type:
            case "Cast":
                source = node.inputs[0]
                assert source is not None
                return Ref(source, ref.index)
            case "Tanh":
                chain.operations.append(("tanh", None))
                source = node.inputs[0]
                assert source is not None
                return Ref(source, ref.index)
            case "Neg":
                chain.operations.append(("mul", -1.0))
                source = node.inputs[0]
                assert source is not None
                return Ref(source, ref.index)
            case "Add" | "Sub":
                return self._sum(node, ref, chain, column)
            case "Mul" | "Div":
                return self._scaled(node, ref, chain, column)
            case "Where":
                return self._where(node, ref, chain)
            case "Max" | "Min" | "Clip":
                return self._bounded(node, ref, chain)
        raise self._no_scores(ref)

    def _main(self, node: Node, ref: Ref, candidates: list[int]) -> int:
        ranks = [
            (self.leads(value) if (value := node.inputs[i]) is not None else 0) for i in candidates
        ]
        if max(ranks) == 0:
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

    def _beside(self, value: Value | None, ref: Ref) -> Placed:
        """Return the elements of what is combined with the scores.

        An axis of symbolic extent is taken for a full one. Should it be 1 in a run, broadcasting
        does as it would have in the graph; should it be anything else, the operator refuses it as
        the graph would have.
        """
        shape = None if value is None else self.shapes.shape(value)
        if value is None or shape is None or len(shape) > len(ref.index):
            raise self._unknown(value, ref)
        axes: list[Axis] = []
        for axis, extent in zip(ref.index[len(ref.index) - len(shape) :], shape, strict=True):
            own = self.views.space.resolve(axis)
            if extent == ONE:
                axes.append(())
                continue
            axes.append(own)
            if (
                extent != size(own)
                and extent.as_int() is not None
                and size(own).as_int() is not None
            ):
                raise self._unknown(value, ref)
        return Placed(value, tuple(axes))

    def _sum(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        main = self._main(node, ref, [0, 1])
        below = self._at(node.inputs[main], ref)
        ref = ref.resolve(self.views.space)
        other = self._beside(node.inputs[1 - main], ref)
        columns = set(atoms(self.views.space.resolve(column)))
        shifted = not columns & set(index_atoms(other.index))
        if node.op_type == "Sub" and main == 1:
            chain.operations.append(("bias", (other, 1.0)))
            chain.operations.append(("mul", -1.0))
        elif shifted and all(kind in ("mul", "bias", "shift") for kind, _ in chain.operations):
            # The same number on a whole row of scores: the softmax doesn't see it.
            chain.operations.append(("shift", other.expr))
        else:
            sign = -1.0 if node.op_type == "Sub" else 1.0
            chain.operations.append(("bias", (other, sign)))
        return below

    def _scaled(self, node: Node, ref: Ref, chain: Chain, column: Axis) -> Ref:
        main = 0 if node.op_type == "Div" else self._main(node, ref, [0, 1])
        factor = node.inputs[1 - main]
        assert factor is not None
        number = self.shapes.scalar(factor)
        if number is not None:
            if not math.isfinite(number) or (node.op_type == "Div" and number == 0):
                raise Declined(Code.SCALE_NOT_SCALAR, node, value=factor.name)
            chain.operations.append(("mul", 1.0 / number if node.op_type == "Div" else number))
            return self._at(node.inputs[main], ref)
        below = self._at(node.inputs[main], ref)
        kept = self.kept(factor, ref) if node.op_type == "Mul" else None
        if kept is not None:
            chain.operations.append(("keep", kept))
            return below
        other = self._beside(factor, ref)
        if set(atoms(self.views.space.resolve(column))) & set(index_atoms(other.index)):
            raise Declined(Code.SCALE_NOT_SCALAR, node, value=factor.name)
        if any(kind not in ("mul", "bias", "shift", "select") for kind, _ in chain.operations):
            raise Declined(Code.SCALE_NOT_SCALAR, node, value=factor.name)
        chain.operations.append(("rows", None))
        kind = "div" if node.op_type == "Div" else "mul"
        if self.shapes.is_constant(factor):
            chain.query_steps.append(Step(kind, Ref(factor, other.index)))
        else:
            chain.query_factors.append((kind, other))
        return below

    def kept(self, factor: Value, ref: Ref) -> Placed | None:
        """Return where a factor of the elements `ref` is 1, if it is all zeros and ones."""
        choice = self._choice(factor)
        return None if choice is None else replace(self._beside(factor, ref), expr=choice)

    def _choice(self, factor: Value) -> Expr | None:
        """Return the condition that a factor of zeros and ones stands for."""
        node = factor.producer
        if node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
            if self.shapes.dtype(node.inputs[0]) == TensorProto.BOOL:
                return node.inputs[0]
        if not self.shapes.is_constant(factor):
            return None
        data = self.shapes.constant(factor)
        return data.astype(bool) if data is not None and np.isin(data, (0, 1)).all() else None

    def _where(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        main = self._main(node, ref, [1, 2])
        below = self._at(node.inputs[main], ref)
        condition, fill = (
            self._beside(node.inputs[0], ref),
            self._beside(node.inputs[3 - main], ref),
        )
        chain.operations.append(("select", Select(condition, fill, main == 2)))
        return below

    def _bounded(self, node: Node, ref: Ref, chain: Chain) -> Ref:
        """A lower bound that only masked scores reach, or an upper one that none does."""
        main = 0 if node.op_type == "Clip" else self._main(node, ref, list(range(len(node.inputs))))
        if node.op_type == "Clip":
            low, high = node.attr("min"), node.attr("max")
            inputs = [*node.inputs, None, None]
            low = self._bound(inputs[1], -math.inf) if low is None else float(low)
            high = self._bound(inputs[2], math.inf) if high is None else float(high)
        else:
            others = [
                self._bound(value, math.nan) for i, value in enumerate(node.inputs) if i != main
            ]
            limit = max(others, key=abs)
            low, high = (limit, math.inf) if node.op_type == "Max" else (-math.inf, limit)
        if not (low <= LOWEST_REAL_SCORE and high >= -LOWEST_REAL_SCORE):
            source = node.inputs[main]
            raise Declined(
                Code.UNSUPPORTED_OP,
                node,
                node=node.name,
                op=node.op_type,
                what="product and softmax",
                value=source,
            )
        if math.isfinite(low):
            chain.operations.append(("clamp", low))
        return self._at(node.inputs[main], ref)

    def _bound(self, value: Value | None, default: float) -> float:
        number = default if value is None else self.shapes.scalar(value)
        return math.nan if number is None else number


@dataclass(frozen=True)
class Masking:
    """The chain in canonical form; masks are (batch, heads, rows, columns), each full or 1."""

    scale: float
    softcap: float
    bias: Expr | None
    keep: Expr | None
    fill: Expr | None
    words: tuple[str, ...]


def masking_of(chain: Chain, groups: list[Axis], extents: Extents, node: Node) -> Masking:
    """Bring a chain to canonical form. Raises: Declined where no algebra does."""
    scale, cap_scale, capped = 1.0, 1.0, False
    bias: Expr | None = None
    keep: Expr | None = None
    fill: Expr | None = None
    words: list[str] = []

    def times(expr: Expr | None, number: float) -> Expr | None:
        if expr is None or number == 1.0:
            return expr
        return Call("Mul", (expr, np.asarray(number, dtype=np.float32)))

    for kind, argument in reversed(chain.operations):
        match kind, argument:
            case "mul", float(number):
                if capped:
                    cap_scale *= number
                else:
                    scale *= number
                bias, fill = times(bias, number), times(fill, number)
            case "rows", _:
                if bias is not None or keep is not None or capped:
                    raise Declined(
                        Code.UNSUPPORTED_OP, node, node=node.name, op="Mul", what="mask and softmax"
                    )
            case "tanh", _:
                if capped or bias is not None or keep is not None:
                    raise Declined(
                        Code.UNSUPPORTED_OP,
                        node,
                        node=node.name,
                        op="Tanh",
                        what="mask and softmax",
                    )
                capped = True
            case "bias", (Placed() as placed, float(sign)):
                words.append("bias")
                term = times(placed.arranged(groups, extents), sign)
                assert term is not None
                if keep is not None:
                    assert fill is not None
                    fill = Call("Add", (fill, term))
                bias = term if bias is None else Call("Add", (bias, term))
            case "keep", Placed() as placed:
                words.append("select")
                condition = placed.arranged(groups, extents)
                fill = (
                    np.zeros((), dtype=np.float32)
                    if fill is None
                    else Call("Where", (condition, fill, np.asarray(0, dtype=np.float32)))
                )
                keep = condition if keep is None else Call("And", (keep, condition))
            case "mask", Placed() as placed:
                words.append("select")
                condition = placed.arranged(groups, extents)
                lowest = np.asarray(-np.inf, dtype=np.float32)
                fill = lowest if fill is None else Call("Where", (condition, fill, lowest))
                keep = condition if keep is None else Call("And", (keep, condition))
            case "select", Select() as select:
                words.append("select")
                condition = select.condition.arranged(groups, extents)
                other = select.fill.arranged(groups, extents)
                condition = Call("Not", (condition,)) if select.inverted else condition
                fill = other if fill is None else Call("Where", (condition, fill, other))
                keep = condition if keep is None else Call("And", (keep, condition))
            case "clamp", float(low):
                bound = np.asarray(low, dtype=np.float32)
                bias = None if bias is None else Call("Max", (bias, bound))
                fill = None if fill is None else Call("Max", (fill, bound))
    softcap = 0.0
    if capped:
        softcap, scale = cap_scale, scale * cap_scale
        if softcap <= 0:
            raise Declined(
                Code.UNSUPPORTED_OP, node, node=node.name, op="Tanh", what="product and softmax"
            )
    return Masking(scale, softcap, bias, keep, fill, tuple(dict.fromkeys(words)))
