"""Folding: values that are the same in every run, as arrays. Weights are read only on request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_fuse.analysis.dims.dim import product
from onnx_fuse.analysis.shapes.arithmetic import Array, is_tiny
from onnx_fuse.analysis.shapes.engine import Engine
from onnx_fuse.analysis.shapes.facts import CallFacts, as_ints
from onnx_fuse.analysis.shapes.fold_rules import (
    FOLDS,
    KEEPS_SIZE,
    Known,
    folded,
)
from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.graph import Node, Value

__all__ = ["Array", "Folder", "cut_into_sequence"]

_SMALL = 1 << 20
"""Bytes up to which a result may be larger than its inputs, and up to which it is kept."""


class Folder:
    """Constants of one model."""

    def __init__(self, engine: Engine):
        """Fold with the facts of `engine`."""
        self._engine = engine
        self._foldable: dict[Value, bool] = {}
        self._kept: dict[Value, Array] = {}
        engine.folded = self._result

    def is_constant(self, value: Value) -> bool:
        """Return whether the value can be folded, as far as shapes and types tell."""
        stack = [value]
        opened: dict[Value, None] = {}
        while stack:
            top = stack[-1]
            answer = self._foldable.get(top)
            if answer is None:
                answer = self._judged(top)
            if answer is None and top.producer is not None:
                inputs = [item for item in _read(top.producer) if item is not None]
                waiting = [item for item in inputs if item not in self._foldable]
                if waiting and top not in opened:
                    opened[top] = None
                    stack.extend(waiting)
                    continue
                answer = self._is_foldable(top, top.producer)
            self._foldable[top] = bool(answer)
            stack.pop()
        return self._foldable[value]

    def _judged(self, value: Value) -> bool | None:
        """Return the answer, if it doesn't depend on whether the producer's inputs are constant."""
        if value.constant is not None:
            return True
        fact = self._engine.fact(value)
        if (
            fact.dtype is not None
            and fact.content is not None
            and as_ints(fact.content) is not None
        ):
            return True
        node = value.producer
        if node is None or fact.shape is None or fact.dtype is None or node.op not in FOLDS:
            return False
        if product(fact.extents).as_int() is None or node.subgraph_of:
            return False
        if node.op in ("Cast", "CastLike") and is_tiny(
            onnx.helper.tensor_dtype_to_np_dtype(fact.dtype)
        ):
            return False
        cut = cut_into_sequence(node)
        refers = node.graph.function is not None and any(
            isinstance(item, AttributeRef)
            for read in (node, cut)
            if read is not None
            for item in read.attributes.values()
        )
        return False if refers else None

    def _is_foldable(self, value: Value, node: Node) -> bool:
        inputs = [item for item in _read(node) if item is not None]
        if not all(self._foldable.get(item, False) for item in inputs):
            return False
        if node.op == "Dropout" and any(np.any(self.constant(flag)) for flag in inputs[2:]):
            return False
        size = self._bytes(value)
        if node.op in KEEPS_SIZE:
            return size <= max(_SMALL, 8 * max(map(self._bytes, inputs), default=0))
        if size > _SMALL or sum(map(self._bytes, inputs)) > _SMALL:
            return False
        # Most of these have settings that aren't folded: trying tells, and costs little.
        found = {item: self.constant(item) for item in inputs}
        known = {item: array for item, array in found.items() if array is not None}
        return len(known) == len(found) and self._folded(value, node, known) is not None

    def _bytes(self, value: Value) -> int:
        fact = self._engine.fact(value)
        count = 0 if fact.shape is None else product(fact.extents).as_int() or 0
        if fact.dtype in (None, onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            return count
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(fact.dtype).itemsize)

    def constant(self, value: Value) -> Array | None:
        """Return the value's array, None if it cannot be folded."""
        if not self.is_constant(value):
            return None
        found: dict[Value, Array] = {}
        stack = [value]
        while stack:
            top = stack[-1]
            if top in found:
                stack.pop()
                continue
            array = self._at_hand(top)
            if array is None:
                node = top.producer
                assert node is not None
                waiting = [v for v in _read(node) if v is not None and v not in found]
                if waiting:
                    stack.extend(waiting)
                    continue
                array = self._folded(top, node, found)
                if array is None:
                    self._foldable[value] = self._foldable[top] = False
                    return None
            found[top] = array
        return found[value]

    def _result(self, call: CallFacts) -> Array | None:
        """Return what a node whose inputs are small constants computes first."""
        inputs = [value for value in _read(call.node) if value is not None]
        if call.node.op not in FOLDS or not all(map(self.is_constant, inputs)):
            return None
        if sum(map(self._bytes, inputs)) > _SMALL:
            return None
        arrays = [None if value is None else self.constant(value) for value in _read(call.node)]
        results = _computed(call, arrays)
        return np.asarray(results[0]) if results else None

    def _at_hand(self, value: Value) -> Array | None:
        """Return the array of a constant, of something kept, or of known integers."""
        if value.constant is not None:
            return value.constant.numpy()
        if value in self._kept:
            return self._kept[value]
        fact = self._engine.fact(value)
        numbers = None if fact.content is None else as_ints(fact.content)
        if fact.content is None or numbers is None or fact.dtype is None:
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(fact.dtype)
        return _sealed(np.array(numbers, dtype=dtype).reshape(fact.content.shape))

    def _folded(self, value: Value, node: Node, found: dict[Value, Array]) -> Array | None:
        arrays = [None if item is None else found[item] for item in _read(node)]
        facts = tuple(None if item is None else self._engine.fact(item) for item in node.inputs)
        call = CallFacts(node, facts, self._engine.opset(node))
        result = self._checked(value, _computed(call, arrays), node.outputs.index(value))
        if result is not None and result.nbytes <= _SMALL:
            self._kept[value] = result
        return result

    def _checked(self, value: Value, results: Sequence[Array], index: int) -> Array | None:
        fact = self._engine.fact(value)
        if index >= len(results) or fact.dtype is None:
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(fact.dtype)
        result = np.asarray(results[index])
        return _sealed(result if result.dtype == dtype else result.astype(dtype))


def cut_into_sequence(node: Node) -> Node | None:
    """Return the SplitToSequence that makes the sequence of which a SequenceAt gives an element."""
    sequence = node.input(0) if node.op == "SequenceAt" else None
    cut = None if sequence is None else sequence.producer
    return cut if cut is not None and cut.op == "SplitToSequence" else None


def _computed(call: CallFacts, arrays: Sequence[Array | None]) -> Sequence[Array]:
    """Return what a node computes of arrays: nothing if it isn't folded."""
    cut = cut_into_sequence(call.node)
    attributes = call.attributes if cut is None else cut.attributes
    if call.node.op == "CastLike":
        attributes = {"to": call.dtype(1)}
    return folded(Known(call.node.op, arrays, attributes, call.opset, len(call.node.outputs)))


def _read(node: Node) -> Sequence[Value | None]:
    """Return the inputs whose numbers are read.

    Of what a CastLike imitates it is only the type; no sequence is, but what it was cut from.
    """
    if node.op == "CastLike":
        return node.inputs[:1]
    cut = cut_into_sequence(node)
    return node.inputs if cut is None else (*node.inputs[1:], *cut.inputs)


def _sealed(array: Array) -> Array:
    sealed = array.view()
    sealed.flags.writeable = False
    return sealed
