"""Blocks whose cache is a buffer, in which each batch has a length of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnx_fuse.op import schema
from tests.op import cases
from tests.op.cases import Block, Case, Sizes

POSITIONS = 40


@dataclass(frozen=True)
class Lengths:
    """New rows, the past's buffer, the longest batch, and each batch's own length."""

    q_seq: int
    past: int
    total: int
    each: tuple[int, ...]

    def starts(self) -> list[int]:
        """Return how many positions are cached for each batch."""
        return [0 if self.q_seq == self.total else length - self.q_seq for length in self.each]


LENGTHS = {
    "prompt": Lengths(5, 0, 5, (5, 5)),
    "padded prompt": Lengths(5, 0, 5, (5, 2)),
    "prompt in a buffer": Lengths(5, 9, 5, (5, 5)),
    "one token": Lengths(1, 6, 7, (7, 7)),
    "ragged": Lengths(1, 6, 7, (7, 4)),
    "ragged in a buffer": Lengths(1, 12, 7, (7, 4)),
    "no batch is full": Lengths(1, 6, 7, (6, 4)),
    "first token": Lengths(1, 0, 1, (1, 1)),
    "continuation": Lengths(3, 5, 8, (8,)),
    "continuation in a buffer": Lengths(3, 12, 8, (8,)),
    "long": Lengths(17, 400, 300, (300,)),
    "one token behind many": Lengths(1, 395, 390, (390, 270)),
}


@dataclass(frozen=True)
class Extra:
    """What goes with such a cache beside the plain; `since`: the first onnxruntime that has it."""

    window: int = 0
    sinks: bool = False
    bias: tuple[str, ...] = ()  # its own axes among "batch", "heads"
    ids: bool = False
    is_causal: int = 1
    window_cache: int = 0
    since: tuple[int, int] = (1, 20)

    def is_known(self) -> bool:
        """Return whether this onnxruntime computes what the operator's page says."""
        return tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= self.since


# Before 1.24 a window was one wider than it said, and the kernel's is so too.
EXTRAS = {
    "plain": Extra(),
    "window": Extra(window=3, since=(1, 24)),
    "window of one": Extra(window=1, since=(1, 24)),
    "window of a block": Extra(window=120, since=(1, 24)),
    "window of blocks": Extra(window=280, since=(1, 24)),
    "sinks": Extra(sinks=True, since=(1, 23)),
    "sinks and window": Extra(sinks=True, window=3, since=(1, 24)),
    "bias": Extra(bias=("batch", "heads"), since=(1, 22)),
    "bias and window": Extra(bias=("heads",), window=3, since=(1, 24)),
    "positions": Extra(ids=True, since=(1, 22)),
    "both directions": Extra(is_causal=0, since=(1, 32)),
    "all": Extra(window=2, sinks=True, bias=(), ids=True, since=(1, 24)),
}


# Of a cache that holds 8, 4 or 300 positions, the latest ones, at least a window of 4.
LATEST = {
    "it fits": Lengths(1, 8, 6, (6,)),
    "it is full": Lengths(1, 8, 9, (9,)),
    "it was full": Lengths(1, 8, 33, (33,)),
    "nothing to spare": Lengths(1, 4, 9, (9,)),
    "ragged": Lengths(1, 8, 14, (14, 9, 4)),
    "prompt": Lengths(5, 8, 5, (5, 5)),
    "prompt that is too long": Lengths(13, 8, 13, (13, 13)),
    "prompt of one": Lengths(1, 8, 1, (1,)),
    "steps": Lengths(2, 8, 6, (6,)),
    "steps that fill it": Lengths(3, 8, 10, (10,)),
    "more steps than it holds": Lengths(13, 8, 21, (21,)),
    "nothing to spare for steps": Lengths(3, 4, 11, (11,)),
    "long": Lengths(40, 300, 390, (390,)),
}
LATEST_EXTRAS = {
    "window": Extra(window=4, window_cache=1, since=(1, 32)),
    "sinks": Extra(window=4, window_cache=1, sinks=True, since=(1, 32)),
    "bias": Extra(window=3, window_cache=1, bias=("batch", "heads"), since=(1, 32)),
    "positions": Extra(window=4, window_cache=1, ids=True, since=(1, 32)),
}
CASES = (
    Case(v_head_dim=16),
    Case(source="split", v_head_dim=16, heads="grouped", bias="some", rope="half", out="none"),
    Case(source="joint", v_head_dim=16, heads="grouped", rope="interleaved", softcap=1.5),
    Case(v_head_dim=32, heads="one", norm="rms", rope="partial", gate="full", out="plain"),
)


