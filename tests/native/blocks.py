"""Blocks of any size for the kernel's tests, and how to run them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from onnx_fuse.op import layout, schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.runtime import library
from tests.op import cases
from tests.op.cases import Block

# The loops that stand in for AMX run wherever AVX-512 does; they are never chosen by themselves.
ISAS = library.cpu_features()
if "avx512" in ISAS:
    ISAS = (*ISAS, "amx_standin")
Array = NDArray[Any]


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Let sessions that are made inside use one instruction set."""
    before = os.environ.get("ONNX_FUSE_ISA")
    os.environ["ONNX_FUSE_ISA"] = name
    try:
        yield
    finally:
        del os.environ["ONNX_FUSE_ISA"]
        if before is not None:
            os.environ["ONNX_FUSE_ISA"] = before


def session(block: Block, name: str = ISAS[0], threads: int = 1) -> onnxruntime.InferenceSession:
    return session_of(cases.model(block, 17, with_function=False), name, threads)


def session_of(model: onnx.ModelProto, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with isa(name):
        return library.session(model, options)


def run(block: Block, name: str = ISAS[0], threads: int = 1) -> list[Array]:
    return session(block, name, threads).run(None, cases.feeds(block.operands))


def make(
    *,
    batch: int = 1,
    q_seq: int = 5,
    kv_seq: int | None = None,
    hidden: int = 32,
    heads: tuple[int, int] = (2, 2),
    dims: tuple[int, int] = (16, 16),
    out: int = 32,
    past: int = 0,
    attn_weights: bool = False,
    seed: int = 0,
    **attributes: Any,
) -> Block:
    """Return a block with random operands; with `kv_seq` K and V come from another sequence."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    def weight(rows: int, columns: int) -> Array:
        return layout.pack(normal(rows, columns) / np.float32(max(rows, 1) ** 0.5))

    (num_heads, kv_num_heads), (head_dim, v_head_dim) = heads, dims
    a = BlockAttributes(
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        out_size=out,
        scale=head_dim**-0.5,
    )
    columns = {part: a.dims()[f"{part}_columns"] for part in ("q", "k", "v", "qkv")}
    operands: dict[str, Array] = {"hidden": normal(batch, q_seq, hidden)}
    if kv_seq is None:
        operands["qkv_weight"] = weight(hidden, columns["qkv"])
        operands["qkv_bias"] = normal(columns["qkv"])
    else:
        operands["context"] = normal(batch, kv_seq, hidden + 3)
        for part in "qkv":
            rows = hidden if part == "q" else hidden + 3
            operands[f"{part}_weight"] = weight(rows, columns[part])
            operands[f"{part}_bias"] = normal(columns[part])
    if past:
        operands["past_key"] = normal(batch, kv_num_heads, past, head_dim)
        operands["past_value"] = normal(batch, kv_num_heads, past, v_head_dim)
    if out:
        operands["out_weight"] = weight(num_heads * v_head_dim, out)
        operands["out_bias"] = normal(out)
    outputs = 1 + 2 * bool(past) + attn_weights
    block = Block(schema.OP_TYPES[kv_seq is not None], a, operands, outputs)
    return change(block, attributes, {})


def change(block: Block, attributes: dict[str, Any], operands: dict[str, Array]) -> Block:
    """Return the block with other attributes, and operands added or replaced."""
    merged = {**block.operands, **operands}
    ordered = {name: merged[name] for name in schema.in_order(merged)}
    return replace(block, attributes=replace(block.attributes, **attributes), operands=ordered)


def worst(found: list[Array], block: Block) -> float:
    """Return the greatest distance from the reference; inf where NaN and inf are elsewhere."""
    distance = 0.0
    for one, other in zip(found, cases.expected(block), strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(one - other))
        distance = max(distance, float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0)))
    return distance


# How much less precise products may change each factor, relatively: a rounding to 8 bits, or what
# two parts of 8 bits, each rounded, leave, together with the product of their second parts.
_CHANGED = {"fp32": 0.0, "bf16": 2.0**-9, "bf16x3": 2.0**-17}


def tolerance(block: Block) -> float:
    """Return how far the block's precision may take the output from the reference.

    That is what float32 arithmetic may do, and what comes of changing every operand by four times
    as much as the products change their factors.
    """
    with np.errstate(invalid="ignore"):  # inf - inf, where a test has them
        exact = cases.tolerance(block)
        unit = 4 * _CHANGED[block.attributes.precision]
        if unit == 0:
            return exact
        random = np.random.default_rng(1)
        changed = {
            name: array
            if array.dtype in (np.bool_, np.int32, np.int64)
            else array.astype(np.float64) * (1 + unit * random.uniform(-1, 1, array.shape))
            for name, array in block.operands.items()
        }
        moved = cases.expected(replace(block, operands=changed))
        return exact + worst([output.astype(np.float32) for output in moved], block)


def assert_right(found: list[Array], block: Block) -> None:
    assert worst(found, block) <= tolerance(block)
