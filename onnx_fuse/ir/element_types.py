"""ONNX's element types, their numpy types and their raw form.

onnx's own table differs from version to version (bfloat16 was read as float32 before 1.19), so ours
states it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx

from onnx_fuse.errors import InvalidModel

Array = np.ndarray[Any, np.dtype[Any]]

_NUMPY_NAMES: dict[str, Any] = {
    "FLOAT": np.float32,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "UINT16": np.uint16,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "STRING": np.object_,
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "DOUBLE": np.float64,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "COMPLEX64": np.complex64,
    "COMPLEX128": np.complex128,
    "BFLOAT16": "bfloat16",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "UINT4": "uint4",
    "INT4": "int4",
    "FLOAT4E2M1": "float4_e2m1fn",
    "UINT2": "uint2",
    "INT2": "int2",
}
_PACKED_NAMES = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


_ONNX_NAMES = frozenset(onnx.TensorProto.DataType.keys())


def _known() -> dict[int, np.dtype[Any]]:
    """Return {element type: numpy type} for what the installed onnx and ml_dtypes know both."""
    result: dict[int, np.dtype[Any]] = {}
    for name, kind in _NUMPY_NAMES.items():
        scalar = getattr(ml_dtypes, kind, None) if isinstance(kind, str) else kind
        if scalar is not None and name in _ONNX_NAMES:
            result[onnx.TensorProto.DataType.Value(name)] = np.dtype(scalar)
    return result


NUMPY_TYPES = _known()
ELEMENT_TYPES = {dtype: element for element, dtype in NUMPY_TYPES.items()}
# Types of which several elements share a byte, the first one in the low bits.
PACKED_BITS = {
    onnx.TensorProto.DataType.Value(name): bits
    for name, bits in _PACKED_NAMES.items()
    if name in _ONNX_NAMES
}


def name_of(dtype: int) -> str:
    """Return the element type's name as the standard writes it: float, int64, bfloat16, ..."""
    try:
        return str(onnx.TensorProto.DataType.Name(dtype)).lower()
    except ValueError:
        return f"type{dtype}"


def numpy_type(dtype: int) -> np.dtype[Any]:
    """Return the numpy type that stands for an element type of onnx.TensorProto.

    Raises: InvalidModel if it's unknown.
    """
    if dtype not in NUMPY_TYPES:
        raise InvalidModel(f"unknown tensor element type {dtype}")
    return NUMPY_TYPES[dtype]


def count(shape: tuple[int, ...]) -> int:
    """Return the number of elements, in Python integers (numpy's product overflows).

    Raises: InvalidModel for a negative extent.
    """
    result = 1
    for extent in shape:
        if extent < 0:
            raise InvalidModel(f"a tensor of shape {list(shape)}")
        result *= extent
    return result


def raw_size(dtype: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in ONNX's raw form.

    Raises: InvalidModel for an element type that is unknown or has no raw form (strings).
    """
    if bits := PACKED_BITS.get(dtype):
        return (count(shape) * bits + 7) // 8
    if dtype == onnx.TensorProto.STRING:
        raise InvalidModel("a tensor of strings has no raw form")
    return count(shape) * numpy_type(dtype).itemsize


def from_raw(data: bytes | memoryview, dtype: int, shape: tuple[int, ...]) -> Array:
    """Return the tensor that `data` holds in raw form; shares its memory unless it is packed.

    Raises: InvalidModel if `data` has another size than the tensor.
    """
    if len(data) != raw_size(dtype, shape):
        raise InvalidModel(
            f"{len(data)} bytes for {name_of(dtype)}{list(shape)},"
            f" which takes {raw_size(dtype, shape)}"
        )
    bits = PACKED_BITS.get(dtype)
    if bits is None:
        return np.frombuffer(data, dtype=numpy_type(dtype)).reshape(shape)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    elements = np.frombuffer(data, dtype=np.uint8)[:, None] >> shifts & ((1 << bits) - 1)
    flat = elements.reshape(-1)[: count(shape)].astype(np.uint8)
    if numpy_type(dtype).name.startswith("int"):  # sign extension, which a view needs
        signed = (flat.astype(np.int8) << (8 - bits)) >> (8 - bits)
        return signed.astype(numpy_type(dtype)).reshape(shape)
    return flat.view(numpy_type(dtype)).reshape(shape)


def to_raw(array: Array, dtype: int) -> memoryview:
    """Return `array`, of the numpy type of `dtype`, in raw form.

    A copy only where its memory isn't that already.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = PACKED_BITS.get(dtype)
    if bits is None:
        return memoryview(flat.view(np.uint8))
    each = 8 // bits
    elements = np.zeros(-(-flat.size // each) * each, dtype=np.uint8)
    elements[: flat.size] = flat.view(np.uint8) & ((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = np.bitwise_or.reduce(elements.reshape(-1, each) << shifts, axis=1, dtype=np.uint8)
    return memoryview(packed)


def from_fields(tensor: onnx.TensorProto) -> Array:
    """Return the content of a tensor that holds it itself, in raw form or in a typed field.

    Raises: InvalidModel if the content is of another size than the shape says.
    """
    dtype, shape = tensor.data_type, tuple(tensor.dims)
    if tensor.HasField("raw_data"):
        return from_raw(tensor.raw_data, dtype, shape)
    target = numpy_type(dtype)
    if dtype in PACKED_BITS:
        packed = np.array(tensor.int32_data, dtype=np.int32).astype(np.uint8)
        return from_raw(packed.tobytes(), dtype, shape)
    if dtype == onnx.TensorProto.STRING:
        flat = np.array([*tensor.string_data, None], dtype=np.object_)[:-1]
    elif dtype in (onnx.TensorProto.FLOAT, onnx.TensorProto.COMPLEX64):
        flat = np.array(tensor.float_data, dtype=np.float32).view(target)
    elif dtype in (onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX128):
        flat = np.array(tensor.double_data, dtype=np.float64).view(target)
    elif dtype == onnx.TensorProto.INT64:
        flat = np.array(tensor.int64_data, dtype=np.int64)
    elif dtype in (onnx.TensorProto.UINT32, onnx.TensorProto.UINT64):
        flat = np.array(tensor.uint64_data, dtype=np.uint64).astype(target)
    elif target.kind in "biu":
        flat = np.array(tensor.int32_data, dtype=np.int32).astype(target)
    else:  # 8 and 16 bit floats: their bits, as integers
        bits = np.uint16 if target.itemsize == 2 else np.uint8
        flat = np.array(tensor.int32_data, dtype=np.int32).astype(bits).view(target)
    if flat.size != count(shape):
        raise InvalidModel(f"{flat.size} elements for {name_of(dtype)}{list(shape)}")
    return flat.reshape(shape)
