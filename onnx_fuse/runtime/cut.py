"""Cuts operators that onnxruntime doesn't know out of a model, so that the rest can be compared.

What such an operator reads becomes an output of the model, what it makes becomes an input: both
sides of it are then run and compared, on the same made-up numbers.
"""

from __future__ import annotations

import contextlib

import onnx

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.op.schema import DOMAIN

_KNOWN_DOMAINS = ("com.microsoft", "ai.onnx.ml", "ai.onnx.preview.training", DOMAIN)


def unknown_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the main graph's nodes of operators that ONNX, onnxruntime and the model don't define.

    A node is called by its first output.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    return tuple(
        next(name for name in node.output if name)
        for node in model.graph.node
        if not _is_known(node) and (node.domain, node.op_type) not in functions
    )


def _is_known(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx"):
        return bool(onnx.defs.has(node.op_type, ""))
    return node.domain in _KNOWN_DOMAINS


def cut(
    model: onnx.ModelProto, unknown: tuple[str, ...], declared: onnx.ModelProto
) -> onnx.ModelProto:
    """Return a copy without these nodes; new inputs have the types that `declared` states.

    Raises: UnsupportedModel if the model has external data, or a type or shape isn't stated.
    """
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UnsupportedModel("a model with external data and unknown operators cannot be run")
    types = _declared_types(declared)
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    graph = kept.graph
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    removed = [node for node in graph.node if set(unknown) & set(node.output)]
    made = {name for node in removed for name in node.output if name}
    for node in removed:
        graph.node.remove(node)
        for name in node.input:
            if name and name not in constants | outputs | made:
                graph.output.append(onnx.ValueInfoProto(name=name))
                outputs.add(name)
        for name in node.output:
            if name and name not in types:
                # Most operators that nobody knows are elementwise: a try, no harm if it is wrong.
                types[name] = next((types[read] for read in node.input if read in types), None)
    shown = [value for value in graph.output if value.name not in made]
    inputs = {value.name for value in graph.input}
    del graph.output[:]
    graph.output.extend(value for value in shown if value.name not in inputs)
    for name in sorted(made):
        kind = types.get(name)
        if kind is None:
            raise UnsupportedModel(f"nothing states the type and shape of '{name}'")
        graph.input.append(onnx.ValueInfoProto(name=name, type=kind))
    return kept


def _declared_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto | None]:
    """Return types with a shape, as written in the model or inferred from what is written."""
    with contextlib.suppress(Exception):  # else what is written has to do
        model = onnx.shape_inference.infer_shapes(model)
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {v.name: v.type for v in values if v.type.tensor_type.HasField("shape")}
