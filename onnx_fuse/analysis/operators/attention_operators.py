"""The operators that already are attention, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.operators.grouped_query import grouped_query_attention
from onnx_fuse.analysis.operators.kept import with_core
from onnx_fuse.analysis.operators.lifted import Lifted, refuse
from onnx_fuse.analysis.operators.microsoft import multi_head_attention, packed_attention
from onnx_fuse.analysis.operators.standard import standard_attention
from onnx_fuse.ir.graph import Node
from onnx_fuse.report import Code


@dataclass(frozen=True)
class _Operator:
    """How an operator is read, and what its rule reads of it.

    An operator may get inputs and attributes with each release of the library that runs it, so one
    that the rule does not read is refused unless it is known to change nothing. `unread` has the
    names of known ones behind the `inputs` that are read, `neutral` the settings of attributes
    that leave everything as it is. `kept` says how many inputs hold Q, K and V, or their weights
    and biases, if the body keeps the operator as it is.
    """

    rule: Callable[[Node, Views], Lifted]
    inputs: int = 0
    unread: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()
    neutral: dict[str, tuple[object, ...]] = field(default_factory=dict)
    kept: int | None = None

    def check(self, node: Node) -> None:
        """Raise Declined if the operator has what its rule does not read."""
        for position, value in enumerate(node.inputs[self.inputs :]):
            if value is not None:
                names = dict(enumerate(self.unread))
                raise refuse(node, names.get(position, f"input {self.inputs + position}"), "given")
        for name in node.attributes:
            if name not in self.attributes and node.attr(name) not in self.neutral.get(name, ()):
                raise refuse(node, name, node.attr(name))


def _declined(reason: Callable[[Node], Declined]) -> _Operator:
    """Return an operator that has no form here, and why."""

    def rule(node: Node, _: Views) -> Lifted:
        raise reason(node)

    return _Operator(rule)


_UNKNOWN = _declined(partial(Declined, Code.UNSUPPORTED_OP, what="the projections"))
_MICROSOFT = ("num_heads", "scale", "mask_filter_value", "unidirectional")

_OPERATORS = {
    "Attention": _Operator(
        standard_attention,
        inputs=7,
        attributes=frozenset(
            (
                *("is_causal", "left_window_size", "right_window_size", "scale", "softcap"),
                *("q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"),
            )
        ),
        kept=3,
    ),
    "com.microsoft:Attention": _Operator(
        packed_attention,
        inputs=6,
        unread=("past_sequence_length",),
        attributes=frozenset((*_MICROSOFT, "qkv_hidden_sizes", "rotary_embedding_dim")),
        neutral={"do_rotary": (0,), "past_present_share_buffer": (0,)},
        kept=3,
    ),
    "com.microsoft:MultiHeadAttention": _Operator(
        multi_head_attention,
        inputs=8,
        unread=("past_sequence_length", "cache_indirection"),
        attributes=frozenset(_MICROSOFT),
        kept=4,
    ),
    "com.microsoft:GroupQueryAttention": _Operator(
        grouped_query_attention,
        inputs=12,
        unread=("k_scale", "v_scale", "q_norm_weight", "k_norm_weight", "query_seqlens"),
        attributes=frozenset(
            (
                *("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size"),
                *("do_rotary", "rotary_interleaved", "smooth_softmax", "causal"),
                "sliding_window_cache",
                # The epsilons of weights that are refused.
                *("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"),
            )
        ),
        neutral={
            "qk_output": (0,),
            "k_quant_type": ("NONE",),
            "v_quant_type": ("NONE",),
            "kv_cache_bit_width": (0,),
        },
    ),
    "com.microsoft:DecoderMaskedMultiHeadAttention": _declined(
        partial(
            refuse,
            attribute="past_sequence_length",
            setting="given: its cache is written in place",
        )
    ),
    "com.microsoft:QAttention": _declined(partial(Declined, Code.QUANTIZED)),
    # Known by name only: other kinds of attention, and those without a kernel for CPUs.
    **{
        f"com.microsoft:{name}": _UNKNOWN
        for name in (
            *("DecoderAttention", "DecoderMaskedSelfAttention", "LinearAttention"),
            *("LongformerAttention", "PackedAttention", "PackedMultiHeadAttention"),
            *("PagedAttention", "SparseAttention"),
        )
    },
    # Of the standard: keys and values summed up by position, and scores that a graph changes.
    "LinearAttention": _UNKNOWN,
    "ai.onnx.preview:FlexAttention": _UNKNOWN,
}


def is_attention(node: Node) -> bool:
    """Return whether a node is an attention operator that is known by name."""
    return node.op in _OPERATORS


def lift(node: Node, views: Views) -> Lifted:
    """Return what an attention operator computes.

    Raises: Declined where it does more than the fused operator can.
    """
    operator = _OPERATORS[node.op]
    lifted = replace(operator.rule(node, views), has_heads=True)
    operator.check(node)
    return lifted if operator.kept is None else with_core(lifted, node, operator.kept, views)
