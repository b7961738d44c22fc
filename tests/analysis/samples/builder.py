"""Writes small ONNX graphs node by node; a value is its name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Extent = int | str | tuple[int | str, ...]  # a number, a symbol, or a product of them

_REDUCE_TAKES_AXES = 18  # from this opset on every reduction but ReduceSum has its axes as an input


class Builder:
    """A graph under construction.

    `sizes` are the extents that symbols have in the feeds. Of them those in `dynamic` are unknown
    to the model, which then reads them from its inputs' shapes at run time, as exporters do.
    """

    def __init__(self, sizes: dict[str, int], dynamic: Sequence[str] = (), opset: int = 17) -> None:
        self.sizes = sizes
        self.dynamic = frozenset(dynamic)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, Array] = {}
        self._where: dict[str, tuple[str, int]] = {}

    def input(self, name: str, data: Array, dims: Sequence[int | str]) -> str:
        """Add a graph input of these extents, fed with `data`."""
        shape = [d if isinstance(d, str) and d in self.dynamic else self._number(d) for d in dims]
        dtype = helper.np_dtype_to_tensor_dtype(data.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self.feeds[name] = data
        for axis, dim in enumerate(shape):
            if isinstance(dim, str):
                self._where.setdefault(dim, (name, axis))
        return name

    def const(self, data: Any, dtype: Any = None) -> str:
        """Add an initializer."""
        array = np.asarray(data, dtype=dtype)
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def scalar(self, number: float) -> str:
        """Add a float32 initializer of rank 0."""
        return self.const(number, np.float32)

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output and return its name."""
        return self.ops(op_type, *inputs, count=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, count: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node of `count` outputs and return their names."""
        number = len(self.nodes)
        outputs = [f"v{number}_{position}" for position in range(count)]
        name = f"{op_type}_{number}"
        self.nodes.append(
            helper.make_node(op_type, inputs, outputs, name, domain=domain, **attributes)
        )
        return outputs

    def extent(self, symbol: str) -> str:
        """Return a (1,) int64 value that holds a dynamic extent."""
        name, axis = self._where[symbol]
        return self.op("Gather", self.op("Shape", name), self.const([axis], np.int64), axis=0)

    def shape(self, dims: Sequence[Extent]) -> str:
        """Return a shape tensor: constant where it can be, else computed."""
        factors = [dim if isinstance(dim, tuple) else (dim,) for dim in dims]
        if not any(f in self.dynamic for dim in factors for f in dim):
            return self.const([self._product(dim) for dim in factors], np.int64)
        return self.op("Concat", *(self._extent(dim) for dim in factors), axis=0)

    def reshape(self, value: str, *dims: Extent) -> str:
        """Add a Reshape."""
        return self.op("Reshape", value, self.shape(dims))

    def transpose(self, value: str, *perm: int) -> str:
        """Add a Transpose."""
        return self.op("Transpose", value, perm=list(perm))

    def unsqueeze(self, value: str, *axes: int) -> str:
        """Add an Unsqueeze."""
        return self.op("Unsqueeze", value, self.const(list(axes), np.int64))

    def slice(self, value: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        """Add a Slice of one axis."""
        bounds = [self.const([n], np.int64) for n in (start, stop, axis, step)]
        return self.op("Slice", value, *bounds)

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Add a Split."""
        parts = self.const(list(sizes), np.int64)
        return self.ops("Split", value, parts, count=len(sizes), axis=axis)

    def reduce(self, op_type: str, value: str, axis: int) -> str:
        """Add a reduction that keeps its axis."""
        if op_type == "ReduceSum" or self.opset >= _REDUCE_TAKES_AXES:
            return self.op(op_type, value, self.const([axis], np.int64), keepdims=1)
        return self.op(op_type, value, axes=[axis], keepdims=1)

    def model(
        self, *outputs: str, rank: int = 3, dtype: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        """Return the model; of its outputs nothing but type and rank is declared."""
        made = [helper.make_tensor_value_info(name, dtype, [None] * rank) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, made, self.initializers)
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in domains]
        # onnxruntime 1.17 reads IR 9 and opset 20.
        ir_version = 9 if self.opset <= 20 else 10
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)

    def _number(self, dim: int | str) -> int:
        return self.sizes[dim] if isinstance(dim, str) else dim

    def _product(self, dim: tuple[int | str, ...]) -> int:
        return int(np.prod([self._number(factor) for factor in dim]))

    def _extent(self, dim: tuple[int | str, ...]) -> str:
        unknown = [factor for factor in dim if factor in self.dynamic]
        known = self._product(tuple(factor for factor in dim if factor not in self.dynamic))
        parts = [self.extent(str(factor)) for factor in unknown]
        if known != 1 or not parts:
            parts.append(self.const([known], np.int64))
        return reduce(lambda total, part: self.op("Mul", total, part), parts)
