"""From a message's bytes to Model, its graphs read by graphsurgeon.

graphsurgeon gets a skeleton of the message: nodes and names. It connects nodes and tensors; a
nested graph is read by itself, with the tensors that it takes from around it. What graphsurgeon
would drop, change or trip over (types, attributes, initializers that are inputs or unused,
overload) is taken from the message itself, so the skeleton does not have it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.check import check_node_names, in_order
from onnx_fuse.ir.constant import Constant, sparse
from onnx_fuse.ir.graph import Graph, Node, Shape, Value, add_use
from onnx_fuse.ir.model import Function, Model
from onnx_fuse.ir.plain import read_plainly
from onnx_fuse.ir.wire import DecodeError, Field, checked_fields, fields

# A tensor's raw_data of more bytes than this is referred to where it lies instead of being copied.
_SMALL = 1 << 10
_LARGE = (onnx.ModelProto.GRAPH_FIELD_NUMBER, onnx.ModelProto.FUNCTIONS_FIELD_NUMBER)
# The first IR version whose models import opsets.
_IR_OPSETS = 3
_GRAPH_KINDS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

# A Constant node's attribute: its tensor's type, and the field of AttributeProto with its content.
_CONSTANT_FIELDS = {
    "value_float": (onnx.TensorProto.FLOAT, "f"),
    "value_floats": (onnx.TensorProto.FLOAT, "floats"),
    "value_int": (onnx.TensorProto.INT64, "i"),
    "value_ints": (onnx.TensorProto.INT64, "ints"),
    "value_string": (onnx.TensorProto.STRING, "s"),
    "value_strings": (onnx.TensorProto.STRING, "strings"),
}


@dataclass
class _Initializer:
    name: str
    raw: memoryview
    constant: Constant
    is_sparse: bool


@dataclass
class _Nested:
    """The graphs of one attribute of a node."""

    attribute: str
    graphs: list[_Message]
    is_list: bool


@dataclass
class _Message:
    """The parts of a GraphProto or FunctionProto, in the file's order."""

    raw: memoryview
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)
    initializers: list[_Initializer] = field(default_factory=list)
    nodes: list[tuple[memoryview, onnx.NodeProto, list[_Nested]]] = field(default_factory=list)

    def defined(self) -> list[str]:
        """Return the names that are there before any node, each once."""
        names = [*self.inputs, *(initializer.name for initializer in self.initializers)]
        return list(dict.fromkeys(names))

    def read(self) -> Iterator[str]:
        """Yield the names that nodes read, those of nested graphs included, some of them twice."""
        for _, proto, nested in self.nodes:
            yield from proto.input
            for graph in _flat(nested):
                yield from graph.read()


def build_model(data: memoryview, folder: Path, path: Path | None) -> Model:
    """Return the model that a ModelProto's bytes hold.

    folder: where external data is. path: the file it came from, or None.

    Raises: DecodeError if `data` is no complete ModelProto; InvalidModel if the model is not valid.
    """
    parts: dict[int, list[Field]] = {}
    for part in checked_fields(data, onnx.ModelProto):
        parts.setdefault(part.number, []).append(part)
    shell = onnx.ModelProto()
    for number, group in parts.items():
        if number not in _LARGE:
            for part in group:
                shell.MergeFromString(bytes(part.raw))
    graphs = parts.get(onnx.ModelProto.GRAPH_FIELD_NUMBER, [])
    if len(graphs) != 1 or not (shell.opset_import or shell.ir_version < _IR_OPSETS):
        raise DecodeError("no graph" if not graphs else "no opset_import")
    model = Model(data, shell, folder, path)
    _Assembly().fill(model.graph, _read_graph(model.graph, graphs[0].payload), {})
    for part in parts.get(onnx.ModelProto.FUNCTIONS_FIELD_NUMBER, ()):
        proto = onnx.FunctionProto.FromString(bytes(part.payload))
        function = Function(model, proto, part.payload)
        _build_body(function.graph, part.payload)
        model.functions.append(function)
    return model


