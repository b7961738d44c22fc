"""Graphs that differ by one step from attention that is fused: each step, the twin's own."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import onnx

from tests.analysis.samples.forms import SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer

Step = Callable[..., Any]
ROWS, BATCH = SIZES["S"], SIZES["B"]
DOUBLE = onnx.TensorProto.DOUBLE
USUAL = Form()


def twin(form: Form = USUAL, **steps: Step) -> Sample:
    """Return the form's graph with some of the writer's steps exchanged for others."""
    writer = Writer(form)
    for name, step in steps.items():
        setattr(writer, name, MethodType(step, writer))
    return writer.sample()


def before(name: str, change: Step) -> dict[str, Step]:
    """Change the first argument of a step."""
    own = getattr(Writer, name)
    return {name: lambda w, value, *rest: own(w, change(w, value), *rest)}


def after(name: str, change: Step) -> dict[str, Step]:
    """Change the result of a step."""
    own = getattr(Writer, name)
    return {name: lambda w, *inputs: change(w, own(w, *inputs))}


def on(which: str, name: str, change: Step) -> dict[str, Step]:
    """Change the result of a step that is taken for "q" and "k", for one of them only."""
    own = getattr(Writer, name)

    def step(w: Writer, value: str, part: str) -> str:
        made = own(w, value, part)
        return change(w, made) if part == which else made

    return {name: step}


def below(which: str, name: str, change: Step) -> dict[str, Step]:
    """Change the first argument of such a step."""
    own = getattr(Writer, name)

    def step(w: Writer, value: str, part: str) -> str:
        return own(w, change(w, value) if part == which else value, part)

    return {name: step}


# Scores -------------------------------------------------------------------------------------------
