"""A graph as text: one line a node, the same for the same graph, for tests and for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.element_types import name_of
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.names import op_of

# Content of more bytes than this is not read only to be printed.
_LARGE = 1 << 20
_SHOWN_ITEMS = 8


def dump(subject: Graph | Model) -> str:
    """Return the text of a graph, or of a model with its imports and functions.

    Weights are shown as type, shape and 8 digits of a hash: of the content, or for large external
    data of its place.
    """
    if isinstance(subject, Graph):
        return "".join(f"{line}\n" for line in _graph(subject, "graph"))
    imports = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in subject.opsets.items())
    lines = [f"model ir {subject.written_ir_version}, opset {imports}"]
    lines += _graph(subject.graph, "graph")
    for function in subject.functions:
        title = ":".join(filter(None, (function.domain, function.name, function.overload)))
        lines += _graph(function.graph, f"function {title}")
    return "".join(f"{line}\n" for line in lines)


def _graph(graph: Graph, title: str) -> Iterator[str]:
    inputs = ", ".join(_declared(value) for value in graph.inputs)
    outputs = ", ".join(_declared(value) for value in graph.outputs)
    name = f" {graph.name}" if graph.function is None or graph.parent else ""
    yield f"{title}{name} ({inputs}) -> ({outputs}) {{"
    for value in graph.initializers:
        yield f"  {value.name} = {_constant(value.content)}"
    for node in graph.nodes:
        yield f"  {_node(node)}"
        for attribute, nested in node.subgraph_of.items():
            for inner in [nested] if isinstance(nested, Graph) else nested:
                for line in _graph(inner, f"{attribute}:"):
                    yield f"    {line}"
    yield "}"


def _declared(value: Value) -> str:
    if value.dtype is None:
        return value.name
    return f"{value.name}: {name_of(value.dtype)}{_shape(value.shape)}"


def _shape(shape: tuple[int | str | None, ...] | None) -> str:
    if shape is None:
        return "[...]"
    return f"[{', '.join('?' if extent is None else str(extent) for extent in shape)}]"


def _constant(constant: Constant | None) -> str:
    assert constant is not None
    return f"{name_of(constant.dtype)}{_shape(constant.shape)} {_hash(constant)}"


def _hash(constant: Constant) -> str:
    if constant.nbytes > _LARGE and constant.external is not None:
        file, offset, length = constant.external
        digest = hashlib.sha256(f"{file.location}:{offset}:{length}".encode())
    elif constant.dtype == onnx.TensorProto.STRING:
        digest = hashlib.sha256(repr(constant.numpy().tolist()).encode())
    else:
        digest = hashlib.sha256(constant.raw())
    return digest.hexdigest()[:8]


def _node(node: Node) -> str:
    outputs = ", ".join("" if value is None else value.name for value in node.outputs)
    inputs = ", ".join("" if value is None else value.name for value in node.inputs)
    op_type = ":".join(filter(None, (op_of(node.domain, node.bare_op), node.overload)))
    shown = ", ".join(
        f"{name}={_attribute(value)}"
        for name, value in sorted(node.attributes.items())
        if name not in node.subgraph_of
    )
    name = f"  # {node.name}" if node.name else ""
    return f"{outputs} = {op_type}({inputs}){f' {{{shown}}}' if shown else ''}{name}"


def _attribute(value: Any) -> str:
    match value:
        case AttributeRef():
            return f"@{value.name}"
        case np.ndarray() if value.size <= _SHOWN_ITEMS:
            return f"{value.dtype}{_shape(value.shape)} {value.tolist()}"
        case np.ndarray():
            return _constant(Constant.from_array(value))
        case float():
            return f"{value:.9g}"
        case list():
            return f"[{', '.join(_attribute(item) for item in value)}]"
        case str() | bytes() | int():
            return repr(value)
        case _:
            return str(value).strip().replace("\n", " ")
