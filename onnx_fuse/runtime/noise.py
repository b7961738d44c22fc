"""Samples of what a quantized model makes of rounding errors.

A last bit moves a quantized number by a whole step wherever it lies near the border of two steps.
How far that is felt at the outputs is the model's own property, and no bound from sizes and types
tells it. So what is quantized gets the error that it has anyhow, once more and at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

import onnx
from onnx import helper

from onnx_fuse.ir.bodies import Body, bodies
from onnx_fuse.runtime.sessions import Source

# Operators that quantize their first input: of ONNX, and fused ones of com.microsoft.
_QUANTIZERS = (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
)
_SAMPLES = 3


def noisy_sources(source: Source, error: float, seed: int) -> Iterator[Source]:
    """Yield models that add to each number, before it is quantized, an error of its own.

    error: the standard deviation of the whole model's rounding errors, as a share of the numbers'
    range; each quantizer gets its part. Yields nothing if the model quantizes nothing, or has too
    much external data.
    """
    places = sum(_is_quantizer(node) for body in bodies(source.proto) for node in body.node)
    if not places:
        return
    model = source.copied()
    if model is None:
        return
    names = (f"onnx_fuse_noise_{number}" for number in count())
    for body in reversed(list(bodies(model))):  # inner graphs first: nodes are copied
        # Evenly distributed with that deviation; a step of 8 bits is 1/255 of the range.
        _add_noise(body, math.sqrt(3) * 255 * error / math.sqrt(places), names)
    for sample in range(_SAMPLES):
        _set_seeds(model, seed + sample)
        yield Source(source.name, model, model.SerializeToString())


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.op_type in _QUANTIZERS and bool(node.input)


def _add_noise(body: Body, width: float, names: Iterator[str]) -> None:
    """Put noise of at most `width` steps before the quantizers of one body."""
    weights = {t.name for t in body.initializer} if isinstance(body, onnx.GraphProto) else set()
    noisy: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for original in body.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if _is_quantizer(node) and node.input[0] not in weights:
            read = node.input[0]
            if read not in noisy:
                added = _noise(read, width, names)
                nodes += added
                noisy[read] = added[-1].output[0]
            node.input[0] = noisy[read]
        nodes.append(node)
    del body.node[:]
    body.node.extend(nodes)


def _noise(read: str, width: float, names: Iterator[str]) -> list[onnx.NodeProto]:
    """Return nodes of which the last makes `read` plus noise; a step is that of its own range."""
    code, step, zero, unit, noise, result = (next(names) for _ in range(6))
    return [
        helper.make_node("DynamicQuantizeLinear", [read], [code, step, zero]),
        helper.make_node(
            "RandomUniformLike", [read], [unit], name=unit, low=-width, high=width, seed=0.0
        ),
        helper.make_node("Mul", [unit, step], [noise]),
        helper.make_node("Add", [read, noise], [result]),
    ]


def _set_seeds(model: onnx.ModelProto, seed: int) -> None:
    """Let each node draw numbers of its own, which are the same for the same seed."""
    for body in bodies(model):
        for node in body.node:
            if node.op_type == "RandomUniformLike" and node.name.startswith("onnx_fuse_noise_"):
                number = int(node.name.rpartition("_")[2])
                next(a for a in node.attribute if a.name == "seed").f = number + seed / 1000
