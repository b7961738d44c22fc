"""What a graph asks of its inputs: sizes, and the range of each integer.

Reads the ONNX message alone, without the project's own IR: what checks a rewrite shares no code
with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.errors import UnsupportedModel

Dim = int | str

_REALS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


class Use(Enum):
    """How the graph uses an input's numbers."""

    REAL = "real"
    """Any real number."""
    ADDED_MASK = "added mask"
    """A float mask that is added to scores: 0 or very negative."""
    FLAG = "flag"
    """0 or 1: a mask, a switch."""
    INDEX = "index"
    """An index into a table of `Input.extent` rows."""
    COUNT = "count"
    """A trip count or an extent: small and positive."""
    LENGTH = "length"
    """How many positions of each row of a batch are there."""


@dataclass(frozen=True)
class Input:
    """One input that must be fed. A dim without size or name gets a name of its own."""

    name: str
    dtype: int
    dims: tuple[Dim, ...]
    use: Use
    extent: int | None = None
    offset: int = 0

    @property
    def is_position(self) -> bool:
        """Whether ascending numbers are the natural content."""
        return "pos" in self.name.lower() and self.use in (Use.INDEX, Use.COUNT, Use.FLAG)


# Operators whose output holds the same numbers as the input of that slot (None: every slot).
_CARRIES: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Clip": (0,),
    "Concat": None,
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Identity": (0,),
    "Max": None,
    "Min": None,
    "Pad": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
    "Add": None,
    "Sub": None,
}

# (operator, slot of the index) -> (slot of the table, attribute of its axis)
_LOOKUPS: dict[tuple[str, int], tuple[int, str | None]] = {
    ("Gather", 1): (0, "axis"),
    ("GatherElements", 1): (0, "axis"),
    ("GatherND", 1): (0, None),
    ("ScatterElements", 1): (0, "axis"),
    ("ScatterND", 1): (0, None),
    ("Scatter", 1): (0, "axis"),
    ("TensorScatter", 2): (0, "axis"),
    ("RotaryEmbedding", 3): (1, None),  # ai.onnx 23
    ("GatherBlockQuantized", 1): (0, "gather_axis"),
    ("EmbedLayerNormalization", 0): (2, None),
    ("EmbedLayerNormalization", 1): (4, None),
    ("EmbedLayerNormalization", 8): (3, None),
}

_COUNTS = {
    ("Loop", 0),
    ("ConstantOfShape", 0),
    ("Expand", 1),
    ("Range", 1),
    ("Reshape", 1),
    ("Slice", 2),
    ("Tile", 1),
}

# What tells the positions within a length from those behind it.
_ORDERS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")

# A float mask that meets one of these isn't added to scores as it is.
_SCORES_TAKE = {("Add", 0), ("Add", 1), ("Attention", 3), ("MultiHeadAttention", 5)}


