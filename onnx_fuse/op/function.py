"""The operators' bodies: model-local functions in standard ONNX that compute what the kernel does.

Where the library isn't registered, the host inlines this function, so it is written to cost what
the exporter's own graph cost: weights are unpacked from constants (which the host folds once at
load), a feature that the form lacks leaves no node, and grouped heads are folded into rows instead
of being copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, defs, helper, numpy_helper

from onnx_fuse.op import schema
from onnx_fuse.op.builder import BodyBuilder
from onnx_fuse.op.schema import (
    ATTRIBUTES,
    BFLOAT16,
    DOMAIN,
    FLOAT,
    OUTPUTS,
    Argument,
    BlockAttributes,
    InvalidBlock,
    in_order,
)

OLDEST_OPSET = 9
# The tests go up to 28. In a later opset an operator may mean something else; an onnx that defines
# it is taken to be one that this package was tried with.
NEWEST_OPSET = max(28, defs.onnx_opset_version())
# From this opset on Constant has value_int and value_float, which can refer to an attribute.
_ATTRIBUTE_CONSTANTS = 12
# From this opset on there is LayerNormalization, which hosts run faster than its steps.
_LAYER_NORMALIZATION = 17


@dataclass(frozen=True)
class Form:
    """What decides a body's nodes. Blocks of one form share one body, whatever their sizes are.

    `literals` holds the attributes' values in opsets whose bodies cannot refer to attributes.
    """

    op_type: str
    operands: tuple[str, ...]
    outputs: int
    bfloat16: tuple[str, ...] = ()
    is_grouped: bool = False
    is_scaled: bool = True
    is_softcapped: bool = False
    is_causal: bool = False
    is_interleaved: bool = False
    is_partly_rotated: bool = False
    q_norm: str = "none"
    k_norm: str = "none"
    q_norm_over_heads: bool = False
    k_norm_over_heads: bool = False
    zero_nan: bool = False
    literals: tuple[tuple[str, int | float], ...] = ()

    def has(self, operand: str) -> bool:
        """Return whether the blocks of this form have that operand."""
        return operand in self.operands

    def norm(self, part: str) -> tuple[str, bool]:
        """Return the norm of part "q" or "k", and whether it runs over all heads."""
        if part == "q":
            return self.q_norm, self.q_norm_over_heads
        return self.k_norm, self.k_norm_over_heads


def form_of(
    op_type: str,
    operands: Mapping[str, Argument],
    attributes: BlockAttributes,
    outputs: int,
    opset: int,
) -> Form:
    """Return the form of a block with these operands, in any order, in a model of that opset.

    Raises: InvalidBlock if the opset has no body for it: below 9, or bfloat16 weights below 13.
    """
    if opset < OLDEST_OPSET:
        raise InvalidBlock(f"opset {opset} is older than {OLDEST_OPSET}")
    names = in_order(operands)
    bfloat16 = tuple(name for name in names if operands[name].dtype == BFLOAT16)
    if bfloat16 and opset < 13:
        raise InvalidBlock(f"{bfloat16[0]} is bfloat16, which opset {opset} cannot cast")
    is_rotated = "q_cos" in names or "k_cos" in names
    has_literals = opset < _ATTRIBUTE_CONSTANTS
    numbers = tuple(
        (row.name, getattr(attributes, row.name)) for row in ATTRIBUTES if row.type is not str
    )
    return Form(
        op_type=op_type,
        operands=names,
        outputs=outputs,
        bfloat16=bfloat16,
        is_grouped=attributes.num_heads != attributes.kv_num_heads,
        is_scaled=attributes.scale != 1,
        is_softcapped=attributes.softcap != 0,
        is_causal=bool(attributes.is_causal),
        is_interleaved=is_rotated and bool(attributes.interleaved),
        is_partly_rotated=is_rotated and attributes.rotary_embedding_dim != attributes.head_dim,
        q_norm=attributes.q_norm,
        k_norm=attributes.k_norm,
        q_norm_over_heads=attributes.q_norm != "none" and bool(attributes.q_norm_over_heads),
        k_norm_over_heads=attributes.k_norm != "none" and bool(attributes.k_norm_over_heads),
        zero_nan=bool(attributes.zero_nan),
        literals=numbers if has_literals else (),
    )


def neutral(operand: str, attributes: BlockAttributes) -> NDArray[np.generic]:
    """Return a constant for an operand that this block lacks and others of its body have.

    Raises: InvalidBlock for an operand that has no neutral value.
    """
    dims = attributes.dims()
    match operand:
        case "attn_bias" | "mask_fill":
            return np.zeros((), np.float32)
        case "attn_mask":
            return np.ones((), np.bool_)
        case "sinks":
            return np.full(attributes.num_heads, -np.inf, np.float32)
        case "qkv_bias" | "q_bias" | "k_bias" | "v_bias":
            return np.zeros(dims[operand.replace("bias", "columns")], np.float32)
        case "q_norm_bias":
            return np.zeros((attributes.num_heads, attributes.head_dim), np.float32)
        case "k_norm_bias":
            return np.zeros((attributes.kv_num_heads, attributes.head_dim), np.float32)
        case "out_bias":
            return np.zeros(attributes.out_size, np.float32)
    raise InvalidBlock(f"operand {operand} has no neutral value")


def body(form: Form, opset: int) -> FunctionProto:
    """Return the function for this form, in that opset (the model's own)."""
    names = (*form.operands, *(row.name for row in OUTPUTS))
    block = BodyBuilder(opset, names, dict(form.literals))
    _attention(block, form)
    return helper.make_function(
        DOMAIN,
        form.op_type,
        list(form.operands),
        [row.name for row in OUTPUTS[: form.outputs]],
        block.nodes,
        [helper.make_opsetid("", opset)],
        ["operands", *(row.name for row in ATTRIBUTES)],
    )


def _attention(b: BodyBuilder, form: Form) -> None:
    query, key, value = _query(b, form), _key(b, form), _value(b, form)
    if form.is_grouped:
        # (batch, num_heads, q_seq, head_dim) -> (batch, kv_num_heads, group * q_seq, head_dim)
        query = b.reshape(query, 0, "kv_num_heads", -1, "head_dim")
    scores = b.add("MatMul", query, key, hint="scores")
    if form.is_scaled:
        scores = b.add("Mul", scores, b.number("scale"), hint="scores")
    if form.is_softcapped:
        cap = b.number("softcap")
        scores = b.add("Mul", b.add("Tanh", b.add("Div", scores, cap)), cap, hint="scores")
    if form.is_grouped:
        scores = b.reshape(scores, 0, "num_heads", -1, 0, hint="scores")
    weights = _weights(b, form, _masked(b, form, scores))
    if form.is_grouped:
        weights = b.reshape(weights, 0, "kv_num_heads", -1, 0, hint="weights")
    context = b.add("MatMul", weights, value, hint="context")
    if form.is_grouped:
        context = b.reshape(context, 0, "num_heads", -1, "v_head_dim", hint="context")
    context = b.transpose(context, 0, 2, 1, 3, hint="context")
    has_projection = form.has("out_weight")
    merged = "merged" if has_projection else "output"
    context = b.reshape(context, 0, 0, "num_heads * v_head_dim", **_named(merged))
    if has_projection:
        weight = _columns(b, form, "out_weight", 0, "out_size")
        _project(b, context, weight, "out_bias" if form.has("out_bias") else "", "output")


def _named(name: str) -> dict[str, str]:
    """Return how to call a result that is the function's output, or how to start its name."""
    is_output = name in {row.name for row in OUTPUTS}
    return {"out" if is_output else "hint": name}


def _columns(b: BodyBuilder, form: Form, operand: str, start: int | str, end: int | str) -> str:
    """Return (rows, end - start): some columns of a weight that comes as panels."""
    rows = b.once(("rows", operand), lambda: _rows(b, form, operand))
    return b.slice(rows, 1, start, end, hint="weight")


def _rows(b: BodyBuilder, form: Form, operand: str) -> str:
    """Return (rows, 16 * panels) from panels (panels, rows, 16)."""
    panels = operand
    if operand in form.bfloat16:
        panels = b.add("Cast", operand, to=FLOAT)
    return b.reshape(b.transpose(panels, 1, 0, 2), 0, -1)


def _project(b: BodyBuilder, source: str, weight: str, bias: str, name: str) -> str:
    """Append source (batch, seq, rows) times weight (rows, columns), plus bias if there is one."""
    if not bias:
        return b.add("MatMul", source, weight, **_named(name))
    return b.add("Add", b.add("MatMul", source, weight, hint=name), bias, **_named(name))


_END = np.iinfo(np.int32).max
_ONE = numpy_helper.from_array(np.ones(1, np.int64))

# Columns of qkv_weight: where Q, K and V start and end.
_Q_END = "num_heads * head_dim"
_K_END = f"{_Q_END} + kv_num_heads * head_dim"
_V_END = f"{_K_END} + kv_num_heads * v_head_dim"
_PARTS: dict[str, tuple[int | str, str, str, str]] = {
    # part: start and end in the packed weight, heads, size of a head
    "q": (0, _Q_END, "num_heads", "head_dim"),
    "k": (_Q_END, _K_END, "kv_num_heads", "head_dim"),
    "v": (_K_END, _V_END, "kv_num_heads", "v_head_dim"),
}


def _projection(b: BodyBuilder, form: Form, part: str) -> str:
    """Return the projected Q, K or V as (batch, seq, heads * size), with its bias."""
    start, end, heads, size = _PARTS[part]
    source = schema.source(part, form.operands)
    if source is None:
        raise InvalidBlock(f"there is nothing to project {part} from")
    if form.has("qkv_weight"):
        weight = _columns(b, form, "qkv_weight", start, end)
        bias = b.slice("qkv_bias", 0, start, end, hint="bias") if form.has("qkv_bias") else ""
    else:
        weight = _columns(b, form, f"{part}_weight", 0, f"{heads} * {size}")
        bias = f"{part}_bias" if form.has(f"{part}_bias") else ""
    return _project(b, source, weight, bias, f"{part}_projected")


def _query(b: BodyBuilder, form: Form) -> str:
    """Return Q as (batch, num_heads, q_seq, head_dim), normed and rotated."""
    if form.has("query"):
        query = _norm_value(b, form, "q", "query")
    else:
        query = b.transpose(_normed_heads(b, form, "q"), 0, 2, 1, 3, hint="query")
    return _rotate(b, form, query, "q_cos", "q_sin") if form.has("q_cos") else query


def _key(b: BodyBuilder, form: Form) -> str:
    """Return K as (batch, kv_num_heads, head_dim, total_seq), ready for the product with Q."""
    if form.has("key"):
        key = _norm_value(b, form, "k", "key")
    else:
        heads = _normed_heads(b, form, "k")
        if form.outputs == 1 and not form.has("k_cos") and not form.has("past_key"):
            return b.transpose(heads, 0, 2, 3, 1, hint="key")
        key = b.transpose(heads, 0, 2, 1, 3, hint="key")
    if form.has("k_cos"):
        key = _rotate(b, form, key, "k_cos", "k_sin")
    return b.transpose(_joined(b, form, key, "key"), 0, 1, 3, 2, hint="key")


def _value(b: BodyBuilder, form: Form) -> str:
    """Return V as (batch, kv_num_heads, total_seq, v_head_dim)."""
    if form.has("value"):
        return _joined(b, form, "value", "value")
    heads = b.reshape(_projection(b, form, "v"), 0, 0, "kv_num_heads", "v_head_dim", hint="value")
    return _joined(b, form, b.transpose(heads, 0, 2, 1, 3, hint="value"), "value")


def _joined(b: BodyBuilder, form: Form, new: str, name: str) -> str:
    """Return past and new key or value, (batch, heads, total_seq, size); maybe an output."""
    if form.has(f"past_{name}"):
        new = b.add("Concat", f"past_{name}", new, axis=2, hint=name)
    if form.outputs == 1:
        return new
    if form.has(new):  # an input cannot be an output, too
        return b.add("Identity", new, out=f"present_{name}")
    return b.rename(new, f"present_{name}")


def _normed_heads(b: BodyBuilder, form: Form, part: str) -> str:
    """Return the projected Q or K as (batch, seq, heads, head_dim), normed."""
    projected = _projection(b, form, part)
    _, _, heads, size = _PARTS[part]
    norm, over_heads = form.norm(part)
    if norm != "none" and over_heads:
        projected = _norm(b, form, part, projected, (2,), (-1,))
    split = b.reshape(projected, 0, 0, heads, size, hint=f"{part}_heads")
    if norm != "none" and not over_heads:
        return _norm(b, form, part, split, (3,), ())
    return split


def _norm_value(b: BodyBuilder, form: Form, part: str, value: str) -> str:
    """Return the operand `query` or `key`, (batch, heads, seq, head_dim), normed."""
    norm, over_heads = form.norm(part)
    if norm == "none":
        return value
    return _norm(b, form, part, value, (1, 3) if over_heads else (3,), (0, 1, -1))


def _norm(
    b: BodyBuilder, form: Form, part: str, x: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    """Return x normed over these axes; its weight (heads, head_dim) gets that shape if any."""
    kind, over_heads = form.norm(part)
    if kind == "layer" and len(axes) == 1 and b.opset >= _LAYER_NORMALIZATION:
        heads = "num_heads" if part == "q" else "kv_num_heads"
        ones = b.constant([1], np.float32)
        scale = b.add("Expand", ones, b.size(f"{heads} * head_dim" if over_heads else "head_dim"))
        x = b.add("LayerNormalization", x, scale, axis=-1)
        b.refer("epsilon", f"{part}_norm_epsilon")
        return _weighted(b, form, part, x, shape)
    epsilon = b.number(f"{part}_norm_epsilon")
    if kind == "l2":
        length = b.add("Max", b.reduce("ReduceL2", x, axes), epsilon)
    else:
        if kind == "layer":
            x = b.add("Sub", x, b.reduce("ReduceMean", x, axes))
        square = b.add("Pow", x, b.constant(2, np.float32))
        length = b.add("Sqrt", b.add("Add", b.reduce("ReduceMean", square, axes), epsilon))
    return _weighted(b, form, part, b.add("Div", x, length), shape)


def _weighted(b: BodyBuilder, form: Form, part: str, x: str, shape: tuple[int, ...]) -> str:
    """Return normed x times the norm's weight, plus its bias, as far as the block has them."""
    for operand, op in ((f"{part}_norm_weight", "Mul"), (f"{part}_norm_bias", "Add")):
        if form.has(operand):
            x = b.add(op, x, b.reshape(operand, *shape) if shape else operand, hint=f"{part}_norm")
    return x


def _rotate(b: BodyBuilder, form: Form, x: str, cos: str, sin: str) -> str:
    """Return x (batch, heads, seq, head_dim) with its leading elements rotated."""
    rest = ""
    if form.is_partly_rotated:
        rest = b.slice(x, 3, "rotary_embedding_dim", _END)
        x = b.slice(x, 3, 0, "rotary_embedding_dim")
    if form.is_interleaved:
        first, second = b.halves(b.reshape(x, 0, 0, 0, -1, 2), 4)
        pairs = b.add("Concat", b.add("Neg", second), first, axis=4)
        turned = b.reshape(pairs, 0, 0, 0, "rotary_embedding_dim")
    else:
        first, second = b.halves(x, 3)
        turned = b.add("Concat", b.add("Neg", second), first, axis=3)
    rotated = b.add("Add", b.add("Mul", x, cos), b.add("Mul", turned, sin), hint="rotated")
    return b.add("Concat", rotated, rest, axis=3, hint="rotated") if rest else rotated


def _masked(b: BodyBuilder, form: Form, scores: str) -> str:
    """Return scores (batch, num_heads, q_seq, total_seq) after bias, mask, causal order."""
    if form.has("attn_bias"):
        scores = b.add("Add", scores, "attn_bias", hint="scores")
    if form.has("attn_mask"):
        scores = b.add("Where", "attn_mask", scores, "mask_fill", hint="scores")
    if form.is_causal:
        hidden = b.constant(-np.inf, np.float32)
        scores = b.add("Where", _is_future(b, form, scores), hidden, scores, hint="scores")
    return scores


def _is_future(b: BodyBuilder, form: Form, scores: str) -> str:
    """Return (q_seq, total_seq) bool: column > row + past_seq."""
    shape = b.add("Shape", scores)
    # NonZero of ones counts 0, 1, 2, ... in every opset; Range is younger.
    rows, columns = (
        b.add("NonZero", b.add("ConstantOfShape", b.slice(shape, 0, axis, axis + 1), value=_ONE))
        for axis in (2, 3)
    )  # (1, q_seq), (1, total_seq)
    if form.has("past_key"):
        past = b.slice(b.add("Shape", "past_key"), 0, 2, 3)
        rows = b.add("Add", rows, past)
    return b.add("Greater", columns, b.transpose(rows, 1, 0))


def _weights(b: BodyBuilder, form: Form, scores: str) -> str:
    """Return the softmax over columns of scores (batch, num_heads, q_seq, total_seq)."""
    if form.has("sinks"):
        rows = b.slice(b.add("Shape", scores), 0, 0, 3)  # (batch, num_heads, q_seq)
        shape = b.add("Concat", rows, b.ints(1), axis=0)
        sinks = b.add("Expand", b.reshape("sinks", 1, -1, 1, 1), shape)
        scores = b.add("Concat", scores, sinks, axis=3)
    weights = b.add("Softmax", scores, axis=3, hint="weights")
    if form.has("sinks"):
        weights = b.slice(weights, 3, 0, -1, hint="weights")
    if form.zero_nan:
        zero = b.constant(0, np.float32)
        weights = b.add("Where", b.add("IsNaN", weights), zero, weights, hint="weights")
    return weights
