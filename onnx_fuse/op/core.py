"""The operator that already computed a block's attention, which the block's body keeps.

Where the library isn't registered, a model that was written with such an operator runs with it as
before: at its speed, and to the bit as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum


class Takes(Enum):
    """How such an operator takes a query, key or value."""

    HEADS = "(batch, heads, seq, size)"
    ROWS = "(batch, seq, heads * size)"
    SOURCE = "(batch, seq, hidden_size), with the packed weight and bias for all three"


@dataclass(frozen=True)
class Core:
    """An attention operator as it stands between the projections.

    inputs: what it reads behind query, key and value (with `SOURCE` behind weight and bias): an
    operand's name, "" for nothing, or a name of its own for what the block's node gets behind its
    operands. attributes: the operator's own, but `scale`, which is the block's. joins: whether it
    joins a past with keys and values itself, and returns what it joined. value_width: columns of a
    value in rows, if the operator has to be told: onnxruntime infers a result of 0 columns for the
    standard's Attention where it doesn't know them, and refuses what reads it. repeats: whether it
    has a key and a value for each query head, so that a block's fewer ones are repeated before it.
    """

    domain: str
    op_type: str
    query: Takes
    key_value: Takes
    inputs: tuple[str, ...]
    attributes: tuple[tuple[str, object], ...]
    joins: bool
    value_width: int = 0
    repeats: bool = False

    def extras(self, operands: Collection[str]) -> tuple[str, ...]:
        """Return the inputs that are none of the block's operands."""
        return tuple(name for name in self.inputs if name and name not in operands)
