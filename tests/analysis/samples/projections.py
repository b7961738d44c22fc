"""Projections in every form: x . W + b, packed or apart, as any of ONNX's products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import CONTEXT, HEAD_DIM, HIDDEN, NUM_HEADS, OUT

if TYPE_CHECKING:
    from tests.analysis.samples.graphs import Writer

_FACTOR = 0.5  # a power of two: dividing by it and multiplying again rounds nothing
_WITHOUT_BIAS = ("no_bias", "fused_matmul", "einsum3")


def project(w: Writer) -> tuple[str, str, str]:
    """Return queries, keys and values, (.., .., heads, depth), noting what the record must have."""
    is_cross, is_raw = w.form.extra == "cross", w.form.extra == "raw_values"
    hidden = w.source("hidden", "S", HIDDEN)
    context = w.source("context", "T", CONTEXT) if is_cross else hidden
    heads = {"q": NUM_HEADS, "k": w.kv_heads, "v": w.kv_heads}
    depths = {"q": HEAD_DIM, "k": HEAD_DIM, "v": w.value_dim}
    sources = {"q": hidden, "k": context, "v": context}
    names = "qk" if is_raw else "qkv"
    weights = {
        name: w.random(CONTEXT if is_cross and name != "q" else HIDDEN, heads[name] * depths[name])
        / np.float32(4)
        for name in names
    }
    if w.form.scale == "folded":
        weights["q"] = weights["q"] * np.float32(w.scale)
    biases = {name: _bias(w, name, weights[name].shape[1]) for name in names}
    made = _made(w, sources, weights, biases, heads, depths)
    _note(w, weights, biases)
    if is_raw:
        made["v"] = w.b.reshape(hidden, *w.positions, NUM_HEADS, w.value_dim)
        _note_raw_values(w)
    return made["q"], made["k"], made["v"]


def _bias(w: Writer, name: str, columns: int) -> Array | None:
    if w.form.projection in _WITHOUT_BIAS or (w.form.projection == "some_bias" and name == "k"):
        return None
    return w.random(columns)


def _note(w: Writer, weights: dict[str, Array], biases: dict[str, Array | None]) -> None:
    """Note the weights and biases as the record has them: packed if all come from one source."""
    if "context" not in w.operands and "v" in weights:
        w.operands["qkv_weight"] = np.concatenate([weights[name] for name in "qkv"], axis=1)
        if any(bias is not None for bias in biases.values()):
            parts = [
                np.zeros(weights[name].shape[1], np.float32) if bias is None else bias
                for name, bias in biases.items()
            ]
            w.operands["qkv_bias"] = np.concatenate(parts)
        return
    w.record.op_type = "FusedCrossAttentionBlock"
    w.operands.setdefault("context", w.operands["hidden"])
    for name, weight in weights.items():
        w.operands[f"{name}_weight"] = weight
        bias = biases[name]
        if bias is not None:
            w.operands[f"{name}_bias"] = bias


def _note_raw_values(w: Writer) -> None:
    hidden = w.operands["hidden"]
    split = hidden.reshape(*hidden.shape[:2], NUM_HEADS, w.value_dim)
    w.operands["value"] = split.transpose(0, 2, 1, 3)


def _made(
    w: Writer,
    sources: dict[str, str],
    weights: dict[str, Array],
    biases: dict[str, Array | None],
    heads: dict[str, int],
    depths: dict[str, int],
) -> dict[str, str]:
    """Return each part of `weights` projected."""
    form = w.form.projection
    if form.startswith("packed_") and form != "packed_kv":
        return _packed(w, sources["q"], weights, biases)
    made = {}
    for name, weight in weights.items():
        positions = w.positions if name == "q" else w.key_positions()
        if form == "packed_kv" and name != "q":
            continue
        if form == "einsum3":
            cube = weight.reshape(-1, heads[name], depths[name])
            made[name] = w.b.op("Einsum", sources[name], w.b.const(cube), equation="bse,end->bsnd")
            continue
        flat = linear(w, sources[name], weight, biases[name], positions)
        made[name] = w.b.reshape(flat, *positions, heads[name], depths[name])
    if form == "packed_kv":
        made |= _packed_kv(w, sources["k"], weights, biases)
    return made


def _packed_kv(
    w: Writer, source: str, weights: dict[str, Array], biases: dict[str, Array | None]
) -> dict[str, str]:
    positions = w.key_positions()
    weight = np.concatenate([weights["k"], weights["v"]], axis=1)
    bias = np.concatenate([b for b in (biases["k"], biases["v"]) if b is not None])
    flat = add_bias(w, w.b.op("MatMul", source, w.b.const(weight)), bias)
    both = w.b.reshape(flat, *positions, 2, w.kv_heads, HEAD_DIM)
    index = [w.b.const(n, np.int64) for n in (0, 1)]
    return {n: w.b.op("Gather", both, i, axis=2) for n, i in zip("kv", index, strict=True)}


def _packed(
    w: Writer, source: str, weights: dict[str, Array], biases: dict[str, Array | None]
) -> dict[str, str]:
    """One product, its columns in the form's order, then cut apart by views."""
    form, b = w.form.projection, w.b
    heads, groups = (NUM_HEADS, w.kv_heads, w.kv_heads), w.group
    depths = [weights[name].shape[1] // count for name, count in zip("qkv", heads, strict=True)]

    def apart(parts: list[Array]) -> list[Array]:
        return [p.reshape(p.shape[0], -1, d) for p, d in zip(parts, depths, strict=True)]

    matrices = apart([weights[name] for name in "qkv"])
    shifts = apart([_row(biases[name]) for name in "qkv"])
    weight, shift = (_joined(form, parts, groups) for parts in (matrices, shifts))
    flat = add_bias(w, b.op("MatMul", source, b.const(weight)), shift[0])
    split = [(*w.positions, *pair) for pair in zip(heads, depths, strict=True)]
    sizes = [count * depth for count, depth in zip(heads, depths, strict=True)]
    match form:
        case "packed_3nd":
            parts = b.split(flat, sizes, 2)
        case "packed_vkq":
            parts = b.split(flat, sizes[::-1], 2)[::-1]
        case "packed_n3d":
            cube = b.reshape(flat, *w.positions, NUM_HEADS, 3 * depths[0])
            parts = b.split(cube, [depths[0]] * 3, 3)
        case "packed_nd3":
            cube = b.reshape(flat, *w.positions, NUM_HEADS, depths[0], 3)
            parts = [b.op("Gather", cube, b.const(n, np.int64), axis=4) for n in range(3)]
        case "packed_gather":
            cube = b.reshape(flat, *w.positions, 3, NUM_HEADS, depths[0])
            turned = b.transpose(cube, 2, 0, 1, 3, 4)
            parts = [b.op("Gather", turned, b.const(n, np.int64), axis=0) for n in range(3)]
        case _:
            cube = b.reshape(flat, *w.positions, w.kv_heads, groups + 2, depths[0])
            stops = (0, groups, groups + 1, groups + 2)
            parts = [b.slice(cube, *stops[n : n + 2], axis=3) for n in range(3)]
    return {
        name: b.reshape(part, *dims) for name, part, dims in zip("qkv", parts, split, strict=True)
    }


def _row(bias: Array | None) -> Array:
    assert bias is not None
    return bias[None]


def _joined(form: str, parts: list[Array], group: int) -> Array:
    """Join three (rows, heads, depth) arrays to (rows, columns) in the form's column order."""
    rows = parts[0].shape[0]
    match form:
        case "packed_vkq":
            parts = parts[::-1]
        case "packed_n3d":
            return np.stack(parts, axis=2).reshape(rows, -1)
        case "packed_nd3":
            return np.stack(parts, axis=3).reshape(rows, -1)
        case "packed_grouped":
            query = parts[0].reshape(rows, -1, group, parts[0].shape[2])
            others = [part[:, :, None] for part in parts[1:]]
            return np.concatenate([query, *others], axis=2).reshape(rows, -1)
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)


