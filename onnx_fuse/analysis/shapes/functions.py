"""Model-local functions: who calls them, and with which attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.graph import Node
from onnx_fuse.ir.model import Function, Model


class Functions:
    """The functions of one model and their calls."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._functions = {(each.op, each.overload): each for each in model.functions}
        self._calls: dict[Function, list[Node]] | None = None

    def called_by(self, node: Node) -> Function | None:
        """Return the function that a node calls, if it is no operator."""
        return self._functions.get((node.op, node.overload))

    def calls_of(self, function: Function) -> list[Node]:
        """Return the nodes that call a function, in graph order."""
        if self._calls is None:
            self._calls = {each: [] for each in self._functions.values()}
            for graph in self._model.graphs() if self._functions else ():
                for node in graph.nodes:
                    called = self.called_by(node)
                    if called is not None:
                        self._calls[called].append(node)
        return self._calls.get(function, [])

    def agreed(self, function: Function) -> Mapping[str, Any]:
        """Return the attributes of one value in all calls; the defaults where nobody calls."""
        default = defaults(function)
        calls = [{**default, **call.attributes} for call in self.calls_of(function)]
        if not calls:
            return default
        return {
            name: value
            for name, value in calls[0].items()
            if not isinstance(value, AttributeRef)
            and all(repr(call.get(name)) == repr(value) for call in calls)
        }


def defaults(function: Function) -> dict[str, Any]:
    """Return the values of attributes that a call need not give."""
    proto = onnx.FunctionProto.FromString(bytes(function.raw))
    return {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in proto.attribute_proto
    }


def is_resolved(node: Node, bound: Mapping[str, Any]) -> bool:
    """Return whether all attributes have values; a reference to an unknown one has none.

    A Constant's type tells what there is to know without it.
    """
    return node.op == "Constant" or all(
        value.name in bound for value in node.attributes.values() if isinstance(value, AttributeRef)
    )
