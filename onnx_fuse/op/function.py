"""The operators' bodies: model-local functions in standard ONNX that compute what the kernel does.

Where the library isn't registered, the host inlines this function, so it is written to cost what
the exporter's own graph cost: weights are unpacked from constants (which the host folds once at
load), a feature that the form lacks leaves no node, and grouped heads are folded into rows instead
of being copied. A lone head's axis is added where several heads' is moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from onnx import FunctionProto, TensorProto, helper, numpy_helper

from onnx_fuse.op import layout, schema
from onnx_fuse.op.builder import BodyBuilder
from onnx_fuse.op.core import Core, Takes
from onnx_fuse.op.form import Form
from onnx_fuse.op.schema import (
    ATTRIBUTES,
    DOMAIN,
    FLOAT,
    OUTPUTS,
    InvalidBlock,
)

# Operators that hosts run faster than the norm's steps, and the opset from which on there are such.
_NORMALIZATIONS = {"layer": ("LayerNormalization", 17), "rms": ("RMSNormalization", 23)}
_END = np.iinfo(np.int32).max
_ONE = numpy_helper.from_array(np.ones(1, np.int64))


class _Part(NamedTuple):
    """Q, K or V: the operand that gives it, its columns in the packed weight, its heads' sizes."""

    operand: str
    start: int | str
    end: str
    heads: str
    size: str


_Q_END = "num_heads * head_dim"
_K_END = f"{_Q_END} + kv_num_heads * head_dim"
_V_END = f"{_K_END} + kv_num_heads * v_head_dim"
_PARTS = {
    "q": _Part("query", 0, _Q_END, "num_heads", "head_dim"),
    "k": _Part("key", _Q_END, _K_END, "kv_num_heads", "head_dim"),
    "v": _Part("value", _K_END, _V_END, "kv_num_heads", "v_head_dim"),
}
# What GroupQueryAttention reads behind the lengths, in its order.
_BEHIND_LENGTHS = ("cos_cache", "sin_cache", "position_ids", "attn_bias", "sinks")


def body(form: Form, opset: int) -> FunctionProto:
    """Return the function for this form, in that opset (the model's own)."""
    names = (*form.inputs, *(row.name for row in OUTPUTS))
    block = BodyBuilder(opset, names, dict(form.literals))
    _attention(block, form)
    domains = dict.fromkeys(("", *(node.domain for node in block.nodes)))
    return helper.make_function(
        DOMAIN,
        form.op_type,
        list(form.inputs),
        list(form.outputs),
        block.nodes,
        [helper.make_opsetid(name, 1 if name else opset) for name in domains],
        ["operands", *(row.name for row in ATTRIBUTES)],
    )


def _attention(b: BodyBuilder, form: Form) -> None:
    merged = "merged" if form.has("out_weight") else "output"
    if form.has("seqlens_k"):
        context = _grouped_query(b, form, merged)
    elif form.core is not None:
        context = _core_context(b, form, form.core, merged)
    else:
        context = _context(b, form, merged)
    if form.has("gate"):
        rows = b.reshape(context, 0, 0, "num_heads", "v_head_dim", hint="context")
        rows = b.add("Mul", rows, "gate", hint="gated")
        context = b.reshape(rows, 0, 0, "num_heads * v_head_dim", hint="gated")
    if form.has("out_weight"):
        weight = _columns(b, form, "out_weight", 0, "out_size")
        _project(b, context, weight, "out_bias" if form.has("out_bias") else "", "output")


def _context(b: BodyBuilder, form: Form, name: str) -> str:
    """Return the context (batch, q_seq, num_heads * v_head_dim), step by step."""
    query, key, value = _query(b, form), _transposed_key(b, form), _value(b, form)
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
    if form.gives("attn_weights"):
        weights = b.rename(weights, "attn_weights")
    if form.is_grouped:
        weights = b.reshape(weights, 0, "kv_num_heads", -1, 0, hint="weights")
    context = b.add("MatMul", weights, value, hint="context")
    if form.is_grouped:
        context = b.reshape(context, 0, "num_heads", -1, "v_head_dim", hint="context")
    return _merged(b, form, "q", context, "v_head_dim", name)


