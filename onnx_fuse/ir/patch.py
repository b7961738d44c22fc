"""The changed model as a message: the file's own bytes, with what was changed put in its place.

A message is a list of pieces, so that it's never held as a whole: bytes of the file, new bytes, and
constants that are written (or computed) when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx

from onnx_fuse.ir.attributes import encode
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.external import attribute_tensors
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Function, Model
from onnx_fuse.ir.names import domain_of
from onnx_fuse.ir.wire import Field, fields, header, varint

# A new tensor of fewer bytes stays in the message: a file read for each scalar would be slower.
_SMALL = 1 << 10
# Cache lines, and the widest vector loads: a mapped file's tensors can then be read in place.
ALIGNMENT = 64

Piece = bytes | memoryview | Constant


def size(pieces: Sequence[Piece]) -> int:
    """Return the bytes that the pieces take."""
    return sum(each.nbytes if isinstance(each, Constant) else len(each) for each in pieces)


def content(pieces: Sequence[Piece]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the pieces; of the constants, one at a time is in memory."""
    for piece in pieces:
        if isinstance(piece, Constant):
            yield from piece.chunks()
        else:
            yield piece


class DataLayout:
    """Where tensors will lie in the new external data file, which is named `location`."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.tensors: list[tuple[int, Constant]] = []  # (offset, content), by offset
        self.end = 0
        self._offsets: dict[object, int] = {}

    def place(self, constant: Constant) -> tuple[int, int]:
        """Return (offset, length) of a tensor.

        What was one range of one file before is one range again.
        """
        external = constant.external
        key: object = constant if external is None else (external.file.path, *external[1:])
        if key not in self._offsets:
            self._offsets[key] = -(-self.end // ALIGNMENT) * ALIGNMENT
            self.tensors.append((self._offsets[key], constant))
            self.end = self._offsets[key] + constant.nbytes
        return self._offsets[key], constant.nbytes

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the data file."""
        at = 0
        for offset, constant in self.tensors:
            yield bytes(offset - at)
            yield from constant.chunks()
            at = offset + constant.nbytes

    def refer(self, tensor: onnx.TensorProto, constant: Constant) -> None:
        """Let `tensor` refer to the place of its content; other entries (a checksum) stay."""
        offset, length = self.place(constant)
        entries = {"location": self.location, "offset": str(offset), "length": str(length)}
        kept = [(entry.key, entry.value) for entry in tensor.external_data]
        del tensor.external_data[:]
        for key, value in [*entries.items(), *(each for each in kept if each[0] not in entries)]:
            tensor.external_data.add(key=key, value=value)
        tensor.data_location = onnx.TensorProto.EXTERNAL


def model_pieces(model: Model, layout: DataLayout | None) -> list[Piece]:
    """Return the whole ModelProto.

    With a layout, external and large new tensors refer to its file.
    """
    proto = onnx.ModelProto
    pieces: list[Piece] = []
    opsets = dict(model.opsets)
    functions = iter([_functions(model.functions, layout)])
    version: list[Piece] = [
        varint(proto.IR_VERSION_FIELD_NUMBER << 3) + varint(model.written_ir_version)
    ]
    has_version = not model.written_ir_version
    for field in fields(model.data):
        if field.number == proto.GRAPH_FIELD_NUMBER:
            graph = graph_pieces(model.graph, layout)
            pieces += [header(field.number, size(graph)), *graph]
        elif field.number == proto.FUNCTIONS_FIELD_NUMBER:
            pieces += next(functions, [])
        elif field.number == proto.IR_VERSION_FIELD_NUMBER:
            pieces += version
            has_version = True
        elif field.number == proto.OPSET_IMPORT_FIELD_NUMBER:
            pieces += _kept_opset(field, opsets)
        else:
            pieces.append(field.raw)
    pieces += _new_opsets(proto.OPSET_IMPORT_FIELD_NUMBER, opsets)
    return [*pieces, *next(functions, []), *(() if has_version else version)]


def _kept_opset(field: Field, opsets: dict[str, int]) -> list[Piece]:
    """Return the import if it still holds, and take it from `opsets`."""
    item = onnx.OperatorSetIdProto.FromString(bytes(field.payload))
    domain = domain_of(item.domain)
    if opsets.get(domain) != item.version:
        return []
    del opsets[domain]
    return [field.raw]


def _new_opsets(number: int, opsets: dict[str, int]) -> list[Piece]:
    pieces: list[Piece] = []
    for domain, version in opsets.items():
        data = onnx.OperatorSetIdProto(domain=domain, version=version).SerializeToString()
        pieces.append(header(number, len(data)) + data)
    return pieces


def _functions(functions: Sequence[Function], layout: DataLayout | None) -> list[Piece]:
    pieces: list[Piece] = []
    for function in functions:
        body = _function_pieces(function, layout)
        pieces += [header(onnx.ModelProto.FUNCTIONS_FIELD_NUMBER, size(body)), *body]
    return pieces


def _function_pieces(function: Function, layout: DataLayout | None) -> list[Piece]:
    graph, proto = function.graph, onnx.FunctionProto
    if not function.changed and not _is_moved(graph, layout):
        return [function.raw]
    pieces: list[Piece] = []
    opsets = dict(function.opsets)
    nodes = iter([_nodes(graph, proto.NODE_FIELD_NUMBER, layout)])
    for field in fields(function.raw):
        if field.number == proto.NODE_FIELD_NUMBER:
            pieces += next(nodes, [])
        elif field.number == proto.OPSET_IMPORT_FIELD_NUMBER:
            pieces += _kept_opset(field, opsets)
        elif not _is_dropped(graph, field, {getattr(proto, "VALUE_INFO_FIELD_NUMBER", 0): _info}):
            pieces.append(field.raw)
    pieces += next(nodes, [])
    return pieces + _new_opsets(proto.OPSET_IMPORT_FIELD_NUMBER, opsets)


