"""Writes the nodes of a function body in any opset, its sizes being the node's attributes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper, numpy_helper

from onnx_fuse.op.schema import ATTRIBUTES

_TYPES = {row.name: row.type for row in ATTRIBUTES}

# The signs of a size's expression, the loosest first, and what they are in a graph and in Python.
_LEVELS = ("+", "*/")
_OPERATORS = {"+": "Add", "*": "Mul", "/": "Div"}
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "*": operator.mul,
    "/": operator.floordiv,
}


class BodyBuilder:
    """The nodes of a body, in order. Methods append nodes and return the name of the result."""

    def __init__(
        self, opset: int, taken: Iterable[str], literals: Mapping[str, int | float]
    ) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self._literals = literals
        self._taken = set(taken)
        self._known: dict[tuple[object, ...], str] = {}

    def add(self, op: str, *inputs: str, out: str = "", hint: str = "", **attributes: Any) -> str:
        """Append a node with one output: `out`, or a new name."""
        return self.add_many(op, inputs, (out or self.name(hint or op.lower()),), **attributes)[0]

    def add_many(
        self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node with these outputs, named after the first.

        A name is needed: onnxruntime 1.20 calls the Splits that it makes of Slices after the node
        that it started from, and two of no name are two of the same.
        """
        node = helper.make_node(op, list(inputs), list(outputs), name=outputs[0], **attributes)
        self.nodes.append(node)
        return outputs

    def name(self, hint: str) -> str:
        """Return a name that this body doesn't use yet."""
        name, number = hint, 1
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def rename(self, old: str, new: str) -> str:
        """Give the value that the last node computed another name, and return it."""
        outputs = self.nodes[-1].output
        outputs[list(outputs).index(old)] = new
        return new

    def once(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """Return what `make` returned when this key was first asked for."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def constant(self, value: object, dtype: type[np.generic]) -> str:
        """Return a tensor with this value; equal ones share a Constant."""
        array = np.asarray(value, dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        tensor = numpy_helper.from_array(array)
        return self.once(key, lambda: self.add("Constant", hint="constant", value=tensor))

    def refer(self, name: str, attribute: str) -> None:
        """Give the last node the attribute `name`, whose value is the block's `attribute`."""
        is_int = _TYPES[attribute] is int
        if attribute in self._literals:
            value = self._literals[attribute]
            literal = helper.make_attribute(name, int(value) if is_int else float(value))
            self.nodes[-1].attribute.append(literal)
            return
        reference = self.nodes[-1].attribute.add()
        reference.name, reference.ref_attr_name = name, attribute
        reference.type = AttributeProto.INT if is_int else AttributeProto.FLOAT

    def ints(self, *values: int) -> str:
        """Return (len(values),) int64."""
        return self.constant(values, np.int64)

    def number(self, attribute: str) -> str:
        """Return the scalar that is this attribute's value: int64 or float32."""
        is_int = _TYPES[attribute] is int
        if attribute in self._literals:
            return self.constant(self._literals[attribute], np.int64 if is_int else np.float32)
        return self.once(("number", attribute), lambda: self._reference(attribute, is_int))

    def _reference(self, attribute: str, is_int: bool) -> str:
        constant = self.add("Constant", hint=attribute)
        self.refer("value_int" if is_int else "value_float", attribute)
        return constant

    def size(self, expression: str) -> str:
        """Return (1,) int64: an attribute, or sums of products of them such as "a / 2 * b + c"."""
        return self.once(("size", expression), lambda: self._size(expression))

    def _size(self, expression: str) -> str:
        parts = _last_operation(expression)
        if parts is not None:
            left, op, right = parts
            return self.add(_OPERATORS[op], self.size(left), self.size(right), hint="size")
        if expression.isdigit():
            return self.ints(int(expression))
        return self.add("Reshape", self.number(expression), self.ints(1), hint="size")

    def literal_size(self, expression: str) -> int:
        """Return what `size` computes as an int; only in opsets with literals."""
        parts = _last_operation(expression)
        if parts is not None:
            left, op, right = parts
            return _ARITHMETIC[op](self.literal_size(left), self.literal_size(right))
        return int(expression) if expression.isdigit() else int(self._literals[expression])

    def reshape(self, x: str, *dims: int | str, **names: str) -> str:
        """Append a Reshape to ints (0: the same dim, -1: what is left) and sizes as in `size`."""
        return self.add("Reshape", x, self.shape(*dims), **names)

    def shape(self, *dims: int | str) -> str:
        """Return (len(dims),) int64 of ints and sizes as in `size`."""
        if all(isinstance(dim, int) for dim in dims):
            return self.ints(*(dim for dim in dims if isinstance(dim, int)))
        parts = [self.ints(dim) if isinstance(dim, int) else self.size(dim) for dim in dims]
        key = ("shape", *parts)
        return self.once(key, lambda: self.add("Concat", *parts, axis=0, hint="shape"))

    def transpose(self, x: str, *perm: int, **names: str) -> str:
        """Append a Transpose."""
        return self.add("Transpose", x, perm=perm, **names)

    def unsqueeze(self, x: str, axis: int, **names: str) -> str:
        """Append an Unsqueeze of one axis."""
        return self._with_axes("Unsqueeze", x, axis, **names)

    def squeeze(self, x: str, axis: int, **names: str) -> str:
        """Append a Squeeze of one axis."""
        return self._with_axes("Squeeze", x, axis, **names)

    def _with_axes(self, op: str, x: str, axis: int, **names: str) -> str:
        if self.opset < 13:
            return self.add(op, x, axes=[axis], **names)
        return self.add(op, x, self.ints(axis), **names)

    def slice(self, x: str, axis: int, start: int | str, end: int | str, **names: str) -> str:
        """Append a Slice of one axis; bounds are ints, or sizes as in `size`."""
        if self.opset < 10:
            bounds = [b if isinstance(b, int) else self.literal_size(b) for b in (start, end)]
            return self.add("Slice", x, axes=[axis], starts=bounds[:1], ends=bounds[1:], **names)
        inputs = [self.ints(b) if isinstance(b, int) else self.size(b) for b in (start, end)]
        return self.add("Slice", x, *inputs, self.ints(axis), **names)

    def halves(self, x: str, axis: int) -> tuple[str, ...]:
        """Append a Split of one axis into two equal parts."""
        equal = {"num_outputs": 2} if self.opset >= 18 else {}
        outputs = (self.name("half"), self.name("half"))
        return self.add_many("Split", (x,), outputs, axis=axis, **equal)

    def reduce(self, op: str, x: str, axes: tuple[int, ...]) -> str:
        """Append ReduceMean, -L1 or -L2 with kept dims; axes are an input from opset 18 on."""
        if self.opset < 18:
            return self.add(op, x, axes=axes, keepdims=1)
        return self.add(op, x, self.ints(*axes), keepdims=1)


def _last_operation(expression: str) -> tuple[str, str, str] | None:
    """Return what an expression computes last: left side, sign, right side; None for one word."""
    words = expression.split()
    for level in _LEVELS:
        at = max((at for at, word in enumerate(words) if word in level), default=0)
        if at:
            return " ".join(words[:at]), words[at], " ".join(words[at + 1 :])
    return None