def add_bias(w: Writer, value: str, bias: Array | None) -> str:
    """Add a bias, on the side that the form has it on."""
    if bias is None:
        return value
    sides = (value, w.b.const(bias))
    return w.b.op("Add", *(sides[::-1] if w.form.projection == "add_left" else sides))


def linear(
    w: Writer, source: str, weight: Array, bias: Array | None, positions: tuple[str, str]
) -> str:
    """Return (.., .., columns) = source . weight + bias in the form.

    It may round `weight`, or change both to what the columns of its graph are.
    """
    b = w.b
    rows, columns = weight.shape
    match w.form.projection:
        case "gemm" | "gemm_transposed" | "gemm_alpha":
            flat = b.reshape(source, positions, rows)
            return b.reshape(_gemm(w, flat, weight, bias), *positions, columns)
        case "batch_norm":
            made = b.op("MatMul", b.reshape(source, positions, rows), b.const(weight))
            return b.reshape(_normed(w, made, weight, bias), *positions, columns)
        case "conv":
            kernel = b.const(weight.T[:, :, None])
            turned = b.transpose(source, 0, 2, 1)
            return b.transpose(b.op("Conv", turned, kernel, b.const(bias)), 0, 2, 1)
        case "einsum2":
            made = b.op("Einsum", source, b.const(weight), equation="bse,ec->bsc")
        case "transposed":
            made = b.op("MatMul", source, b.transpose(b.const(weight.T), 1, 0))
        case "cast":
            half = weight.astype(np.float16)
            weight[:] = half
            made = b.op("MatMul", source, b.op("Cast", b.const(half), to=1))
        case "dequantized":
            made = b.op("MatMul", source, _dequantized(w, weight))
        case "fused_matmul":
            turned = b.const(weight.T / np.float32(_FACTOR))
            options = {"alpha": _FACTOR, "transB": 1, "domain": "com.microsoft"}
            made = b.op("FusedMatMul", source, turned, **options)
        case _:
            made = b.op("MatMul", source, b.const(weight))
    return add_bias(w, made, bias)


