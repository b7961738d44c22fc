"""Checks of what is known of shapes and contents."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

SHAPES = (
    # elementwise.py
    Mutant(
        "a length differs from every number",
        "if all(dim is not None and dim.bounds()[1] < 0 for dim in elements(other)):",
        "if True:",
    ),
    # forced.py
    Mutant(
        "what is declared inside a graph forces extents of its inputs",
        "Engine(model, known, trusts_declared=False)",
        "Engine(model, known)",
    ),
    Mutant(
        "nodes that no output needs force extents",
        "nodes = [*_always_run(graph)]",
        "nodes = [*graph.nodes]",
    ),
    Mutant(
        "an extent may be forced to be none",
        "if (number is not None and number > 0) or",
        "if number is not None or",
    ),
    Mutant(
        "what is computed of extents may be forced to be one",
        "<= symbols.keys() and number.bounds()[0] > 1",
        "<= symbols.keys()",
    ),
    Mutant(
        "what is joined is equal along its axis, too",
        "beside = [(*shape[:axis], *shape[axis + 1 :]) for shape in shapes]",
        "beside = shapes",
    ),
    Mutant(
        "what may be 1 isn't broadcast",
        "return [pair for pair in pairs if all(extent.is_not(1) for extent in pair)]",
        "return list(pairs)",
    ),
    Mutant(
        "what meets a number isn't 1",
        "options[symbol] = options.get(symbol, {1, number}) & {1, number}",
        "options[symbol] = {number}",
    ),
    Mutant(
        "a count decides between two solutions",
        "            if len(numbers) == 1:\n                yield Dim.of_base",
        "            if numbers:\n                yield Dim.of_base",
    ),
    # lengths.py
    Mutant(
        "what is computed of lengths is a length",
        "parts = node.inputs[:1] if node.op in _CHOOSE else []",
        "parts = node.inputs[:1]",
    ),
)
