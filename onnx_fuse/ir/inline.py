"""Model-local functions written out: the bodies stand where they were called."""

from __future__ import annotations

import onnx
from onnx import inliner

from onnx_fuse.ir.bodies import bodies
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.ir.model import Function, Model
from onnx_fuse.ir.rewritten import rewritten
from onnx_fuse.op import schema

# Domains whose operators have kernels: there a function only stands in for a missing one.
_RUNTIMES_OWN = ("ai.onnx", "com.microsoft", schema.DOMAIN)
# Nodes of the written-out graph: one of functions that call each other twice doubles at each step.
_LARGEST = 200_000


def written_out(model: Model) -> Model | None:
    """Return a model as loaded with its functions' calls written out, or None if none can be.

    Functions stay whose domain runtimes may have kernels of. None also where a function's opset is
    not the model's, the result would be huge, or an overload tells functions apart.
    """
    opaque = [each for each in model.functions if each.domain.startswith(_RUNTIMES_OWN)]
    opaque += [each for each in model.functions if not each.domain]
    if len(opaque) == len(model.functions) or any(each.overload for each in model.functions):
        return None
    kept = [(each.domain, each.name) for each in opaque]

    def rewrite(proto: onnx.ModelProto) -> onnx.ModelProto | None:
        if _size(model) > _LARGEST:
            return None
        _give_defaults(proto)
        try:
            return inliner.inline_selected_functions(proto, kept, exclude=True)
        except RuntimeError:  # calls that don't fit their functions, which runtimes refuse, too
            return None

    return rewritten(model, rewrite)


def _give_defaults(proto: onnx.ModelProto) -> None:
    """State on each call the attributes that only its function states: the inliner reads no other.

    That of onnx 1.23 takes the operators' own defaults instead.
    """
    defaults = {(each.domain, each.name): each.attribute_proto for each in proto.functions}
    if not any(defaults.values()):
        return
    for node in [node for body in bodies(proto) for node in body.node]:
        given = {attribute.name for attribute in node.attribute}
        missing = defaults.get((node.domain, node.op_type), ())
        node.attribute.extend(each for each in missing if each.name not in given)


def _size(model: Model) -> int:
    """Return how many nodes the main graph has with all calls written out; many if they recur."""
    functions = {(each.op, each.overload): each for each in model.functions}
    sizes: dict[Function, int] = {}

    def size(graph: Graph, around: tuple[Function, ...]) -> int:
        return sum(1 + called(node, around) for each in graph.walk() for node in each.nodes)

    def called(node: Node, around: tuple[Function, ...]) -> int:
        function = functions.get((node.op, node.overload))
        if function is None:
            return 0
        if function in around:
            return _LARGEST
        if function not in sizes:
            sizes[function] = size(function.graph, (*around, function))
        return sizes[function]

    return size(model.graph, ())