def _normed(w: Writer, flat: str, weight: Array, bias: Array | None) -> str:
    """Add the bias, norm the columns of (rows, columns) by constants, and write down what it is."""
    assert bias is not None
    made = w.b.op("Add", flat, w.b.const(bias))
    scale, shift, mean = (w.random(len(bias)) for _ in range(3))
    variance, epsilon = np.abs(w.random(len(bias))), 0.25
    inputs = [w.b.const(part) for part in (scale, shift, mean, variance)]
    root = np.sqrt(variance.astype(float) + epsilon)
    weight[:] = weight * (scale / root)
    bias[:] = (bias - mean.astype(float)) / root * scale + shift
    return w.b.op("BatchNormalization", made, *inputs, epsilon=epsilon)


def _gemm(w: Writer, flat: str, weight: Array, bias: Array | None) -> str:
    b = w.b
    assert bias is not None
    match w.form.projection:
        case "gemm_transposed":
            return b.op("Gemm", flat, b.const(weight.T), b.const(bias), transB=1)
        case "gemm_alpha":
            factor = np.float32(_FACTOR)
            inputs = (flat, b.const(weight / factor), b.const(bias * factor))
            return b.op("Gemm", *inputs, alpha=_FACTOR, beta=1 / _FACTOR)
    return b.op("Gemm", flat, b.const(weight), b.const(bias))


def _dequantized(w: Writer, weight: Array) -> str:
    """Round the weight to int8, by columns, and return the values as the graph computes them."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    whole = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    weight[:] = whole.astype(np.float32) * scale
    zero = np.zeros(len(scale), np.int8)
    inputs = [w.b.const(part) for part in (whole, scale, zero)]
    return w.b.op("DequantizeLinear", *inputs, axis=1)


def output(w: Writer, context: str) -> str:
    """Project (.., .., heads, depth) in the form."""
    width = NUM_HEADS * w.value_dim
    weight = w.random(width, OUT) / np.float32(4)
    bias = None if w.form.projection in _WITHOUT_BIAS else w.random(OUT)
    if w.form.projection == "einsum3":
        cube = w.b.const(weight.reshape(NUM_HEADS, w.value_dim, OUT))
        made = w.b.op("Einsum", context, cube, equation="bsnd,ndf->bsf")
    else:
        flat = w.b.reshape(context, *w.positions, width)
        made = linear(w, flat, weight, bias, w.positions)
    w.operands["out_weight"] = weight
    if bias is not None:
        w.operands["out_bias"] = bias
    return made
