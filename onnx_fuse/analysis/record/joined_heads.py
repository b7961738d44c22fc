"""Heads that are computed one by one, or in groups, and whose contexts one Concat joins.

They are one block: its projections stand side by side, and what a Concat joins along an axis is
told apart by one more atom in front of that axis, the number of the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.alike import are_alike
from onnx_fuse.analysis.algebra.axes import Axis, size
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.block_outputs import ContextAxes, output_in_place
from onnx_fuse.analysis.record.records import AttentionBlock, NormRecord, Site, Weight
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.softmax.output import OutputWalk
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.core import Takes

# What must be equal in all parts.
_SETTINGS = (
    "kind",
    "num_heads",
    "kv_num_heads",
    "head_dim",
    "v_head_dim",
    "batch",
    "q_seq",
    "rotary_dim",
    "interleaved",
    "scale",
    "softcap",
    "zero_nan",
    "is_causal",
    "core",
    "core_inputs",
)
_PROJECTED = frozenset({"hidden", "context", "value_context"})


def with_heads_joined(sites: Sequence[Site]) -> Iterator[Site]:
    """Yield the sites, those whose heads are of one block as one, where its first part stands."""
    parts: dict[Node, dict[Value, tuple[Site, Ref]]] = {}
    for site in sites:
        end = None if site.block is None else _end(site.block)
        if end is not None:
            parts.setdefault(end[0], {})[end[1].value] = (site, end[1])
    taken: dict[Node, Site | None] = {}
    for join, found in parts.items():
        members = [found[value] for value in join.inputs if value in found]
        whole = _joined(join, members) if len(members) == len(join.inputs) else None
        if whole is not None:
            taken |= {site.node: None for site, _ in members} | {whole.node: whole}
    for site in sites:
        joined = taken.get(site.node, site)
        if joined is not None:
            yield joined


def _end(block: AttentionBlock) -> tuple[Node, Ref] | None:
    """Return the Concat that alone reads what a block makes, and the elements that it reads."""
    if block.out_weight is not None or len(block.results) > 1:
        return None
    if block.lengths or block.sinks is not None:
        return None
    if not block.sources.keys() <= _PROJECTED:
        return None  # values would have to be joined, too
    views, ref = block.extents.views, block.output
    while True:
        use = only_reader(ref.value)
        if use is None or use.node.graph is not block.node.graph:
            return None
        if use.node.op == "Concat" and len(use.node.inputs) > 1:
            return use.node, ref
        below = views.push(ref, use.node)
        if below is None:
            return None
        ref = below


def _joined(join: Node, parts: Sequence[tuple[Site, Ref]]) -> Site | None:
    """Return the one block whose heads the parts have; None if they are of several.

    Each part comes with the elements that the Concat reads of it.
    """
    blocks = [site.block for site, _ in parts if site.block is not None]
    ends = [end for _, end in parts]
    first, shapes = blocks[0], blocks[0].extents.views.shapes
    if not all(_fits(first, other, shapes) for other in blocks[1:]):
        return None
    layouts = [_layout(block, end) for block, end in zip(blocks, ends, strict=True)]
    if layouts[0] is None or any(layout != layouts[0] for layout in layouts):
        return None
    trail = _trail([site for site, _ in parts])
    placed = _placed(join, first, ends[0], len(blocks), trail)
    if placed is None:
        return None
    out_weight, output, output_axes = placed
    replaced, shared = output.value.producer, _shared(blocks)
    assert replaced is not None
    record = replace(
        first,
        num_heads=first.num_heads * len(blocks),
        kv_num_heads=1 if shared else first.kv_num_heads * len(blocks),
        weights=_weights(blocks, shared),
        norms={name: _norm([block.norms[name] for block in blocks]) for name in first.norms},
        out_weight=out_weight,
        output=output,
        output_axes=output_axes,
        replaced=replaced,
    )
    return Site(first.node, record, None, trail)


def _placed(
    join: Node, first: AttentionBlock, end: Ref, count: int, trail: Trail
) -> tuple[Weight | None, Ref, tuple[Axis, ...]] | None:
    """Return the output projection behind a Concat, what the whole block takes over, and its axes.

    `end` are the elements that are joined of the first of `count` parts. None if they are joined to
    something other than columns of one row.
    """
    views, output = first.extents.views, join.outputs[0]
    if output is None:
        return None
    joined = int(join.attr("axis", 1)) % len(end.index)
    number = views.space.atom(Dim.of(count), "head")
    index = end.resolve(views.space).index
    whole = Ref(output, (*index[:joined], (*number, *index[joined]), *index[joined + 1 :]))
    trail.enter("output")
    trail.add(join)
    axes = _context(first)
    found = OutputWalk(views, join, trail).output(whole)
    try:
        return output_in_place(found, replace(axes, heads=(*number, *axes.heads)), first.extents)
    except Misfit:
        return None


def _fits(first: AttentionBlock, other: AttentionBlock, shapes: Facts) -> bool:
    """Return whether two blocks differ in nothing but the weights of their heads."""
    if any(getattr(first, name) != getattr(other, name) for name in _SETTINGS):
        return False
    if first.core is not None and {first.core.query, first.core.key_value} != {Takes.HEADS}:
        return False  # it is told how many heads there are
    own, others = _read(first), _read(other)
    if own.keys() != others.keys() or not all(
        are_alike(own[name], others[name], shapes) for name in own
    ):
        return False
    # What stands beside the heads broadcasts to all if it is that of one.
    beside = [expr for expr in _beside_heads(first).values() if expr is not None]
    if beside and first.num_heads > 1:
        return False
    return (
        first.weights.keys() == other.weights.keys()
        and first.norms.keys() == other.norms.keys()
        and all(_is_same_norm(first.norms[name], other.norms[name]) for name in first.norms)
    )


def _read(block: AttentionBlock) -> dict[str, Expr | None]:
    """Return what a block reads but weights and norms."""
    return {**block.sources, **_beside_heads(block)}


def _beside_heads(block: AttentionBlock) -> dict[str, Expr | None]:
    """Return what has an axis of heads and is no weight."""
    masking = block.masking
    masks = {"bias": masking.bias, "keep": masking.keep, "fill": masking.fill}
    return {**masks, **block.tables}


def _is_same_norm(first: NormRecord, other: NormRecord) -> bool:
    """Return whether two norms of single heads differ in nothing but their numbers."""
    kinds = (first.kind, first.epsilon, first.bias is None)
    same = kinds == (other.kind, other.epsilon, other.bias is None)
    return same and not first.over_heads and not other.over_heads


def _context(block: AttentionBlock) -> ContextAxes:
    """Return the axes of a block's context in today's atoms."""
    space = block.extents.views.space
    batch, rows, columns = (space.resolve(axis) for axis in block.output_axes)
    count = next(n for n in range(len(columns) + 1) if size(columns[:n]) == Dim.of(block.num_heads))
    return ContextAxes(batch, rows, columns[:count], columns[count:])


def _layout(block: AttentionBlock, end: Ref) -> list[list[tuple[object, ...]]] | None:
    """Return the role of each digit of an index, its place in it and its extent."""
    axes = _context(block)
    roles = {"batch": axes.batch, "rows": axes.rows, "heads": axes.heads, "depth": axes.depth}
    known = {
        atom: (role, place, str(atom.extent))
        for role, axis in roles.items()
        for place, atom in enumerate(axis)
    }
    index = block.extents.views.space.resolve_index(end.index)
    if any(digit not in known for axis in index for digit in axis):
        return None
    return [[known[digit] for digit in axis] for axis in index]


def _shared(blocks: Sequence[AttentionBlock]) -> str:
    """Return "kv" if all parts have one and the same head of keys and values, else nothing."""
    first = blocks[0]
    if first.kv_num_heads > 1:
        return ""
    for name in first.weights:
        for number, role in enumerate(name):
            keys = [Weight((block.weights[name].parts[number],)).key() for block in blocks]
            if role != "q" and any(key != keys[0] for key in keys):
                return ""
    norms = [block.norms.get("k") for block in blocks]
    return "kv" if all(norm is None for norm in norms) else ""


def _weights(blocks: Sequence[AttentionBlock], shared: str) -> dict[str, Weight]:
    """Return the projections side by side, those of keys and values once if they are shared."""
    return {
        name: Weight(
            tuple(
                block.weights[name].parts[number]
                for number, role in enumerate(name)
                for block in (blocks[:1] if role in shared else blocks)
            )
        )
        for name in blocks[0].weights
    }


def _norm(norms: Sequence[NormRecord]) -> NormRecord:
    """Return the norm of all heads."""
    biases = [norm.bias for norm in norms if norm.bias is not None]
    return replace(
        norms[0],
        weight=np.concatenate([norm.weight for norm in norms]),
        bias=np.concatenate(biases) if biases else None,
    )


def _trail(sites: Sequence[Site]) -> Trail:
    """Return what was gone through for all parts."""
    trail = Trail()
    for site in sites:
        for step, nodes in site.trail.steps.items():
            trail.enter(step)
            trail.add(*nodes)
    return trail
