"""Contractions: every way to write a sum of products of two tensors, as labels on axes.

MatMul, Gemm, Einsum, Conv with kernel 1, FusedMatMul and Mul + ReduceSum all become one thing:
which axes of the two operands are summed, which survive from the left, from the right, or from
both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import ONE, Axis, Index
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.nodes import keeps_axes, reduced_axes
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.ir.graph import Node, Value

Labels = tuple[int | None, ...]  # None: an axis of extent 1 that is broadcast


@dataclass(frozen=True)
class Contraction:
    """output[out_labels] = alpha * sum of left[left_labels] * right[right_labels] (+ bias).

    The sum runs over the labels that `out_labels` lacks.

    `bias` is added by the same node: Gemm's C (times beta), or Conv's B, with the labels of its
    axes.
    """

    node: Node
    left: Value
    right: Value
    left_labels: Labels
    right_labels: Labels
    out_labels: Labels
    alpha: float = 1.0
    bias: Value | None = None
    bias_labels: Labels = ()
    beta: float = 1.0

    @property
    def summed(self) -> tuple[int, ...]:
        """The labels that are summed over, in order of the left operand."""
        return tuple(
            label
            for label in self.left_labels
            if label is not None and label not in self.out_labels
        )

    @property
    def factors(self) -> tuple[Value, Value]:
        """The two operands."""
        return self.left, self.right

    @property
    def is_of_squares(self) -> bool:
        """Whether what is summed are squares of one tensor's elements."""
        return self.left is self.right and self.left_labels == self.right_labels

    def summed_axes(self, index: Index) -> tuple[Axis, ...]:
        """Return the axes of the left operand's index that are summed."""
        return tuple(index[self.left_labels.index(label)] for label in self.summed)

    def facing(self, value: Value) -> Contraction:
        """Return the same contraction with an operand, which is this value, on the left."""
        return self if self.left is value else self.swapped()

    def swapped(self) -> Contraction:
        """Return the same contraction with left and right exchanged."""
        return replace(
            self,
            left=self.right,
            right=self.left,
            left_labels=self.right_labels,
            right_labels=self.left_labels,
        )

    def pull(self, views: Views, ref: Ref) -> tuple[Ref, Ref] | None:
        """Return the elements of left and right that make the output's elements.

        What is summed has new atoms. None where an extent isn't known to fit.
        """
        known: dict[int, Axis] = {}
        for label, axis in zip(self.out_labels, ref.index, strict=True):
            if label is not None:
                known[label] = axis
        shape = views.shapes.shape(self.left)
        other = views.shapes.shape(self.right)
        if shape is None or other is None:
            return None
        for label in self.summed:
            extent = shape[self.left_labels.index(label)]
            if other[self.right_labels.index(label)] != extent:
                return None
            known[label] = views.space.atom(extent, "depth")
        left = self._operand(self.left, self.left_labels, known, views)
        right = self._operand(self.right, self.right_labels, known, views)
        return None if left is None or right is None else (left, right)

    def added(self, index: Index) -> Ref | None:
        """Return the elements of the bias at an index of the output; they count `beta` times.

        None if there is none, also where it counts nothing: then it isn't even read.
        """
        if self.bias is None or self.beta == 0.0:
            return None
        known = dict(zip(self.out_labels, index, strict=True))
        axes = tuple(() if label is None else known[label] for label in self.bias_labels)
        return Ref(self.bias, axes)

    def push(self, views: Views, ref: Ref) -> tuple[Ref, Ref] | None:
        """Return the index of the right operand and of the output, given that of the left one."""
        known: dict[int, Axis] = {}
        for label, axis in zip(self.left_labels, ref.index, strict=True):
            if label is not None:
                known[label] = axis
        shape = views.shapes.shape(self.right)
        if shape is None:
            return None
        for label, extent in zip(self.right_labels, shape, strict=True):
            if label is not None and label not in known:
                known[label] = views.space.atom(extent, "free")
        output = self.node.outputs[0]
        assert output is not None
        right = self._operand(self.right, self.right_labels, known, views)
        made = Ref(
            output, tuple(() if label is None else known[label] for label in self.out_labels)
        )
        return None if right is None else (right, made)

    def _operand(
        self, value: Value, labels: Labels, known: dict[int, Axis], views: Views
    ) -> Ref | None:
        """Return the operand at the labels' axes.

        A symbolic extent that must be equal for the product is made so; where it broadcasts, that
        is assumed: among the batches, and in what an Einsum or a ReduceSum sums.
        """
        shape = views.shapes.shape(value)
        if shape is None:
            return None
        broadcasts = self.node.op in ("Einsum", "ReduceSum")
        axes = [
            ()
            if label is None
            else views.space.fit(
                known[label], extent, is_assumed=label in self.out_labels or broadcasts
            )
            for label, extent in zip(labels, shape, strict=True)
        ]
        fitting = all_known(axes)
        return None if fitting is None else Ref(value, tuple(fitting))


