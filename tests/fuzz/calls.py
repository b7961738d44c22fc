"""Graphs of one attention operator, with any of its inputs and attributes, and projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

BATCH, HIDDEN, NUM_HEADS, HEAD_DIM = 2, 16, 2, 8
WIDTH = NUM_HEADS * HEAD_DIM
LOWEST = float(np.finfo(np.float32).min)
FILLS = (-np.inf, LOWEST, -1e9, -1e4, 0.5)
MICROSOFT = "com.microsoft"


@dataclass
class _Writer:
    """Collects a graph. Extents that vary have names; a constant mask needs numbers."""

    random: Random
    sizes: Mapping[str, int]
    is_dynamic: bool
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.random.randrange(1 << 30))

    def maybe(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def normal(self, *shape: int) -> Array:
        return self.numbers.standard_normal(shape).astype(np.float32)

    def given(self, name: str, *dims: int | str, dtype: int = TensorProto.FLOAT) -> str:
        known = [dim if self.is_dynamic else self.sizes.get(str(dim), dim) for dim in dims]
        self.inputs.append(helper.make_tensor_value_info(name, dtype, known))
        return name

    def constant(self, data: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(data, name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, [*inputs], [name], **attributes))
        return name

    def projected(self, source: str) -> str:
        made = self.op("MatMul", source, self.constant(self.normal(HIDDEN, WIDTH) / np.float32(3)))
        if self.maybe():
            made = self.op("Add", made, self.constant(self.normal(WIDTH)))
        if self.maybe(0.2):
            factor = self.random.choice((-0.5, 0.0, 2.0))
            made = self.op("Mul", made, self.constant(np.array(factor, np.float32)))
        return made

    def mask(self, columns: int) -> Array:
        """Return numbers to add, (1, 1, rows, columns), of which some rows hide everything."""
        shape = (1, 1, self.sizes["S"], columns)
        hidden = self.numbers.random(shape) < self.random.choice((0.3, 0.8))
        hidden[:, :, 0] |= self.maybe()
        return np.where(hidden, np.float32(self.random.choice(FILLS)), self.normal(*shape))

    def past(self) -> list[str]:
        dims = ("B", NUM_HEADS, "P", HEAD_DIM)
        return [self.given(name, *dims) for name in ("past_key", "past_value")]


def called(random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a graph of an operator's call, and what the call is."""
    rows = random.choice((1, 4))
    sizes = {"B": BATCH, "S": rows, "T": random.choice((1, 3, rows)), "P": random.choice((1, 3))}
    w = _Writer(random, sizes, random.random() < 0.4)
    x = w.given("x", "B", "S", HIDDEN)
    op_type, domain, inputs, attributes, count = random.choice((_standard, _multi_head))(w, x)
    while inputs and not inputs[-1]:
        inputs.pop()
    outputs = ["attended", "present_key", "present_value"][:count]
    node = helper.make_node(op_type, inputs, outputs, domain=domain, **attributes)
    w.nodes.append(node)
    outputs[0] = w.op("MatMul", "attended", w.constant(w.normal(WIDTH, HIDDEN)))
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(w.nodes, "g", w.inputs, shown, w.constants)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), str(node.op_type)


_Made = tuple[str, str, list[str], dict[str, Any], int]


def _sources(w: _Writer, x: str) -> tuple[Sequence[str], int]:
    """Return queries, keys and values, and how many keys are new."""
    is_cross = w.maybe(0.3)
    context = w.given("context", "B", "T", HIDDEN) if is_cross else x
    return [*map(w.projected, (x, context, context))], w.sizes["T" if is_cross else "S"]


def _standard(w: _Writer, x: str) -> _Made:
    parts, new = _sources(w, x)
    attributes: dict[str, Any] = dict.fromkeys(("q_num_heads", "kv_num_heads"), NUM_HEADS)
    attributes |= {"is_causal": 1} if w.maybe() else {}
    attributes |= {"softcap": 2.0} if w.maybe(0.3) else {}
    past = w.past() if w.maybe() else ["", ""]
    columns = new + (w.sizes["P"] if past[0] else 0)
    mask = w.constant(w.mask(columns)) if not w.is_dynamic and w.maybe() else ""
    return "Attention", "", [*parts, mask, *past], attributes, 3 if past[0] else 1


def _multi_head(w: _Writer, x: str) -> _Made:
    parts, new = _sources(w, x)
    attributes: dict[str, Any] = {"num_heads": NUM_HEADS}
    attributes |= {"unidirectional": 1} if w.maybe() else {}
    attributes |= {"mask_filter_value": w.random.choice(FILLS)} if w.maybe() else {}
    past = w.past() if w.maybe() else ["", ""]
    columns = new + (w.sizes["P"] if past[0] else 0)
    shown = (w.numbers.random((BATCH, columns)) > 0.5).astype(np.int32)
    is_static = not w.is_dynamic
    padding = w.constant(shown) if is_static and w.maybe() else ""
    added = w.constant(w.mask(columns)) if is_static and w.maybe() else ""
    inputs = [*parts, "", padding, added, *past]
    return "MultiHeadAttention", MICROSOFT, inputs, attributes, 3 if past[0] else 1
