"""The operators that already are attention, by name."""

from __future__ import annotations

from collections.abc import Callable

from onnx_fuse.analysis.lifted import Lifted
from onnx_fuse.analysis.microsoft_attention import (
    grouped_query_attention,
    multi_head_attention,
    packed_attention,
)
from onnx_fuse.analysis.standard_attention import standard_attention
from onnx_fuse.analysis.views import Views
from onnx_fuse.ir.graph import Node

_RULES: dict[tuple[str, str], Callable[[Node, Views], Lifted]] = {
    ("", "Attention"): standard_attention,
    ("com.microsoft", "Attention"): packed_attention,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): grouped_query_attention,
}


def is_attention(node: Node) -> bool:
    """Return whether a node is an attention operator that is known by name."""
    return (node.domain, node.op_type) in _RULES


def lift(node: Node, views: Views) -> Lifted:
    """Return what an attention operator computes.

    Raises: Declined where it does more than the fused operator can.
    """
    return _RULES[node.domain, node.op_type](node, views)
