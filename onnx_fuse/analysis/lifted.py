"""Operators that already are attention: their inputs as queries, keys, values and masks.

The standard Attention (opset 23 and later), and Attention and MultiHeadAttention of com.microsoft.
From there on they are treated like attention that is written out, and so are fused together with
their projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.axes import Axis, Index, Space, size
from onnx_fuse.analysis.block_shapes import Shape
from onnx_fuse.analysis.chain import Bias, Chain, Placed, Scale, Select, Tanh
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.expr import Call, Expr, Extents
from onnx_fuse.analysis.linear import Projection, Step
from onnx_fuse.analysis.nodes import input_at
from onnx_fuse.analysis.operand import Operand
from onnx_fuse.analysis.scores import Scores
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.analysis.weights import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


@dataclass(frozen=True)
class Lifted:
    """What an attention operator says, in the terms of attention that is written out."""

    scores: Scores
    values: Values
    steps: dict[str, tuple[Step, ...]] = field(
        default_factory=dict
    )  # by "q", "k", "v": biases that it adds itself
    parts: dict[str, Operand] = field(default_factory=dict)  # operands that it projects itself
    is_causal: bool = False


@dataclass(frozen=True)
class _Atoms:
    batch: Axis
    kv_heads: Axis
    groups: Axis
    rows: Axis
    columns: Axis
    depth: Axis
    depth_v: Axis

    @property
    def heads(self) -> Axis:
        return (*self.kv_heads, *self.groups)

    @property
    def index(self) -> Index:
        """The index of the scores."""
        return (self.batch, self.heads, self.rows, self.columns)


def is_attention(node: Node) -> bool:
    """Return whether a node is an attention operator that is known by name."""
    return (node.domain, node.op_type) in _RULES


def lift(node: Node, views: Views) -> Lifted:
    """Return what an attention operator computes.

    Raises: Declined where it does more than the fused operator can.
    """
    return _RULES[node.domain, node.op_type](node, views)


def _refuse(node: Node, attribute: str, setting: object) -> Declined:
    return Declined(
        Code.UNSUPPORTED_ATTRIBUTE,
        node,
        node=node.name,
        op=node.op_type,
        attribute=attribute,
        setting=setting,
    )


def _given(node: Node, position: int, views: Views) -> tuple[Value, Shape]:
    """Return an input and its shape. Raises: Declined if it is left out, or of unknown rank."""
    value = input_at(node, position)
    if value is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="its rank")
    return value, _shape(node, value, views)


def _shape(node: Node, value: Value, views: Views) -> Shape:
    shape = views.shapes.shape(value)
    if shape is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=value.name, what="its rank")
    return shape


def _check_outputs(node: Node) -> None:
    for position, output in enumerate(node.outputs[1:], start=1):
        if output is not None and output.is_used:
            raise _refuse(node, f"output {position}", "used")


def _atoms(
    space: Space,
    batch: Dim,
    heads: tuple[int, int],
    rows: Dim,
    columns: Dim,
    depth: tuple[Dim, Dim],
) -> _Atoms:
    kv_heads, groups = heads
    return _Atoms(
        space.atom(batch, "batch"),
        space.atom(Dim.of(kv_heads), "kv_head"),
        space.atom(Dim.of(groups), "group"),
        space.atom(rows, "row"),
        space.atom(columns, "column"),
        space.atom(depth[0], "depth"),
        space.atom(depth[1], "depth_v"),
    )


def _made(
    node: Node,
    refs: tuple[Ref, Ref, Ref],
    atoms: _Atoms,
    context: Index,
    chain: Chain,
    *,
    zero_nan: bool,
) -> tuple[Scores, Values]:
    output = node.outputs[0]
    assert output is not None
    scores = Scores(refs[0], refs[1], (atoms.depth,), atoms.index, chain, atoms.columns)
    return scores, Values(refs[2], Ref(output, context), zero_nan)


def _standard(node: Node, views: Views) -> Lifted:
    """Attention of opset 23 and later.

    Its inputs are (batch, heads, rows, depth), or (batch, rows, heads * depth) with head counts.
    """
    for position, what in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if input_at(node, position) is not None:
            raise _refuse(node, what, "given")
    _check_outputs(node)
    values, shapes = zip(*(_given(node, position, views) for position in range(3)), strict=True)
    split = len(shapes[0]) == 4
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    counts = [
        shape[1].as_int() if split else node.attr(name)
        for shape, name in zip(shapes, names, strict=True)
    ]
    known = [int(count) for count in counts if count is not None]
    if len(known) != len(counts):
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="the number of heads")
    heads, kv_heads, _ = known
    widths = [
        shape[-1] if split else shape[-1] // Dim.of(count)
        for shape, count in zip(shapes, known, strict=True)
    ]
    row_axis = 2 if split else 1
    made = _atoms(
        views.space,
        shapes[0][0],
        (kv_heads, heads // kv_heads),
        shapes[0][row_axis],
        shapes[1][row_axis],
        (widths[0], widths[2]),
    )

    def index(own: Axis, positions: Axis, depth: Axis) -> Index:
        return (
            (made.batch, own, positions, depth)
            if split
            else (made.batch, positions, (*own, *depth))
        )

    refs = (
        Ref(values[0], index(made.heads, made.rows, made.depth)),
        Ref(values[1], index(made.kv_heads, made.columns, made.depth)),
        Ref(values[2], index(made.kv_heads, made.columns, made.depth_v)),
    )
    chain = _standard_chain(node, made, views)
    scores, found = _made(
        node, refs, made, index(made.heads, made.rows, made.depth_v), chain, zero_nan=True
    )
    return Lifted(scores, found, is_causal=bool(node.attr("is_causal", 0)))


def _standard_chain(node: Node, made: _Atoms, views: Views) -> Chain:
    """Return what the standard Attention does to its scores: scale, cap, mask."""
    width, scale = size(made.depth).as_int(), node.attr("scale")
    if scale is None and width is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="the head size")
    chain = Chain()
    mask = input_at(node, 3)
    if mask is not None:
        _mask(chain, mask, made, views, node)
    softcap = float(node.attr("softcap", 0.0))
    if softcap:
        chain.operations += [Scale(softcap), Tanh(), Scale(1.0 / softcap)]
    chain.operations.append(
        Scale(float(scale) if scale is not None else 1.0 / math.sqrt(width or 1))
    )
    return chain


def _mask(chain: Chain, mask: Value, made: _Atoms, views: Views, node: Node) -> None:
    """Add a mask of at most four axes: a condition, or numbers to add."""
    shape = _shape(node, mask, views)
    tail = made.index[len(made.index) - len(shape) :]
    placed = Placed(
        mask,
        tuple(
            () if extent == Dim.of(1) else axis for axis, extent in zip(tail, shape, strict=True)
        ),
    )
    if views.shapes.dtype(mask) == TensorProto.BOOL:
        chain.operations.append(Select(placed, Placed.number(-np.inf)))
    else:
        chain.operations.append(Bias(placed))


def _microsoft_mask(
    node: Node, mask: Value | None, bias: Value | None, made: _Atoms, views: Views
) -> Chain:
    """A mask of (batch, columns), whose zeros add `mask_filter_value`, and numbers to add."""
    chain = Chain()
    if bias is not None:
        _mask(chain, bias, made, views, node)
    if mask is not None:
        shape = _shape(node, mask, views)
        if len(shape) == 2 and shape[1].as_int() != 1:
            visible = Call("Greater", (mask, np.zeros((), dtype=np.int32)))
        elif len(shape) == 1 and shape[0] == size(made.batch):
            visible = _below(mask, made, views, node)
        else:
            raise _refuse(node, "mask", f"of shape ({', '.join(map(str, shape))})")
        filler = np.asarray(node.attr("mask_filter_value", -10000.0), dtype=np.float32)
        added = Call("Where", (visible, np.zeros((), dtype=np.float32), filler))
        chain.operations.append(Bias(Placed(added, (made.batch, made.columns))))
    return chain


def _below(lengths: Value, made: _Atoms, views: Views, node: Node) -> Call:
    """Return, for each batch, which columns are below its length: (batch, columns), bool."""
    extent = size(made.columns)
    number = extent.as_int()
    columns: Expr
    if number is not None:
        columns = np.arange(number, dtype=np.int32)
    else:
        values = tuple(value for value in node.inputs[:1] if value is not None)
        limit = Extents(views, values).expr(extent)
        if limit is None:
            raise Declined(
                Code.SHAPE_UNKNOWN, node, value=lengths.name, what="the number of columns"
            )
        cast = Call("Cast", (limit,), (("to", int(TensorProto.INT32)),))
        scalar = Call("Reshape", (cast, np.zeros(0, dtype=np.int64)))
        zero, one = (np.asarray(step, dtype=np.int32) for step in (0, 1))
        columns = Call("Range", (zero, scalar, one))
    return Call("Less", (columns, Call("Reshape", (lengths, np.array([-1, 1], dtype=np.int64)))))


def _microsoft_attention(node: Node, views: Views) -> Lifted:
    """Attention of com.microsoft: one input, one packed weight of three parts, one bias."""
    bias, mask, past, added = (input_at(node, position) for position in range(2, 6))
    if past is not None or node.attr("do_rotary", 0):
        raise _refuse(node, "past" if past is not None else "do_rotary", "given")
    _check_outputs(node)
    source, shape = _given(node, 0, views)
    weight, weight_shape = _given(node, 1, views)
    if not views.shapes.is_constant(weight) or (
        bias is not None and not views.shapes.is_constant(bias)
    ):
        raise _refuse(node, "weights", "computed")
    total = weight_shape[1].as_int()
    heads = int(node.attr("num_heads"))
    if total is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=weight.name, what="its columns")
    sizes = [int(width) for width in node.attr("qkv_hidden_sizes") or [total // 3] * 3]
    space = views.space
    made = _atoms(
        space,
        shape[0],
        (heads, 1),
        shape[1],
        shape[1],
        (Dim.of(sizes[0] // heads), Dim.of(sizes[2] // heads)),
    )
    parts: dict[str, Operand] = {}
    start = 0
    for name, width in zip(("q", "k", "v"), sizes, strict=True):
        depth = made.depth_v if name == "v" else made.depth
        inner = space.atom(weight_shape[0], "channel")
        columns = space.ranged((*made.heads, *depth), Dim.of(start), 1, Dim.of(total))
        positions = made.rows if name == "q" else made.columns
        steps = () if bias is None else (Step("add", Ref(bias, (columns,))),)
        own = Ref(source, (made.batch, positions, inner))
        projection = Projection(own, Ref(weight, (inner, columns)), (inner,), 1.0, steps)
        parts[name] = Operand(1.0, None, None, projection, (own,), depth, None, None)
        start += width
    chain = _microsoft_mask(node, mask, added, made, views)
    scale = float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(sizes[0] // heads)
    chain.operations.append(Scale(scale))
    whole = Ref(source, (made.batch, made.rows, ()))
    scores, values = _made(
        node,
        (whole, whole, whole),
        made,
        (made.batch, made.rows, (*made.heads, *made.depth_v)),
        chain,
        zero_nan=False,
    )
    return Lifted(scores, values, parts=parts, is_causal=bool(node.attr("unidirectional", 0)))


def _multi_head(node: Node, views: Views) -> Lifted:
    """MultiHeadAttention of com.microsoft: separate queries, keys and values.

    Each may have its part of one bias.
    """
    bias, mask, added, past_key, past_value = (input_at(node, at) for at in range(3, 8))
    if past_key is not None or past_value is not None:
        raise _refuse(node, "past_key", "given")
    _check_outputs(node)
    (query, key, value), shapes = zip(
        *(_given(node, position, views) for position in range(3)), strict=True
    )
    if len(shapes[0]) != 3 or len(shapes[1]) != len(shapes[2]) or len(shapes[1]) not in (3, 4):
        raise _refuse(node, "query, key and value", "packed")
    heads = int(node.attr("num_heads"))
    split = len(shapes[1]) == 4
    width = shapes[0][2].as_int()
    if width is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=query.name, what="its width")
    depth_v = shapes[2][3] if split else shapes[2][2] // Dim.of(heads)
    made = _atoms(
        views.space,
        shapes[0][0],
        (heads, 1),
        shapes[0][1],
        shapes[1][2 if split else 1],
        (Dim.of(width // heads), depth_v),
    )
    refs = [Ref(query, (made.batch, made.rows, (*made.heads, *made.depth)))]
    for given, depth in ((key, made.depth), (value, made.depth_v)):
        merged: Index = (made.batch, made.columns, (*made.heads, *depth))
        refs.append(Ref(given, (made.batch, made.heads, made.columns, depth) if split else merged))
    steps: dict[str, tuple[Step, ...]] = {}
    if bias is not None:
        if not views.shapes.is_constant(bias):
            raise _refuse(node, "bias", "computed")
        total = _shape(node, bias, views)[0]
        start = 0
        for name, depth, own in (
            ("q", made.depth, width),
            ("k", made.depth, width),
            ("v", made.depth_v, None),
        ):
            columns = views.space.ranged((*made.heads, *depth), Dim.of(start), 1, total)
            steps[name] = (Step("add", Ref(bias, (columns,))),)
            start += own or 0
    chain = _microsoft_mask(node, mask, added, made, views)
    scale = float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(width // heads)
    chain.operations.append(Scale(scale))
    context: Index = (made.batch, made.rows, (*made.heads, *made.depth_v))
    scores, values = _made(node, (refs[0], refs[1], refs[2]), made, context, chain, zero_nan=False)
    return Lifted(scores, values, steps=steps, is_causal=bool(node.attr("unidirectional", 0)))


def _grouped_query(node: Node, views: Views) -> Lifted:
    raise _refuse(node, "seqlens_k", "given: its cache is written in place")


_RULES: dict[tuple[str, str], Callable[[Node, Views], Lifted]] = {
    ("", "Attention"): _standard,
    ("com.microsoft", "Attention"): _microsoft_attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped_query,
}
