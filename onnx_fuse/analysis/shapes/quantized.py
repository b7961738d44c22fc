"""Shape rules of operators of com.microsoft that read, or make, quantized tensors."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from onnx_fuse.analysis.dims.dim import Dim, total
from onnx_fuse.analysis.shapes.facts import CallFacts, Fact, Rule, broadcast_shapes, normalized
from onnx_fuse.analysis.shapes.products import embed_layer_norm, gemm_shape
from onnx_fuse.analysis.splice import spliced

_BYTE_BITS = 8
_BYTES = (TensorProto.UINT8, TensorProto.INT8)


def _broadcasting(*operands: int, dtype_of: int) -> Rule:
    """These inputs broadcast; scales and zero points stand between them."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        shape = broadcast_shapes([call.shape(index) for index in operands])
        return [Fact(shape, call.dtype(dtype_of))]

    return rule


def _first(call: CallFacts) -> Sequence[Fact]:
    return [call.like(0)]


def _concat(call: CallFacts) -> Sequence[Fact]:
    """Each input is a tensor with its scale and its zero point, after those of the result."""
    shapes = [call.shape(index) for index in range(2, len(call.inputs), 3)]
    rank = None if not shapes or shapes[0] is None else len(shapes[0])
    axis = None if rank is None else normalized(int(call.attr("axis", 0)), rank)
    known = [shape for shape in shapes if shape is not None and len(shape) == rank]
    if axis is None or len(known) < len(shapes):
        return [Fact(None, call.dtype(2))]
    return [Fact(spliced(known[0], axis, total(s[axis] for s in known)), call.dtype(2))]


def _gemm(call: CallFacts) -> Sequence[Fact]:
    """A product of two matrices; in float32 if its own scale is left out."""
    dtype = call.dtype(0) if call.has(7) else TensorProto.FLOAT
    return [Fact(gemm_shape(call, 3), dtype)]


def _gather_blocks(call: CallFacts) -> Sequence[Fact]:
    """Rows of a quantized table; one with fewer bits than a byte is packed along its last axis."""
    table, indices = call.shape(0), call.shape(1)
    axis = None if table is None else normalized(int(call.attr("gather_axis", 0)), len(table))
    if table is None or indices is None or axis is None:
        return [Fact(None, call.dtype(2))]
    packed = _BYTE_BITS // int(call.attr("bits", 4)) if call.dtype(0) in _BYTES else 1
    whole = [*table[:-1], table[-1] * packed]
    return [Fact(spliced(whole, axis, *indices), call.dtype(2))]


def _attention(call: CallFacts) -> Sequence[Fact]:
    """(batch, seq, hidden) times a packed weight of three equal parts."""
    shape, weight = call.shape(0), call.shape(1)
    if shape is None or weight is None or len(shape) != 3 or len(weight) != 2:
        return [Fact([None] * 3, TensorProto.FLOAT)]
    return [Fact([*shape[:2], weight[1] // 3], TensorProto.FLOAT)]


def _matmul_bits(call: CallFacts) -> Sequence[Fact]:
    """A product with a packed matrix of N columns."""
    shape, columns = call.shape(0), call.attr("N")
    whole = None if shape is None or columns is None else [*shape[:-1], Dim.of(columns)]
    return [Fact(whole, call.dtype(0))]


RULES: dict[str, Rule] = {
    **{
        f"com.microsoft:{name}": _first
        for name in ("QLinearSoftmax", "QLinearLeakyRelu", "QLinearSigmoid", "QMoE")
    },
    "com.microsoft:GatherBlockQuantized": _gather_blocks,
    "com.microsoft:MatMulBnb4": _matmul_bits,
    "com.microsoft:MatMulNBits": _matmul_bits,
    "com.microsoft:QAttention": _attention,
    "com.microsoft:QEmbedLayerNormalization": embed_layer_norm(TensorProto.FLOAT),
    "com.microsoft:QGemm": _gemm,
    "com.microsoft:QLinearAdd": _broadcasting(0, 3, dtype_of=0),
    "com.microsoft:QLinearConcat": _concat,
    "com.microsoft:QLinearMul": _broadcasting(0, 3, dtype_of=0),
    "com.microsoft:QLinearWhere": _broadcasting(0, 1, 4, dtype_of=1),
}
