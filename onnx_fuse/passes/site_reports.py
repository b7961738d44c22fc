"""What the pass says of each attention site."""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.records import Site
from onnx_fuse.ir.graph import Node
from onnx_fuse.report import BlockReport, Code, Step


def fused(name: str, site: Site) -> BlockReport:
    """Return the report of a site that becomes the node `name`."""
    return _described(BlockReport(name=name, status="fused", node=site.node.name or name), site)


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
        node=_label(node),
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


def _steps(site: Site) -> tuple[Step, ...]:
    return tuple(
        Step(name, tuple(_label(node) for node in nodes))
        for name, nodes in site.trail.steps.items()
    )


def _label(node: Node) -> str:
    """Return a node's name, or that of its first result if it has none."""
    return node.name or next((value.name for value in node.made), node.bare_op)


def _extent(extent: Dim) -> int | str:
    number = extent.as_int()
    return str(extent) if number is None else number
