"""Chains of attention blocks as exporters write them, and as onnxruntime's own operators.

Each block reads what the one before it computed, and has weights of its own: a run of the chain
finds them where a run of a model does. All forms of a chain compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.errors import InvalidOption

Array = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

BLOCKS = 6
LONGEST = 4096  # positions that the tables of the rotation have
_OPSET = 17
_IR_VERSION = 8  # the newest that onnxruntime 1.17 reads
_WAVELENGTH = 10_000.0  # of the slowest rotation, over 2 pi (Su et al. 2021, 3.2.2)


@dataclass(frozen=True)
class BlockShape:
    """What the blocks of a chain look like. Raises: InvalidOption if no block does."""

    hidden_size: int
    num_heads: int
    rope: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size < 1 or self.hidden_size % self.num_heads:
            raise InvalidOption(
                f"a block of {self}: the hidden size must be a multiple of the number of heads"
            )
        if self.rope and self.head_dim % 2:
            raise InvalidOption(f"a block of {self}: heads of odd size cannot be rotated")

    def __str__(self) -> str:
        return f"{self.hidden_size}x{self.num_heads}{' rope' if self.rope else ''}"

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_heads

    @property
    def weight_elements(self) -> int:
        """Elements of the four weights of one block."""
        return 4 * self.hidden_size**2


@dataclass(frozen=True)
class Block:
    """One block's weights, (hidden_size, hidden_size) each, and biases, (hidden_size,) each.

    In the order query, key, value, output.
    """

    weights: tuple[Array, Array, Array, Array]
    biases: tuple[Array, Array, Array, Array]


def make_blocks(shape: BlockShape) -> list[Block]:
    """Return blocks with random weights under which activations keep their magnitude."""
    rng = np.random.default_rng(shape.hidden_size)
    size = shape.hidden_size

    def four(*dims: int, scale: float) -> tuple[Array, Array, Array, Array]:
        q, k, v, out = (rng.standard_normal(dims, np.float32) * np.float32(scale) for _ in range(4))
        return q, k, v, out

    return [Block(four(size, size, scale=size**-0.5), four(size, scale=0.5)) for _ in range(BLOCKS)]


def make_feeds(shape: BlockShape, batch: int, seq: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return inputs: hidden (batch, seq, hidden_size), with rope position_ids (batch, seq)."""
    rng = np.random.default_rng(seq)
    hidden = rng.standard_normal((batch, seq, shape.hidden_size), np.float32)
    if not shape.rope:
        return {"hidden": hidden}
    return {"hidden": hidden, "position_ids": np.tile(np.arange(seq), (batch, 1))}


