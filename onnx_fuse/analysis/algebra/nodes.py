"""Questions about single nodes and values that more than one rule asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.ir.graph import Node, Use, Value

# Element types between which a Cast is looked through.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
CASTS = ("Cast", "CastLike")
SIZES = ("Shape", "Size")
# Views that exporters write down for a value of which they only need the shape.
_ASKED_VIEWS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def is_float_cast(node: Node, shapes: Facts) -> bool:
    """Return whether a Cast only changes the precision of floating-point numbers."""
    if node.op not in CASTS or node.inputs[0] is None or node.outputs[0] is None:
        return False
    types = (shapes.dtype(node.inputs[0]), shapes.dtype(node.outputs[0]))
    return all(dtype in (*FLOATS, TensorProto.DOUBLE) for dtype in types)


def keeps_type(node: Node, shapes: Facts) -> bool:
    """Return whether a Cast is known to be to the type that its input has."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or result is None or shapes.dtype(source) is None:
        return False
    return shapes.dtype(source) == shapes.dtype(result)


def is_random(node: Node, shapes: Facts) -> bool:
    """Return whether a Dropout drops: its training mode isn't known to be off, nor its ratio 0."""
    mode = node.input(2) if node.op == "Dropout" else None
    if mode is None:
        return False
    known, ratio = shapes.constant(mode), node.input(1)
    drops_nothing = ratio is not None and shapes.scalar(ratio) == 0.0
    return (known is None or bool(known)) and not drops_nothing


def is_same(node: Node, shapes: Facts) -> bool:
    """Return whether a node gives its first input as it is, but perhaps in another precision."""
    if node.op in ("Dropout", "Identity"):
        return not is_random(node, shapes)
    return is_float_cast(node, shapes)


def made_by(value: Value | None, *op_types: str) -> Node | None:
    """Return the node that makes a value if it is one of these standard operators."""
    node = None if value is None else value.producer
    return node if node is not None and node.op in op_types else None


def inputs_of(value: Value) -> Sequence[Value | None]:
    """Return what a value is computed from."""
    return () if value.producer is None else value.producer.inputs


def joined_axis(concat: Node, rank: int) -> int:
    """Return along which axis a Concat joins, from the front; the oldest opset has a default."""
    return int(concat.attr("axis", 1)) % rank


def reduced_axes(node: Node, shapes: Facts, rank: int) -> tuple[int, ...] | None:
    """Return the axes that a Reduce operator names, from the front, in order; None if unknown.

    They are an attribute in old opsets and an input in new ones; `rank` is that of its input.
    """
    axes = node.attr("axes")
    given = node.input(1)
    if axes is None and given is not None:
        constant = shapes.constant(given)
        axes = None if constant is None else constant.ravel().tolist()
    return tuple(sorted(int(axis) % rank for axis in axes)) if axes else None


def sliced_axes(node: Node, shapes: Facts) -> list[tuple[int, Dim, int]] | None:
    """Return (axis, start, step) of each sliced axis, by attributes (opset < 10) or inputs.

    None where they are unknown.
    """
    attribute = node.attr("starts")
    if attribute is not None:
        given = node.attr("axes") or range(len(attribute))
        return [
            (int(axis), Dim.of(int(start)), 1) for axis, start in zip(given, attribute, strict=True)
        ]

    def content(position: int, default: list[Dim] | None) -> list[Dim] | None:
        value = node.input(position)
        if value is None:
            return default
        data = shapes.content(value)
        return None if data is None else list(data.ravel())

    starts, ends = content(1, None), content(2, None)
    if starts is None or ends is None:
        return None
    axes = content(3, [Dim.of(axis) for axis in range(len(starts))])
    steps = content(4, [Dim.of(1)] * len(starts))
    if axes is None or steps is None:
        return None
    found: list[tuple[int, Dim, int]] = []
    for axis, start, step in zip(axes, starts, steps, strict=True):
        number, stride = axis.as_int(), step.as_int()
        if number is None or stride is None:
            return None
        found.append((number, start, stride))
    return found


def padded_axes(node: Node, shapes: Facts) -> list[tuple[int, int, int]] | None:
    """Return (axis, before, behind) of the axes that a Pad makes longer, or cuts by negative ones.

    By an attribute (opset < 11) or inputs; None where they are unknown.
    """
    given, chosen = node.input(1), node.input(3)
    amounts: Sequence[int] | None = node.attr("pads")
    if given is not None:
        content = shapes.content(given)
        amounts = None if content is None else numbers_of(content.ravel())
    if amounts is None:
        return None
    count = len(amounts) // 2
    axes = None if chosen is None else shapes.constant(chosen)
    if chosen is not None and axes is None:
        return None
    named = range(count) if axes is None else axes.ravel().tolist()
    triples = zip(named, amounts[:count], amounts[count:], strict=True)
    return [(int(axis), int(before), int(behind)) for axis, before, behind in triples]


def padding_of(node: Node, shapes: Facts) -> float | None:
    """Return the number by which a Pad makes its input longer; None if it isn't one, or unknown."""
    if node.attr("mode", "constant") != "constant":
        return None
    given = node.input(2)
    return float(node.attr("value", 0.0)) if given is None else shapes.scalar(given)


@dataclass(frozen=True)
class Padding:
    """How often a Pad writes a number along one axis, before its input and behind it."""

    axis: int
    before: int
    behind: int
    fill: float


def padding_along_axis(node: Node, shapes: Facts) -> Padding | None:
    """Return what a Pad writes along its only axis; None if it does anything else, or unknown."""
    fill = padding_of(node, shapes)
    padded = [pad for pad in padded_axes(node, shapes) or () if pad[1:] != (0, 0)]
    return None if fill is None or len(padded) != 1 else Padding(*padded[0], fill)


def keeps_axes(node: Node) -> bool:
    """Return whether a Reduce operator leaves axes of extent 1 where it reduced.

    onnxruntime, and the shape inference of onnx, take any number but 1 as 0.
    """
    return bool(node.attr("keepdims", 1) == 1)


def readers(value: Value) -> list[Use]:
    """Return who reads a value's elements (not only its shape or its type)."""
    return [use for use in value.uses if not is_question(use)]


def is_question(use: Use) -> bool:
    """Return whether a use asks for no more than a shape or a type, be it of a view."""
    return use.node.op in SIZES or asks_for_type(use) or is_asked_view(use)


def is_asked_view(use: Use) -> bool:
    """Return whether a use makes a view of which no more than shapes and types are asked."""
    node = use.node
    if use.index != 0 or node.op not in _ASKED_VIEWS or node.given[0].graph is not node.graph:
        return False
    return all(
        made.uses and not made.is_output and all(map(is_question, made.uses)) for made in node.made
    )


def followers(node: Node) -> list[Node]:
    """Return the nodes that read the elements of a node's results; one may come several times."""
    return [use.node for value in node.made for use in readers(value)]


def asks_for_type(use: Use) -> bool:
    """Return whether a value is only the one whose type a CastLike takes on."""
    return use.node.op == "CastLike" and use.index == 1


def only_reader(value: Value) -> Use | None:
    """Return the one place where a value's elements are read.

    None if there are others, or it is a graph output.
    """
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_output else None
