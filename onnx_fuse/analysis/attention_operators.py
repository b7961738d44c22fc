"""The operators that already are attention, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnx_fuse.analysis.grouped_query import grouped_query_attention
from onnx_fuse.analysis.kept import with_core
from onnx_fuse.analysis.lifted import Lifted
from onnx_fuse.analysis.microsoft_attention import (
    decoder_attention,
    multi_head_attention,
    packed_attention,
    quantized_attention,
)
from onnx_fuse.analysis.standard_attention import standard_attention
from onnx_fuse.analysis.views import Views
from onnx_fuse.ir.graph import Node

# By domain and name: the rule, and how many inputs hold Q, K and V, or their weights and biases, if
# the body keeps the operator as it is.
_RULES: dict[tuple[str, str], tuple[Callable[[Node, Views], Lifted], int | None]] = {
    ("", "Attention"): (standard_attention, 3),
    ("com.microsoft", "Attention"): (packed_attention, 3),
    ("com.microsoft", "MultiHeadAttention"): (multi_head_attention, 4),
    ("com.microsoft", "GroupQueryAttention"): (grouped_query_attention, None),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): (decoder_attention, None),
    ("com.microsoft", "QAttention"): (quantized_attention, None),
}


def is_attention(node: Node) -> bool:
    """Return whether a node is an attention operator that is known by name."""
    return (node.domain, node.op_type) in _RULES


def lift(node: Node, views: Views) -> Lifted:
    """Return what an attention operator computes.

    Raises: Declined where it does more than the fused operator can.
    """
    rule, taken = _RULES[node.domain, node.op_type]
    lifted = replace(rule(node, views), has_heads=True)
    return lifted if taken is None else with_core(lifted, node, taken, views)
