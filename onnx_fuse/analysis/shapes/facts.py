"""What shape inference knows of a value, and what a rule sees of a node."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.analysis.dims.order import broadcast
from onnx_fuse.analysis.known import all_known
from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.graph import Node

Content: TypeAlias = npt.NDArray[np.object_]
"""Integers of a small tensor: an array of `Dim`, and None for what is not known."""
Shape: TypeAlias = tuple[Dim, ...]
PartialShape: TypeAlias = Sequence[Dim | None]
"""A shape as a rule gives it; None where it does not know the extent."""

_MOST_AXES = 64
MAX_CONTENT = 64
"""Elements of the largest tensor whose content is followed."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of one value; None is "not known" everywhere."""

    shape: PartialShape | None = None
    dtype: int | None = None
    content: Content | None = None
    items: tuple[Fact, ...] | None = None
    """For a sequence: its elements."""

    @property
    def item(self) -> Dim | None:
        """The integer of a tensor of one element."""
        one: Dim | None = None
        if self.content is not None and self.content.size == 1:
            one = self.content.item()
        return one

    @property
    def extents(self) -> Shape:
        """The shape of a fact that the engine has completed, where every extent has a dim."""
        known = None if self.shape is None else all_known(self.shape)
        assert known is not None
        return tuple(known)


NOTHING = Fact()


@dataclass(frozen=True, slots=True)
class CallFacts:
    """A node with the facts of its inputs: all that a rule may look at."""

    node: Node
    inputs: tuple[Fact | None, ...]
    """One for each input slot; None for an input that is left out."""
    opset: int
    """Version of the node's domain."""
    bound: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the function call around the node."""

    def attr(self, name: str, default: Any = None) -> Any:
        """Return the attribute's value; `default` if the node does not have it."""
        value = self.node.attr(name, default)
        return self.bound.get(value.name, default) if isinstance(value, AttributeRef) else value

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that have values."""
        given = {name: self.attr(name) for name in self.node.attributes}
        return {name: value for name, value in given.items() if value is not None}

    def tensor_dtype(self, name: str) -> int | None:
        """Return the element type of an attribute that holds a tensor."""
        value = self.attr(name)
        return None if value is None else int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))

    def given_as_attribute(self, *names: str) -> bool:
        """Return whether the node has any of these attributes."""
        return any(self.attr(name) is not None for name in names)

    def has(self, index: int) -> bool:
        """Return whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def fact(self, index: int) -> Fact:
        """Return the fact of an input; nothing is known of one that is left out."""
        given = self.inputs[index] if index < len(self.inputs) else None
        return given if given is not None else NOTHING

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input."""
        fact = self.fact(index)
        return None if fact.shape is None else fact.extents

    def rank(self, index: int) -> int | None:
        """Return the rank of an input."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def length(self, index: int) -> int | None:
        """Return how many elements an input has, a vector that states a shape."""
        shape = self.shape(index)
        return shape[0].as_int() if shape else None

    def like(self, index: int, dtype: int | None = None) -> Fact:
        """Return a fact with the shape of an input, and its type or `dtype`."""
        fact = self.fact(index)
        return Fact(fact.shape, fact.dtype if dtype is None else dtype)

    def dtype(self, index: int) -> int | None:
        """Return the element type of an input."""
        return self.fact(index).dtype

    def content(self, index: int) -> Content | None:
        """Return the integers of an input."""
        return self.fact(index).content

    def item(self, index: int) -> Dim | None:
        """Return the one integer of an input."""
        return self.fact(index).item

    def array(self, index: int) -> npt.NDArray[np.int64] | None:
        """Return the integers of an input as an array, if all are plain numbers."""
        content, numbers = self.content(index), self.ints(index)
        if content is None or numbers is None:
            return None
        return np.array(numbers, dtype=np.int64).reshape(content.shape)

    def ints(self, index: int) -> list[int] | None:
        """Return the integers of an input, if all are plain numbers."""
        content = self.content(index)
        return None if content is None else as_ints(content)

    def floats(self, index: int) -> list[float] | None:
        """Return the numbers of an input that is a small constant."""
        value = self.node.input(index)
        if value is None or value.constant is None or math.prod(value.constant.shape) > MAX_CONTENT:
            return None
        return [float(number) for number in value.constant.numpy().reshape(-1)]

    def list_of(self, name: str, index: int) -> list[Dim] | None:
        """Return a list of integers that is an attribute in old opsets and an input in new ones.

        Empty if it is not given, None if it is given but not known.
        """
        value = self.attr(name)
        if value is not None:
            return [Dim.of(int(item)) for item in value]
        if not self.has(index):
            return []
        content = self.content(index)
        return None if content is None else as_dims(content)

    def ints_of(self, name: str, index: int) -> list[int] | None:
        """Return the same, if all are plain numbers."""
        numbers = numbers_of(self.list_of(name, index))
        return None if numbers is None else list(numbers)


Rule: TypeAlias = Callable[[CallFacts], Sequence[Fact]]
"""From a node's inputs to facts of its outputs, in order; of missing ones nothing is known."""


def of_rank(rank: int | None) -> PartialShape | None:
    """Return a shape of which only the rank is known, None if that isn't or no tensor has it."""
    return None if rank is None or rank > _MOST_AXES else [None] * rank


def elements(content: Content) -> list[Dim | None]:
    """Return the elements in row-major order."""
    return content.reshape(-1).tolist()


def as_dims(content: Content) -> list[Dim] | None:
    """Return the elements in row-major order, None if one is not known."""
    return all_known(elements(content))


def mapped(function: Callable[..., Dim | None], *contents: Content) -> Content:
    """Return the function of the elements at each place; all contents have one shape."""
    result = np.empty(contents[0].shape, dtype=object)
    flat = result.reshape(-1)
    for index, items in enumerate(zip(*map(elements, contents), strict=True)):
        flat[index] = function(*items)
    return result


def as_ints(content: Content) -> list[int] | None:
    """Return the numbers in row-major order, None if one is symbolic."""
    numbers = numbers_of(elements(content))
    return None if numbers is None else list(numbers)


def content_of(dims: Sequence[Dim | int | None]) -> Content:
    """Return a rank 1 content of these integers."""
    content = np.empty(len(dims), dtype=object)
    for index, dim in enumerate(dims):
        content[index] = None if dim is None else Dim.of(dim)
    return content


def broadcast_shapes(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape that these broadcast to (numpy's rule), None if a rank is not known."""
    known = all_known(shapes)
    if not known:
        return None
    rank = max(map(len, known))
    result = [Dim.of(1)] * rank
    for shape in known:
        for axis, dim in enumerate(shape, start=rank - len(shape)):
            result[axis] = broadcast(result[axis], dim)
    return tuple(result)


def normalized(axis: int, rank: int) -> int | None:
    """Return the axis counted from the front, None if there is no such axis."""
    return axis % rank if -rank <= axis < rank else None
