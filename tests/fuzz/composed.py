"""Graphs of attention made of several of the tests' steps at once: each has its own test."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np
import onnx

from tests.analysis.samples import edit_twins as edits
from tests.analysis.samples import norm_twins, operand_twins, steps, twins, weight_steps
from tests.analysis.samples import part_twins as parts
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import HEAD_DIM, LEVELS, NUM_HEADS, SIZES, Form, is_possible
from tests.analysis.samples.twins import Step, after, twin

ROWS = SIZES["S"]
TRIANGLE = np.tri(ROWS, dtype=bool)

SCORES: dict[str, Step] = {
    "times by head": steps.times(1, NUM_HEADS, 1, 1),
    "divided by head": steps.times_by_head("Div", 1, -2, 3, 4),
    "times a number at run time": steps.scale_by_input,
    "times by row at run time": steps.scale_at_run_time("B", 1, "S", 1),
    "plus": steps.plus(ROWS, ROWS),
    "plus by head": steps.plus(NUM_HEADS, 1, 1),
    "plus by row": steps.plus(ROWS, 1),
    "plus zeros": ways.plus_zeros,
    "plus a number": steps.binary("Add", 3.0),
    "plus an input": ways.biased_by_input,
    "plus a mask": steps.masked_by_input("B", 1, 1, "S"),
    "cap": steps.cap,
    "negated": steps.unary("Neg"),
    "times zero": steps.binary("Mul", 0.0),
    "filled by plus infinity": ways.selected(np.inf),
    "lowered by infinity": ways.lowered_by_choice(-np.inf),
    "filled": ways.selected(-1e9),
    "filled by infinity": ways.selected(-np.inf),
    "filled by one": ways.selected(-1.0),
    "filled by another mask": ways.selected(-1e9, "other"),
    "lowered": ways.lowered(-1e4),
    "padded": ways.padded(-1e9),
    "halved sum": ways.halved_sum,
    "lowered by place": ways.lowered_by_place(0.5),
    "columns written": edits.columns_written(-2.0),
    "columns added to": edits.columns_written(1.0, "add"),
    "part written": edits.nested(-3.0),
    "later rows and columns added to": parts.part_edited(steps.binary("Add", 1.5)),
    "last row added to": parts.row_edited(steps.binary("Add", -1.0), is_twice=True),
    "zeros and threes": ways.kept_times(3.0),
    "of constant parts": ways.constant_parts(TRIANGLE, ~TRIANGLE),
}
WEIGHTS: dict[str, Step] = {
    "halved": steps.binary("Mul", 0.5),
    "times by head": steps.times(NUM_HEADS, 1, 1),
    "divided by head": steps.times_by_head("Div", 1, 2, 3, 4),
    "times by column": steps.times(ROWS),
    "times by row": steps.times(ROWS, 1),
    "dropout": weight_steps.drop_nothing,
    "guarded": weight_steps.guard_with(0.0),
    "zeroed": ways.zeroed,
    "times zero": ways.times_kept,
    "renormalised": weight_steps.renormalised_by(1.0),
    "renormalised or zero": weight_steps.renormalised_by(0.0, behind=True),
    "masked": weight_steps.mask_weights,
    "rows zeroed": rows.rows_zeroed("S", 1),
    "empty rows zeroed": rows.zeroed_where_empty,
    "zeroed unless themselves": ways.not_itself,
    "plus zero": steps.binary("Add", 0.0),
    "negated": steps.unary("Neg"),
}
SOFTMAXES: dict[str, Step] = {
    "of sums of powers": weight_steps.reciprocal_softmax,
    "of a logarithm": weight_steps.logsumexp_softmax,
    "along a transpose": weight_steps.softmax_of_transposed,
    "in float64": weight_steps.in_float64,
    "safe": rows.safe_softmax,
    "with a cast sink": weight_steps.cast_sink(ways.HALF),
    "with two sinks": weight_steps.two_sinks,
}
OPERANDS: dict[str, Step] = {
    "times": steps.binary("Mul", -3.0),
    "times by lane": steps.times(HEAD_DIM),
    "plus by lane": steps.plus(HEAD_DIM),
    "times by head": steps.times(NUM_HEADS, 1, 1),
    "times by row": steps.times(ROWS, 1, 1),
    "normed": norm_twins.norm_along(-1),
    "tanh": steps.unary("Tanh"),
    "given at run time": operand_twins.runtime_projection,
}


def composed(random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a graph of attention, or of what looks like it, and what it is made of.

    Raises: AssertionError, KeyError, ValueError for steps that don't go together.
    """
    form = _form(random)
    steps: dict[str, Step] = {}
    names = [str(form)]
    if random.random() < 1 / 5:
        steps |= {"operands_of_product": operand_twins.side_by_side}
        names.append("packed operands")
    if random.random() < 2 / 3:
        name, step = _several(SCORES, 3, random)
        steps |= after(random.choice(("scores", "scored", "capped")), step)
        names.append(f"scores {name}")
    if random.random() < 1 / 2:
        name, step = _several(WEIGHTS, 2, random)
        steps |= after("weights", step)
        names.append(f"weights {name}")
    elif random.random() < 1 / 3:
        name, step = random.choice(list(SOFTMAXES.items()))
        steps |= {"weights": step}
        names.append(f"softmax {name}")
    if random.random() < 1 / 3:
        which, made = random.choice("qk"), random.choice(("normed", "rotated"))
        name, step = _several(OPERANDS, 2, random)
        steps |= twins.on(which, made, step)
        names.append(f"{which} {made}, {name}")
    return twin(form, **steps).model, "; ".join(names)


def _form(random: Random) -> Form:
    """Return a form that is usual in most of its factors."""
    while True:
        levels = {
            factor: random.choice(known) if random.random() < 2 / 5 else known[0]
            for factor, known in LEVELS.items()
        }
        if is_possible(form := Form(**levels)):
            return form


def _several(known: Mapping[str, Step], most: int, random: Random) -> tuple[str, Step]:
    """Return up to so many of the steps, one after the other."""
    names = [random.choice(list(known)) for _ in range(random.randint(1, most))]
    return ", then ".join(names), ways.each(*(known[name] for name in names))