@dataclass
class _Scope:
    """A graph or function body: who reads which name, and the shapes that are written down."""

    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    children: list[_Scope] = field(default_factory=list)
    parent: _Scope | None = None
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def defines(self, name: str) -> bool:
        return name in self.producers or name in self.inputs or name in self.constants

    def shape(self, name: str, depth: int = 0) -> tuple[int | None, ...] | None:
        """Return dims of a value as far as they are written down, through steps that keep them."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        if name in self.shapes:
            return self.shapes[name]
        node = self.producers.get(name)
        if node is None:
            return self.parent.shape(name) if self.parent else None
        if node.op_type in ("Identity", "Cast", "DequantizeLinear", "QuantizeLinear") and depth < 8:
            return self.shape(node.input[0], depth + 1)
        return None

    def integers(self, name: str) -> npt.NDArray[np.integer[Any]] | None:
        """Return the numbers of a constant of integers."""
        tensor = self.constants.get(name)
        if tensor is None:
            outer = None if name in self.producers else self.parent
            return None if outer is None else outer.integers(name)
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if external or tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            return None
        array = onnx.numpy_helper.to_array(tensor)
        return array if array.size else None


def read_signature(model: onnx.ModelProto) -> tuple[Input, ...]:
    """Return the inputs that a caller must feed, in order. Weights may be external and unread.

    Raises: UnsupportedModel if an input is no tensor (a sequence, an optional, a map).
    """
    root = _scope(model.graph)
    functions = {(f.domain, f.name): _function_scope(f) for f in model.functions}
    defaults = {t.name for t in model.graph.initializer}
    defaults |= {t.values.name for t in model.graph.sparse_initializer}
    tracer = _Tracer(root, functions)
    found: list[Input] = []
    for value in model.graph.input:
        if value.name in defaults:
            continue
        if value.type.WhichOneof("value") != "tensor_type":
            kind = (value.type.WhichOneof("value") or "no type").replace("_", " ")
            raise UnsupportedModel(
                f"input '{value.name}' is no tensor ({kind}); only tensors can be made up"
            )
        dtype = value.type.tensor_type.elem_type
        dims = _dims(value)
        use, extent, offset = tracer.use(value.name, dtype, rank=len(dims))
        found.append(Input(value.name, dtype, dims, use, extent, offset))
    return tuple(found)


def _dims(value: onnx.ValueInfoProto) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            named = dim.dim_param not in _NO_NAMES
            dims.append(dim.dim_param if named else f"{value.name}.{axis}")
    return tuple(dims)


# What exporters write for a dim of which they know nothing.
_NO_NAMES = ("", "?", "-1", "None")


def symbols(dim: Dim) -> tuple[str, ...]:
    """Return the names in a dim: its own, or those of the expression that it is ("past + seq")."""
    if isinstance(dim, int):
        return ()
    tree = _expression(dim)
    if tree is None:
        return (dim,)
    return tuple(dict.fromkeys(n.id for n in ast.walk(tree) if isinstance(n, ast.Name)))


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Return the extent of a dim. Raises KeyError for a name without size."""
    if isinstance(dim, int):
        return dim
    tree = _expression(dim)
    return sizes[dim] if tree is None else _value(tree, sizes)


_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div)


