"""Constants written out for each position are what they repeat, and others stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step, on, twin
from tests.analysis.verdicts import ALL, KEY, OUT, check_fused

EVERY = (BATCH, ROWS, NUM_HEADS, HEAD_DIM)
NORMED = (*ALL, "k_norm_weight", *OUT)
NORMED_AND_MOVED = (*ALL, "k_norm_weight", "k_norm_bias", *OUT)


def combined(op_type: str, *repeated: int, changed: bool = False) -> Step:
    """Combine the keys with random numbers, written once for each place along some axes."""

    def step(w: Writer, value: str) -> str:
        shape = tuple(1 if axis in repeated else extent for axis, extent in enumerate(EVERY))
        numbers = np.broadcast_to(1.0 + np.abs(w.random(*shape)), EVERY).copy()
        if changed:
            numbers[-1, -1, -1, -1] += 0.5
        return w.b.op(op_type, value, w.b.const(numbers, np.float32))

    return step


def expanded(op_type: str, *of: int) -> Step:
    """Combine the keys with random numbers of such a shape, expanded as the keys are."""

    def step(w: Writer, value: str) -> str:
        numbers = w.b.const(1.0 + np.abs(w.random(*of)), np.float32)
        return w.b.op(op_type, value, w.b.op("Expand", numbers, w.b.op("Shape", value)))

    return step


def after_norm(*steps: Step) -> Step:
    def step(w: Writer, value: str) -> str:
        value = w.b.op("LayerNormalization", value, w.b.const(np.ones(HEAD_DIM), np.float32))
        for following in steps:
            value = following(w, value)
        return value

    return step


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("step", "operands"),
    [
        (expanded("Add", NUM_HEADS, HEAD_DIM), (*ALL, *OUT)),
        (expanded("Mul", NUM_HEADS, HEAD_DIM), (*ALL, *OUT)),
        (expanded("Mul", 1, 1, HEAD_DIM), (*ALL, *OUT)),
        (after_norm(expanded("Mul", HEAD_DIM), expanded("Add", 1, HEAD_DIM)), NORMED_AND_MOVED),
        (expanded("Add", ROWS, 1, HEAD_DIM), KEY),
        (expanded("Mul", ROWS, 1, 1), KEY),
        (after_norm(expanded("Mul", ROWS, 1, 1)), KEY),
    ],
)
def test_expanded_constant_is_what_it_expands(
    step: Step, operands: tuple[str, ...], dims: str
) -> None:
    check_fused(twin(Form(dims=dims), **on("k", "normed", step)), operands)


@pytest.mark.parametrize(
    ("step", "operands"),
    [
        (combined("Add", 0, 1), (*ALL, *OUT)),
        (combined("Mul", 0, 1), (*ALL, *OUT)),
        (combined("Div", 0, 1, 2), (*ALL, *OUT)),
        (after_norm(combined("Mul", 0, 1, 2)), NORMED),
        (after_norm(combined("Mul", 0, 1, 2), combined("Add", 0, 1, 2)), NORMED_AND_MOVED),
        (combined("Add", 0), KEY),
        (combined("Mul", 1), KEY),
        (combined("Add", 0, 1, changed=True), KEY),
        (after_norm(combined("Mul", 0, 1, 2, changed=True)), KEY),
    ],
)
def test_constant_is_taken_by_what_it_repeats(step: Step, operands: tuple[str, ...]) -> None:
    check_fused(twin(**on("k", "normed", step)), operands)
