"""Protobuf's wire format, as far as needed to keep every byte of a message that is not changed.

Only two levels of a model (ModelProto, GraphProto) are walked here; everything inside is read with
onnx's own classes. Source of the format: protobuf's "Encoding" page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import (  # type: ignore[import-untyped]  # it ships no types
    DecodeError,
    Message,
)

__all__ = ["DecodeError", "Field", "checked_fields", "fields", "header", "varint"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message.

    `raw` is all its bytes, tag included, `payload` those after the tag.
    """

    number: int
    wire_type: int
    raw: memoryview
    payload: memoryview


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data):
            raise DecodeError("truncated")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise DecodeError("a varint of more than 10 bytes")


def fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of one message in order, without copying.

    Raises: DecodeError if the bytes are not a message (groups, which ONNX never had, included).
    """
    at = 0
    end = len(data)
    while at < end:
        start = at
        tag, at = _read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        payload = at
        if wire_type == LENGTH:
            length, payload = _read_varint(data, at)
            at = payload + length
        elif wire_type == VARINT:
            _, at = _read_varint(data, at)
        elif wire_type == FIXED64:
            at += 8
        elif wire_type == FIXED32:
            at += 4
        else:
            raise DecodeError(f"wire type {wire_type} at byte {start}")
        if number == 0:
            raise DecodeError(f"field number 0 at byte {start}")
        if at > end:
            raise DecodeError("truncated")
        yield Field(number, wire_type, data[start:at], data[payload:at])


def expected_wire_types(message: type[Message]) -> dict[int, tuple[int, ...]]:
    """Return for each field number of `message` the wire types in which it may stand."""
    result: dict[int, tuple[int, ...]] = {}
    for field in message.DESCRIPTOR.fields:
        if field.type in (field.TYPE_MESSAGE, field.TYPE_STRING, field.TYPE_BYTES):
            result[field.number] = (LENGTH,)
        elif field.type in (field.TYPE_FLOAT, field.TYPE_FIXED32, field.TYPE_SFIXED32):
            result[field.number] = (FIXED32, LENGTH)
        elif field.type in (field.TYPE_DOUBLE, field.TYPE_FIXED64, field.TYPE_SFIXED64):
            result[field.number] = (FIXED64, LENGTH)
        else:
            result[field.number] = (VARINT, LENGTH)
    return result


def checked_fields(data: memoryview, message: type[Message]) -> Iterator[Field]:
    """Yield `fields(data)`, unless a known field of `message` has a foreign wire type.

    Raises: DecodeError.
    """
    expected = expected_wire_types(message)
    for field in fields(data):
        if field.wire_type not in expected.get(field.number, (field.wire_type,)):
            raise DecodeError(f"field {field.number} of {message.DESCRIPTOR.name} has another type")
        yield field


def varint(value: int) -> bytes:
    """Return a non-negative integer in protobuf's base-128 form."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def header(number: int, length: int) -> bytes:
    """Return the tag and length that stand before a length-delimited payload of `length` bytes."""
    return varint(number << 3 | LENGTH) + varint(length)