def _merged(b: BodyBuilder, form: Form, part: str, x: str, size: str, name: str) -> str:
    """Return (batch, heads, seq, size) as (batch, seq, heads * size); heads are that part's."""
    if form.has_lone_head(part):
        return b.squeeze(x, 1, **_named(name))
    rows = b.transpose(x, 0, 2, 1, 3, hint="context")
    return b.reshape(rows, 0, 0, f"{_PARTS[part].heads} * {size}", **_named(name))


def _core_context(b: BodyBuilder, form: Form, core: Core, name: str) -> str:
    """Return the context (batch, q_seq, num_heads * v_head_dim) by the block's own operator."""
    if core.query is Takes.SOURCE:
        weight = _columns(b, form, "qkv_weight", 0, _V_END)
        bias = "qkv_bias" if form.has("qkv_bias") else ""
        inputs = ["hidden", weight, bias]
    else:
        inputs = [_core_input(b, form, core.query, "q")]
        inputs += [_core_input(b, form, core.key_value, part) for part in ("k", "v")]
    if core.value_width:
        inputs[2] = b.reshape(inputs[2], 0, 0, core.value_width, hint="value")
    is_split = core.query is Takes.HEADS
    attributes: dict[str, Any] = {"domain": core.domain, **dict(core.attributes)}
    outputs = [b.name("context") if is_split else name]
    if core.joins:
        outputs += ["present_key", "present_value"]
    context, *_ = b.add_many(core.op_type, (*inputs, *core.inputs), tuple(outputs), **attributes)
    b.refer("scale", "scale")
    if is_split:
        return _merged(b, form, "q", context, "v_head_dim", name)
    return context


def _grouped_query(b: BodyBuilder, form: Form, name: str) -> str:
    """Return the context by GroupQueryAttention, which writes keys and values into the cache.

    In the standard's own operators that takes a copy of the cache, and masks.
    """
    parts = ("q", "k", "v")
    is_plain = not any(map(form.has_norm, "qk")) and not form.has("q_cos")
    if is_plain and form.has("qkv"):
        query = ["qkv", "", ""]
    elif is_plain and form.has("qkv_weight"):
        weight = _columns(b, form, "qkv_weight", 0, _V_END)
        bias = "qkv_bias" if form.has("qkv_bias") else ""
        query = [_project(b, "hidden", weight, bias, "qkv"), "", ""]
    else:
        query = [_core_input(b, form, Takes.ROWS, part) for part in parts]
    lengths = ("past_key", "past_value", "seqlens_k", "total_sequence_length")
    kept = dict(form.core.attributes) if form.core is not None else {}
    behind = [operand if form.has(operand) else "" for operand in _BEHIND_LENGTHS]
    if "smooth_softmax" in kept:  # its sinks are 0
        behind[-1] = ""
    while behind and not behind[-1]:
        behind.pop()
    context, *_ = b.add_many(
        "GroupQueryAttention",
        (*query, *lengths, *behind),
        (name, "present_key", "present_value"),
        domain="com.microsoft",
        do_rotary=int(form.has("cos_cache")),
        **kept,
        **({} if form.is_causal else {"causal": 0}),
    )
    for attribute in ("num_heads", "kv_num_heads", "scale"):
        b.refer(attribute, attribute)
    # What is younger than the operator stands there only if it does something.
    for attribute, own, is_used in (
        ("rotary_interleaved", "interleaved", form.has("cos_cache")),
        ("softcap", "softcap", form.is_softcapped),
        ("local_window_size", "window_size", form.has_window),
        ("sliding_window_cache", "window_cache", form.has_window_cache),
    ):
        if is_used:
            b.refer(attribute, own)
    return context


