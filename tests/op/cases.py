"""Attention blocks of every feature, with random operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnx_fuse.op import function, layout, schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.form import form_of
from onnx_fuse.op.reference import reference
from onnx_fuse.op.schema import Argument

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One block. Each field's first value in FEATURES is the plain one."""

    source: str = "packed"
    bias: str = "all"
    heads: str = "equal"
    v_head_dim: int = 8
    scale: float = 0.25
    softcap: float = 0.0
    rope: str = "none"
    norm: str = "none"
    norm_over_heads: str = "none"
    past: bool = False
    present: bool = False
    attn_weights: bool = False
    attn_bias: str = "none"
    mask: str = "none"
    is_causal: int = 0
    zero_nan: int = 0
    sinks: bool = False
    gate: str = "none"
    out: str = "bias"
    dtype: str = "float32"

    def __str__(self) -> str:
        plain = vars(Case())
        return " ".join(f"{k}={v}" for k, v in vars(self).items() if v != plain[k]) or "plain"


FEATURES: dict[str, tuple[Any, ...]] = {
    "source": ("packed", "split", "cross", "three", "query", "key", "value", "kv", "qkv", "joint"),
    "bias": ("all", "none", "some"),
    "heads": ("equal", "grouped", "one", "lone"),
    "v_head_dim": (8, 5),
    "scale": (0.25, 1.0),
    "softcap": (0.0, 1.5),
    "rope": ("none", "half", "interleaved", "partial", "partial_interleaved", "q", "k"),
    "norm": ("none", "rms", "layer", "l2", "layer_bias", "plain_rms"),
    "norm_over_heads": ("none", "q", "k"),
    "past": (False, True),
    "present": (False, True),
    "attn_weights": (False, True),
    "attn_bias": ("none", "full", "row", "scalar", "padding"),
    "mask": ("none", "bool", "bool_inf", "head"),
    "is_causal": (0, 1),
    "zero_nan": (0, 1, 2),
    "sinks": (False, True),
    "gate": ("none", "full", "heads", "rows"),
    "out": ("bias", "plain", "none"),
    "dtype": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Sizes:
    """How large a block is. `other_seq` is kv_seq where K doesn't come from `hidden`."""

    batch: int = 2
    q_seq: int = 5
    other_seq: int = 7
    past_seq: int = 3
    num_heads: int = 4
    head_dim: int = 8
    hidden: int = 24
    context: int = 20
    value_context: int = 12
    out: int = 18


# onnx's own map has bfloat16 from 1.19 on.
TYPES = {
    np.dtype(np.float32): schema.FLOAT,
    np.dtype(ml_dtypes.bfloat16): schema.BFLOAT16,
    np.dtype(np.bool_): schema.BOOL,
    np.dtype(np.int32): schema.INT32,
    np.dtype(np.int64): schema.INT64,
}


@dataclass(frozen=True)
class Block:
    """A case made concrete."""

    op_type: str
    attributes: BlockAttributes
    operands: Arrays
    outputs: int

    @property
    def output_names(self) -> list[str]:
        return [row.name for row in schema.outputs(self.outputs)]

    def arguments(self) -> dict[str, Argument]:
        return {
            name: Argument(TYPES[array.dtype], array.shape) for name, array in self.operands.items()
        }


class _Maker:
    def __init__(self, case: Case, seed: int, sizes: Sizes) -> None:
        self.case = case
        self.sizes = sizes
        self.random = np.random.default_rng(seed)
        self.operands: Arrays = {}

    def normal(self, *shape: int) -> NDArray[np.float32]:
        return self.random.standard_normal(shape).astype(np.float32)

    def give(self, name: str, *shape: int) -> None:
        self.operands[name] = self.normal(*shape)

    def weight(self, name: str, rows: int, columns: int) -> None:
        weight: NDArray[Any] = self.normal(rows, columns) / np.float32(np.sqrt(rows))
        panels = layout.pack(weight)
        if self.case.dtype == "bfloat16" and rows % 2 == 0:
            panels = layout.pair(panels.astype(ml_dtypes.bfloat16))
        self.operands[name] = panels

    def attributes(self) -> BlockAttributes:
        case, sizes = self.case, self.sizes
        norm = {"layer_bias": "layer", "plain_rms": "rms"}.get(case.norm, case.norm)
        partial = 2 * (sizes.head_dim // 2 - 1)
        rotated = {"none": 0, "partial": partial, "partial_interleaved": partial}.get(
            case.rope, sizes.head_dim
        )
        heads = 1 if case.heads == "lone" else sizes.num_heads
        return BlockAttributes(
            num_heads=heads,
            kv_num_heads={"equal": heads, "grouped": heads // 2}.get(case.heads, 1),
            head_dim=sizes.head_dim,
            v_head_dim=case.v_head_dim,
            out_size=0 if case.out == "none" else sizes.out,
            scale=case.scale,
            softcap=case.softcap,
            is_causal=case.is_causal,
            interleaved=int("interleaved" in case.rope),
            rotary_embedding_dim=rotated,
            q_norm=norm,
            k_norm=norm,
            q_norm_over_heads=int(case.norm_over_heads == "q"),
            k_norm_over_heads=int(case.norm_over_heads == "k"),
            q_norm_epsilon=1e-5,
            k_norm_epsilon=1e-3,
            zero_nan=case.zero_nan,
            precision="bf16" if case.dtype == "bfloat16" else "fp32",
        )

    def sources(self, a: BlockAttributes) -> int:
        """Give what Q, K and V come from; return kv_seq."""
        source, bias, sizes = self.case.source, self.case.bias, self.sizes
        columns = {part: a.dims()[f"{part}_columns"] for part in ("q", "k", "v", "qkv")}
        has_other = source in ("cross", "three", "query", "kv", "qkv")
        kv_seq = sizes.other_seq if has_other else sizes.q_seq
        values = {"query": "q", "key": "k", "value": "v", "kv": "kv", "qkv": "qkv"}.get(source, "")
        if source == "joint":
            self.give("qkv", sizes.batch, sizes.q_seq, columns["qkv"])
            return kv_seq
        if values != "qkv":
            self.give("hidden", sizes.batch, sizes.q_seq, sizes.hidden)
        rows = {"q": sizes.hidden, "k": sizes.hidden, "v": sizes.hidden}
        if source in ("cross", "three", "query"):
            self.give("context", sizes.batch, kv_seq, sizes.context)
            rows |= {"k": sizes.context, "v": sizes.context}
        if source == "three":
            self.give("value_context", sizes.batch, kv_seq, sizes.value_context)
            rows["v"] = sizes.value_context
        if source == "packed":
            self.weight("qkv_weight", sizes.hidden, columns["qkv"])
            if bias != "none":
                self.give("qkv_bias", columns["qkv"])
            return kv_seq
        shapes = {
            "q": ("query", a.num_heads, sizes.q_seq, a.head_dim),
            "k": ("key", a.kv_num_heads, kv_seq, a.head_dim),
            "v": ("value", a.kv_num_heads, kv_seq, a.v_head_dim),
        }
        for part, (name, *shape) in shapes.items():
            if part in values:
                self.give(name, sizes.batch, *shape)
            else:
                self.weight(f"{part}_weight", rows[part], columns[part])
                if bias == "all" or (bias == "some" and part == "v"):
                    self.give(f"{part}_bias", columns[part])
        if source == "query":
            del self.operands["hidden"]
        return kv_seq

    def norms(self, a: BlockAttributes) -> None:
        if a.q_norm == "none" or self.case.norm == "plain_rms":
            return
        for part, heads in (("q", a.num_heads), ("k", a.kv_num_heads)):
            self.give(f"{part}_norm_weight", heads, a.head_dim)
            if self.case.norm == "layer_bias":
                self.give(f"{part}_norm_bias", heads, a.head_dim)

    def tables(self, a: BlockAttributes, kv_seq: int) -> None:
        width, sizes = a.rotary_embedding_dim, self.sizes
        shapes = {
            "q": (sizes.batch, 1, sizes.q_seq, width),
            "k": (1, a.kv_num_heads, kv_seq, width),
        }
        for part, shape in shapes.items():
            if width and self.case.rope in (
                "half",
                "interleaved",
                part,
                "partial",
                "partial_interleaved",
            ):
                angles = self.normal(*shape)
                self.operands |= {f"{part}_cos": np.cos(angles), f"{part}_sin": np.sin(angles)}

    def masks(self, a: BlockAttributes, kv_seq: int) -> None:
        case, sizes = self.case, self.sizes
        total = kv_seq + sizes.past_seq * case.past
        scores = (sizes.batch, a.num_heads, sizes.q_seq, total)
        match case.attn_bias:
            case "full":
                self.give("attn_bias", *scores)
            case "row":
                self.give("attn_bias", sizes.q_seq, total)
            case "scalar":
                self.give("attn_bias")
            case "padding":  # the second sequence has no columns at all
                padding = np.zeros((sizes.batch, 1, 1, total), np.float32)
                padding[-1] = padding[0, ..., -1] = -np.inf
                self.operands["attn_bias"] = padding
        if case.mask != "none":
            shape = (
                (a.num_heads, 1, total)
                if case.mask == "head"
                else (sizes.batch, 1, sizes.q_seq, total)
            )
            keep = self.random.random(shape) < 0.6
            keep[..., 0, :] = False
            fill = -np.inf if case.mask == "bool_inf" else np.float32(-3)
            self.operands |= {"attn_mask": keep, "mask_fill": np.asarray(fill, np.float32)}
        if case.sinks:
            self.give("sinks", a.num_heads)


def make(case: Case, seed: int = 0, sizes: Sizes = Sizes()) -> Block:
    """Return the case's block with random operands, in the table's order."""
    maker = _Maker(case, seed, sizes)
    a = maker.attributes()
    kv_seq = maker.sources(a)
    maker.norms(a)
    maker.tables(a, kv_seq)
    if case.past:
        past = (sizes.batch, a.kv_num_heads, sizes.past_seq)
        maker.give("past_key", *past, a.head_dim)
        maker.give("past_value", *past, a.v_head_dim)
    maker.masks(a, kv_seq)
    gates = {
        "full": (sizes.batch, sizes.q_seq, a.num_heads, a.v_head_dim),
        "heads": (sizes.batch, sizes.q_seq, a.num_heads, 1),
        "rows": (sizes.q_seq, 1, a.v_head_dim),
    }
    if case.gate != "none" and case.out != "none":
        maker.give("gate", *gates[case.gate])
    if case.out != "none":
        maker.weight("out_weight", a.num_heads * a.v_head_dim, sizes.out)
        if case.out == "bias":
            maker.give("out_bias", sizes.out)
    if not {"q_cos", "k_cos"} & maker.operands.keys():
        a = replace(a, rotary_embedding_dim=0)
    names = schema.in_order(maker.operands)
    return Block(
        op_type=schema.OP_TYPES["context" in maker.operands],
        attributes=a,
        operands={name: maker.operands[name] for name in names},
        outputs=1 + 2 * (case.present or case.past) + case.attn_weights,
    )


def pairwise(features: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Return rows in which each pair of values of two features occurs, greedily few of them."""
    names = list(features)
    order = {name: i for i, name in enumerate(names)}
    left = {
        frozenset(((a, i), (b, j)))
        for a in names
        for b in names
        if order[a] < order[b]
        for i in range(len(features[a]))
        for j in range(len(features[b]))
    }
    rows = []
    while left:
        first = min(left, key=lambda pair: sorted((order[name], i) for name, i in pair))
        row = dict(first)
        for name in names:
            if name not in row:
                gains = [
                    sum(frozenset(((name, i), item)) in left for item in row.items())
                    for i in range(len(features[name]))
                ]
                # Without any gain go round the values, so that rare ones aren't starved.
                best = max(gains)
                row[name] = gains.index(best) if best else len(rows) % len(gains)
        items = list(row.items())
        left -= {frozenset((a, b)) for k, a in enumerate(items) for b in items[:k]}
        rows.append({name: features[name][row[name]] for name in names})
    return rows


# How near two float64 computations are: sums of under 200 products of numbers near 1.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-12, "equal_nan": True}


def tolerance(block: Block) -> float:
    """Return how far float32 arithmetic may be from `reference`, in the output's units.

    A float32 evaluation is the exact result for operands that are each changed by some roundings: a
    sum of n products by at most 4 * sqrt(n) * 2**-24, but for one in 1500 (Higham and Mary, A new
    approach to probabilistic rounding error analysis, 2019, theorem 2.4 with lambda = 4). So this
    is what the reference does when every operand is changed by as much as all sums allow together.
    """
    longest = sum(max(array.shape, default=1) for array in block.operands.values())
    unit = 4 * longest**0.5 * 2.0**-24
    exact = _flat(expected(block))
    random = np.random.default_rng(1)
    worst = 0.0
    for _ in range(2):
        changed = {
            name: array
            if array.dtype in (np.bool_, np.int32, np.int64)
            else array.astype(np.float64) * (1 + unit * random.uniform(-1, 1, array.shape))
            for name, array in block.operands.items()
        }
        moved = _flat(expected(replace(block, operands=changed)))
        difference = np.abs(moved - exact)
        worst = max(worst, float(np.max(difference, where=np.isfinite(difference), initial=0)))
    return worst + unit


def expected(block: Block) -> list[NDArray[np.float64]]:
    """Return the outputs that the block gives, by the reference."""
    outputs = reference(block.operands, block.attributes)
    return [outputs[name] for name in block.output_names]


def _flat(outputs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([output.ravel() for output in outputs])


def model(block: Block, opset: int, *, with_function: bool = True) -> onnx.ModelProto:
    """Return a model with the block as its one node; weights are initializers, the rest inputs."""
    arguments = block.arguments()
    node = helper.make_node(
        block.op_type,
        list(block.operands),
        block.output_names,
        domain=schema.DOMAIN,
        **block.attributes.to_onnx(block.operands),
    )
    constants = {name: block.operands[name] for name in block.operands if is_constant(name)}
    graph = helper.make_graph(
        [node],
        "block",
        [
            helper.make_tensor_value_info(name, arguments[name].dtype, arguments[name].shape)
            for name in block.operands
            if name not in constants
        ],
        [
            helper.make_tensor_value_info(row.name, schema.FLOAT, [None] * len(row.shape))
            for row in schema.outputs(block.outputs)
        ],
        [
            helper.make_tensor(name, TYPES[array.dtype], array.shape, array.tobytes(), raw=True)
            for name, array in constants.items()
        ],
    )
    form = form_of(block.op_type, arguments, block.attributes, block.outputs, opset)
    return helper.make_model(
        graph,
        functions=[function.body(form, opset)] if with_function else [],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(schema.DOMAIN, 1)],
        ir_version=8 if opset < 21 else 10,
    )


def is_constant(operand: str) -> bool:
    """Return whether models have this operand as an initializer."""
    return operand.endswith("weight") or (operand.endswith("_bias") and operand != "attn_bias")


def feeds(operands: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name: array for name, array in operands.items() if not is_constant(name)}
