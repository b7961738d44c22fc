"""Finds the nodes around an attention site that are worth drawing.

This is for the eye alone, nothing is decided by it: what a site computes is `analysis`'s business.
"""

from __future__ import annotations

import math

import onnx

from onnx_fuse.ir.bodies import bodies

_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum", "MatMulInteger", "MatMulNBits", "FusedMatMul")
# Steps that may stand between the softmax and the output projection.
_PASSED = (
    "Add", "Cast", "Div", "Dropout", "Einsum", "Flatten", "Identity", "IsNaN", "MatMul", "Mul",
    "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_MOST_NODES = 90
_MOST_BELOW = 16
_NEAR = 4
_MOST_EXTENTS = 8  # numbers of a shape


class Surroundings:
    """A model's nodes by name and by output, in file order.

    `constants` has the dims of constant tensors, `extents` the names of values that only say how
    large something is: the nodes that make them are never among those to draw.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants: dict[str, tuple[int, ...]] = {}
        self.extents: set[str] = set()
        self._order: list[onnx.NodeProto] = []
        self._places: dict[str, int] = {}
        self._readers: dict[str, list[int]] = {}
        for body in bodies(model):
            if isinstance(body, onnx.GraphProto):
                self.constants.update((t.name, tuple(t.dims)) for t in body.initializer)
            for node in body.node:
                if node.op_type == "Constant":
                    dims = next((tuple(a.t.dims) for a in node.attribute if a.HasField("t")), ())
                    self.constants[node.output[0]] = dims
                place = len(self._order)
                for name in (*node.output, node.name):
                    if name:
                        self._places.setdefault(name, place)
                self._order.append(node)
                if self._makes_extent(node):
                    self.extents.update(name for name in node.output if name)
                    continue
                for name in node.input:
                    self._readers.setdefault(name, []).append(place)

    def around(self, anchor: str, stop: str, *others: str) -> list[onnx.NodeProto]:
        """The nodes of the site around the node `anchor`, and these others, in file order.

        A name may be that of an output. The site goes from its anchor up to the products with
        constants, as far as nothing else reads what they make, and down to the next product with a
        constant; what is nearest to the node `stop` belongs to it too.
        """
        found = {self._places[name] for name in (anchor, stop, *others) if name in self._places}
        if anchor in self._places:
            place = self._places[anchor]
            found |= self._above(place) | self._below(place)
        if stop in self._places and (stop != anchor or len(found) == 1):
            found |= self._near(self._places[stop])
        return self._nodes(found)

    def _nodes(self, places: set[int]) -> list[onnx.NodeProto]:
        chosen = (self._order[place] for place in sorted(places))
        return [node for node in chosen if self._is_drawn(node)]

    def _is_drawn(self, node: onnx.NodeProto) -> bool:
        return node.op_type != "Constant" and not self.extents.intersection(node.output)

    def _makes_extent(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Shape", "Size"):
            return True
        sizes = [math.prod(self.constants[name]) for name in node.input if name in self.constants]
        computed = [name for name in node.input if name and name not in self.constants]
        # What is made of a few constant numbers alone is a size, too.
        is_small = bool(sizes) and max(sizes) <= _MOST_EXTENTS
        return (bool(computed) or is_small) and self.extents.issuperset(computed)

    def _above(self, place: int) -> set[int]:
        """The node and the producers that nothing outside of this set reads."""
        found, pending = {place}, [place]
        while pending and len(found) < _MOST_NODES:
            one = pending.pop(0)
            if one != place and self._has_weight(self._order[one]):
                continue
            for name in self._order[one].input:
                producer = self._producer(name)
                if producer is None or producer in found:
                    continue
                if found.issuperset(self._consumers(producer)):
                    found.add(producer)
                    pending.append(producer)
        return found

    def _below(self, place: int) -> set[int]:
        """What follows up to the next product with a constant and its bias, and V's way to it."""
        found: set[int] = set()
        level = [place]
        for _ in range(_MOST_BELOW):
            readers = dict.fromkeys(r for one in level for r in self._consumers(one))
            level = [r for r in readers if self._order[r].op_type in _PASSED and r not in found]
            found.update(readers)
            ends = [one for one in level if self._has_weight(self._order[one])]
            if ends or not level or len(found) > _MOST_BELOW:
                break
        for one in sorted(found):
            if self._order[one].op_type in _PRODUCTS:
                found |= self._above_within(one, found)
        return found

    def _above_within(self, place: int, known: set[int]) -> set[int]:
        """Producers of a product's other operand that only it reads."""
        found: set[int] = set()
        for name in self._order[place].input:
            producer = self._producer(name)
            if producer is not None and producer not in known:
                readers = self._consumers(producer)
                if readers == [place]:
                    found |= self._above(producer)
        return found

    def _near(self, place: int) -> set[int]:
        found, level = {place}, [place]
        for _ in range(_NEAR):
            made = [self._producer(name) for one in level for name in self._order[one].input]
            level = [one for one in made if one is not None]
            found.update(level)
        return found

    def _has_weight(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _PRODUCTS:
            return False
        return any(math.prod(self.constants.get(name, (0,))) > 1 for name in node.input)

    def _producer(self, name: str) -> int | None:
        if not name or name in self.constants or name in self.extents:
            return None
        return self._places.get(name)

    def _consumers(self, place: int) -> list[int]:
        outputs = (name for name in self._order[place].output if name)
        return list(dict.fromkeys(r for name in outputs for r in self._readers.get(name, [])))