def new_function(model: Model, proto: onnx.FunctionProto) -> Function:
    """Return the function for `model`, to which it isn't added.

    Raises: InvalidModel if the body is not valid.
    """
    raw = memoryview(proto.SerializeToString(deterministic=True))
    function = Function(model, proto, raw, is_new=True)
    _build_body(function.graph, raw)
    return function


def _build_body(graph: Graph, raw: memoryview) -> None:
    message = _Message(raw)
    proto = onnx.FunctionProto
    for item in checked_fields(raw, proto):
        if item.number == proto.NODE_FIELD_NUMBER:
            message.nodes.append(_read_node(graph, item.raw, item.payload))
        elif item.number == proto.INPUT_FIELD_NUMBER:
            message.inputs.append(str(item.payload, "utf-8"))
        elif item.number == proto.OUTPUT_FIELD_NUMBER:
            message.outputs.append(str(item.payload, "utf-8"))
        elif item.number == proto.NAME_FIELD_NUMBER:
            message.name = str(item.payload, "utf-8")
        elif item.number == getattr(proto, "VALUE_INFO_FIELD_NUMBER", 0):
            message.infos.append(onnx.ValueInfoProto.FromString(bytes(item.payload)))
    _Assembly().fill(graph, message, {})


def _read_graph(graph: Graph, raw: memoryview) -> _Message:
    message = _Message(raw)
    proto = onnx.GraphProto
    ends: list[onnx.ValueInfoProto] = []
    for item in checked_fields(raw, proto):
        if item.number == proto.NODE_FIELD_NUMBER:
            message.nodes.append(_read_node(graph, item.raw, item.payload))
        elif item.number == proto.INITIALIZER_FIELD_NUMBER:
            constant = _read_tensor(graph, item.payload)
            message.initializers.append(_Initializer(constant.name, item.raw, constant, False))
        elif item.number == proto.SPARSE_INITIALIZER_FIELD_NUMBER:
            constant = sparse(onnx.SparseTensorProto.FromString(bytes(item.payload)))
            message.initializers.append(_Initializer(constant.name, item.raw, constant, True))
        elif item.number == proto.VALUE_INFO_FIELD_NUMBER:
            message.infos.append(onnx.ValueInfoProto.FromString(bytes(item.payload)))
        elif item.number in (proto.INPUT_FIELD_NUMBER, proto.OUTPUT_FIELD_NUMBER):
            info = onnx.ValueInfoProto.FromString(bytes(item.payload))
            ends.append(info)
            is_input = item.number == proto.INPUT_FIELD_NUMBER
            (message.inputs if is_input else message.outputs).append(info.name)
        elif item.number == proto.NAME_FIELD_NUMBER:
            message.name = str(item.payload, "utf-8")
        else:
            proto.FromString(bytes(item.raw))  # kept as it is, but it must be readable
    message.infos += ends
    _check_names(info.name for info in message.infos)
    _check_names(initializer.name for initializer in message.initializers)
    return message


def _check_names(names: Iterable[object]) -> None:
    """Raise unless all are text: protobuf gives bytes for what is not UTF-8."""
    for name in names:
        if isinstance(name, bytes):
            raise InvalidModel(f"a name that is not UTF-8: {name[:40]!r}")


def _read_node(
    graph: Graph, raw: memoryview, payload: memoryview
) -> tuple[memoryview, onnx.NodeProto, list[_Nested]]:
    proto = onnx.NodeProto.FromString(bytes(payload))
    nested = []
    _check_names((proto.op_type, proto.domain, proto.name, getattr(proto, "overload", "")))
    _check_names((*proto.input, *proto.output))
    _check_names(attribute.name for attribute in proto.attribute)
    for attribute in proto.attribute:
        if attribute.type in _GRAPH_KINDS and not attribute.ref_attr_name:
            is_list = attribute.type == onnx.AttributeProto.GRAPHS
            inner = attribute.graphs if is_list else [attribute.g]
            graphs = [_read_graph(graph, memoryview(g.SerializeToString())) for g in inner]
            nested.append(_Nested(attribute.name, graphs, is_list))
    return raw, proto, nested


