from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir import element_types
from onnx_fuse.ir.element_types import NUMPY_TYPES, from_fields, from_raw, name_of, raw_size, to_raw

KINDS = [each for each in NUMPY_TYPES if each != TensorProto.STRING]
SHAPE = (3, 5)  # an odd count: the last byte of packed types is half used


def sample(dtype):
    """Values that every type has: 0 is missing in e8m0, negative ones in the unsigned types."""
    kind = NUMPY_TYPES[dtype]
    values = 2.0 ** (np.arange(15).reshape(SHAPE) % 2)
    if kind.kind in "if" and "e8m0" not in kind.name:
        values[1] = -values[1]
    return values.astype(kind)


@pytest.mark.parametrize("dtype", KINDS, ids=name_of)
def test_raw_form_and_back(dtype):
    array = sample(dtype)
    raw = to_raw(array, dtype)
    assert len(raw) == raw_size(dtype, SHAPE)
    back = from_raw(raw, dtype, SHAPE)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize("dtype", KINDS, ids=name_of)
def test_raw_form_is_onnxs_own(dtype):
    try:
        expected = numpy_helper.from_array(sample(dtype))
    except (ValueError, TypeError, KeyError):
        pytest.skip("the installed onnx cannot write this type")
    if expected.data_type != dtype:
        pytest.skip("the installed onnx writes this type as another one")
    assert bytes(to_raw(sample(dtype), dtype)) == expected.raw_data
    assert np.array_equal(from_fields(expected), sample(dtype))


@pytest.mark.parametrize("dtype", KINDS, ids=name_of)
def test_typed_fields_are_read(dtype):
    array = sample(dtype)
    try:
        plain = array if array.dtype.kind == "c" else array.astype(np.float32)
        tensor = onnx.helper.make_tensor("t", dtype, SHAPE, plain.flatten())
    except (ValueError, TypeError, KeyError):
        pytest.skip("the installed onnx cannot write this type")
    assert not tensor.HasField("raw_data")
    assert np.array_equal(from_fields(tensor), array)


def test_strings_are_read_as_bytes():
    tensor = TensorProto(data_type=TensorProto.STRING, dims=[2])
    tensor.string_data.extend(["ä".encode(), b"\xff"])
    assert from_fields(tensor).tolist() == ["ä".encode(), b"\xff"]


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(11)),
        TensorProto(data_type=TensorProto.FLOAT, dims=[3], float_data=[1, 2]),
        TensorProto(data_type=TensorProto.INT64, dims=[1 << 40, 1 << 40], int64_data=[1]),
        TensorProto(data_type=TensorProto.FLOAT, dims=[-1], float_data=[1]),
        TensorProto(data_type=99, dims=[1], raw_data=bytes(4)),
    ],
    ids=["short raw", "short field", "huge shape", "negative extent", "unknown type"],
)
def test_content_of_another_size_or_an_unknown_type_is_refused(tensor):
    with pytest.raises(InvalidModel):
        from_fields(tensor)


def test_every_type_of_the_installed_onnx_has_a_row():
    without_numpy_type = {"UNDEFINED", "FLOAT6E2M3", "FLOAT6E3M2"}
    known = set(element_types._NUMPY_NAMES) | without_numpy_type
    assert set(TensorProto.DataType.keys()) <= known