def contraction_of(node: Node | None, shapes: Facts) -> Contraction | None:
    """Return the contraction that a node computes, or None if it computes none."""
    if node is None:
        return None
    rule = _RULES.get(node.op)
    return None if rule is None else rule(node, shapes)


def plain_product_of(node: Node | None, shapes: Facts) -> Contraction | None:
    """As `contraction_of`, but None where a number multiplies the sum, or something is added."""
    found = contraction_of(node, shapes)
    is_plain = found is not None and found.alpha == 1.0 and found.bias is None
    return found if is_plain else None


def _pair(
    node: Node, shapes: Facts
) -> tuple[Value, Value, tuple[Dim, ...], tuple[Dim, ...]] | None:
    left, right = node.input(0), node.input(1)
    if left is None or right is None:
        return None
    left_shape, right_shape = shapes.shape(left), shapes.shape(right)
    if left_shape is None or right_shape is None:
        return None
    return left, right, left_shape, right_shape


def _are_alike(first: Dim, second: Dim) -> bool:
    """Return whether extents that broadcast are equal.

    A name is taken for another name: an axis that broadcasts is 1 in the graph. It is not taken for
    a number, as it may be 1 when the model runs.
    """
    return first == second or (first.as_int() is None and second.as_int() is None)


def _broadcast_labels(rank: int, shape: tuple[Dim, ...], out: tuple[Dim, ...]) -> Labels | None:
    """Label an operand's axes by those (of `rank`) that they broadcast to; None if they don't."""
    labels: list[int | None] = []
    for position, extent in enumerate(shape):
        target = rank - len(shape) + position
        if extent == ONE and out[target] != ONE:
            labels.append(None)
        elif _are_alike(extent, out[target]):
            labels.append(target)
        else:
            return None
    return tuple(labels)


