"""Attributes of every kind: from Python values to a message's, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_fuse.ir.attributes import AttributeRef, decode, encode
from onnx_fuse.ir.constant import Constant

VALUES: dict[str, Any] = {
    "a number": 1.5,
    "a whole number": 3,
    "text": "half",
    "bytes that are no text": b"\xff\xfe",
    "numbers": [0.5, 2.0],
    "whole numbers": [1, 2],
    "texts": ["a", "b"],
    "another attribute": AttributeRef("axis", onnx.AttributeProto.INT),
    "a type": helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2]),
}


def decoded(attribute: onnx.AttributeProto) -> Any:
    return decode(attribute, Constant.from_tensor)


@pytest.mark.parametrize("name", VALUES)
def test_value_comes_back(name: str) -> None:
    assert decoded(encode("a", VALUES[name])) == VALUES[name]


@pytest.mark.parametrize("value", [np.float32(0.5), [np.int64(1), np.int64(2)]], ids=str)
def test_numpys_numbers_are_numbers(value: Any) -> None:
    assert decoded(encode("a", value)) == value


def test_tensor_comes_back() -> None:
    data = np.arange(6, dtype=np.int64).reshape(2, 3)
    for value in (data, Constant.from_array(data)):
        np.testing.assert_array_equal(decoded(encode("a", value)), data)


def test_tensors_are_arrays() -> None:
    data = [np.zeros(2, np.float32), np.ones(3, np.int64)]
    tensors = [Constant.from_array(part).to_tensor() for part in data]
    found = decoded(helper.make_attribute("a", tensors))
    for part, expected in zip(found, data, strict=True):
        np.testing.assert_array_equal(part, expected)
