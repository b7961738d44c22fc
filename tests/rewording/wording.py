"""Other words for the same: writes nodes of a graph in another way, by rules.

A rule gets a node and returns what takes the place of its outputs, or None where it doesn't apply.
What it writes computes the same, but for rounding, whatever is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
END = 2**62  # beyond every axis
LETTERS = "abcdefgh"  # names of axes
# Since which opset axes are an input: of Unsqueeze, Squeeze, Split and ReduceSum; of the others.
TAKES_AXES, REDUCE_TAKES_AXES = 13, 18


class Wording:
    """A graph whose nodes are written anew, with what is known of its values."""

    def __init__(self, model: onnx.ModelProto, random: Random) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.opset = next(o.version for o in model.opset_import if not o.domain)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types: dict[str, int] = {}
        self.shapes: dict[str, list[int | None]] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = [
                    dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
                ]
        self.constants: dict[str, Array] = {}
        for tensor in graph.initializer:
            self._learn(tensor.name, numpy_helper.to_array(tensor))
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._learn(node.output[0], numpy_helper.to_array(attribute.t))

    def _learn(self, name: str, array: Array) -> None:
        self.constants[name] = array
        self.shapes[name] = list(array.shape)
        self.types[name] = helper.np_dtype_to_tensor_dtype(array.dtype)

    # What is known of a value

    def is_float(self, name: str) -> bool:
        """Whether its elements are floats that numbers can be written for."""
        return self.types.get(name) in FLOATS

    def rank(self, name: str) -> int:
        """Return its rank, -1 if it isn't known."""
        return len(self.shapes[name]) if name in self.shapes else -1

    def number(self, name: str) -> float | None:
        """Return the number that a constant of one element holds."""
        found = self.constants.get(name)
        return float(found.item()) if found is not None and found.size == 1 else None

    def matrix(self, name: str) -> Array | None:
        """Return a constant of two axes."""
        found = self.constants.get(name)
        return found if found is not None and found.ndim == 2 else None

    # What is written

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Write a node of one output and return its name."""
        return self.ops(op_type, *inputs, count=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """Write a node of `count` outputs and return their names."""
        name = f"reworded_{len(self.nodes)}"
        outputs = [f"{name}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name, **attributes))
        return outputs

    def const(self, data: Any, dtype: Any = None) -> str:
        """Write a constant."""
        array = np.asarray(data, dtype)
        name = self.op("Constant", value=numpy_helper.from_array(np.array(array, order="C")))
        self._learn(name, array)
        return name

    def ints(self, *numbers: int) -> str:
        """Write a list of integers."""
        return self.const(numbers, np.int64)

    def like(self, name: str, number: float) -> str:
        """Write a number of the value's type."""
        return self.const(number, helper.tensor_dtype_to_np_dtype(self.types[name]))

    def slice(self, name: str, start: int, end: int, axis: int) -> str:
        """Cut an axis."""
        return self.op("Slice", name, self.ints(start), self.ints(end), self.ints(axis))

    def unsqueeze(self, name: str, axis: int) -> str:
        """Add an axis of one."""
        return self._axes("Unsqueeze", name, axis)

    def squeeze(self, name: str, axis: int) -> str:
        """Take an axis of one away."""
        return self._axes("Squeeze", name, axis)

    def _axes(self, op_type: str, name: str, axis: int) -> str:
        if self.opset >= TAKES_AXES:
            return self.op(op_type, name, self.ints(axis))
        return self.op(op_type, name, axes=[axis])

    def reduce(self, op_type: str, name: str, axis: int) -> str:
        """Reduce an axis to one."""
        since = TAKES_AXES if op_type == "ReduceSum" else REDUCE_TAKES_AXES
        if self.opset >= since:
            return self.op(op_type, name, self.ints(axis), keepdims=1)
        return self.op(op_type, name, axes=[axis], keepdims=1)

    def turn(self, name: str, perm: Sequence[int]) -> str:
        """Transpose."""
        return self.op("Transpose", name, perm=list(perm))

    def extents(self, name: str, start: int, end: int) -> str:
        """Read some of a value's extents."""
        return self.slice(self.op("Shape", name), start, end, 0)

    def joined(self, *parts: str) -> str:
        """Join lists of integers."""
        return self.op("Concat", *parts, axis=0)


Rule = Callable[[Wording, onnx.NodeProto], str | list[str] | None]
ANY = "*"  # stands for whatever writes one float
RULES: dict[str, tuple[tuple[str, ...], Rule]] = {}  # by name: the operators, and what is written


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Enter a rule for these operators, by its function's name."""

    def enter(made: Rule) -> Rule:
        assert made.__name__ not in RULES
        RULES[made.__name__] = (op_types, made)
        return made

    return enter


def reword(
    model: onnx.ModelProto, random: Random, rules: Collection[str], share: float = 1.0
) -> list[str]:
    """Write a share of the main graph's nodes by one of these rules each; return those used."""
    w = Wording(model, random)
    graph, used = model.graph, []
    for node in graph.node:
        applied = random.random() < share and _apply(w, node, rules)
        if applied:
            used.append(applied)
        else:
            w.nodes.append(node)
    written = list(w.nodes)
    del graph.node[:]
    graph.node.extend(written)
    del graph.value_info[:]  # of what may no longer be there
    return used


def _apply(w: Wording, node: onnx.NodeProto, rules: Collection[str]) -> str:
    """Return the name of the rule that wrote the node, "" if none did."""
    kinds = {node.op_type} if not node.domain else set()
    if len(node.output) == 1 and w.is_float(node.output[0]):
        kinds.add(ANY)
    names = [name for name in rules if kinds & set(RULES[name][0])]
    for name in w.random.sample(names, len(names)):
        begin = len(w.nodes)
        made = RULES[name][1](w, node)
        if made is not None:
            ends = [made] if isinstance(made, str) else made
            _rename(w.nodes[begin:], dict(zip(ends, node.output, strict=True)))
            return name
        del w.nodes[begin:]
    return ""


def _rename(nodes: Sequence[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def exchanged(rank: int, first: int, second: int) -> list[int]:
    """Return the permutation that exchanges two axes."""
    perm = list(range(rank))
    perm[first], perm[second] = perm[second], perm[first]
    return perm