def _core_input(b: BodyBuilder, form: Form, takes: Takes, part: str) -> str:
    """Return Q, K or V as the block's own operator takes it."""
    given, _, _, heads, size = _PARTS[part]
    is_rotated = form.has(f"{part}_cos")
    is_joined = part != "q" and form.gives("present_key") and not form.is_joined_by_operator
    is_repeated = part != "q" and form.is_repeated_for_operator
    if takes is Takes.ROWS and not (form.has(given) or is_rotated or is_joined or is_repeated):
        if part == "v" or not form.has_norm(part):
            return _projection(b, form, part)
        return b.reshape(_normed_heads(b, form, part), 0, 0, f"{heads} * {size}", hint=given)
    make = {"q": _query, "k": _key, "v": _value}[part]
    x = make(b, form)
    if is_repeated:
        rows = _repeated(b, x, size)
        if takes is Takes.HEADS:
            return b.transpose(rows, 0, 2, 1, 3, hint=given)
        return b.reshape(rows, 0, 0, f"num_heads * {size}", hint=given)
    if takes is Takes.HEADS:
        return x
    return _merged(b, form, part, x, size, given)


def _repeated(b: BodyBuilder, x: str, size: str) -> str:
    """Return (batch, kv_num_heads, seq, size) as (batch, seq, num_heads, size)."""
    wide = b.reshape(b.transpose(x, 0, 2, 1, 3), 0, 0, 0, 1, size)
    wide = b.add("Expand", wide, b.shape(1, 1, 1, "num_heads / kv_num_heads", 1))
    return b.reshape(wide, 0, 0, "num_heads", size)


def _named(name: str) -> dict[str, str]:
    """Return how to call a result that is the function's output, or how to start its name."""
    is_output = name in {row.name for row in OUTPUTS}
    return {"out" if is_output else "hint": name}


def _columns(b: BodyBuilder, form: Form, operand: str, start: int | str, end: int | str) -> str:
    """Return (rows, end - start): some columns of a weight that comes as panels."""
    rows = b.once(("rows", operand), lambda: _rows(b, form, operand))
    return b.slice(rows, 1, start, end, hint="weight")


def _rows(b: BodyBuilder, form: Form, operand: str) -> str:
    """Return (rows, 16 * panels) from panels (panels, rows, 16), in bfloat16 with paired rows."""
    panels = operand
    if operand in form.bfloat16:
        pairs = b.add("Cast", operand, to=FLOAT)
        panels = b.reshape(b.transpose(pairs, 0, 1, 3, 2), 0, -1, layout.PANEL)
    return b.reshape(b.transpose(panels, 1, 0, 2), 0, -1)


def _project(b: BodyBuilder, source: str, weight: str, bias: str, name: str) -> str:
    """Append source (batch, seq, rows) times weight (rows, columns), plus bias if there is one."""
    if not bias:
        return b.add("MatMul", source, weight, **_named(name))
    return b.add("Add", b.add("MatMul", source, weight, hint=name), bias, **_named(name))


def _projection(b: BodyBuilder, form: Form, part: str) -> str:
    """Return the projected Q, K or V as (batch, seq, heads * size), with its bias."""
    _, start, end, heads, size = _PARTS[part]
    if form.has("qkv"):
        return b.slice("qkv", 2, start, end, hint=part)
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
        query = _heads_first(b, form, "q", _normed_heads(b, form, "q"), "query")
    return _rotate(b, form, query, "q_cos", "q_sin") if form.has("q_cos") else query


def _transposed_key(b: BodyBuilder, form: Form) -> str:
    """Return K as (batch, kv_num_heads, head_dim, total_seq), ready for the product with Q."""
    is_plain = not (form.has("key") or form.has("k_cos") or form.has("past_key"))
    if is_plain and not (form.gives("present_key") or form.has_lone_head("k")):
        return b.transpose(_normed_heads(b, form, "k"), 0, 2, 3, 1, hint="key")
    return b.transpose(_key(b, form), 0, 1, 3, 2, hint="key")


def _key(b: BodyBuilder, form: Form) -> str:
    """Return K as (batch, kv_num_heads, total_seq, head_dim)."""
    if form.has("key"):
        key = _norm_value(b, form, "k", "key")
    else:
        key = _heads_first(b, form, "k", _normed_heads(b, form, "k"), "key")
    if form.has("k_cos"):
        key = _rotate(b, form, key, "k_cos", "k_sin")
    return _joined(b, form, key, "key")


