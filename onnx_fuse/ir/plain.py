"""What a node computes, in the plainest words for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.graph import Node, Value

# Operators of any number of inputs that give a single one as it is.
_OF_ONE = frozenset({"Concat", "Max", "Mean", "Min", "Sum"})
# The second operand that leaves the first as it is.
_NEUTRAL: Mapping[str, float] = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}
_COMMUTATIVE = frozenset({"Add", "Mul"})


def read_plainly(node: Node, inputs: Sequence[Value | None]) -> Sequence[Value | None]:
    """Let a node's `op` be the plainest one that computes the same; return its inputs for that.

    A number of rank 0 has no say in the shape of what it is added to or multiplied with: where it
    is neutral, the node is an "Identity" of the other operand, which stands first.
    """
    if len(inputs) == 1 and node.op in _OF_ONE:
        node.op = "Identity"
    elif len(inputs) == 2:
        if node.op == "Sum":
            node.op = "Add"
        elif node.op == "Einsum" and _multiplies_elements(str(node.attr("equation", ""))):
            node.op = "Mul"
        if _is_neutral(inputs[1], node.op):
            node.op = "Identity"
        elif node.op in _COMMUTATIVE and _is_neutral(inputs[0], node.op):
            node.op, inputs = "Identity", inputs[::-1]
    return inputs


def _multiplies_elements(equation: str) -> bool:
    """Return whether an Einsum multiplies a tensor by a number, in whatever order they stand.

    A tensor of some of the axes would not broadcast from the right, as that of a product does.
    """
    terms, arrow, out = equation.replace(" ", "").partition("->")
    letters = out.replace("...", "")
    is_plain = bool(arrow) and len({*letters}) == len(letters)
    return is_plain and sorted(terms.split(",")) == sorted(["", out])


def _is_neutral(value: Value | None, op: str) -> bool:
    constant = None if value is None else value.constant
    number = _NEUTRAL.get(op)
    return constant is not None and number is not None and _is_number(constant, number)


def _is_number(constant: Constant, number: float) -> bool:
    """Return whether a constant is this number, of rank 0; another file isn't opened for it."""
    is_at_hand = constant.shape == () and constant.external is None
    return is_at_hand and bool(constant.numpy() == number)
