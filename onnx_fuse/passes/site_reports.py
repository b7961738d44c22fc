"""What the pass says of each attention site."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

from onnx_fuse.analysis.algebra.expr import leaves
from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.algebra.quantized_products import are_dequantized, is_quantized
from onnx_fuse.analysis.algebra.views import CARRIERS, carried
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.records import AttentionBlock, Site
from onnx_fuse.analysis.search import reachable
from onnx_fuse.analysis.softmax.ahead import QUANTIZERS
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import BlockReport, Code, Outside, Part, Step

# The operands that are queries, keys and values made outside.
_OPERANDS: dict[Part, tuple[str, ...]] = {
    "q": ("query", "qkv"),
    "k": ("key", "qkv"),
    "v": ("value", "qkv"),
}
_NEAR = 6  # steps between a product of integers and floats with its bias


def fused(name: str, site: Site, left: Mapping[str, Outside]) -> BlockReport:
    """Return the report of a site that becomes the node `name`.

    left: why queries, keys or values ("q", "k", "v") are projected outside that the block could
    project.
    """
    block = site.block
    assert block is not None
    outside = (*_outside(block, left), *_after(block))
    report = BlockReport(name=name, status="fused", node=site.node.name or name, outside=outside)
    return _described(report, site)


def declined(name: str, site: Site, code: Code, **facts: object) -> BlockReport:
    """Return the report of a site whose block is known, and left as it is."""
    return _described(BlockReport.decline(name, code, facts, node=site.node.name), site)


def not_recognised(name: str, site: Site) -> BlockReport:
    """Return the report of a site for which there is no block."""
    assert site.declined is not None
    reason = site.declined
    node = reason.node or site.node
    return BlockReport.decline(
        name,
        reason.code,
        reason.facts,
        node=node.label,
        steps=_steps(site),
    )


def already_fused(node: Node) -> BlockReport:
    """Return the report of a node that is a fused block."""
    facts = {"node": node.name, "op": node.bare_op}
    return BlockReport.decline(node.name, Code.ALREADY_FUSED, facts, node=node.name)


def _described(report: BlockReport, site: Site) -> BlockReport:
    block = site.block
    assert block is not None
    words = [*(["causal"] if block.is_causal else []), *block.masking.words]
    return replace(
        report,
        kind=block.kind,
        num_heads=block.num_heads,
        kv_num_heads=block.kv_num_heads,
        head_dim=block.head_dim,
        batch=_extent(block.batch),
        seq=_extent(block.q_seq),
        rope=None if not block.rotary_dim else "interleaved" if block.interleaved else "half",
        mask=", ".join(words) or None,
        steps=_steps(site),
    )


def _outside(block: AttentionBlock, left: Mapping[str, Outside]) -> Iterator[Outside]:
    """Yield which of queries, keys and values a block doesn't project, and why."""
    for part, names in _OPERANDS.items():
        read = (leaves(block.sources[name]) for name in names if name in block.sources)
        value = next((value for values in read for value in values), None)
        if part in left:
            yield left[part]
            continue
        if value is None:
            continue
        value = _held(value)
        node = value.producer
        weight = None if node is None else _replaceable(node)
        quantized = None if node is None else _quantized(node)
        if node is not None and weight is not None:
            yield Outside.replaceable(part, node.label, node.bare_op, weight.name)
        elif quantized is not None:
            yield Outside.quantized(part, quantized.label, quantized.bare_op)
        elif node is not None:
            yield Outside.made(part, node.label, node.bare_op)
        else:
            yield Outside.given(part, value.name, "input" if value.is_input else "constant")


def _after(block: AttentionBlock) -> Iterator[Outside]:
    """Yield what stands in the place of a block's output projection, if it has none."""
    if block.out_weight is not None:
        return
    context: Value = block.output.value
    join: Node | None = None
    while not context.is_output and (read := readers(context)):
        reader = read[0].node
        if len(read) > 1 or reader.op not in CARRIERS or len(reader.made) > 1:
            weight = _replaceable(reader)
            if len(read) == 1 and weight is not None:
                yield Outside.replaceable("out", reader.label, reader.bare_op, weight.name)
            elif reader.op in QUANTIZERS or is_quantized(reader):
                yield Outside.quantized("out", reader.label, reader.bare_op)
            elif join is not None:
                yield Outside.joined(join.label, reader.label, reader.bare_op)
            else:
                yield Outside.read(reader.label, reader.bare_op)
            return
        if reader.op == "Concat" and len(reader.given) > 1:
            join = join or reader
        context = reader.made[0]
    yield Outside.shown(context.name)


def _replaceable(node: Node) -> Value | None:
    """Return what a node reads of the model's own numbers that callers may replace, if it does."""
    held = map(_held, node.given)
    return next((value for value in held if value.is_initializer and not value.is_constant), None)


def _quantized(node: Node) -> Node | None:
    """Return what multiplies quantized numbers, of which a node makes floats or adds a bias."""

    def above(node: Node) -> list[Node | None]:
        makers = [value.producer for value in node.given if not value.is_constant]
        match node.op:
            case "Add":
                return makers if len(makers) == 1 else []
            case "Mul":  # by the scale, which is computed
                return [maker for maker in makers if maker is not None and maker.op == "Cast"]
            case "Cast":
                return makers
        return makers[:1] if node.op in CARRIERS - {"Concat"} else []

    for found in reachable(node, above, steps=_NEAR):
        is_of_floats = found.op in ("MatMul", "Gemm") and are_dequantized(*found.given[:2])
        if is_quantized(found) or is_of_floats:
            return found
    return None


def _held(value: Value) -> Value:
    """Return the value of which views alone make another one."""
    while len(above := carried(value)) == 1 and above[0] is not None:
        value = above[0]
    return value


def _steps(site: Site) -> tuple[Step, ...]:
    """Return the steps, without the nodes that make what a block reads."""
    made = set[Node]() if site.block is None else _makers(site.block, site.trail.nodes)
    return tuple(
        Step(name, tuple(node.label for node in nodes if node not in made))
        for name, nodes in site.trail.steps.items()
    )


def _makers(block: AttentionBlock, nodes: Container[Node]) -> set[Node]:
    """Return those of some nodes that make what a block reads: as a product that stays outside."""

    def above(node: Node) -> list[Node]:
        makers = (value.producer for value in node.given)
        return [maker for maker in makers if maker is not None and maker in nodes]

    read = (value.producer for expr in block.sources.values() for value in leaves(expr))
    ends = [node for node in read if node is not None and node in nodes]
    return {node for end in ends for node in reachable(end, above)}


def _extent(extent: Dim) -> int | str:
    number = extent.as_int()
    return str(extent) if number is None else number