@dataclass(frozen=True)
class _Order:
    """How the axes of a matrix operand stand: transposed, and with the rows before the batch."""

    transposed: bool = False
    batch_inside: bool = False

    def labels(self, batch: Labels, pair: tuple[int, int]) -> Labels:
        """Return the labels of (batch, rows, columns) in this order."""
        first, second = pair[::-1] if self.transposed else pair
        return (first, *batch, second) if self.batch_inside else (*batch, first, second)

    def batch(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """Return the batch axes of a shape in this order."""
        return shape[1:-1] if self.batch_inside else shape[:-2]


def _matmul(node: Node, shapes: Facts) -> Contraction | None:
    """MatMul, or FusedMatMul of operands in other orders; a vector has no rows, or no columns."""
    left_order, right_order = (
        _Order(bool(node.attr(f"trans{side}", 0)), bool(node.attr(f"transBatch{side}", 0)))
        for side in ("A", "B")
    )
    pair = _pair(node, shapes)
    output = node.outputs[0]
    out = None if output is None else shapes.shape(output)
    if pair is None or out is None:
        return None
    left, right, left_shape, right_shape = pair
    vectors = [len(shape) == 1 for shape in (left_shape, right_shape)]
    if not (left_shape and right_shape) or (
        any(vectors) and {left_order, right_order} != {_Order()}
    ):
        return None
    left_shape = (ONE, *left_shape) if vectors[0] else left_shape
    right_shape = (*right_shape, ONE) if vectors[1] else right_shape
    out = (*out, *(ONE for is_vector in vectors if is_vector))
    rank = len(out)
    row, column, depth = rank - 2, rank - 1, rank
    left_batch = _broadcast_labels(rank - 2, left_order.batch(left_shape), out[:-2])
    right_batch = _broadcast_labels(rank - 2, right_order.batch(right_shape), out[:-2])
    if left_batch is None or right_batch is None:
        return None
    missing = {label for label, is_vector in zip((row, column), vectors, strict=True) if is_vector}

    def labels(found: Labels) -> Labels:
        return tuple(label for label in found if label not in missing)

    return Contraction(
        node,
        left,
        right,
        labels(left_order.labels(left_batch, (row, depth))),
        labels(right_order.labels(right_batch, (depth, column))),
        labels(tuple(range(rank))),
        float(node.attr("alpha", 1.0)),
    )


def _gemm(node: Node, shapes: Facts) -> Contraction | None:
    pair = _pair(node, shapes)
    output = node.outputs[0]
    out = None if output is None else shapes.shape(output)
    if (
        pair is None
        or out is None
        or (node.op == "com.microsoft:FusedGemm" and node.attr("activation") is not None)
    ):
        return None
    bias = node.input(2)
    bias_labels: Labels | None = ()
    if bias is not None:
        bias_shape = shapes.shape(bias)
        bias_labels = None if bias_shape is None else _broadcast_labels(2, bias_shape, out)
        if bias_labels is None:
            return None
    left, right, _, _ = pair
    return Contraction(
        node,
        left,
        right,
        (2, 0) if node.attr("transA", 0) else (0, 2),
        (1, 2) if node.attr("transB", 0) else (2, 1),
        (0, 1),
        float(node.attr("alpha", 1.0)),
        bias,
        bias_labels or (),
        float(node.attr("beta", 1.0)),
    )


def _conv(node: Node, shapes: Facts) -> Contraction | None:
    """Conv as a product over the channels.

    Its kernel has one position, its stride is 1; it has one group and no padding.
    """
    pair = _pair(node, shapes)
    if pair is None:
        return None
    left, right, left_shape, right_shape = pair
    spatial = len(left_shape) - 2
    plain = (
        all(extent == ONE for extent in right_shape[2:])
        and int(node.attr("group", 1)) == 1
        and all(int(stride) == 1 for stride in node.attr("strides") or [])
        and not any(int(pad) for pad in node.attr("pads") or [])
        and node.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    )
    if not plain or spatial < 1:
        return None
    positions = tuple(range(3, 3 + spatial))
    bias = node.input(2)
    return Contraction(
        node,
        left,
        right,
        (0, 2, *positions),
        (1, 2, *(None for _ in positions)),
        (0, 1, *positions),
        1.0,
        bias,
        (1,) if bias is not None else (),
    )


def _einsum(node: Node, shapes: Facts) -> Contraction | None:
    pair = _pair(node, shapes)
    if pair is None or len(node.inputs) != 2:
        return None
    left, right, left_shape, right_shape = pair
    terms = _einsum_terms(str(node.attr("equation", "")), len(left_shape), len(right_shape))
    if terms is None:
        return None
    left_term, right_term, out = terms
    if any(letter not in out for letter in {*left_term} ^ {*right_term}):
        return None  # summed over axes of one operand
    left_extents = dict(zip(left_term, left_shape, strict=True))
    right_extents = dict(zip(right_term, right_shape, strict=True))
    for letter in left_extents.keys() & right_extents.keys():
        extents = left_extents[letter], right_extents[letter]
        if not (_are_alike(*extents) or (letter in out and ONE in extents)):
            return None

    def labels(own: dict[str, Dim], other: dict[str, Dim]) -> Labels:
        return tuple(
            None if extent == ONE and other.get(letter, ONE) != ONE else ord(letter)
            for letter, extent in own.items()
        )

    return Contraction(
        node,
        left,
        right,
        labels(left_extents, right_extents),
        labels(right_extents, left_extents),
        tuple(ord(letter) for letter in out),
    )


def _einsum_terms(equation: str, left_rank: int, right_rank: int) -> tuple[str, str, str] | None:
    """Return a letter for each axis of left, right and output; None if there is none for each."""
    equation = equation.replace(" ", "")
    if equation.count("->") != 1 or equation.count(",") != 1:
        return None
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    # An ellipsis is a run of axes, which broadcast from the right: they are called after their
    # distance from its right end, by letters that no equation has.
    left_run, right_run = (
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in ((left, left_rank), (right, right_rank))
    )
    out_run = max(left_run, right_run, 0)
    left, right, out = (
        term.replace("...", "".join(chr(0x2460 + place) for place in reversed(range(run))))
        for term, run in ((left, left_run), (right, right_run), (out, out_run))
    )
    if any(len({*term}) != len(term) for term in (left, right, out)):
        return None
    return (left, right, out) if (len(left), len(right)) == (left_rank, right_rank) else None


def _reduced_product(node: Node, shapes: Facts) -> Contraction | None:
    """ReduceSum of a broadcast product: sum_k left[.., k] * right[.., k], perhaps transposed."""
    source, order = _turned(node.inputs[0])
    product_node = None if source is None else source.producer
    if source is None or product_node is None or product_node.op != "Mul":
        return None
    pair = _pair(product_node, shapes)
    full = shapes.shape(source)
    places = None if full is None else reduced_axes(node, shapes, len(full))
    if pair is None or full is None or places is None:
        return None
    order = order or tuple(range(len(full)))
    summed = {order[place] for place in places}
    left, right, left_shape, right_shape = pair
    rank = len(full)
    left_labels = _broadcast_labels(rank, left_shape, full)
    right_labels = _broadcast_labels(rank, right_shape, full)
    if left_labels is None or right_labels is None:
        return None
    if any(axis not in left_labels or axis not in right_labels for axis in summed):
        return None
    keep = keeps_axes(node)
    out = tuple(None if axis in summed else axis for axis in order if keep or axis not in summed)
    return Contraction(node, left, right, left_labels, right_labels, out)


def _turned(value: Value | None) -> tuple[Value | None, tuple[int, ...]]:
    """Return what Transposes turn that nobody else reads, and which axis of it each axis is.

    No axes if it isn't turned; no value if somebody else reads it.
    """
    order: tuple[int, ...] = ()
    while value is not None:
        if len(value.uses) != 1 or value.is_output:
            return None, ()
        node = value.producer
        perm = node.attr("perm") if node is not None and node.op == "Transpose" else None
        if node is None or not perm:
            break
        order = tuple(int(perm[axis]) for axis in order) or tuple(map(int, perm))
        value = node.inputs[0]
    return value, order


def is_matrix_product(node: Node) -> bool:
    """Return whether a node is a product, whatever is known of its axes."""
    if node.op == "Einsum":
        return len(node.inputs) == 2
    return node.op in _MATRIX_PRODUCTS


_MATRIX_PRODUCTS = {"MatMul", "Gemm", "com.microsoft:FusedMatMul"}

_RULES: dict[str, Callable[[Node, Facts], Contraction | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Einsum": _einsum,
    "ReduceSum": _reduced_product,
    "com.microsoft:FusedMatMul": _matmul,
    "com.microsoft:FusedGemm": _gemm,
}
