"""Attention that already is one operator: what its rules say, and what they share.

An operator is read as attention that is written out: its inputs as queries, keys, values and
caches, its attributes and masks as a chain of operations on the scores. From there on it is treated
like any other, and so is fused together with its projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, Index
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.algebra.linear import Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operands.operand import Operand, Past
from onnx_fuse.analysis.scores.chain import Chain, Placed
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.shapes.facts import Shape
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.core import Core
from onnx_fuse.report import Code


@dataclass(frozen=True)
class Rotation:
    """A rotation of queries and keys by their places, whose tables have a row for each place."""

    tables: dict[str, Value]
    dims: int
    is_interleaved: bool


@dataclass(frozen=True)
class Lifted:
    """What an attention operator says, in the terms of attention that is written out.

    By "q", "k", "v": steps are the biases that it adds itself, parts the operands that it projects
    itself, pasts the caches that it joins with keys and values.
    """

    scores: Scores
    values: Values
    steps: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    parts: dict[str, Operand] = field(default_factory=dict)
    pasts: dict[str, Past] = field(default_factory=dict)
    is_causal: bool = False
    window_size: int = 0  # with `lengths`: how many columns a causal row sees at most; 0 for all
    has_window_cache: bool = False  # the cache holds only the latest positions
    has_heads: bool = False  # the scores' second axis is the heads, whatever keys and values have
    lengths: dict[str, Expr] = field(default_factory=dict)  # and places: of a cache in a buffer
    rotation: Rotation | None = None  # that it does itself, by place
    core: Core | None = None  # the operator, as a body may keep it
    core_inputs: tuple[Value | None, ...] = ()  # what it reads behind queries, keys and values


@dataclass(frozen=True)
class Atoms:
    """The axes of an attention operator; `columns` are the `past` ones, then the `new` ones."""

    batch: Axis
    kv_heads: Axis
    groups: Axis
    rows: Axis
    past: Axis | None  # None where there is none
    new: Axis
    columns: Axis
    depth: Axis
    depth_v: Axis

    @property
    def heads(self) -> Axis:
        """The query heads."""
        return (*self.kv_heads, *self.groups)

    @property
    def scores(self) -> Index:
        """The index of the scores."""
        return (self.batch, self.heads, self.rows, self.columns)

    def depth_of(self, name: str) -> Axis:
        """Return the depth of queries ("q"), keys ("k") or values ("v")."""
        return self.depth_v if name == "v" else self.depth

    def cached(self, name: str, columns: Axis | None) -> Index:
        """Return the index of cached keys or values: (batch, kv_heads, columns, depth)."""
        return (self.batch, self.kv_heads, columns or (), self.depth_of(name))


def new_atoms(
    space: Space,
    batch: Dim,
    heads: tuple[int, int],
    rows: Dim,
    columns: tuple[Dim | None, Dim],
    depth: tuple[Dim, Dim],
) -> Atoms:
    """Return new axes: `heads` are key heads and query heads of each, `columns` past and new ones.

    A past of None is none at all.
    """
    (kv_heads, groups), (past, new) = heads, columns
    own = space.atom(new, "column")
    return Atoms(
        batch=space.atom(batch, "batch"),
        kv_heads=space.atom(Dim.of(kv_heads), "kv_head"),
        groups=space.atom(Dim.of(groups), "group"),
        rows=space.atom(rows, "row"),
        past=None if past is None else space.atom(past, "past"),
        new=own,
        columns=own if past is None else space.atom(past + new, "column"),
        depth=space.atom(depth[0], "depth"),
        depth_v=space.atom(depth[1], "depth_v"),
    )


def packed_columns(
    atoms: Atoms, widths: Sequence[int], total: Dim, space: Space
) -> dict[str, Axis]:
    """Return the columns of queries, keys and values, so wide, among `total` side by side."""
    found: dict[str, Axis] = {}
    start = 0
    for name, width in zip("qkv", widths, strict=True):
        heads = atoms.heads if name == "q" else atoms.kv_heads
        columns = (*heads, *atoms.depth_of(name))
        found[name] = space.ranged(columns, Dim.of(start), 1, total)
        start += width
    return found


def refuse(node: Node, attribute: str, setting: object) -> Declined:
    """Return the refusal of what an attribute, input or output asks for."""
    return Declined(Code.UNSUPPORTED_ATTRIBUTE, node, attribute=attribute, setting=setting)


def given(node: Node, position: int, views: Views) -> tuple[Value, Shape]:
    """Return an input and its shape. Raises: Declined if it is left out, or of unknown rank."""
    value = node.input(position)
    if value is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="its rank")
    return value, shape_of(node, value, views)


def shape_of(node: Node, value: Value, views: Views) -> Shape:
    """Return a shape. Raises: Declined if even the rank is unknown."""
    shape = views.shapes.shape(value)
    if shape is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=value.name, what="its rank")
    return shape


def used_output(node: Node, position: int) -> Value | None:
    """Return an output that somebody reads, None if nobody does."""
    output = node.outputs[position] if position < len(node.outputs) else None
    return output if output is not None and output.is_used else None


def check_unused(node: Node, *positions: int) -> None:
    """Raise Declined if one of these outputs is read."""
    for position in positions:
        if used_output(node, position) is not None:
            raise refuse(node, f"output {position}", "used")


def past_extent(
    node: Node, before: Value | None, axis: int, outputs: tuple[int, ...], views: Views
) -> Dim | None:
    """Return the length of a cache; 0 if only its results are read, None if nothing of it is."""
    if before is not None:
        return shape_of(node, before, views)[axis]
    return None if all(used_output(node, at) is None for at in outputs) else Dim.of(0)


def empty_past(atoms: Atoms) -> Placed:
    """Return a cache of no columns, for an operator that shows its keys and values like one."""
    return Placed(np.zeros((1, 1, 0, 1), dtype=np.float32), ((), (), atoms.past or (), ()))


def joined_pasts(node: Node, atoms: Atoms, first: int) -> dict[str, Past]:
    """Return the caches of keys and values where they are two inputs, from `first` on.

    What they become are the outputs 1 and 2, (batch, kv_heads, columns, depth).
    """
    found: dict[str, Past] = {}
    for position, name in enumerate("kv"):
        if atoms.past is None:
            break
        before, after = node.input(first + position), used_output(node, 1 + position)
        found[name] = Past(
            empty_past(atoms) if before is None else Placed(before, atoms.cached(name, atoms.past)),
            None if after is None else Ref(after, atoms.cached(name, atoms.columns)),
            atoms.past or (),
            atoms.new,
        )
    return found


def lifted_parts(
    node: Node,
    refs: tuple[Ref, Ref, Ref],
    atoms: Atoms,
    context: Index,
    chain: Chain,
    *,
    zero_nan: int,
) -> tuple[Scores, Values]:
    """Return the scores of queries and keys, and the product with the values."""
    output = node.outputs[0]
    assert output is not None
    scores = Scores(refs[0], refs[1], (atoms.depth,), atoms.scores, chain, atoms.columns)
    return scores, Values(refs[2], Ref(output, context), zero_nan)
