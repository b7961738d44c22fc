"""Blocks whose cache is a buffer, in which each batch has a length of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
}
CASES = (
    Case(v_head_dim=16),
    Case(source="split", v_head_dim=16, heads="grouped", bias="some", rope="half", out="none"),
    Case(source="joint", v_head_dim=16, heads="grouped", rope="interleaved", softcap=1.5),
    Case(v_head_dim=32, heads="one", norm="rms", rope="partial", out="plain"),
)


def make(case: Case, lengths: Lengths, seed: int = 0) -> Block:
    """Return a block with such a cache; it rotates by place if the case rotates."""
    sizes = Sizes(
        batch=len(lengths.each),
        q_seq=lengths.q_seq,
        past_seq=lengths.past,
        head_dim=case.v_head_dim,
    )
    block = cases.make(replace(case, past=True, is_causal=1), seed, sizes)
    operands: dict[str, Any] = {
        name: array for name, array in block.operands.items() if name[1:] not in ("_cos", "_sin")
    }
    width = {"none": 0}.get(case.rope, 16)
    if width:
        angles = np.random.default_rng(seed).standard_normal((POSITIONS * 10, width // 2))
        operands["cos_cache"] = np.cos(angles).astype(np.float32)
        operands["sin_cache"] = np.sin(angles).astype(np.float32)
    operands["seqlens_k"] = np.array(lengths.each, np.int32) - 1
    operands["total_sequence_length"] = np.array([lengths.total], np.int32)
    names = schema.in_order(operands)
    return replace(
        block,
        attributes=replace(block.attributes, rotary_embedding_dim=width),
        operands={name: operands[name] for name in names},
    )


def alone(block: Block, lengths: Lengths, batch: int) -> Block:
    """Return one batch of the block without a buffer: its own past, its own rotation, a mask."""
    start, length = lengths.starts()[batch], lengths.each[batch]
    operands: dict[str, Any] = {}
    for name, array in block.operands.items():
        if name in ("hidden", "qkv"):
            operands[name] = array[batch : batch + 1]
        elif name.startswith("past_"):
            operands[name] = array[batch : batch + 1, :, :start]
        elif name.endswith("_cache"):
            rows = array[start : start + lengths.q_seq][None, None]
            pairs = np.repeat(rows, 2, axis=-1)
            halves = np.concatenate((rows, rows), axis=-1)
            table = pairs if block.attributes.interleaved else halves
            operands |= {f"{part}_{name[:3]}": table for part in "qk"}
        elif name not in ("seqlens_k", "total_sequence_length"):
            operands[name] = array
    operands["attn_mask"] = np.arange(start + lengths.q_seq)[None] < length
    operands["mask_fill"] = np.float32(-np.inf)
    names = schema.in_order(operands)
    return replace(block, operands={name: operands[name] for name in names})
