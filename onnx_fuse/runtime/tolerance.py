"""How far two right computations of one model may differ.

Rounding a sum of K products to nearest makes a relative error of about sqrt(K) * u (Higham and
Mary 2019, "A new approach to probabilistic rounding error analysis"), u being the unit roundoff of
the accumulator. Storing a result in a narrower type adds that type's own, whatever K is. The
contractions of a model make such errors independently, so their squares add up; layers that
neither amplify nor damp pass them on. The largest of some million normally distributed errors
stands at 5 sigma, and two results differ by sqrt(2) times the error of one.

That bound knows nothing of a model that amplifies errors (a sharp softmax, masked rows with finite
fill). More runs of the original show that: at another optimisation level, with each weight moved by
the error that its product makes, and where numbers are quantized with these moved, too (noise.py).
Four times the largest difference is allowed, because samples of an error are seldom its maximum.
Where that is exceeded, more samples are taken first: they may differ among each other by a factor
of twenty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.ir.bodies import Body, bodies, nest
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.external import ExternalFiles
from onnx_fuse.op.schema import DOMAIN

_SIGMAS = 5 * math.sqrt(2)
# Standard deviation of one rounding, as a share of u: an error uniform in +-u * 2**e, of numbers
# uniform in [1, 2) * 2**e.
_ROUNDING = 1 / math.sqrt(6)
_NOISE_FACTOR = 4.0
# Share of an output's scale above which a bound could hide a wrong result: such an output proves
# nothing.
TELLING = 0.25

# Unit roundoff 2**-p of a type with p significant bits.
_ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.DOUBLE: 2.0**-53,
    onnx.TensorProto.FLOAT: 2.0**-24,
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
}
# "bf16x3" leaves out products of 2**-8 * 2**-8 against the largest.
_PRECISION = {"fp32": 2.0**-24, "bf16x3": 2.0**-16, "bf16": 2.0**-8}
# Half a step of 8 bits over a symmetric range.
_QUANTIZATION_STEP = 2.0**-8
_QUANTIZING = ("QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinear", "QGemm", "QAttention")
_CONTRACTIONS = ("MatMul", "Gemm", "Conv", "Einsum", "Attention", "LSTM", "GRU", "QLinear")
# What only turns or converts its input.
_UNCHANGING = ("Cast", "Identity", "Transpose")
# Terms of a product whose operands have no size in the file: the size of a head, mostly.
_USUAL_TERMS = 64
# Types whose weights can be moved: numpy has no bfloat16 to hand to onnxruntime.
_MOVED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
# Elements of the weights that are moved: 64 MiB of them say as much as more would.
_MOST_MOVED = 2**24

Array = npt.NDArray[Any]


def relative_error(original: onnx.ModelProto, fused: onnx.ModelProto) -> float:
    """Return the largest difference expected of two right results, as a share of the scale.

    Reads sizes and types only; weights may be external and unread.
    """
    step = _QUANTIZATION_STEP if _is_quantized(original) else 0.0
    return _SIGMAS * math.hypot(rounding_error(original, fused), step)


def rounding_error(original: onnx.ModelProto, fused: onnx.ModelProto) -> float:
    """Return the rounding errors' standard deviation alone, as a share of the output's scale."""
    terms, contractions = 0, 0
    stored = _ROUNDOFF[onnx.TensorProto.FLOAT]
    for body, calls in _called(original):
        sizes = _weights(body)
        stored = max([stored, *(_ROUNDOFF.get(dtype, 0.0) for dtype in _types(body))])
        for node in body.node:
            if _is_one(node, _CONTRACTIONS):
                contractions += calls
                terms += calls * _terms(node, sizes)
    accumulated = _ROUNDOFF[onnx.TensorProto.FLOAT] * math.sqrt(terms)
    kept = _ROUNDING * stored * math.sqrt(max(contractions, 1))
    # Both factors of each of a block's four products are rounded to the precision asked for.
    factors = [_ROUNDING * _PRECISION.get(p, 0.0) for p in _fused_precisions(fused)]
    rounded = math.sqrt(8) * math.hypot(*factors)
    return math.hypot(accumulated, kept, rounded)


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(_is_one(node, _QUANTIZING) for body in bodies(model) for node in body.node)


def _is_one(node: onnx.NodeProto, words: tuple[str, ...]) -> bool:
    """Return whether an operator's name has one of these words in it."""
    return any(word in node.op_type for word in words)