def _read_tensor(graph: Graph, payload: memoryview) -> Constant:
    if len(payload) <= _SMALL:
        return graph.model.tensor(onnx.TensorProto.FromString(bytes(payload)))
    content = None
    rest = bytearray()
    for item in fields(payload):
        if item.number == onnx.TensorProto.RAW_DATA_FIELD_NUMBER:
            content = item.payload
        else:
            rest += item.raw
    return graph.model.tensor(onnx.TensorProto.FromString(bytes(rest)), content)


def _skeleton(message: _Message) -> onnx.GraphProto:
    """Return the graph's structure for graphsurgeon: initializers are inputs, nothing is nested."""
    graph = onnx.GraphProto(name="graph")
    for name in message.defined():
        graph.input.add(name=name)
    for name in message.outputs:
        graph.output.add(name=name)
    for _, node, _ in message.nodes:
        graph.node.add(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
    return graph


def _flat(nested: Iterable[_Nested]) -> list[_Message]:
    return [graph for each in nested for graph in each.graphs]


class _Assembly:
    """Turns graphsurgeon's tensors and nodes into ours: first what defines, then what reads."""

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}  # by id of graphsurgeon's tensor
        self._read: list[Any] = []  # graphsurgeon's graphs: while they live, no id is used again

    def fill(self, graph: Graph, message: _Message, around: dict[str, Any]) -> None:
        """Fill `graph` from the message; `around` are graphsurgeon's tensors of outer graphs.

        graphsurgeon copies what is around a graph, so it gets only those that the graph reads.
        """
        captured = {name: around[name] for name in message.read() if name in around}
        read = OnnxImporter.import_graph(_skeleton(message), captured)
        self._read.append(read)
        graph.name, graph.raw = message.name, message.raw
        graph.model.value_names.reserve(info.name for info in message.infos)
        local = {tensor.name: self._define(tensor, graph) for tensor in read.inputs}
        nodes = [
            self._add_node(graph, raw, proto, each.outputs)
            for (raw, proto, _), each in zip(message.nodes, read.nodes, strict=True)
        ]
        self._add_initializers(graph, message, local, around)
        self._add_ends(graph, message, local, read.outputs)
        check_node_names(nodes)
        for node in nodes:
            local.update((value.name, value) for value in node.made)
        for info in message.infos:
            if (known := local.get(info.name)) is not None:
                _declare(known, info)
        ends = (*read.inputs, *read.outputs)
        defined = captured | {tensor.name: tensor for tensor in ends}
        for node, (_, _, nested), each in zip(nodes, message.nodes, read.nodes, strict=True):
            self._connect(node, each)
            self._nest(node, nested, defined)
            defined.update((tensor.name, tensor) for tensor in each.outputs)
        for node in in_order(nodes):
            graph.nodes.append(node)

    def _define(self, tensor: Any, graph: Graph) -> Value:
        if id(tensor) in self._values:
            raise InvalidModel(f"'{tensor.name}' is defined twice")
        value = Value(tensor.name, graph)
        self._values[id(tensor)] = value
        graph.model.value_names.reserve([value.name])
        return value

    def _add_node(
        self, graph: Graph, raw: memoryview, proto: onnx.NodeProto, outputs: list[Any]
    ) -> Node:
        overload = getattr(proto, "overload", "")
        node = Node(proto.op_type, proto.domain, proto.name, overload, graph)
        node.raw, node.proto = raw, proto
        graph.model.node_names.reserve([proto.name])
        for tensor in outputs:
            value = None
            if tensor.name:
                value = self._define(tensor, graph)
                value.seat(node, len(node.outputs))
            node.outputs.append(value)
        if node.op == "Constant" and node.outputs and node.outputs[0]:
            node.outputs[0].constant = _constant_of(node)
        return node

    def _add_initializers(
        self, graph: Graph, message: _Message, local: dict[str, Value], around: Container[str]
    ) -> None:
        inputs = set(message.inputs)
        for initializer in message.initializers:
            value = local[initializer.name]
            if value.name in around:  # onnxruntime reads either, by its level of optimisation
                raise InvalidModel(
                    f"initializer '{value.name}' hides a value of its name outside: rename one"
                )
            if value.is_initializer:
                raise InvalidModel(f"initializer '{initializer.name}' is defined twice")
            value.is_initializer = True
            value.is_sparse = initializer.is_sparse
            value.raw = initializer.raw
            value.content = initializer.constant
            value.dtype, value.shape = initializer.constant.dtype, initializer.constant.shape
            if value.name not in inputs or graph.model.initializers_are_inputs:
                value.constant = initializer.constant
            graph.add_read_initializer(value)

    def _add_ends(
        self, graph: Graph, message: _Message, local: dict[str, Value], outputs: list[Any]
    ) -> None:
        for name in message.inputs:
            value = local[name]
            if value.is_input:
                raise InvalidModel(f"graph input '{name}' is listed twice")
            if value.constant is None:
                value.is_input = True
                graph.inputs.append(value)
        for tensor in outputs:
            output = self._values.get(id(tensor))
            if output is None:
                raise InvalidModel(f"graph output '{tensor.name}' is made by no node")
            output.is_output = True
            graph.outputs.append(output)

    def _connect(self, node: Node, read: Any) -> None:
        inputs: list[Value | None] = []
        for tensor in read.inputs:
            value = None
            if tensor.name:
                value = self._values.get(id(tensor))
                if value is None:
                    raise InvalidModel(
                        f"{node} reads '{tensor.name}', which no node, input or initializer defines"
                    )
            inputs.append(value)
        for index, value in enumerate(read_plainly(node, inputs)):
            if value is not None:
                add_use(value, node, index, in_order=True)
            node.inputs.append(value)

    def _nest(self, node: Node, nested: list[_Nested], around: dict[str, Any]) -> None:
        for each in nested:
            graphs = [Graph(node.graph.model, node) for _ in each.graphs]
            node.subgraph_of[each.attribute] = graphs if each.is_list else graphs[0]
            for graph, message in zip(graphs, each.graphs, strict=True):
                self.fill(graph, message, around)


