"""Where attention can stand: every softmax, as one operator or written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_fuse.analysis.axes import Axis, Space, atoms
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Anchor:
    """A softmax: its input, its result and the axis that it normalises, in atoms of its own."""

    node: Node
    space: Space
    scores: Ref
    weights: Ref
    column: Axis


def anchors_of(graph: Graph, shapes: Shapes) -> Iterator[Anchor]:
    """Yield the softmaxes of one graph in node order; one whose rank is unknown can't be followed and is left out."""
    for node in list(graph.nodes):
        if node.domain not in ("", "ai.onnx"):
            continue
        match node.op_type:
            case "Softmax":
                source, result = node.inputs[0], node.outputs[0]
                axes = _softmax_axes(node, shapes)
            case "Div":
                found = _written_out(node, shapes)
                if found is None:
                    continue
                source, axes = found
                result = node.outputs[0]
            case _:
                continue
        space = Space()
        ref = None if source is None else Views(space, shapes).ref(source, "x")
        if ref is None or axes is None or result is None:
            continue
        column = tuple(atom for axis in axes for atom in atoms(ref.index[axis]))
        yield Anchor(node, space, ref, Ref(result, ref.index), column)


def _softmax_axes(node: Node, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the normalised axes; before opset 13 those from `axis` on, as one."""
    source = node.inputs[0]
    shape = None if source is None else shapes.shape(source)
    if shape is None:
        return None
    old = node.graph.opsets.get("", 1) < 13
    axis = int(node.attr("axis", 1 if old else -1)) % len(shape)
    return tuple(range(axis, len(shape))) if old else (axis,)


def _written_out(node: Node, shapes: Shapes) -> tuple[Value, tuple[int, ...]] | None:
    """Match exp(x) / sum(exp(x)) and return x and the summed axes."""
    numerator, denominator = node.inputs
    exp = None if numerator is None else numerator.producer
    total = None if denominator is None else denominator.producer
    if exp is None or total is None or exp.op_type != "Exp" or total.op_type != "ReduceSum":
        return None
    if total.inputs[0] is not numerator or not total.attr("keepdims", 1) or exp.inputs[0] is None:
        return None
    axes = total.attr("axes")
    if axes is None and len(total.inputs) > 1 and total.inputs[1] is not None:
        constant = shapes.constant(total.inputs[1])
        axes = None if constant is None else constant.ravel().tolist()
    shape = shapes.shape(exp.inputs[0])
    if not axes or shape is None:
        return None
    return exp.inputs[0], tuple(sorted(int(axis) % len(shape) for axis in axes))
