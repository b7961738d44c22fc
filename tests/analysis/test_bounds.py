"""How large numbers can be, by the operators that make them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, parser

from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.scores.bounds import highest_score, keeps_scores, magnitude
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Clamp,
    Operation,
    Placed,
    Scale,
    Select,
    Shift,
    Tanh,
)
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model

# Of any numbers x: h is within one, t within three.
MADE = "h = Tanh(x) k = Constant<value_float = 3.0>() t = Mul(h, k)"
LONGEST = 2.0**24
BOUNDS = {
    "numbers of an input": ("y = Identity(x)", math.inf),
    "a sign turned": ("y = Neg(t)", 3),
    "sizes": ("y = Abs(t)", 3),
    "another precision": ("y = Cast<to = 11>(t)", 3),
    "whole numbers of them": ("y = Cast<to = 6>(t)", 3),
    "a sum": ("y = Add(t, h)", 4),
    "a difference": ("y = Sub(h, t)", 4),
    "the larger of two": ("y = Max(h, t)", 3),
    "the smaller of two": ("y = Min(h, t)", 3),
    "the smaller of one and any number": ("y = Min(h, x)", math.inf),
    "a choice": ("c = Less(x, k) y = Where(c, h, t)", 3),
    "a choice of any number": ("c = Less(x, k) y = Where(c, h, x)", math.inf),
    "sums of so many as an axis has": (
        "i = Constant<value_int = 1>() y = CumSum(t, i)",
        3 * LONGEST,
    ),
    "a length": ("y = Shape(x)", LONGEST),
    "positions": (
        """z = Constant<value_int = 0>() o = Constant<value_int = 1>()
        s = Shape<start = 1>(x) l = Squeeze(s) y = Range(z, l, o)""",
        LONGEST,
    ),
    "a truth": ("y = Less(x, k)", 1),
    "zero times any number": ("z = Constant<value_float = 0.0>() y = Mul(z, x)", math.inf),
    "powers": ("y = Exp(t)", math.inf),
}


WIDE = 2.0**40


def filled(number: float) -> Operation:
    """Return the choice of a number where something holds."""
    return Select(Placed.number(1), Placed.number(number))


# What happens to scores within one.
SCORES: dict[str, tuple[tuple[Operation, ...], float]] = {
    "a low fill": ((filled(-WIDE),), WIDE),
    "a low fill, and the greatest taken off": ((filled(-WIDE), Shift()), WIDE + 1),
    "a high fill, and the greatest taken off": ((filled(WIDE), Shift()), 2 * WIDE),
}


def made(body: str) -> Model:
    """Load a graph whose output is y."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[b, s] x) => (y) {{ {MADE} {body} }}'
    return load(parser.parse_model(text))


@pytest.mark.parametrize("name", BOUNDS)
def test_no_number_exceeds_the_bound(name: str) -> None:
    body, expected = BOUNDS[name]
    model = made(body)
    (y,) = model.graph.outputs
    assert magnitude(y, Shapes(model)) == expected


@pytest.mark.parametrize("name", SCORES)
def test_no_score_exceeds_the_bound(name: str) -> None:
    operations, expected = SCORES[name]
    model = made("y = Identity(h)")
    tanh = next(node for node in model.graph.nodes if node.op == "Tanh")
    assert highest_score((Tanh(tanh), *operations), None, Shapes(model)) == expected


def added(*numbers: float) -> Operation:
    """Return the addition of columns of numbers."""
    parts = tuple(np.full((1, 1), number, np.float32) for number in numbers)
    return Bias(Placed(Call("Concat", parts, (("axis", 1),)), ((), ())))


# What happens to scores that float16 holds, outermost first, and whether that leaves them.
KEPT: dict[str, tuple[tuple[Operation, ...], bool]] = {
    "small numbers": ((added(8.0, -8.0),), True),
    "a large number": ((added(8.0, -16.0),), False),
    "numbers that are scaled down": ((Scale(0.25), added(8.0, -16.0)), True),
    "columns that are hidden for good": ((added(0.0, -math.inf),), True),
    "a large number, and the greatest taken off": ((Shift(), added(16.0)), True),
    "a large number below a cap": ((Tanh(None), added(16.0)), True),  # type: ignore[arg-type]
    "a bound that float16 holds": ((Clamp(-6e4),), True),
    "a bound that it doesn't hold": ((Clamp(-1e5),), False),
    "a bound that it doesn't hold, turned": ((Scale(-2.0), Clamp(-6e4)), False),
}


@pytest.mark.parametrize("name", KEPT)
def test_rounded_scores_are_kept_where_nothing_large_is_added(name: str) -> None:
    operations, is_kept = KEPT[name]
    shapes = Shapes(made("y = Identity(x)"))
    assert keeps_scores(operations, TensorProto.FLOAT16, shapes) == is_kept