def make(case: Case, lengths: Lengths, extra: Extra = EXTRAS["plain"], seed: int = 0) -> Block:
    """Return a block with such a cache; it rotates by place if the case rotates."""
    sizes = Sizes(
        batch=len(lengths.each),
        q_seq=lengths.q_seq,
        past_seq=lengths.past,
        head_dim=case.v_head_dim,
    )
    case = replace(case, past=True, is_causal=extra.is_causal, sinks=extra.sinks)
    block = cases.make(case, seed, sizes)
    random = np.random.default_rng(seed)
    operands: dict[str, Any] = {
        name: array for name, array in block.operands.items() if name[1:] not in ("_cos", "_sin")
    }
    width = {"none": 0}.get(case.rope, 16)
    if width:
        angles = random.standard_normal((POSITIONS * 10, width // 2))
        operands["cos_cache"] = np.cos(angles).astype(np.float32)
        operands["sin_cache"] = np.sin(angles).astype(np.float32)
        if extra.ids:
            shape = (sizes.batch, sizes.q_seq)
            operands["position_ids"] = random.integers(0, POSITIONS, shape)
    if extra.bias or extra == EXTRAS["all"]:
        batch = sizes.batch if "batch" in extra.bias else 1
        heads = block.attributes.num_heads if "heads" in extra.bias else 1
        bias = random.standard_normal((batch, heads, sizes.q_seq, lengths.total))
        operands["attn_bias"] = bias.astype(np.float32)
    operands["seqlens_k"] = np.array(lengths.each, np.int32) - 1
    operands["total_sequence_length"] = np.array([lengths.total], np.int32)
    names = schema.in_order(operands)
    return replace(
        block,
        attributes=replace(
            block.attributes,
            rotary_embedding_dim=width,
            window_size=extra.window,
            window_cache=extra.window_cache,
        ),
        operands={name: operands[name] for name in names},
    )


def alone(block: Block, lengths: Lengths, batch: int) -> Block:
    """Return one batch of the block without a buffer: its own past, its own rotation, a mask."""
    start, length = lengths.starts()[batch], lengths.each[batch]
    end = start + lengths.q_seq
    a = block.attributes
    cached = resident(start, lengths.past, a.window_size) if a.window_cache else start
    operands: dict[str, Any] = {}
    for name, array in block.operands.items():
        if name in ("hidden", "qkv"):
            operands[name] = array[batch : batch + 1]
        elif name.startswith("past_"):
            operands[name] = array[batch : batch + 1, :, :cached]
        elif name.endswith("_cache"):
            rows = array[_positions(block, lengths, batch)][None, None]
            pairs = np.repeat(rows, 2, axis=-1)
            halves = np.concatenate((rows, rows), axis=-1)
            table = pairs if block.attributes.interleaved else halves
            operands |= {f"{part}_{name[:3]}": table for part in "qk"}
        elif name == "attn_bias":
            operands[name] = array[batch % len(array), ..., start - cached : end][None]
        elif name == "gate":
            operands[name] = array[batch % len(array)][None]
        elif name not in ("seqlens_k", "total_sequence_length", "position_ids"):
            operands[name] = array
    rows, columns = np.arange(start, end)[:, None], np.arange(start - cached, end)
    keep = (columns < length) & (rows >= 0)
    if a.window_size:
        if a.softcap or "sinks" in operands:
            rows = np.minimum(rows, length - 1)
        keep &= columns > rows - a.window_size
    operands["attn_mask"] = keep
    operands["mask_fill"] = np.float32(-np.inf)
    names = schema.in_order(operands)
    return replace(
        block,
        attributes=replace(a, window_size=0, window_cache=0, zero_nan=1),
        operands={name: operands[name] for name in names},
    )


def resident(length: int, positions: int, window: int) -> int:
    """Return how many of the latest of `length` positions a cache holds: by the operator's page."""
    spare = positions - window + 1
    return length if length <= positions else length - spare * -((positions - length) // spare)


def _positions(block: Block, lengths: Lengths, batch: int) -> NDArray[np.int64]:
    ids: NDArray[np.int64] | None = block.operands.get("position_ids")
    counted = np.arange(lengths.q_seq)
    if ids is None:
        return lengths.starts()[batch] + counted
    first: NDArray[np.int64] = ids[0, 0] + counted
    return first if lengths.q_seq == lengths.total else ids[batch]
