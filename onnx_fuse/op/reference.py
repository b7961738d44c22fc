"""What the operators mean, in numpy and float64. Shares nothing with the body or the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_fuse.op import layout
from onnx_fuse.op.block_attributes import BlockAttributes

Array = NDArray[np.float64]


def reference(
    operands: Mapping[str, NDArray[np.generic]], attributes: BlockAttributes
) -> dict[str, Array]:
    """Return all that a block may give, by the names of its outputs, in float64.

    Operands are as docs/op.md says. Non-finite numbers go the way that IEEE arithmetic sends them.
    """
    given = {name: _wide(operand) for name, operand in operands.items()}
    with np.errstate(all="ignore"):
        return _block(given, attributes)


def _wide(operand: NDArray[np.generic]) -> Array:
    return operand if operand.dtype == np.bool_ else operand.astype(np.float64)  # type: ignore[return-value]


def _block(given: dict[str, Array], a: BlockAttributes) -> dict[str, Array]:
    query, key, value = _query_key_value(given, a)
    query = _norm(query, given, a, "q")
    key = _norm(key, given, a, "k")
    if "q_cos" in given:
        query = _rotate(query, given["q_cos"], given["q_sin"], a.interleaved)
    if "k_cos" in given:
        key = _rotate(key, given["k_cos"], given["k_sin"], a.interleaved)
    starts = _starts(given, key)
    if "cos_cache" in given:
        positions = _positions(given, starts, key.shape[2])
        cos, sin = (_by_position(given[f"{name}_cache"], positions, a) for name in ("cos", "sin"))
        query, key = (_rotate(x, cos, sin, a.interleaved) for x in (query, key))
    if "past_key" in given:
        key, value = (
            _cached(given[f"past_{name}"], new, starts, given, a)
            for name, new in (("key", key), ("value", value))
        )
    scores = _scores(query, key, given, a, starts)
    weights = _softmax(scores, given.get("sinks"))
    if "seqlens_k" in given or a.zero_nan == 2:  # no column at all is no NaN there
        weights = np.where(np.all(scores == -np.inf, axis=-1, keepdims=True), 0, weights)
    if a.zero_nan == 1:
        weights = np.where(np.isnan(weights), 0, weights)
    group = a.num_heads // a.kv_num_heads
    context = weights @ np.repeat(value, group, axis=1)
    batch, heads, q_seq, size = context.shape
    rows = context.transpose(0, 2, 1, 3) * given.get("gate", 1.0)
    output = rows.reshape(batch, q_seq, heads * size)
    if "out_weight" in given:
        output = output @ layout.unpack(given["out_weight"], a.out_size) + given.get(
            "out_bias", 0.0
        )
    if a.window_cache:
        key, value = (_latest(joined, given, a) for joined in (key, value))
    return {
        "output": output,
        "present_key": key,
        "present_value": value,
        "attn_weights": weights,
    }


def _starts(given: dict[str, Array], key: Array) -> NDArray[np.int64]:
    """Return (batch,): how many positions of the past a batch has."""
    batch, _, new, _ = key.shape
    past = given["past_key"].shape[2] if "past_key" in given else 0
    if "seqlens_k" not in given:
        return np.full(batch, past)
    if new == int(given["total_sequence_length"].reshape(())):
        return np.zeros(batch, np.int64)
    starts: NDArray[np.int64] = given["seqlens_k"].astype(np.int64) + 1 - new
    return starts


def _positions(given: dict[str, Array], starts: NDArray[np.int64], new: int) -> NDArray[np.int64]:
    """Return (batch, seq): the rotation's positions, which position_ids may give."""
    ids = given.get("position_ids")
    if ids is None:
        return starts[:, None] + np.arange(new)
    if new == int(given["total_sequence_length"].reshape(())):
        ids = ids[:1, :1] + np.arange(new)
    return np.broadcast_to(ids.astype(np.int64), (len(starts), new))


def _by_position(cache: Array, positions: NDArray[np.int64], a: BlockAttributes) -> Array:
    """Return a table (batch, 1, seq, rotary_embedding_dim) of a cache's rows, two for each pair."""
    rows = cache[positions][:, None]
    return np.repeat(rows, 2, axis=-1) if a.interleaved else np.concatenate((rows, rows), axis=-1)


def _cached(
    past: Array,
    new: Array,
    starts: NDArray[np.int64],
    given: dict[str, Array],
    a: BlockAttributes,
) -> Array:
    """Return new keys or values behind each batch's past; zeros in what is left of a buffer.

    A cache of the latest positions is brought to their places in the sequence.
    """
    batch, heads, seq, size = new.shape
    length = past.shape[2] + seq
    if "total_sequence_length" in given:
        total = int(given["total_sequence_length"].reshape(()))
        length = total if a.window_cache else max(past.shape[2], total)
    joined = np.zeros((batch, heads, length, size))
    for index, start in enumerate(starts):
        count = _resident(int(start), past.shape[2], a.window_size) if a.window_cache else start
        joined[index, :, start - count : start] = past[index, :, :count]
        joined[index, :, start : start + seq] = new[index]
    return joined


def _resident(length: int, positions: int, window: int) -> int:
    """Return how many of the latest of `length` positions a cache of so many holds."""
    while length > positions:
        length -= positions - window + 1
    return length


def _latest(joined: Array, given: dict[str, Array], a: BlockAttributes) -> Array:
    """Return what a cache of the latest positions holds of all of them."""
    batch, heads, _, size = joined.shape
    positions = given["past_key"].shape[2]
    cache = np.zeros((batch, heads, positions, size))
    for index, length in enumerate(given["seqlens_k"].astype(np.int64) + 1):
        count = _resident(int(length), positions, a.window_size)
        cache[index, :, :count] = joined[index, :, length - count : length]
    return cache


