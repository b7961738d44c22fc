"""What decides the nodes of a function body, so that blocks of one form share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import defs

from onnx_fuse.op import schema
from onnx_fuse.op.block_attributes import BlockAttributes, Norm
from onnx_fuse.op.core import Core
from onnx_fuse.op.schema import ATTRIBUTES, BFLOAT16, Argument, InvalidBlock, in_order

OLDEST_OPSET = 9
OLDEST_BFLOAT16_OPSET = 13  # its Cast is the first that knows bfloat16
# The tests go up to 28. In a later opset an operator may mean something else; an onnx that defines
# it is taken to be one that this package was tried with.
NEWEST_OPSET = max(28, defs.onnx_opset_version())
# From this opset on Constant has value_int and value_float, which can refer to an attribute.
_ATTRIBUTE_CONSTANTS = 12


class NormForm(NamedTuple):
    """What decides the nodes of the query's or the key's norm; its epsilon is an attribute."""

    kind: str = "none"
    over_heads: bool = False


_NO_NORM = NormForm()


@dataclass(frozen=True)
class Form:
    """What decides a body's nodes. Blocks of one form share one body, whatever their sizes are.

    `literals` holds the attributes' values in opsets whose bodies cannot refer to attributes.
    """

    op_type: str
    operands: tuple[str, ...]
    outputs: tuple[str, ...]
    bfloat16: tuple[str, ...] = ()
    is_grouped: bool = False
    has_lone_query: bool = False
    has_lone_key: bool = False
    is_scaled: bool = True
    is_softcapped: bool = False
    is_causal: bool = False
    has_window: bool = False
    has_window_cache: bool = False
    is_interleaved: bool = False
    is_partly_rotated: bool = False
    q_norm: NormForm = _NO_NORM
    k_norm: NormForm = _NO_NORM
    zero_nan: int = 0
    literals: tuple[tuple[str, int | float], ...] = ()
    core: Core | None = None

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the inputs that only the body's own operator reads."""
        return () if self.core is None else self.core.extras(self.operands)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the node's inputs, in order."""
        return (*self.operands, *self.extras)

    @property
    def is_joined_by_operator(self) -> bool:
        """Whether an operator of the body joins past and new keys and values."""
        return self.has("seqlens_k") or (self.core is not None and self.core.joins)

    @property
    def is_repeated_for_operator(self) -> bool:
        """Whether keys and values have to be repeated for the body's operator."""
        return self.is_grouped and self.core is not None and self.core.repeats

    def has(self, operand: str) -> bool:
        """Return whether the blocks of this form have that operand."""
        return operand in self.operands

    def gives(self, output: str) -> bool:
        """Return whether the blocks of this form have that output."""
        return output in self.outputs

    def has_lone_head(self, part: str) -> bool:
        """Return whether part "q", "k" or "v" is one head."""
        return self.has_lone_query if part == "q" else self.has_lone_key

    def norm(self, part: str) -> NormForm:
        """Return the norm of part "q" or "k"."""
        return self.q_norm if part == "q" else self.k_norm

    def has_norm(self, part: str) -> bool:
        """Return whether part "q" or "k" has a norm."""
        return self.norm(part).kind != "none"


def form_of(
    op_type: str,
    operands: Mapping[str, Argument],
    attributes: BlockAttributes,
    outputs: int,
    opset: int,
    core: Core | None = None,
) -> Form:
    """Return the form of a block with these operands, in any order, and so many outputs.

    Raises: InvalidBlock if the model's opset has no body for it: below 9, or bfloat16 weights below
    13.
    """
    if opset < OLDEST_OPSET:
        raise InvalidBlock(f"opset {opset} is older than {OLDEST_OPSET}")
    names = in_order(operands)
    bfloat16 = tuple(name for name in names if operands[name].dtype == BFLOAT16)
    if bfloat16 and opset < OLDEST_BFLOAT16_OPSET:
        raise InvalidBlock(f"{bfloat16[0]} is bfloat16, which opset {opset} cannot cast")
    is_rotated = any(name in names for name in ("q_cos", "k_cos", "cos_cache"))
    has_literals = opset < _ATTRIBUTE_CONSTANTS
    numbers = tuple(
        (row.name, getattr(attributes, row.name)) for row in ATTRIBUTES if row.type is not str
    )
    return Form(
        op_type=op_type,
        operands=names,
        outputs=tuple(row.name for row in schema.outputs(outputs)),
        bfloat16=bfloat16,
        is_grouped=attributes.num_heads != attributes.kv_num_heads,
        has_lone_query=attributes.num_heads == 1,
        has_lone_key=attributes.kv_num_heads == 1,
        is_scaled=attributes.scale != 1,
        is_softcapped=attributes.softcap != 0,
        is_causal=bool(attributes.is_causal),
        has_window=bool(attributes.window_size),
        has_window_cache=bool(attributes.window_cache),
        is_interleaved=is_rotated and bool(attributes.interleaved),
        is_partly_rotated=is_rotated and attributes.rotary_embedding_dim != attributes.head_dim,
        q_norm=_norm_form(attributes.norm("q")),
        k_norm=_norm_form(attributes.norm("k")),
        zero_nan=attributes.zero_nan,
        literals=numbers if has_literals else (),
        core=core,
    )


def _norm_form(norm: Norm) -> NormForm:
    return _NO_NORM if norm.kind == "none" else NormForm(norm.kind, norm.over_heads)


def neutral(operand: str, attributes: BlockAttributes) -> NDArray[np.generic]:
    """Return a constant for an operand that this block lacks and others of its body have.

    Raises: InvalidBlock for an operand that has no neutral value.
    """
    dims = attributes.dims()
    match operand:
        case "attn_bias" | "mask_fill":
            return np.zeros((), np.float32)
        case "attn_mask":
            return np.ones((), np.bool_)
        case "sinks":
            return np.full(attributes.num_heads, -np.inf, np.float32)
        case "qkv_bias" | "q_bias" | "k_bias" | "v_bias":
            return np.zeros(dims[operand.replace("bias", "columns")], np.float32)
        case "out_bias":
            return np.zeros(attributes.out_size, np.float32)
    raise InvalidBlock(f"operand {operand} has no neutral value")
