"""Queries or keys that enter as values with their lanes in another order, where that is free."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.axes import size
from onnx_fuse.analysis.algebra.expr import Call, Expr, nodes_added
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.splice import spliced


def reordered(block: Arrangement, name: str, order: np.ndarray) -> Expr | None:
    """Return the operand with its lanes in this order; None if more than a join makes it so.

    The block joins the parts that the graph joins in another order: who else reads what the graph
    joins, a cache say, would have it joined twice.
    """
    part = block.parts[name]
    ref, depth = part.choices[0], block.space.resolve(part.depth)
    places = [place for place, axis in enumerate(ref.index) if axis == depth]
    if part.steps or part.joined or len(places) != 1 or not _is_for_itself(ref, block):
        return None
    joined: list[Expr] = []
    for run in np.split(order, np.flatnonzero(np.diff(order) != 1) + 1):
        own = block.space.atom(Dim.of(len(run)), "depth")
        lanes = block.space.ranged(own, Dim.of(int(run[0])), 1, size(depth))
        groups = [block.roles.batch, block.heads(name), block.roles.positions(name), own]
        views = block.sources(Ref(ref.value, spliced(ref.index, places[0], lanes)))
        made = (
            arranged(view.value, view.index, groups, block.extents, whole=(True,) * 4)
            for view in views
        )
        free = next((expr for expr in made if expr is not None and not nodes_added(expr)), None)
        if free is None:
            return None
        joined.append(free)
    return Call("Concat", tuple(joined), (("axis", 3),))


def _is_for_itself(ref: Ref, block: Arrangement) -> bool:
    """Return whether nobody reads what the graph joins but the product of queries and keys."""
    return all(only_reader(view.value) is not None for view in block.sources(ref))