def make_reference(shape: BlockShape, blocks: Sequence[Block], hidden: Array) -> Exact:
    """Return what the chain computes, in float64: (batch, seq, hidden_size)."""
    state = hidden.astype(np.float64)
    batch, seq, size = state.shape
    cos, sin = (np.tile(table[:seq], 2) for table in _tables(shape))
    for block in blocks:
        wq, wk, wv, wo = (weight.astype(np.float64) for weight in block.weights)
        bq, bk, bv, bo = block.biases
        q, k, v = (
            (state @ w + b).reshape(batch, seq, shape.num_heads, -1).swapaxes(1, 2)
            for w, b in ((wq, bq), (wk, bk), (wv, bv))
        )
        if shape.rope:
            q, k = (x * cos + _rotated(x) * sin for x in (q, k))
        merged = np.empty((batch, shape.num_heads, seq, shape.head_dim))
        for head in range(shape.num_heads):  # one by one: all scores at once may be gigabytes
            scores = q[:, head] @ k[:, head].swapaxes(1, 2) / math.sqrt(shape.head_dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            merged[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
        state = merged.swapaxes(1, 2).reshape(batch, seq, size) @ wo + bo
    return state


def _rotated(x: Exact) -> Exact:
    half = x.shape[-1] // 2
    return np.concatenate((-x[..., half:], x[..., :half]), -1)


def _tables(shape: BlockShape) -> tuple[Exact, Exact]:
    """Return cosines and sines, (LONGEST, head_dim / 2) each."""
    half = max(1, shape.head_dim // 2)
    angles = np.outer(np.arange(LONGEST), _WAVELENGTH ** -(np.arange(half) / half))
    return np.cos(angles), np.sin(angles)


class _Chain:
    """Collects the nodes and initializers of a model."""

    def __init__(self, shape: BlockShape) -> None:
        self.shape = shape
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output, and return that."""
        name = f"{op.lower()}_{len(self._nodes)}"
        node = helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Return an initializer with this value; a name stands for one value."""
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def linear(self, x: str, name: str, weight: Array, bias: Array) -> str:
        """Append x @ weight + bias."""
        product = self.add("MatMul", x, self.constant(f"{name}.weight", weight))
        return self.add("Add", self.constant(f"{name}.bias", bias), product)

    def finish(self, output: str) -> onnx.ModelProto:
        """Return the model whose output is this value, with open batch and seq."""
        size = self.shape.hidden_size
        open_dims: list[str | int] = ["batch", "seq", size]
        inputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, open_dims)]
        if self.shape.rope:
            dims = open_dims[:2]
            inputs.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, dims))
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, open_dims)
        graph = helper.make_graph(
            self._nodes, "chain", inputs, [result], initializer=list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def exporter_chain(shape: BlockShape, blocks: Sequence[Block]) -> onnx.ModelProto:
    """Return a chain of standard operators, one by one, as exporters write them."""
    chain = _Chain(shape)
    split = chain.constant("split", np.array([0, 0, shape.num_heads, shape.head_dim]))
    merge = chain.constant("merge", np.array([0, 0, shape.hidden_size]))
    divisor = chain.constant("divisor", np.float32(math.sqrt(shape.head_dim)))
    rotate = _exported_rotation(chain) if shape.rope else None
    state = "hidden"
    for index, block in enumerate(blocks):
        q, k, v = (
            chain.add("Transpose", chain.add("Reshape", projected, split), perm=perm)
            for projected, perm in zip(
                _projections(chain, state, index, block),
                ([0, 2, 1, 3], [0, 2, 1, 3] if rotate else [0, 2, 3, 1], [0, 2, 1, 3]),
                strict=True,
            )
        )
        if rotate is not None:
            q, k = rotate(q), chain.add("Transpose", rotate(k), perm=[0, 1, 3, 2])
        scores = chain.add("Div", chain.add("MatMul", q, k), divisor)
        context = chain.add("MatMul", chain.add("Softmax", scores, axis=-1), v)
        merged = chain.add("Reshape", chain.add("Transpose", context, perm=[0, 2, 1, 3]), merge)
        state = chain.linear(merged, f"{index}.output", block.weights[3], block.biases[3])
    return chain.finish(state)


def _projections(chain: _Chain, state: str, index: int, block: Block) -> list[str]:
    return [
        chain.linear(state, f"{index}.{part}", block.weights[i], block.biases[i])
        for i, part in enumerate(("query", "key", "value"))
    ]


def _exported_rotation(chain: _Chain) -> Callable[[str], str]:
    """Return a value (batch, num_heads, seq, head_dim) rotated, its tables looked up once."""
    axis, half = chain.constant("axis", np.array([3])), chain.shape.head_dim // 2
    start, middle, end = (chain.constant(f"at{i}", np.array([i])) for i in (0, half, 2 * half))
    tables = []
    for name, table in zip(("cos", "sin"), _tables(chain.shape), strict=True):
        rows = chain.constant(name, np.tile(table, 2).astype(np.float32))
        one = chain.constant("one", np.array([1]))
        tables.append(chain.add("Unsqueeze", chain.add("Gather", rows, "position_ids"), one))

    def rotate(x: str) -> str:
        first = chain.add("Slice", x, start, middle, axis)
        second = chain.add("Neg", chain.add("Slice", x, middle, end, axis))
        turned = chain.add("Concat", second, first, axis=-1)
        straight = chain.add("Mul", x, tables[0])
        return chain.add("Add", straight, chain.add("Mul", turned, tables[1]))

    return rotate


def attention_chain(shape: BlockShape, blocks: Sequence[Block]) -> onnx.ModelProto:
    """Return a chain of com.microsoft Attention, which packs the first three projections."""
    chain = _Chain(shape)
    state = "hidden"
    for index, block in enumerate(blocks):
        packed = chain.constant(f"{index}.weight", np.concatenate(block.weights[:3], axis=1))
        bias = chain.constant(f"{index}.bias", np.concatenate(block.biases[:3]))
        state = chain.add(
            "Attention", state, packed, bias, domain="com.microsoft", num_heads=shape.num_heads
        )
        state = chain.linear(state, f"{index}.output", block.weights[3], block.biases[3])
    return chain.finish(state)


def multi_head_chain(shape: BlockShape, blocks: Sequence[Block]) -> onnx.ModelProto:
    """Return a chain of com.microsoft MultiHeadAttention, with rope also RotaryEmbedding."""
    chain = _Chain(shape)
    cos, sin = _tables(shape)
    state = "hidden"
    for index, block in enumerate(blocks):
        q, k, v = _projections(chain, state, index, block)
        if shape.rope:
            tables = (
                chain.constant("cos", cos.astype(np.float32)),
                chain.constant("sin", sin.astype(np.float32)),
            )
            q, k = (
                chain.add(
                    "RotaryEmbedding",
                    *(x, "position_ids", *tables),
                    domain="com.microsoft",
                    num_heads=shape.num_heads,
                )
                for x in (q, k)
            )
        state = chain.add(
            "MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=shape.num_heads
        )
        state = chain.linear(state, f"{index}.output", block.weights[3], block.biases[3])
    return chain.finish(state)
