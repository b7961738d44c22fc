"""Checks of the rewrite."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

PASSES = (
    # carry_out.py
    Mutant(
        "a weight stands where it is read first",
        "home = job.graph if job.graph.function else weight.graph",
        "home = job.graph",
    ),
    Mutant(
        "the type is always float32",
        "is_float = self.shapes.dtype(ref.value) in (None, TensorProto.FLOAT)",
        "is_float = True",
    ),
    Mutant(
        "the output is always in place",
        "return ref.value if same and is_float else None",
        "return ref.value if is_float else None",
    ),
    # plan.py
    Mutant("bodies are searched for blocks", "graph.function.domain == schema.DOMAIN", "False"),
    # computed_anyway.py
    Mutant(
        "scores may be computed once more for each other attention",
        "others = (node for node in sharing[scores] if node is not site.node)",
        "others = (node for node in sharing[scores] if False)",
    ),
    Mutant(
        "scores may be computed once more for the model",
        "way = _way(scores, read, replaced, {*site.trail.nodes})",
        "way = None",
    ),
    Mutant(
        "no columns are projected twice",
        "why = _shared(part, at, blocks, columns) if way is None else _read(part, product, way)",
        "why = None if way is None else _read(part, product, way)",
    ),
    Mutant(
        "nobody else needs a projection's product",
        "why = _shared(part, at, blocks, columns) if way is None else _read(part, product, way)",
        "why = _shared(part, at, blocks, columns)",
    ),
    Mutant(
        "a projection of fewer heads is a projection of all",
        "return Outside.by_several(part, own[0].name) if repeats else None",
        "return None",
    ),
    Mutant(
        "what an operator gives out is computed beside it",
        "for made in use.node.made if made not in replaced)",
        "for made in use.node.made)",
    ),
    Mutant(
        "blocks read no product",
        "if way[0].is_output or way[0] in read), None)",
        "if way[0].is_output), None)",
    ),
)