def _expression(text: str) -> ast.expr | None:
    """Return the arithmetic that a dim's name spells, None if it is only a name."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(op=operator) if isinstance(operator, _ARITHMETIC):
                continue
            case ast.Name() | ast.operator() | ast.expr_context():
                continue
            case ast.Constant(value=int()):
                continue
            case _:
                return None
    return tree if isinstance(tree, ast.BinOp) else None


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left, sizes), _value(right, sizes)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
            return a // b if b else 0
    raise KeyError(ast.dump(tree))


def _scope(graph: onnx.GraphProto, parent: _Scope | None = None) -> _Scope:
    scope = _Scope(parent=parent, inputs=[v.name for v in graph.input])
    scope.outputs = [v.name for v in graph.output]
    for value in (*graph.input, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sizes = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
            scope.shapes[value.name] = sizes
    scope.constants.update((t.name, t) for t in graph.initializer)
    _add_nodes(scope, graph.node)
    return scope


def _function_scope(function: onnx.FunctionProto) -> _Scope:
    scope = _Scope(inputs=list(function.input), outputs=list(function.output))
    _add_nodes(scope, function.node)
    return scope


def _add_nodes(scope: _Scope, nodes: Iterator[onnx.NodeProto]) -> None:
    for node in nodes:
        for slot, name in enumerate(node.input):
            if name:
                scope.readers.setdefault(name, []).append((node, slot))
        scope.producers.update((name, node) for name in node.output if name)
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                scope.constants[node.output[0]] = attribute.t
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            scope.children.extend(_scope(graph, scope) for graph in graphs)


class _Tracer:
    """Follows an input forward to what its numbers are used for."""

    def __init__(self, root: _Scope, functions: Mapping[tuple[str, str], _Scope]) -> None:
        self._root = root
        self._functions = functions
        self._calls: dict[int, list[tuple[_Scope, onnx.NodeProto]]] = {}
        pending = [root, *functions.values()]
        while pending:
            scope = pending.pop()
            pending.extend(scope.children)
            for node in {id(n): n for n in scope.producers.values()}.values():
                body = functions.get((node.domain, node.op_type))
                if body is not None:
                    self._calls.setdefault(id(body), []).append((scope, node))

    def use(self, name: str, dtype: int, rank: int) -> tuple[Use, int | None, int]:
        """Return the use of an input, its smallest table's extent, the offset added on the way."""
        if dtype in _REALS:
            return self._real_use(name), None, 0
        if dtype == onnx.TensorProto.BOOL or "mask" in name.lower():
            return Use.FLAG, None, 0
        extent: int | None = None
        at_offset, counted, ordered = 0, False, False
        for scope, node, slot, offset in self._readers(name):
            counted = counted or (node.op_type, slot) in _COUNTS
            ordered = ordered or node.op_type in _ORDERS
            size = _table_extent(scope, node, slot)
            if size is not None and (extent is None or size - offset < extent - at_offset):
                extent, at_offset = size, offset
        if extent is not None:
            return Use.INDEX, extent, at_offset
        if counted:
            return Use.COUNT, None, 0
        return (Use.LENGTH if ordered and rank == 1 else Use.FLAG), None, 0

    def _real_use(self, name: str) -> Use:
        if "mask" not in name.lower():
            return Use.REAL
        views = _CARRIES.keys() - {"Add", "Sub", "Where", "Max", "Min", "Clip"}
        for _, node, slot, _ in self._readers(name, views):
            if (node.op_type, slot) in _SCORES_TAKE:
                return Use.ADDED_MASK
        return Use.FLAG

    def _readers(
        self, name: str, through: frozenset[str] | set[str] | None = None
    ) -> Iterator[tuple[_Scope, onnx.NodeProto, int, int]]:
        """Yield each (scope, node, slot, offset) that the input's numbers reach, a value once."""
        pending = [(self._root, name, 0)]
        seen: set[tuple[int, str]] = set()
        while pending:
            scope, value, offset = pending.pop()
            if (id(scope), value) in seen:
                continue
            seen.add((id(scope), value))
            for child in scope.children:
                if not child.defines(value):
                    pending.append((child, value, offset))
            if value in scope.outputs:
                for caller, call in self._calls.get(id(scope), []):
                    position = scope.outputs.index(value)
                    if position < len(call.output):
                        pending.append((caller, call.output[position], offset))
            for node, slot in scope.readers.get(value, []):
                yield scope, node, slot, offset
                body = self._functions.get((node.domain, node.op_type))
                if body is not None:
                    if slot < len(body.inputs):
                        pending.append((body, body.inputs[slot], offset))
                elif through is None or node.op_type in through:
                    step = _carry(scope, node, slot)
                    if step is not None:
                        pending.extend((scope, out, offset + step) for out in node.output if out)


def _carry(scope: _Scope, node: onnx.NodeProto, slot: int) -> int | None:
    """Return the most that a node adds to numbers that it carries on.

    None if it makes others of them.
    """
    if node.op_type not in _CARRIES:
        return None
    slots = _CARRIES[node.op_type]
    if slots is not None and slot not in slots:
        return None
    if node.op_type in ("Add", "Sub"):
        numbers = scope.integers(node.input[1 - slot])
        if numbers is None:
            return 0
        if node.op_type == "Sub":
            return -int(numbers.min()) if slot == 0 else None
        return int(numbers.max())
    return 0


def _table_extent(scope: _Scope, node: onnx.NodeProto, slot: int) -> int | None:
    """Return the rows of the table that the node looks up with this slot as the index."""
    lookup = _LOOKUPS.get((node.op_type, slot))
    if node.op_type == "RotaryEmbedding" and node.domain == "com.microsoft":
        lookup = (2, None) if slot == 1 else None
    if lookup is None or lookup[0] >= len(node.input):
        return None
    shape = scope.shape(node.input[lookup[0]])
    if not shape:
        return None
    axis = next((a.i for a in node.attribute if a.name == lookup[1]), 0)
    if node.op_type in ("GatherND", "ScatterND"):
        known = [size for size in shape if size]
        return min(known) if known else None
    return shape[axis] if -len(shape) <= axis < len(shape) else None