def moved_weights(model: onnx.ModelProto, files: ExternalFiles, seed: int) -> dict[str, Array]:
    """Return constants of float32 and float16 products, each element moved by its product's error.

    Others are left out: a mask's fill would overflow, a bucket's border would move. So are those
    beyond the first 64 MiB, which say no more. `files` is its external data.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    sizes = _weights(model.graph)
    rng = np.random.default_rng(seed)
    moved: dict[str, Array] = {}
    budget = _MOST_MOVED
    for node in model.graph.node:
        if not _is_one(node, _CONTRACTIONS):
            continue
        for name in node.input:
            tensor = constants.get(_unchanged(name, makers))
            if tensor is None or tensor.name in moved or tensor.data_type not in _MOVED:
                continue
            elements = math.prod(tensor.dims)
            if len(tensor.dims) < 2 or elements > budget:
                continue
            budget -= elements
            terms = _terms(node, {name: sizes[name]})
            summed = _ROUNDOFF[onnx.TensorProto.FLOAT] * math.sqrt(terms + 1)
            step = max(summed, _ROUNDOFF[tensor.data_type])  # the result is rounded, too
            weight = Constant.from_tensor(tensor, external=files.range_of(tensor)).numpy()
            changed = weight * (1 + step * rng.choice((-1, 1), weight.shape))
            moved[tensor.name] = changed.astype(weight.dtype)
    return moved


def _unchanged(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the value that another one, which is only turned or converted, is made of."""
    while (maker := makers.get(name)) is not None and maker.op_type in _UNCHANGING:
        name = maker.input[0]
    return name


def scale(reference: Array) -> float:
    """Return the largest finite magnitude of an output, without the fill of a mask.

    A fill is a value that several elements share and that is a thousand times all others.
    """
    size = np.abs(reference[np.isfinite(reference)].astype(np.float64))
    while size.size:
        largest = float(size.max())
        rest = size[size < largest]
        is_fill = rest.size < size.size - 1 and largest > 1e3 * rest.max(initial=0.0) > 0
        if not is_fill:
            return largest
        size = rest
    return 0.0


def bound(relative: float, reference: Array, noise: float) -> Array:
    """Return the difference allowed of each element; `noise` is the model's own between levels."""
    size = np.maximum(scale(reference), np.abs(reference.astype(np.float64)))
    limit: Array = np.maximum(relative * size, _NOISE_FACTOR * noise)
    return limit


def _called(model: onnx.ModelProto) -> Iterator[tuple[Body, int]]:
    """Yield every body, with how often it stands in the model."""
    graphs = list(nest(model.graph))
    yield from ((graph, 1) for graph in graphs)
    calls = Counter((node.domain, node.op_type) for graph in graphs for node in graph.node)
    for function in model.functions:
        times = max(1, calls[function.domain, function.name])
        yield from ((body, times) for body in nest(function))


def _weights(body: Body) -> dict[str, tuple[int, ...]]:
    """Return dims of constant tensors, also through one step that only turns or converts them."""
    found: dict[str, tuple[int, ...]] = {}
    if isinstance(body, onnx.GraphProto):
        found.update((t.name, tuple(t.dims)) for t in body.initializer)
    for node in body.node:
        if node.op_type == "Constant":
            found.update((node.output[0], tuple(a.t.dims)) for a in node.attribute)
        elif node.op_type in (*_UNCHANGING, "DequantizeLinear"):
            dims = found.get(node.input[0]) if node.input else None
            if dims is not None:
                found[node.output[0]] = dims[::-1] if node.op_type == "Transpose" else dims
    return found


def _terms(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> int:
    """Return how many products one element of the node's result sums."""
    for slot, name in enumerate(node.input):
        dims = sizes.get(name, ())
        if len(dims) < 2:
            continue
        if "Conv" in node.op_type:
            return math.prod(dims[1:])
        if node.op_type == "Gemm":
            transposed = any(
                a.name == ("transB" if slot else "transA") and a.i for a in node.attribute
            )
            return dims[-1] if transposed == bool(slot) else dims[0]
        return dims[-2] if slot else dims[-1]
    return _USUAL_TERMS


def _types(body: Body) -> Iterator[int]:
    if isinstance(body, onnx.GraphProto):
        yield from (tensor.data_type for tensor in body.initializer)
        for value in (*body.input, *body.output):
            yield value.type.tensor_type.elem_type
    for node in body.node:
        if node.op_type == "Cast":
            yield from (a.i for a in node.attribute if a.name == "to")


def _fused_precisions(model: onnx.ModelProto) -> Iterator[str]:
    for body in bodies(model):
        for node in body.node:
            if node.domain == DOMAIN:
                yield from (a.s.decode() for a in node.attribute if a.name == "precision")
