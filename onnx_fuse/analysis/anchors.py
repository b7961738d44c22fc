"""Where attention can stand: every softmax, as one operator or written out."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fuse.analysis.axes import ONE, Axis, Space, atoms
from onnx_fuse.analysis.nodes import keeps_axes, made_by, reduced_axes
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Node, Value


@dataclass(frozen=True)
class Softmax:
    """A softmax: its input, its result and the axis that it normalises, in atoms of its own."""

    node: Node
    space: Space
    scores: Ref
    weights: Ref
    column: Axis


def softmax_of(node: Node, shapes: Shapes) -> Softmax | None:
    """Return the softmax whose result a node makes; None if there is none, or of unknown rank."""
    if node.domain or node.op_type not in _RULES or not node.outputs:
        return None
    found = _RULES[node.op_type](node, shapes)
    result = node.outputs[0]
    if found is None or result is None:
        return None
    source, axes = found
    space = Space()
    ref = Views(space, shapes).ref(source, "x")
    if ref is None:
        return None
    column = tuple(atom for axis in axes for atom in atoms(ref.index[axis]))
    return Softmax(node, space, ref, Ref(result, ref.index), column)


def _operator(node: Node, shapes: Shapes) -> tuple[Value, tuple[int, ...]] | None:
    """Return the input and the normalised axes; before opset 13 those from `axis` on, as one."""
    source = node.inputs[0]
    shape = None if source is None else shapes.shape(source)
    if source is None or shape is None:
        return None
    old = node.graph.opsets.get("", 1) < 13
    axis = int(node.attr("axis", 1 if old else -1)) % len(shape)
    return source, tuple(range(axis, len(shape))) if old else (axis,)


def _quotient(node: Node, shapes: Shapes) -> tuple[Value, tuple[int, ...]] | None:
    """Match exp(x) / sum(exp(x))."""
    numerator, denominator = node.inputs
    exp, total = made_by(numerator, "Exp"), made_by(denominator, "ReduceSum")
    if exp is None or total is None or total.inputs[0] is not numerator or exp.inputs[0] is None:
        return None
    axes = _summed(total, shapes)
    return None if axes is None else (exp.inputs[0], axes)


def _from_logarithm(node: Node, shapes: Shapes) -> tuple[Value, tuple[int, ...]] | None:
    """Match exp(x - logsumexp(x)).

    logsumexp(x) = log(sum(exp(x - m))) + m for any m that is one number a row.
    """
    difference = made_by(node.inputs[0], "Sub")
    if difference is None or difference.inputs[0] is None:
        return None
    source, level = difference.inputs[0], difference.inputs[1]
    shift: Value | None = None
    logarithm = made_by(level, "Log")
    if logarithm is None:
        add = made_by(level, "Add")
        for position in (0, 1) if add is not None else ():
            assert add is not None
            if made_by(add.inputs[position], "Log") is not None:
                logarithm, shift = made_by(add.inputs[position], "Log"), add.inputs[1 - position]
    total = None if logarithm is None else made_by(logarithm.inputs[0], "ReduceSum")
    exp = None if total is None else made_by(total.inputs[0], "Exp")
    if total is None or exp is None:
        return None
    axes = _summed(total, shapes)
    if axes is None:
        return None
    if shift is None:
        return (source, axes) if exp.inputs[0] is source else None
    shifted = made_by(exp.inputs[0], "Sub")
    shape = shapes.shape(shift)
    if shifted is None or shape is None or len(shape) != len(shapes.shape(source) or ()):
        return None
    same = shifted.inputs[0] is source and shifted.inputs[1] is shift
    return (source, axes) if same and all(shape[axis] == ONE for axis in axes) else None


def _summed(total: Node, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the axes of a ReduceSum that keeps them."""
    source = total.inputs[0]
    shape = None if source is None else shapes.shape(source)
    if shape is None or not keeps_axes(total):
        return None
    return reduced_axes(total, shapes, len(shape))


_RULES = {"Softmax": _operator, "Div": _quotient, "Exp": _from_logarithm}