def graph_pieces(graph: Graph, layout: DataLayout | None) -> list[Piece]:
    """Return the GraphProto of a main graph or a sub-graph."""
    assert graph.raw is not None
    if not graph.changed and not _is_moved(graph, layout) and not graph.model.inputs_are_dropped:
        return [graph.raw]
    proto = onnx.GraphProto
    inputs = {value.name for value in graph.inputs}
    rebuilt = {
        proto.NODE_FIELD_NUMBER: iter([_nodes(graph, proto.NODE_FIELD_NUMBER, layout)]),
        proto.INITIALIZER_FIELD_NUMBER: iter([_initializers(graph, layout)]),
        proto.SPARSE_INITIALIZER_FIELD_NUMBER: iter([_sparse_initializers(graph)]),
    }
    named = {
        proto.VALUE_INFO_FIELD_NUMBER: _info,
        proto.QUANTIZATION_ANNOTATION_FIELD_NUMBER: _annotation,
    }
    pieces: list[Piece] = []
    for field in fields(graph.raw):
        if field.number in rebuilt:
            pieces += next(rebuilt[field.number], [])
        elif field.number == proto.INPUT_FIELD_NUMBER:
            pieces += [field.raw] if _info(field) in inputs else []
        elif not _is_dropped(graph, field, named):
            pieces.append(field.raw)
    for group in rebuilt.values():
        pieces += next(group, [])
    return pieces


def _info(field: Field) -> str:
    return str(onnx.ValueInfoProto.FromString(bytes(field.payload)).name)


def _annotation(field: Field) -> str:
    return str(onnx.TensorAnnotation.FromString(bytes(field.payload)).tensor_name)


def _is_dropped(graph: Graph, field: Field, named: Mapping[int, Callable[[Field], str]]) -> bool:
    """Return whether the field, one of `named` if it can, speaks only of a value that is gone."""
    return (
        bool(graph.removed)
        and field.number in named
        and named[field.number](field) in graph.removed
    )


def _is_moved(graph: Graph, layout: DataLayout | None) -> bool:
    """Return whether a tensor in the graph, or below it, moves to another data file."""
    return layout is not None and (
        any(v.content is not None and v.content.external for v in graph.initializers)
        or any(_holds_moved(node, layout) for node in graph.nodes)
    )


def _holds_moved(node: Node, layout: DataLayout | None) -> bool:
    if layout is None or node.proto is None:
        return False
    return any(
        tensor.data_location == onnx.TensorProto.EXTERNAL
        for tensor in attribute_tensors(node.proto)
    ) or any(_is_moved(nested, layout) for nested in node.subgraphs)


def _nodes(graph: Graph, number: int, layout: DataLayout | None) -> list[Piece]:
    pieces: list[Piece] = []
    for node in graph.nodes:
        if node.raw is not None and not node.changed and not _holds_moved(node, layout):
            pieces.append(node.raw)
        else:
            data = _node(node, layout).SerializeToString(deterministic=True)
            pieces += [header(number, len(data)), data]
    return pieces


def _node(node: Node, layout: DataLayout | None) -> onnx.NodeProto:
    """Return the node's message: the file's, with inputs, outputs and nested graphs renewed."""
    proto = onnx.NodeProto()
    if node.proto is None:
        proto.op_type, proto.domain, proto.name = node.bare_op, node.domain, node.name
        proto.attribute.extend(encode(name, value) for name, value in node.attributes.items())
    else:
        proto.CopyFrom(node.proto)
    for target, values in ((proto.input, node.inputs), (proto.output, node.outputs)):
        del target[:]
        target.extend("" if value is None else value.name for value in values)
    if layout is not None:
        for tensor in attribute_tensors(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                layout.refer(tensor, node.graph.model.tensor(tensor))
    for attribute in proto.attribute:
        nested = node.subgraph_of.get(attribute.name)
        if isinstance(nested, Graph):
            attribute.g.ParseFromString(b"".join(content(graph_pieces(nested, layout))))
        elif nested is not None:
            for target, graph in zip(attribute.graphs, nested, strict=True):
                target.ParseFromString(b"".join(content(graph_pieces(graph, layout))))
    return proto


def _initializers(graph: Graph, layout: DataLayout | None) -> list[Piece]:
    pieces: list[Piece] = []
    for value in graph.initializers:
        if not value.is_sparse:
            pieces += _initializer(value, layout)
    return pieces


def _sparse_initializers(graph: Graph) -> list[Piece]:
    return [v.raw for v in graph.initializers if v.is_sparse and v.raw is not None]


def _initializer(value: Value, layout: DataLayout | None) -> list[Piece]:
    constant = value.content
    assert constant is not None
    number = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
    is_moved = layout is not None and constant.external is not None
    if value.raw is not None and not is_moved:
        return [value.raw]
    if constant.dtype == onnx.TensorProto.STRING:
        data = constant.to_tensor(value.name).SerializeToString()
        return [header(number, len(data)), data]
    tensor = onnx.TensorProto()
    if value.raw is not None and constant.tensor is not None:
        tensor.CopyFrom(constant.tensor)
    else:
        tensor.name, tensor.data_type = value.name, constant.dtype
        tensor.dims.extend(constant.shape)
    if layout is not None and (is_moved or constant.nbytes >= _SMALL):
        layout.refer(tensor, constant)
        data = tensor.SerializeToString(deterministic=True)
        return [header(number, len(data)), data]
    start = tensor.SerializeToString(deterministic=True)
    start += header(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, constant.nbytes)
    return [header(number, len(start) + constant.nbytes), start, constant]
