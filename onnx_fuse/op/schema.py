"""The operators as data: operands, attributes, outputs, and what must hold between them.

docs/op.md, the function body, the float64 reference and the kernel's checks follow from these
tables or are tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from onnx import TensorProto

DOMAIN = "onnx_fuse"
VERSION = 1
OP_TYPES = ("FusedAttentionBlock", "FusedCrossAttentionBlock")
# How many bodies an operator may have in one model: so many names of it the library registers.
BODIES = 8

FLOAT = TensorProto.FLOAT
BFLOAT16 = TensorProto.BFLOAT16
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL

# How the names of inputs begin that the function body alone reads.
BODY_INPUT = "core_"

NORMS = ("none", "rms", "layer", "l2")
Precision = Literal["fp32", "bf16x3", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class InvalidBlock(ValueError):
    """Operands and attributes that are no attention block; the message is one sentence."""


class Argument(NamedTuple):
    """What is known of an operand: onnx.TensorProto data type; int, name or None for each dim."""

    dtype: int | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Operand:
    """One row of the operand table.

    `shape` has names of dims (see DIMS), literals, and alternatives as in "batch|1"; in bfloat16
    the rows of a weight are paired (`shape_in`). `needs` lists operands that must be there too
    ("a|b": one of them), `excludes` those that must not. With `broadcast` any rank up to the
    shape's is fine, aligned at the end.
    """

    name: str
    shape: tuple[str, ...]
    meaning: str
    types: tuple[int, ...] = (FLOAT,)
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    broadcast: bool = False

    def shape_in(self, dtype: int | None) -> tuple[str, ...]:
        """Return the shape that a tensor of this type has."""
        if dtype != BFLOAT16 or BFLOAT16 not in self.types:
            return self.shape
        panels, rows, width = self.shape
        return panels, f"{rows} / 2", width, "2"


@dataclass(frozen=True)
class Attribute:
    """One row of the attribute table. On a node every attribute is given."""

    name: str
    type: type
    meaning: str
    minimum: float = -math.inf
    choices: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Output:
    """One row of the output table."""

    name: str
    shape: tuple[str, ...]
    meaning: str


_WEIGHT = (FLOAT, BFLOAT16)
_SCORES = ("batch|1", "num_heads|1", "q_seq|1", "total_seq|1")

OPERANDS = (
    Operand(
        "hidden",
        ("batch", "q_seq", "hidden_size"),
        "Source of the query projection, and of K and V unless `context` is given.",
    ),
    Operand(
        "context",
        ("batch", "kv_seq", "context_size"),
        "Source of the key projection, and of V unless `value_context` is given.",
    ),
    Operand(
        "value_context",
        ("batch", "kv_seq", "value_context_size"),
        "Source of the value projection.",
    ),
    Operand(
        "query",
        ("batch", "num_heads", "q_seq", "head_dim"),
        "Q itself, instead of a projection.",
        excludes=("q_weight", "qkv_weight"),
    ),
    Operand(
        "key",
        ("batch", "kv_num_heads", "kv_seq", "head_dim"),
        "K itself, instead of a projection.",
        excludes=("k_weight", "qkv_weight"),
    ),
    Operand(
        "value",
        ("batch", "kv_num_heads", "kv_seq", "v_head_dim"),
        "V itself, instead of a projection.",
        excludes=("v_weight", "qkv_weight"),
    ),
    Operand(
        "qkv",
        ("batch", "q_seq", "qkv_columns"),
        "Q, K and V side by side, instead of their projection.",
        excludes=("query", "key", "value", "q_weight", "k_weight", "v_weight", "qkv_weight"),
    ),
    Operand(
        "qkv_weight",
        ("qkv_panels", "hidden_size", "16"),
        "Panels of the weights of Q, K and V side by side, all projected from `hidden`.",
        _WEIGHT,
        needs=("hidden",),
        excludes=("q_weight", "k_weight", "v_weight", "context", "value_context"),
    ),
    Operand(
        "q_weight",
        ("q_panels", "hidden_size", "16"),
        "Panels of the query weight.",
        _WEIGHT,
        needs=("hidden",),
    ),
    Operand(
        "k_weight",
        ("k_panels", "k_source_size", "16"),
        "Panels of the key weight.",
        _WEIGHT,
        needs=("context|hidden",),
    ),
    Operand(
        "v_weight",
        ("v_panels", "v_source_size", "16"),
        "Panels of the value weight.",
        _WEIGHT,
        needs=("value_context|context|hidden",),
    ),
    Operand(
        "qkv_bias",
        ("qkv_columns",),
        "Added to the packed projection.",
        needs=("qkv_weight",),
    ),
    Operand("q_bias", ("q_columns",), "Added to the query projection.", needs=("q_weight",)),
    Operand("k_bias", ("k_columns",), "Added to the key projection.", needs=("k_weight",)),
    Operand("v_bias", ("v_columns",), "Added to the value projection.", needs=("v_weight",)),
    Operand("q_norm_weight", ("num_heads", "head_dim"), "Scale of the query norm."),
    Operand(
        "q_norm_bias",
        ("num_heads", "head_dim"),
        'Shift of the query norm, only with "layer".',
        needs=("q_norm_weight",),
    ),
    Operand("k_norm_weight", ("kv_num_heads", "head_dim"), "Scale of the key norm."),
    Operand(
        "k_norm_bias",
        ("kv_num_heads", "head_dim"),
        'Shift of the key norm, only with "layer".',
        needs=("k_norm_weight",),
    ),
    Operand(
        "q_cos",
        ("batch|1", "num_heads|1", "q_seq|1", "rotary_embedding_dim"),
        "Cosines of the query rotation, one for each rotated element; 1, and sines of 0, for a "
        "position that stays.",
        needs=("q_sin",),
    ),
    Operand(
        "q_sin",
        ("batch|1", "num_heads|1", "q_seq|1", "rotary_embedding_dim"),
        "Sines of the query rotation.",
        needs=("q_cos",),
    ),
    Operand(
        "k_cos",
        ("batch|1", "kv_num_heads|1", "kv_seq|1", "rotary_embedding_dim"),
        "Cosines of the key rotation.",
        needs=("k_sin",),
    ),
    Operand(
        "k_sin",
        ("batch|1", "kv_num_heads|1", "kv_seq|1", "rotary_embedding_dim"),
        "Sines of the key rotation.",
        needs=("k_cos",),
    ),
    Operand(
        "cos_cache",
        ("max_positions", "half_rotary_dim"),
        "Cosines by position, one for each rotated pair of Q and K; instead of tables by row.",
        needs=("sin_cache", "seqlens_k"),
        excludes=("q_cos", "k_cos"),
    ),
    Operand(
        "sin_cache",
        ("max_positions", "half_rotary_dim"),
        "Sines by position.",
        needs=("cos_cache",),
    ),
    Operand(
        "position_ids",
        ("batch", "q_seq"),
        "The positions of the rotation, instead of the rows' places in the cache. Of a first "
        "prompt only the first one is read; its rows count on from there.",
        (INT64,),
        needs=("cos_cache",),
    ),
    Operand(
        "past_key",
        ("batch", "kv_num_heads", "past_seq", "head_dim"),
        "Keys of earlier steps, joined before the projected, normed and rotated K.",
        needs=("past_value",),
    ),
    Operand(
        "past_value",
        ("batch", "kv_num_heads", "past_seq", "v_head_dim"),
        "Values of earlier steps, joined before V.",
        needs=("past_key",),
    ),
    Operand(
        "seqlens_k",
        ("batch",),
        "A batch's own length minus 1, new positions included; past_key is then a buffer that may "
        "be longer than its past.",
        (INT32,),
        needs=("total_sequence_length", "past_key"),
        excludes=("attn_mask", "context", "value_context"),
    ),
    Operand(
        "total_sequence_length",
        ("1",),
        "The longest batch's length, a scalar or one element. If it is q_seq, nothing is cached.",
        (INT32,),
        needs=("seqlens_k",),
        broadcast=True,
    ),
    Operand(
        "attn_bias",
        _SCORES,
        "Added to the scaled and softcapped scores; any rank up to 4 that broadcasts.",
        broadcast=True,
    ),
    Operand(
        "attn_mask",
        _SCORES,
        "Where it is False the score is replaced by `mask_fill`; broadcasts as `attn_bias` does.",
        (BOOL,),
        needs=("mask_fill",),
        broadcast=True,
    ),
    Operand(
        "mask_fill",
        _SCORES,
        "The score of what `attn_mask` hides, mostly a scalar; broadcasts as `attn_bias` does.",
        needs=("attn_mask",),
        broadcast=True,
    ),
    Operand(
        "sinks",
        ("num_heads",),
        "One more logit for each head in the softmax's sum, whose weight is dropped.",
    ),
    Operand(
        "gate",
        ("batch|1", "q_seq|1", "num_heads|1", "v_head_dim|1"),
        "Multiplies the context before the output projection; any rank up to 4 that broadcasts.",
        needs=("out_weight",),
        broadcast=True,
    ),
    Operand(
        "out_weight",
        ("out_panels", "merged_size", "16"),
        "Panels of the output weight.",
        _WEIGHT,
    ),
    Operand("out_bias", ("out_size",), "Added to the output projection.", needs=("out_weight",)),
)

ATTRIBUTES = (
    Attribute("num_heads", int, "Number of query heads.", minimum=1),
    Attribute(
        "kv_num_heads",
        int,
        "Number of key and value heads, a divisor of num_heads: query head n uses head "
        "n // (num_heads / kv_num_heads).",
        minimum=1,
    ),
    Attribute("head_dim", int, "Size of one query or key head.", minimum=1),
    Attribute("v_head_dim", int, "Size of one value head.", minimum=1),
    Attribute(
        "out_size", int, "Columns of the output projection, 0 without out_weight.", minimum=0
    ),
    Attribute("scale", float, "Multiplies the product of query and key."),
    Attribute(
        "softcap",
        float,
        "Scores become softcap * tanh(score / softcap), before bias and mask. 0: they don't.",
        minimum=0,
    ),
    Attribute(
        "is_causal",
        int,
        "1: a score whose column > row + past_seq becomes -inf, after bias and mask.",
        choices=(0, 1),
    ),
    Attribute(
        "window_size",
        int,
        "How many columns a row sees at most, its own the last; 0: all. Only with `seqlens_k` and "
        "is_causal = 1.",
        minimum=0,
    ),
    Attribute(
        "window_cache",
        int,
        "1: the cache has past_seq positions, at least window_size, and keeps the latest ones.",
        choices=(0, 1),
    ),
    Attribute(
        "interleaved",
        int,
        "Rotated pairs are (i, i + rotary_embedding_dim / 2) if 0, (2i, 2i + 1) if 1.",
        choices=(0, 1),
    ),
    Attribute(
        "rotary_embedding_dim",
        int,
        "How many leading elements of each head are rotated, 0 without tables. Even.",
        minimum=0,
    ),
    Attribute("q_norm", str, "Norm of the query.", choices=NORMS),
    Attribute("k_norm", str, "Norm of the key.", choices=NORMS),
    Attribute(
        "q_norm_over_heads",
        int,
        "0: the query norm runs over head_dim of each head, 1: over all heads of a row.",
        choices=(0, 1),
    ),
    Attribute(
        "k_norm_over_heads",
        int,
        "0: the key norm runs over head_dim of each head, 1: over all heads of a row.",
        choices=(0, 1),
    ),
    Attribute("q_norm_epsilon", float, "Epsilon of the query norm.", minimum=0),
    Attribute("k_norm_epsilon", float, "Epsilon of the key norm.", minimum=0),
    Attribute(
        "zero_nan",
        int,
        "1: a softmax weight that is NaN becomes 0. 2: only in rows whose scores are all -inf.",
        choices=(0, 1, 2),
    ),
    Attribute(
        "precision",
        str,
        "Arithmetic of the products: float32, products of bfloat16 in three parts, or in one.",
        choices=PRECISIONS,
    ),
)

OUTPUTS = (
    Output(
        "output",
        ("batch", "q_seq", "out_size"),
        "The result; without out_weight (batch, q_seq, merged_size), heads outermost.",
    ),
    Output(
        "present_key",
        ("batch", "kv_num_heads", "total_seq", "head_dim"),
        "past_key joined with the projected, normed and rotated K.",
    ),
    Output(
        "present_value",
        ("batch", "kv_num_heads", "total_seq", "v_head_dim"),
        "past_value joined with V.",
    ),
    Output(
        "attn_weights",
        ("batch", "num_heads", "q_seq", "total_seq"),
        "The softmax's weights that multiply V. Not with `seqlens_k`.",
    ),
)

# Dims that don't stand as they are in an attribute or an operand's shape.
DIMS = (
    ("total_seq", "past_seq + kv_seq (past_seq is 0 without past_key)"),
    (
        "total_seq, with seqlens_k",
        "max(past_seq, total_sequence_length); with window_cache past_seq",
    ),
    ("half_rotary_dim", "rotary_embedding_dim / 2"),
    ("kv_seq", "q_seq where K or V is projected from hidden"),
    ("q_columns", "num_heads * head_dim"),
    ("k_columns", "kv_num_heads * head_dim"),
    ("v_columns", "kv_num_heads * v_head_dim"),
    ("qkv_columns", "q_columns + k_columns + v_columns, in this order"),
    ("merged_size", "num_heads * v_head_dim"),
    ("k_source_size", "context_size, without context hidden_size"),
    ("v_source_size", "value_context_size, without value_context k_source_size"),
    ("*_panels", "ceil(columns / 16)"),
)

# Where Q, K and V are projected from: the first of these that is given.
SOURCES = {
    "q": ("hidden",),
    "k": ("context", "hidden"),
    "v": ("value_context", "context", "hidden"),
}

_OPERAND_ROWS = {operand.name: operand for operand in OPERANDS}


def op_type(base: str, index: int = 0) -> str:
    """Return the name for body 0, 1, ...: FusedAttentionBlock, FusedAttentionBlock_2, ...

    Raises: InvalidBlock for another operator, or an index that the library doesn't register.
    """
    if base not in OP_TYPES:
        raise InvalidBlock(f"{base} is none of {', '.join(OP_TYPES)}")
    if not 0 <= index < BODIES:
        raise InvalidBlock(f"{base} has {BODIES} bodies, number {index + 1} is none of them")
    return base if index == 0 else f"{base}_{index + 1}"


def outputs(count: int) -> tuple[Output, ...]:
    """Return what a node with so many outputs gives: its weights are the last of an even number.

    Raises: InvalidBlock if a node has never so many.
    """
    output, present_key, present_value, attn_weights = OUTPUTS
    if not 1 <= count <= len(OUTPUTS):
        raise InvalidBlock(f"the block has {count} outputs, expected 1 to {len(OUTPUTS)}")
    presents = (present_key, present_value) if count > 2 else ()
    return (output, *presents, *((attn_weights,) if count % 2 == 0 else ()))


def source(part: str, operands: Collection[str]) -> str | None:
    """Return the operand that "q", "k" or "v" is projected from; None if it isn't."""
    if "qkv_weight" not in operands and f"{part}_weight" not in operands:
        return None
    return next((name for name in SOURCES[part] if name in operands), None)


def in_order(operands: Iterable[str]) -> tuple[str, ...]:
    """Return operand names in the table's order.

    Raises: InvalidBlock for a name that isn't in the table or comes twice.
    """
    names = list(operands)
    for name in names:
        if name not in _OPERAND_ROWS:
            raise InvalidBlock(f"there is no operand {name!r}")
        if names.count(name) > 1:
            raise InvalidBlock(f"operand {name} is given twice")
    return tuple(row.name for row in OPERANDS if row.name in names)


def operand_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a node's `operands` attribute gives to its inputs, but the body's own.

    Raises: InvalidBlock if it is missing, or names unknown operands, or isn't in the table's order.
    """
    text = attributes.get("operands")
    if not isinstance(text, str) or not text:
        raise InvalidBlock(f"attribute operands is {text!r}, not a list of names")
    names = tuple(text.split(","))
    while names and names[-1].startswith(BODY_INPUT):
        names = names[:-1]
    if names != in_order(names):
        raise InvalidBlock(f"operands are {text}, their order is {','.join(in_order(names))}")
    return names
