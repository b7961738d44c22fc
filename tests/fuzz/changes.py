"""Random changes of what a model means that keep it valid, as far as a look at types can tell."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Operators that may stand in each other's place.
FAMILIES = (
    ("Add", "Sub", "Mul", "Div", "Max", "Min"),
    ("Exp", "Tanh", "Sigmoid", "Neg", "Abs", "Sqrt", "Reciprocal", "Erf", "Identity", "Relu"),
    ("ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2"),
    ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"),
    ("And", "Or", "Xor"),
    ("Softmax", "LogSoftmax"),
    ("Cos", "Sin"),
)
# How many inputs an operator has to have.
OPTIONAL = {"Clip": 1, "Gemm": 2, "LayerNormalization": 2, "Slice": 3}
INSERTED = ("Neg", "Abs", "Relu", "Tanh", "Exp", "Sigmoid", "Identity", "Softmax")
OPSETS = range(7, 24)
NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, -1e4, 1e-3)


class Change:
    """Changes of one model in place; each method says whether it found something to change."""

    def __init__(self, model: onnx.ModelProto, random: Random) -> None:
        self.model, self.graph, self.random = model, model.graph, random
        self.types = _types(model)

    def any(self) -> str:
        """Make one change and return its name."""
        kinds: list[Callable[[], bool]] = [
            self.operator,
            self.attribute,
            self.operand,
            self.order,
            self.constant,
            self.own_constant,
            self.insertion,
            self.omission,
            self.repetition,
            self.exchange,
            self.output,
            self.default,
            self.rounding,
            self.type,
            self.symbol,
            self.opset,
        ]
        while True:
            kind = self.random.choice(kinds)
            if kind():
                return kind.__name__

    def _node(self) -> onnx.NodeProto:
        return self.random.choice(self.graph.node)

    def operator(self) -> bool:
        """Put another operator in a node's place."""
        node = self._node()
        family = next((family for family in FAMILIES if node.op_type in family), ())
        others = [name for name in family if name != node.op_type]
        if not others or node.domain:
            return False
        node.op_type = self.random.choice(others)
        return True

    def attribute(self) -> bool:
        """Change a number of a node's attributes."""
        node = self._node()
        found = [a for a in node.attribute if a.type in (a.INT, a.INTS, a.FLOAT)]
        if not found:
            return False
        attribute = self.random.choice(found)
        if attribute.type == attribute.FLOAT:
            attribute.f *= self.random.choice((2.0, -1.0, 0.5))
        elif attribute.type == attribute.INT:
            attribute.i += self.random.choice((1, -1))
        elif len(attribute.ints) == 1:
            attribute.ints[0] += self.random.choice((1, -1))
        elif attribute.ints:
            i, j = self.random.sample(range(len(attribute.ints)), 2)
            attribute.ints[i], attribute.ints[j] = attribute.ints[j], attribute.ints[i]
        return True

    def operand(self) -> bool:
        """Let a node read another value of the same type and shape."""
        at = self.random.randrange(len(self.graph.node))
        node = self.graph.node[at]
        if not node.input:
            return False
        place = self.random.randrange(len(node.input))
        wanted = self.types.get(node.input[place])
        known = {value.name for value in (*self.graph.input, *self.graph.initializer)}
        known |= {name for earlier in self.graph.node[:at] for name in earlier.output}
        others = sorted(
            name
            for name in known
            if name != node.input[place] and wanted is not None and self.types.get(name) == wanted
        )
        if not others:
            return False
        node.input[place] = self.random.choice(others)
        return True

    def order(self) -> bool:
        """Let two operands of a node change places."""
        node = self._node()
        if len(node.input) < 2:
            return False
        i, j = self.random.sample(range(len(node.input)), 2)
        node.input[i], node.input[j] = node.input[j], node.input[i]
        return True

    def constant(self) -> bool:
        """Change a number of a constant, all of them, or their order."""
        tensors = [*self.graph.initializer]
        tensors += [a.t for n in self.graph.node for a in n.attribute if a.type == a.TENSOR]
        return bool(tensors) and self._rewrite(self.random.choice(tensors))

    def own_constant(self) -> bool:
        """Give one reader a constant of its own, with other numbers."""
        constants = {tensor.name: tensor for tensor in self.graph.initializer}
        places = [
            (node, place)
            for node in self.graph.node
            for place, name in enumerate(node.input)
            if name in constants
        ]
        if not places:
            return False
        node, place = self.random.choice(places)
        own = onnx.TensorProto()
        own.CopyFrom(constants[node.input[place]])
        own.name = f"own_{len(self.graph.initializer)}"
        if not self._rewrite(own):
            return False
        self.graph.initializer.append(own)
        node.input[place] = own.name
        return True

    def _rewrite(self, tensor: onnx.TensorProto) -> bool:
        data = numpy_helper.to_array(tensor).copy()
        if not data.size or data.dtype.kind not in "fib":
            return False
        if data.size > 1 and self.random.random() < 0.25:
            data = self._reordered(data)
        else:
            self._renumber(data.reshape(-1))
        tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
        return True

    def _reordered(self, data: np.ndarray) -> np.ndarray:
        """Return other numbers of the same shape: turned round, rolled or transposed."""
        axis = self.random.randrange(data.ndim)
        turned = data.swapaxes(axis, self.random.randrange(data.ndim))
        found = [np.flip(data, axis), np.roll(data, 1, axis), turned]
        return np.ascontiguousarray(self.random.choice(found)).reshape(data.shape)

    def _renumber(self, flat: np.ndarray) -> None:
        """Change one number in place, or all of them."""
        at = self.random.randrange(flat.size) if self.random.random() < 0.5 else slice(None)
        if flat.dtype.kind == "b":
            flat[at] = ~flat[at]
        elif flat.dtype.kind == "i":
            flat[at] += self.random.choice((1, -1))
        else:
            flat[at] = self.random.choice((flat[at] * 2, flat[at] + 1, self._number()))

    def _number(self) -> float:
        return self.random.choice(NUMBERS)

    def insertion(self) -> bool:
        """Let a float value pass another operator on its way to one reader."""
        found = self._float_operand()
        if found is None:
            return False
        at, place = found
        reader = self.graph.node[at]
        source, name = reader.input[place], f"inserted_{len(self.graph.node)}"
        if self.random.random() < 0.5:
            made = [helper.make_node(self.random.choice(INSERTED), [source], [name])]
        else:
            number = np.asarray(self._number(), np.float32)
            constant = helper.make_node(
                "Constant", [], [f"{name}_number"], value=numpy_helper.from_array(number)
            )
            operands = [source, f"{name}_number"]
            self.random.shuffle(operands)
            op_type = self.random.choice(FAMILIES[0])
            made = [constant, helper.make_node(op_type, operands, [name])]
        reader.input[place] = name
        for number_of, node in enumerate(made):
            self.graph.node.insert(at + number_of, node)
        return True

    def _float_operand(self) -> tuple[int, int] | None:
        """Return a node's place in the graph, and that of a float among its operands, if any is."""
        at = self.random.randrange(len(self.graph.node))
        inputs = self.graph.node[at].input
        places = [place for place, name in enumerate(inputs) if self._is_float(name)]
        return (at, self.random.choice(places)) if places else None

    def _is_float(self, name: str) -> bool:
        return self.types.get(name, (0,))[0] == onnx.TensorProto.FLOAT

    def omission(self) -> bool:
        """Let a reader of a node read the node's operand instead, which has the same shape."""
        made = {name: node for node in self.graph.node for name in node.output}
        places = [
            (reader, place, operand)
            for reader in self.graph.node
            for place, name in enumerate(reader.input)
            if name in made
            for operand in made[name].input
            if self._is_alike(name, operand)
        ]
        if not places:
            return False
        reader, place, operand = self.random.choice(places)
        reader.input[place] = operand
        return True

    def repetition(self) -> bool:
        """Apply a node twice: to its operand, then to its result."""
        at = self.random.randrange(len(self.graph.node))
        node = self.graph.node[at]
        places = [
            place
            for place, name in enumerate(node.input)
            if len(node.output) == 1 and self._is_alike(name, node.output[0])
        ]
        if not places:
            return False
        first, place = onnx.NodeProto(), self.random.choice(places)
        first.CopyFrom(node)
        first.name, first.output[0] = "", f"repeated_{len(self.graph.node)}"
        node.input[place] = first.output[0]
        self.graph.node.insert(at, first)
        return True

    def exchange(self) -> bool:
        """Let two operators that follow each other change places."""
        nodes = [*self.graph.node]
        shown = {value.name for value in self.graph.output}
        made = {name: at for at, node in enumerate(nodes) for name in node.output[:1]}
        read = Counter(name for node in nodes for name in node.input)
        pairs = [
            (made[name], at)
            for at, node in enumerate(nodes)
            for name in node.input
            if name in made and read[name] == 1 and name not in shown and nodes[made[name]].input
        ]
        pairs = [(a, b) for a, b in pairs if len(nodes[a].output) == len(nodes[b].output) == 1]
        if not pairs:
            return False
        upper, lower = (nodes[at] for at in self.random.choice(pairs))
        between, result = upper.output[0], lower.output[0]
        place = self.random.randrange(len(upper.input))
        lower.input[[*lower.input].index(between)] = upper.input[place]
        upper.input[place] = between
        lower.output[0], upper.output[0] = between, result
        self.graph.node.remove(upper)
        self.graph.node.insert([*self.graph.node].index(lower) + 1, upper)
        return True

    def _is_alike(self, name: str, other: str) -> bool:
        """Return whether two values are known to have the same type and shape."""
        return name in self.types and self.types[name] == self.types.get(other)

    def output(self) -> bool:
        """Show a value that was none of the outputs."""
        shown = {value.name for value in self.graph.output}
        names = [name for node in self.graph.node for name in node.output if self._is_float(name)]
        hidden = [name for name in names if name not in shown]
        if not hidden:
            return False
        name = self.random.choice(hidden)
        self.graph.output.append(helper.make_tensor_value_info(name, self.types[name][0], None))
        return True

    def default(self) -> bool:
        """Leave out a number of a node's attributes, or the last of its optional inputs."""
        node = self._node()
        numbers = [a for a in node.attribute if a.type in (a.INT, a.INTS, a.FLOAT)]
        if len(node.input) > OPTIONAL.get(node.op_type, 9) and self.random.random() < 0.5:
            del node.input[-1]
            return True
        if numbers:
            node.attribute.remove(self.random.choice(numbers))
        return bool(numbers)

    def rounding(self) -> bool:
        """Round a float value to a half-precision type on its way to one reader."""
        found = self._float_operand()
        if found is None:
            return False
        at, place = found
        reader = self.graph.node[at]
        narrow, wide = (f"{part}_{len(self.graph.node)}" for part in ("narrow", "wide"))
        to = self.random.choice((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))
        self.graph.node.insert(at, helper.make_node("Cast", [reader.input[place]], [narrow], to=to))
        back = helper.make_node("Cast", [narrow], [wide], to=onnx.TensorProto.FLOAT)
        self.graph.node.insert(at + 1, back)
        reader.input[place] = wide
        return True

    def type(self) -> bool:
        """Let a Cast be to another type."""
        casts = [
            attribute
            for node in self.graph.node
            for attribute in node.attribute
            if node.op_type == "Cast" and attribute.name == "to"
        ]
        if not casts:
            return False
        tensor = onnx.TensorProto
        types = (tensor.FLOAT, tensor.FLOAT16, tensor.INT32, tensor.INT64, tensor.BOOL)
        self.random.choice(casts).i = self.random.choice(types)
        return True

    def symbol(self) -> bool:
        """Give an axis of an input a name of its own, the name of another, or the number 1."""
        dims = [d for value in self.graph.input for d in value.type.tensor_type.shape.dim]
        if not dims:
            return False
        dim, other = self.random.choice(dims), self.random.choice(dims)
        match self.random.randrange(3):
            case 0:
                dim.dim_param = "an_axis"
            case 1:
                dim.CopyFrom(other)
            case _:
                dim.dim_value = 1
        return True

    def opset(self) -> bool:
        """Say another opset of the standard, in which every operator stands as it is written."""
        (own,) = [each for each in self.model.opset_import if each.domain in ("", "ai.onnx")]
        given = own.version
        others = [version for version in OPSETS if version != given]
        self.random.shuffle(others)
        for own.version in others:
            with contextlib.suppress(onnx.checker.ValidationError):
                onnx.checker.check_model(self.model)
                return True
        own.version = given
        return False


def _ends_inference(node: onnx.NodeProto) -> bool:
    """Return whether a Split makes more than it says: inference, and onnxruntime, then abort."""
    said = (a.i for a in node.attribute if node.op_type == "Split" and a.name == "num_outputs")
    return any(number < len(node.output) for number in said)


def _types(model: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Return the element type and shape of what shape inference knows."""
    if any(map(_ends_inference, model.graph.node)):
        return {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        graph = model.graph
    found: dict[str, tuple[object, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
        found[value.name] = (tensor.elem_type, *dims)
    for constant in graph.initializer:
        found[constant.name] = (constant.data_type, *constant.dims)
    return found
