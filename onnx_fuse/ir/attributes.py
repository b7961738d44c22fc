"""Attributes of nodes as Python values, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_fuse.ir.constant import Constant

_Kind = onnx.AttributeProto


class AttributeRef(NamedTuple):
    """The value of an attribute of a function's node that the function's caller gives.

    name: of the function's attribute. type: of onnx.AttributeProto.
    """

    name: str
    type: int


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:  # ONNX asks for UTF-8, but some tools keep binary data there
        return data


def decode(attribute: onnx.AttributeProto, constant: Callable[[onnx.TensorProto], Constant]) -> Any:
    """Return the attribute's Python value.

    `constant` gives a tensor's content. Sub-graphs are not decoded here.
    """
    if attribute.ref_attr_name:
        return AttributeRef(attribute.ref_attr_name, attribute.type)
    match attribute.type:
        case _Kind.FLOAT:
            return attribute.f
        case _Kind.INT:
            return attribute.i
        case _Kind.STRING:
            return _text(attribute.s)
        case _Kind.TENSOR:
            return constant(attribute.t).numpy()
        case _Kind.FLOATS:
            return list(attribute.floats)
        case _Kind.INTS:
            return list(attribute.ints)
        case _Kind.STRINGS:
            return [_text(item) for item in attribute.strings]
        case _Kind.TENSORS:
            return [constant(item).numpy() for item in attribute.tensors]
        case _:  # types and sparse tensors are handed out as they are
            return onnx.helper.get_attribute_value(attribute)


def encode(name: str, value: Any) -> onnx.AttributeProto:
    """Return the attribute that says `value`.

    It is an int, float, str, bytes, array, Constant, onnx message, AttributeRef, or a list
    of one of these.

    Raises: ValueError or TypeError for a value that no attribute can hold.
    """
    if isinstance(value, AttributeRef):
        return onnx.AttributeProto(name=name, ref_attr_name=value.name, type=value.type)  # type: ignore[arg-type]
    if isinstance(value, Constant):
        return onnx.AttributeProto(name=name, type=_Kind.TENSOR, t=value.to_tensor())
    if isinstance(value, np.ndarray):
        return onnx.AttributeProto(
            name=name, type=_Kind.TENSOR, t=Constant.from_array(value).to_tensor()
        )
    if isinstance(value, (list, tuple)):
        value = [item.item() if isinstance(item, np.generic) else item for item in value]
    elif isinstance(value, np.generic):
        value = value.item()
    return onnx.helper.make_attribute(name, value)
