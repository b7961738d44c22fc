"""Rotary embeddings in every form, over the same tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, SIZES

if TYPE_CHECKING:
    from tests.analysis.samples.graphs import Writer

KEPT = 1  # rows before those that are rotated
_END = 1 << 31
INTERLEAVED = frozenset({"interleaved", "complex", "operator_interleaved"})


def width(rope: str, head_dim: int) -> int:
    """Return how many of the head's numbers a form rotates."""
    return {"none": 0, "partial": head_dim // 2}.get(rope, head_dim)


def rotate(w: Writer, value: str, name: str) -> str:
    """Rotate queries or keys, and note the tables."""
    form, seq = w.form.rope, "S" if name == "q" else w.kv_seq
    if form == "none":
        return value
    count = width(form, HEAD_DIM)
    half = _tables(w, SIZES[seq], count // 2)
    if form == "quarters":
        for table in half:
            table[:, count // 4 :] = table[0, count // 4 :]
    if form == "rows_behind":
        half[0][:KEPT], half[1][:KEPT] = 1.0, 0.0
    spread = np.repeat if form in INTERLEAVED else _doubled
    heads = NUM_HEADS if name == "q" else w.kv_heads
    for word, table in zip(("cos", "sin"), half, strict=True):
        shape = (SIZES["B"], heads, SIZES[seq], count)
        w.operands[f"{name}_{word}"] = np.broadcast_to(spread(table, 2, -1)[None, None], shape)
    if form.startswith("operator"):
        return _operator(w, value, seq, half, name)
    if form in ("half_split", "complex"):
        return _by_halves(w, value, [_placed(w, t, seq, f"{name}{i}") for i, t in enumerate(half)])
    if form == "quarters":
        return _by_quarters(w, value, half, seq, name)
    full = [_placed(w, spread(t, 2, -1), seq, f"{name}{i}") for i, t in enumerate(half)]
    if form == "rows_behind":
        return _behind(w, value, full)
    if form == "partial":
        rotated, rest = w.b.split(value, [count, HEAD_DIM - count], 3)
        return w.b.op("Concat", _sum(w, rotated, full, count), rest, axis=-1)
    return _sum(w, value, full, count)


def _doubled(table: Array, times: int, axis: int) -> Array:
    return np.concatenate([table] * times, axis=axis)


def _tables(w: Writer, rows: int, columns: int) -> list[Array]:
    angle = np.arange(rows)[:, None] * 0.7 ** np.arange(columns) + w.rng.uniform(0.1, 0.9)
    return [np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]


def _placed(w: Writer, table: Array, seq: str, name: str) -> str:
    """Return the table (seq, columns), an input if dynamic, as the layout has its rows."""
    value = (
        w.b.input(f"table_{name}", table, (seq, table.shape[1]))
        if seq in w.b.dynamic
        else w.b.const(table)
    )
    axes = {"seq_first": (1, 2), "einsum": (1,)}.get(w.form.order, ())
    return w.b.unsqueeze(value, *axes) if axes else value


def _sum(w: Writer, value: str, tables: list[str], count: int) -> str:
    """x * cos + rotate(x) * sin."""
    crossed = _crossed(w, value, count)
    straight = w.b.op("Mul", value, tables[0])
    return w.b.op("Add", straight, w.b.op("Mul", crossed, tables[1]))


def _behind(w: Writer, value: str, tables: list[str]) -> str:
    """Rotate the rows behind the first ones, which stay."""
    axis = {"seq_first": 0, "einsum": 1}.get(w.form.order, 2)
    first, rest = w.b.slice(value, 0, KEPT, axis), w.b.slice(value, KEPT, _END, axis)
    own = [w.b.slice(table, KEPT, _END, 0) for table in tables]
    return w.b.op("Concat", first, _sum(w, rest, own, HEAD_DIM), axis=axis)


def _crossed(w: Writer, value: str, count: int) -> str:
    b, half = w.b, count // 2
    match w.form.rope:
        case "permuted":
            matrix = np.zeros((count, count), np.float32)
            lane = np.arange(half)
            matrix[lane + half, lane], matrix[lane, lane + half] = -1.0, 1.0
            return b.op("MatMul", value, b.const(matrix))
        case "interleaved":
            even, odd = (b.slice(value, n, count, -1, 2) for n in (0, 1))
            pair = [b.unsqueeze(part, 4) for part in (b.op("Neg", odd), even)]
            joined = b.op("Concat", *pair, axis=4)
            return b.op("Reshape", joined, b.const([0, 0, 0, count], np.int64))
    first, second = b.slice(value, 0, half, -1), b.slice(value, half, count, -1)
    return b.op("Concat", b.op("Neg", second), first, axis=-1)


def _by_halves(w: Writer, value: str, tables: list[str]) -> str:
    """(x1 * cos - x2 * sin, x1 * sin + x2 * cos) of halves or, as complex numbers, of pairs."""
    b, half = w.b, HEAD_DIM // 2
    is_complex = w.form.rope == "complex"
    if is_complex:
        pairs = b.op("Reshape", value, b.const([0, 0, 0, half, 2], np.int64))
        parts = [b.op("Gather", pairs, b.const(n, np.int64), axis=4) for n in (0, 1)]
    else:
        parts = b.split(value, [half, half], 3)
    cos, sin = tables
    real = b.op("Sub", b.op("Mul", parts[0], cos), b.op("Mul", parts[1], sin))
    imaginary = b.op("Add", b.op("Mul", parts[0], sin), b.op("Mul", parts[1], cos))
    if not is_complex:
        return b.op("Concat", real, imaginary, axis=-1)
    joined = b.op("Concat", b.unsqueeze(real, 4), b.unsqueeze(imaginary, 4), axis=4)
    return b.op("Reshape", joined, b.const([0, 0, 0, HEAD_DIM], np.int64))


def _by_quarters(w: Writer, value: str, tables: list[Array], seq: str, name: str) -> str:
    """Halves, of which the second quarters are turned by the same angles in all rows."""
    b, quarter = w.b, HEAD_DIM // 4
    parts = b.split(value, [quarter] * 4, 3)
    turned = [_placed(w, t[:, :quarter], seq, f"{name}{i}") for i, t in enumerate(tables)]
    fixed = [_placed(w, t[:1, quarter:], "", f"{name}{i}") for i, t in enumerate(tables)]
    real, imaginary = [], []
    for first, second, (cos, sin) in zip(parts[:2], parts[2:], (turned, fixed), strict=True):
        real.append(b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin)))
        imaginary.append(b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos)))
    return b.op("Concat", *real, *imaginary, axis=-1)


def _operator(w: Writer, value: str, seq: str, half: list[Array], name: str) -> str:
    """RotaryEmbedding of opset 23, its tables gathered by positions; or from the first one on."""
    b = w.b
    if w.form.rope == "operator_offset":
        first = b.input(f"first_{name}", np.array([2]), (1,))
        longer = [b.const(np.concatenate([w.random(2, t.shape[1]), t])) for t in half]
        return b.op("RotaryEmbedding", value, first, *longer, domain="com.microsoft")
    positions = np.broadcast_to(np.arange(SIZES[seq]), (SIZES["B"], SIZES[seq])).astype(np.int64)
    ids = b.input(f"positions_{name}", positions, ("B", seq))
    interleaved = int(w.form.rope in INTERLEAVED)
    tables = [b.const(table) for table in half]
    return b.op("RotaryEmbedding", value, *tables, ids, interleaved=interleaved)
