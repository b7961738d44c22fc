"""The attention block as a record: all that the fused operator needs, and what it replaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    Lanes,
    Lookup,
    Range,
    every_value,
    index_atoms,
)
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Expr, leaves
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.linear import LinearMap
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.masking import Masking
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.op.core import Core
from onnx_fuse.report import Kind


@dataclass(frozen=True)
class Weight:
    """A matrix to be gathered lazily from the graph's constants.

    `parts` are the maps side by side, each with its columns: the values of its column atoms.
    """

    parts: tuple[tuple[LinearMap, Lanes], ...]

    @property
    def columns(self) -> int:
        """Number of columns."""
        return sum(lanes.count for _, lanes in self.parts)

    @property
    def rows(self) -> int:
        """Number of rows."""
        summed = index_atoms(self.parts[0][0].summed)
        return math.prod(atom.extent.as_int() or 0 for atom in summed)

    def matrix(self, shapes: Facts) -> np.ndarray:
        """Return (rows, columns), float32."""
        return np.concatenate([part.matrix(shapes, lanes) for part, lanes in self.parts], axis=1)

    def bias(self, shapes: Facts) -> np.ndarray | None:
        """Return (columns,), float32, or None if no part has a bias."""
        found = [part.bias(shapes, lanes) for part, lanes in self.parts]
        if all(bias is None for bias in found):
            return None
        return np.concatenate(
            [
                np.zeros(lanes.count, dtype=np.float32) if bias is None else bias
                for bias, (_, lanes) in zip(found, self.parts, strict=True)
            ]
        )

    @property
    def repeats(self) -> bool:
        """Whether it has columns several times: for heads that share them."""
        return any(
            lane.any() and atom not in part.column_atoms
            for part, lanes in self.parts
            for atom, lane in lanes.values.items()
        )

    @property
    def graph(self) -> Graph:
        """The innermost graph of the constants: all who read them see what stands there."""
        maps = [each for part, _ in self.parts for each in part.each]
        values = [part.weight.value for part in maps]
        values += [step.constant.value for part in maps for step in (*part.steps, *part.row_scales)]
        return max((value.graph for value in values), key=lambda graph: graph.depth)

    def key(self) -> tuple[object, ...]:
        """Identity of the content: the same key, the same matrix."""
        return tuple(_map_key(part, lanes) for part, lanes in self.parts)


def _map_key(part: LinearMap, lanes: Lanes) -> tuple[object, ...]:
    """Describe a map, whose columns are at these lanes."""
    inner = every_value(index_atoms(part.summed))
    return (
        id(part.weight.value),
        part.alpha,
        _lanes_key(part.weight.index, part, lanes),
        tuple(
            (
                step.op,
                step.factor,
                step.epsilon,
                id(step.constant.value),
                _lanes_key(step.constant.index, part, lanes),
            )
            for step in (*part.row_scales, *part.steps)
        ),
        len(part.steps),
        lanes.count,
        part.outer,
        None if part.before is None else _map_key(part.before, inner),
        tuple(_map_key(other, lanes) for other in part.others),
    )


def _lanes_key(index: Index, part: LinearMap, lanes: Lanes) -> tuple[object, ...]:
    """Describe where an index points, without the identity of atoms."""
    rows = {atom: position for position, atom in enumerate(index_atoms(part.summed))}

    def axis_key(axis: Axis) -> tuple[object, ...]:
        return tuple((str(digit.extent), digit_key(digit)) for digit in axis)

    def digit_key(digit: Digit) -> object:
        match digit:
            case Atom():
                return ("row", rows[digit]) if digit in rows else lanes.values[digit].tobytes()
            case Fixed():
                return ("fixed", digit.index.shape, digit.index.tobytes())
            case Range():
                return ("range", str(digit.start), digit.step, axis_key(digit.inner))
            case Lookup():
                return ("lookup", digit.table.tobytes(), axis_key(digit.inner))

    return tuple(axis_key(axis) for axis in index)


@dataclass(frozen=True)
class NormRecord:
    """A q/k norm with its scale and shift by (heads, head_dim), float32."""

    kind: str
    over_heads: bool
    epsilon: float
    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True)
class Result:
    """What an output of the operator becomes: a tensor, or one of the two parts of a tensor.

    `axes` are the operator's own, as (batch, kv_num_heads, total_seq, head_dim).
    """

    ref: Ref | None  # None where nobody wants it
    axes: tuple[Axis, ...]

    @property
    def stack_axis(self) -> int | None:
        """The axis along which the two parts are stacked; None for a whole tensor."""
        index = () if self.ref is None else self.ref.index
        return next((at for at, axis in enumerate(index) if _part(axis) is not None), None)

    @property
    def part(self) -> int:
        """Which of the two parts it is; 0 for a whole tensor."""
        at = self.stack_axis
        return 0 if self.ref is None or at is None else _part(self.ref.index[at]) or 0

    @property
    def part_index(self) -> Index:
        """The index of the tensor, or of the part as a slice of extent 1."""
        index = () if self.ref is None else self.ref.index
        return tuple(() if _part(axis) is not None else axis for axis in index)


def _part(axis: Axis) -> int | None:
    """Return which half an axis of two stands at; None if it is no such axis."""
    digit = axis[0] if len(axis) == 1 else None
    if not isinstance(digit, Fixed) or digit.extent.as_int() != 2:
        return None
    return int(digit.index)


def _leaves(exprs: Iterable[Expr | None]) -> list[Value]:
    """Return what the expressions that are there are computed from."""
    return [value for expr in exprs if expr is not None for value in leaves(expr)]


@dataclass(frozen=True)
class AttentionBlock:
    """One attention block: what the operator needs to know, and what it replaces.

    Sources and values are expressions, (batch, sequence, size) and (batch, heads, sequence, size);
    weights are gathered lazily into the operator's column order.
    """

    node: Node  # the softmax, or the operator that already was attention
    kind: Kind
    num_heads: int
    kv_num_heads: int
    head_dim: int
    v_head_dim: int
    batch: Dim
    q_seq: Dim
    sources: dict[str, Expr]
    weights: dict[str, Weight]
    products: dict[str, Value]  # what the graph makes where "q", "k" or "v" is projected here
    scores: tuple[Value, ...]  # products of queries and keys that the graph makes
    norms: dict[str, NormRecord]
    tables: dict[str, Expr]
    rotary_dim: int
    interleaved: bool
    scale: float
    softcap: float
    masking: Masking
    sinks: Expr | None
    zero_nan: int
    is_causal: bool
    window_size: int
    has_window_cache: bool
    gate: Expr | None  # (batch, q_seq, num_heads, v_head_dim), each full or 1
    out_weight: Weight | None
    output: Ref
    output_axes: tuple[Axis, ...]  # (batch, q_seq, columns) in the atoms of `output`
    output_factors: tuple[tuple[str, Expr], ...]  # ("Mul" | "Div", factor), in the output's layout
    presents: tuple[Result, ...]  # joined keys and values, or none
    attn_weights: Result | None
    replaced: Node  # the node that makes `output` today
    lengths: dict[str, Expr]  # and places: of a cache in a buffer
    core: Core | None  # the operator that already was attention, and what it reads beside Q, K, V
    core_inputs: tuple[Value | None, ...]
    extents: Extents = field(repr=False)

    @property
    def out_size(self) -> int:
        """Columns of the output projection; 0 without one."""
        return 0 if self.out_weight is None else self.out_weight.columns

    def projection(self, name: str) -> Weight:
        """Return the weight of "q", "k" or "v" alone."""
        packed = self.weights.get("qkv")
        return self.weights[name] if packed is None else Weight((packed.parts["qkv".index(name)],))

    @property
    def results(self) -> tuple[Result, ...]:
        """What the operator's outputs become, in their order."""
        shown = () if self.attn_weights is None else (self.attn_weights,)
        return (Result(self.output, self.output_axes), *self.presents, *shown)

    @property
    def attended(self) -> list[Value]:
        """What has to be made before the attention alone, but for constants and lengths."""
        mask = self.masking
        alone = (mask.bias, mask.keep, mask.fill, self.sinks)
        return _leaves((*self.sources.values(), *self.tables.values(), *alone))

    @property
    def read(self) -> list[Value]:
        """What has to be made before the operator, but for constants."""
        factors = [factor for _, factor in self.output_factors]
        kept = [value for value in self.core_inputs if value is not None]
        return self.attended + _leaves((*self.lengths.values(), self.gate, *factors)) + kept

    @property
    def rows(self) -> Dim:
        """Batch * q_seq: the rows of the hidden input."""
        return self.batch * self.q_seq


@dataclass(frozen=True)
class Site:
    """An attention site: its record, or why there is none, and what was gone through till then.

    `without` returns the block with some projections ("q", "k", "v") left outside: these enter as
    values. None if that is no block.
    """

    node: Node
    block: AttentionBlock | None
    declined: Declined | None
    trail: Trail = field(default_factory=Trail, repr=False)
    without: Callable[[Collection[str]], AttentionBlock | None] = field(
        default=lambda _: None, repr=False, compare=False
    )
