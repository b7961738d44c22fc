"""Damage an ONNX model: its message's fields by reflection, or its bytes.

A mutated byte string is rarely a model any more, so most mutations change a parsed message: values
become hostile ones, elements vanish, repeat or change places, names point at each other, and parts
come from other models. All randomness is the given Random: the same seed makes the same models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Around zero, around the limits of int32 and int64, and sizes that no memory holds.
HOSTILE_INTEGERS = [0, 1, -1, 2, 3, 7, 64, -128, 1 << 20, 1 << 31, -(1 << 31), 1 << 40]
HOSTILE_INTEGERS += [(1 << 63) - 1, -(1 << 63), (1 << 62) + 1]
HOSTILE_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-38, 3e38, math.inf, -math.inf, math.nan]
HOSTILE_STRINGS = ["", "\0", "a/../../b", "é", "onnx_fuse", "com.microsoft", "x" * 3000]

INTEGER_LIMITS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}


def walk(message: Message) -> Iterator[Message]:
    """Yield the message and all messages in it, depth first."""
    yield message
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        for child in value if field.is_repeated else [value]:
            yield from walk(child)


def names_in(model: onnx.ModelProto) -> list[str]:
    """Return the names of values, nodes and operators, in order of appearance."""
    found: dict[str, None] = {}
    for message in walk(model):
        if isinstance(message, onnx.NodeProto):
            found.update(dict.fromkeys([*message.input, *message.output]))
            found.update(dict.fromkeys([message.op_type, message.name]))
    return list(found)


class Mutator:
    """Makes damaged models from sound ones."""

    def __init__(self, seeds: list[bytes], random: Random) -> None:
        self.seeds = seeds
        self.random = random
        self.donors = [onnx.ModelProto.FromString(seed) for seed in seeds]

    def make(self) -> bytes:
        """Return one damaged model."""
        seed = self.random.choice(self.seeds)
        if self.random.random() < 0.15:
            return self.damage_bytes(seed)
        model = onnx.ModelProto.FromString(seed)
        messages = [m for m in walk(model) if m.ListFields()]
        names = names_in(model)
        for _ in range(self.random.choice([1, 1, 1, 2, 3, 8])):
            self.damage_message(self.random.choice(messages), names)
        data: bytes = model.SerializeToString()
        return data

    def damage_bytes(self, data: bytes) -> bytes:
        """Return the bytes with some flipped, cut out, cut off or repeated."""
        damaged = bytearray(data)
        for _ in range(self.random.choice([1, 4, 32])):
            at = self.random.randrange(max(1, len(damaged)))
            match self.random.randrange(4):
                case 0:
                    damaged[at : at + 1] = bytes([self.random.randrange(256)])
                case 1:
                    del damaged[at : at + self.random.randrange(1, 64)]
                case 2:
                    damaged[at:at] = damaged[at : at + self.random.randrange(1, 64)]
                case _:
                    del damaged[max(at, len(damaged) - self.random.randrange(1, 4096)) :]
        return bytes(damaged)

    def damage_message(self, message: Message, names: list[str]) -> None:
        """Change one field of the message."""
        fields = message.ListFields()
        if not fields:  # an earlier change emptied it
            return
        field, value = self.random.choice(fields)
        if field.is_repeated:
            self.damage_list(field, value, names)
        elif self.random.random() < 0.2:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            self.graft(field, value)
        else:
            setattr(message, field.name, self.scalar(field, value, names))

    def damage_list(self, field: FieldDescriptor, values: Any, names: list[str]) -> None:
        """Remove, repeat, swap or change an element of a repeated field."""
        at = self.random.randrange(len(values))
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        match self.random.randrange(4):
            case 0:
                del values[at]
            case 1:
                values.append(values[at])
            case 2:
                other = self.random.randrange(len(values))
                elements = list(values)
                elements[at], elements[other] = elements[other], elements[at]
                copies = [type(e).FromString(e.SerializeToString()) for e in elements if is_message]
                del values[:]
                values.extend(copies if is_message else elements)
            case _ if is_message:
                self.graft(field, values[at])
            case _:
                values[at] = self.scalar(field, values[at], names)

    def graft(self, field: FieldDescriptor, message: Message) -> None:
        """Replace the message by one of its type from another model, or damage it."""
        donor = self.random.choice(self.donors)
        candidates = [m for m in walk(donor) if m.DESCRIPTOR is field.message_type]
        if candidates and self.random.random() < 0.5:
            message.CopyFrom(self.random.choice(candidates))
        else:
            self.damage_message(message, names_in(donor))

    def scalar(self, field: FieldDescriptor, value: Any, names: list[str]) -> Any:
        """Return another value of the field's type."""
        choose = self.random.choice
        if field.type == FieldDescriptor.TYPE_ENUM:
            return choose([member.number for member in field.enum_type.values])
        if field.type in INTEGER_LIMITS:
            low, high = INTEGER_LIMITS[field.type]
            candidate = choose([value + 1, value - 1, value * 2, choose(HOSTILE_INTEGERS)])
            return min(max(candidate, low), high)
        if field.type in {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}:
            return choose([value * 2, -value, choose(HOSTILE_FLOATS)])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.damage_bytes(value)
        return choose([choose(names or [""]), choose(HOSTILE_STRINGS), value[: len(value) // 2]])
