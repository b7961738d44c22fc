"""The attributes of one node: their way to ONNX and back, and the sizes that they decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnx_fuse.op.layout import panel_count
from onnx_fuse.op.schema import ATTRIBUTES, InvalidBlock, in_order


class Norm(NamedTuple):
    """The norm of the query or of the key."""

    kind: str
    over_heads: bool
    epsilon: float


NO_NORM = Norm("none", False, 0.0)


@dataclass(frozen=True)
class BlockAttributes:
    """The attributes of one node, except `operands`. See ATTRIBUTES for what each one means."""

    num_heads: int
    kv_num_heads: int
    head_dim: int
    v_head_dim: int
    out_size: int
    scale: float
    softcap: float = 0.0
    is_causal: int = 0
    window_size: int = 0
    window_cache: int = 0
    interleaved: int = 0
    rotary_embedding_dim: int = 0
    q_norm: str = "none"
    k_norm: str = "none"
    q_norm_over_heads: int = 0
    k_norm_over_heads: int = 0
    q_norm_epsilon: float = 0.0
    k_norm_epsilon: float = 0.0
    zero_nan: int = 0
    precision: str = "fp32"

    def to_onnx(
        self, operands: Iterable[str], extras: Iterable[str] = ()
    ) -> dict[str, int | float | str]:
        """Return all attributes of a node with these operands, which may come in any order.

        `extras` name the inputs behind them that the function body alone reads.
        """
        names = (*in_order(operands), *extras)
        named: dict[str, int | float | str] = {"operands": ",".join(names)}
        for row in ATTRIBUTES:
            named[row.name] = row.type(getattr(self, row.name))
        return named

    @staticmethod
    def from_onnx(attributes: Mapping[str, Any]) -> BlockAttributes:
        """Return the attributes of a node; `operands` and unknown ones are passed over.

        Raises: InvalidBlock if one is missing or of another type.
        """
        found: dict[str, Any] = {}
        for row in ATTRIBUTES:
            if row.name not in attributes:
                raise InvalidBlock(f"attribute {row.name} is missing")
            value = attributes[row.name]
            if type(value) is not row.type:
                expected = row.type.__name__
                raise InvalidBlock(f"attribute {row.name} is {value!r}, not of type {expected}")
            found[row.name] = value
        return BlockAttributes(**found)

    def norm(self, part: str) -> Norm:
        """Return the norm of part "q" or "k"."""
        kind, over_heads, epsilon = (
            getattr(self, f"{part}_norm{end}") for end in ("", "_over_heads", "_epsilon")
        )
        return Norm(kind, bool(over_heads), epsilon)

    def dims(self) -> dict[str, int]:
        """Return the value of each dim name that the attributes decide."""
        q_columns = self.num_heads * self.head_dim
        k_columns = self.kv_num_heads * self.head_dim
        v_columns = self.kv_num_heads * self.v_head_dim
        columns = {
            "q": q_columns,
            "k": k_columns,
            "v": v_columns,
            "qkv": q_columns + k_columns + v_columns,
        }
        names = ("num_heads", "kv_num_heads", "head_dim", "v_head_dim", "rotary_embedding_dim")
        return {
            **{name: getattr(self, name) for name in names},
            **{f"{name}_columns": count for name, count in columns.items()},
            **{f"{name}_panels": panel_count(count) for name, count in columns.items()},
            "half_rotary_dim": self.rotary_embedding_dim // 2,
            "out_size": self.out_size,
            "out_panels": panel_count(self.out_size),
            "merged_size": self.num_heads * self.v_head_dim,
        }