def _value(b: BodyBuilder, form: Form) -> str:
    """Return V as (batch, kv_num_heads, total_seq, v_head_dim)."""
    if form.has("value"):
        return _joined(b, form, "value", "value")
    heads = _split(b, form, "v", _projection(b, form, "v"), "value")
    return _joined(b, form, _heads_first(b, form, "v", heads, "value"), "value")


def _joined(b: BodyBuilder, form: Form, new: str, name: str) -> str:
    """Return past and new key or value, (batch, heads, total_seq, size); maybe an output."""
    if form.is_joined_by_operator:
        return new
    if form.has(f"past_{name}"):
        new = b.add("Concat", f"past_{name}", new, axis=2, hint=name)
    if not form.gives("present_key"):
        return new
    if form.has(new):  # an input cannot be an output, too
        return b.add("Identity", new, out=f"present_{name}")
    return b.rename(new, f"present_{name}")


def _split(b: BodyBuilder, form: Form, part: str, rows: str, name: str) -> str:
    """Return (batch, seq, heads * size) as (batch, seq, heads, size); a lone head has no axis."""
    if form.has_lone_head(part):
        return rows
    return b.reshape(rows, 0, 0, _PARTS[part].heads, _PARTS[part].size, hint=name)


def _heads_first(b: BodyBuilder, form: Form, part: str, heads: str, name: str) -> str:
    """Return what `_split` returned as (batch, heads, seq, size)."""
    if form.has_lone_head(part):
        return b.unsqueeze(heads, 1, hint=name)
    return b.transpose(heads, 0, 2, 1, 3, hint=name)


def _normed_heads(b: BodyBuilder, form: Form, part: str) -> str:
    """Return the projected Q or K, normed and as `_split` returns it."""
    projected = _projection(b, form, part)
    norms_rows = form.norm(part).over_heads or form.has_lone_head(part)
    if form.has_norm(part) and norms_rows:
        projected = _norm(b, form, part, projected, (2,), (-1,))
    split = _split(b, form, part, projected, f"{part}_heads")
    if not form.has_norm(part) or norms_rows:
        return split
    return _norm(b, form, part, split, (3,), ())


def _norm_value(b: BodyBuilder, form: Form, part: str, value: str) -> str:
    """Return the operand `query` or `key`, (batch, heads, seq, head_dim), normed."""
    norm = form.norm(part)
    if not form.has_norm(part):
        return value
    return _norm(b, form, part, value, (1, 3) if norm.over_heads else (3,), (0, 1, -1))


def _norm(
    b: BodyBuilder, form: Form, part: str, x: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    """Return x normed over these axes; its weight (heads, head_dim) gets that shape if any."""
    kind, over_heads = form.norm(part)
    op, oldest = _NORMALIZATIONS.get(kind, ("", 0))
    if op and len(axes) == 1 and b.opset >= oldest:
        heads = _PARTS[part].heads
        ones = b.constant([1], np.float32)
        scale = b.add("Expand", ones, b.size(f"{heads} * head_dim" if over_heads else "head_dim"))
        x = b.add(op, x, scale, axis=-1)
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
        # Not -1: of an empty batch no extent can be left open.
        first, second = b.halves(b.reshape(x, 0, 0, 0, "rotary_embedding_dim / 2", 2), 4)
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
    is_zero = _are_empty(b, scores) if form.zero_nan == 2 else None
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
        weights = b.add("Where", is_zero or b.add("IsNaN", weights), zero, weights, hint="weights")
    return weights


def _are_empty(b: BodyBuilder, scores: str) -> str:
    """Return (batch, num_heads, q_seq, 1) bool: whether a row's scores are all -inf, and none NaN.

    The others are counted, which is 0 for no column, too; the maximum of a NaN and a number is
    none that runtimes agree on.
    """
    lowest = b.constant(np.finfo(np.float32).min, np.float32)
    others = b.add("Cast", b.add("Not", b.add("Less", scores, lowest)), to=TensorProto.FLOAT)
    return b.add("Less", b.reduce("ReduceL1", others, (3,)), b.constant(1, np.float32))