def _constant_of(node: Node) -> Constant | None:
    """Return what a Constant node holds; None if a function's caller gives it."""
    assert node.proto is not None
    for attribute in node.proto.attribute:
        if attribute.ref_attr_name:
            return None
        if attribute.name == "value":
            return node.graph.model.tensor(attribute.t)
        if attribute.name == "sparse_value":
            return sparse(attribute.sparse_tensor)
        if attribute.name in _CONSTANT_FIELDS:
            dtype, field_name = _CONSTANT_FIELDS[attribute.name]
            content = getattr(attribute, field_name)
            is_list = attribute.name.endswith("s")
            data, dims = (list(content), [len(content)]) if is_list else ([content], [])
            name = node.proto.output[0]
            return Constant.from_tensor(onnx.helper.make_tensor(name, dtype, dims, data))
    return None


def _declare(value: Value, info: onnx.ValueInfoProto) -> None:
    """Note what the file declares about a value, as far as earlier declarations left it open."""
    kind = info.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type") or value.is_initializer:
        return
    tensor = getattr(info.type, kind)
    if value.dtype is None and tensor.elem_type:
        value.dtype = tensor.elem_type
    if value.shape is None and tensor.HasField("shape"):
        value.shape = _shape(tensor.shape)


def _shape(proto: onnx.TensorShapeProto) -> Shape:
    dims: list[int | str | None] = []
    for dim in proto.dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)