def _query_key_value(given: dict[str, Array], a: BlockAttributes) -> tuple[Array, Array, Array]:
    """Return Q, K and V as (batch, heads, seq, size): given, or made from rows by heads."""
    q, k, v = _rows(given, a)
    query = given["query"] if q is None else _by_heads(q, a.num_heads)
    key = given["key"] if k is None else _by_heads(k, a.kv_num_heads)
    value = given["value"] if v is None else _by_heads(v, a.kv_num_heads)
    return query, key, value


def _rows(given: dict[str, Array], a: BlockAttributes) -> Sequence[Array | None]:
    """Return Q, K and V as (batch, seq, heads * size); None for what is given by heads."""
    columns = (
        a.num_heads * a.head_dim,
        a.kv_num_heads * a.head_dim,
        a.kv_num_heads * a.v_head_dim,
    )
    qkv = given.get("qkv")
    if "qkv_weight" in given:
        weight = layout.unpack(given["qkv_weight"], sum(columns))
        qkv = given["hidden"] @ weight + given.get("qkv_bias", 0.0)
    if qkv is not None:
        return np.split(qkv, np.cumsum(columns)[:-1], axis=2)
    hidden = given.get("hidden")
    context = given.get("context", hidden)
    sources = (hidden, context, given.get("value_context", context))
    return [
        None
        if source is None or f"{part}_weight" not in given
        else source @ layout.unpack(given[f"{part}_weight"], count) + given.get(f"{part}_bias", 0.0)
        for part, source, count in zip("qkv", sources, columns, strict=True)
    ]


def _by_heads(rows: Array, heads: int) -> Array:
    """Return (batch, seq, heads * size) as (batch, heads, seq, size)."""
    batch, seq, _ = rows.shape
    return rows.reshape(batch, seq, heads, rows.shape[2] // heads).transpose(0, 2, 1, 3)


def _norm(x: Array, given: dict[str, Array], a: BlockAttributes, part: str) -> Array:
    """Return x (batch, heads, seq, head_dim) normed over head_dim, or over heads and head_dim."""
    kind, over_heads, epsilon = a.norm(part)
    axes = (1, 3) if over_heads else (3,)
    match kind:
        case "none":
            return x
        case "rms":
            x = x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + epsilon)
        case "layer":
            x = x - np.mean(x, axis=axes, keepdims=True)
            x = x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + epsilon)
        case "l2":
            length = np.sqrt(np.sum(x**2, axis=axes, keepdims=True))
            x = x / np.maximum(length, epsilon)
    if f"{part}_norm_weight" in given:
        x = x * given[f"{part}_norm_weight"][:, None, :]
    if f"{part}_norm_bias" in given:
        x = x + given[f"{part}_norm_bias"][:, None, :]
    return x


def _rotate(x: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """Return x (batch, heads, seq, head_dim), as many leading elements rotated as tables have."""
    width = cos.shape[-1]
    rotated, rest = x[..., :width], x[..., width:]
    turned = np.empty_like(rotated)
    if interleaved:
        turned[..., 0::2], turned[..., 1::2] = -rotated[..., 1::2], rotated[..., 0::2]
    else:
        half = width // 2
        turned[..., :half], turned[..., half:] = -rotated[..., half:], rotated[..., :half]
    return np.concatenate((rotated * cos + turned * sin, rest), axis=-1)


def _scores(
    query: Array,
    key: Array,
    given: dict[str, Array],
    a: BlockAttributes,
    starts: NDArray[np.int64],
) -> Array:
    """Return (batch, num_heads, q_seq, total_seq): what the softmax gets."""
    group = a.num_heads // a.kv_num_heads
    scores: Array = query @ np.repeat(key, group, axis=1).transpose(0, 1, 3, 2) * a.scale
    if a.softcap:
        scores = a.softcap * np.tanh(scores / a.softcap)
    if "attn_bias" in given:
        scores = scores + _as_wide(given["attn_bias"], scores.shape[3])
    if "attn_mask" in given:
        scores = np.where(given["attn_mask"], scores, given["mask_fill"])
    if a.is_causal:
        rows, columns = np.indices(scores.shape[2:])
        past = starts[:, None, None, None]
        scores = np.where(columns > rows + past, -np.inf, scores)
        if a.window_size:
            last = rows + past
            if a.softcap or "sinks" in given:
                last = np.minimum(last, given["seqlens_k"][:, None, None, None])
            scores = np.where(columns <= last - a.window_size, -np.inf, scores)
    if "seqlens_k" in given:  # a padded prompt's rows see no padding
        is_padding = np.arange(scores.shape[3]) > given["seqlens_k"][:, None, None, None]
        scores = np.where(is_padding, -np.inf, scores)
    return scores


def _as_wide(bias: Array, columns: int) -> Array:
    """Return a bias with a number for each of a buffer's columns: nothing sees the added ones."""
    missing = columns - bias.shape[-1] if bias.ndim and bias.shape[-1] != 1 else 0
    return np.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, missing)]) if missing else bias


def _softmax(scores: Array, sinks: Array | None) -> Array:
    """Return the weights over the last axis; the sink of a head takes its share and is dropped."""
    highest = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        highest = np.maximum(highest, sinks[:, None, None])
    powers = np.exp(scores - highest)
    total = np.sum(powers, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - highest)
    weights: Array = powers / total
    return weights
