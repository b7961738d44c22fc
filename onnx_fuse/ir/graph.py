"""The graph that analyses read and passes change: Value, Node, Graph.

`Value` is the unit: one producer, known uses, a declared shape and type, maybe a constant. Names
are labels, never keys. Structure changes only through the methods of `Graph` and `Model`; these
also note what the writer has to patch.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx

from onnx_fuse.ir.attributes import decode
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.element_types import Array
from onnx_fuse.ir.names import domain_of, op_of
from onnx_fuse.ir.node_list import Linked, NodeList

if TYPE_CHECKING:
    from onnx_fuse.ir.model import Function, Model

Shape = tuple["int | str | None", ...]


class Use(NamedTuple):
    """One input slot of a node that reads a value."""

    node: Node
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a pair


class Value:
    """One tensor (or sequence, or optional) of a graph; compared by identity.

    dtype and shape are what the file declares (None: nothing), never inferred. A constant is an
    initializer that no caller can override, or the output of a Constant node.
    """

    __slots__ = (
        "_index",
        "_sorted",
        "_uses",
        "constant",
        "content",
        "dtype",
        "graph",
        "is_initializer",
        "is_input",
        "is_output",
        "is_sparse",
        "name",
        "producer",
        "raw",
        "shape",
    )

    def __init__(self, name: str, graph: Graph) -> None:
        self.name = name
        self.graph = graph
        self.producer: Node | None = None
        self.dtype: int | None = None
        self.shape: Shape | None = None
        self.is_input = False
        self.is_output = False
        self.is_initializer = False
        self.is_sparse = False  # an initializer in the file's sparse form
        self.constant: Constant | None = None
        # Of an initializer, also of one that callers can override.
        self.content: Constant | None = None
        self.raw: memoryview | None = None  # the initializer's field in the file; None for new ones
        self._index = 0  # of the producer's output slot
        self._uses: dict[Use, None] = {}
        self._sorted = True

    def __repr__(self) -> str:
        return f"Value({self.name!r})"

    @property
    def uses(self) -> list[Use]:
        """Every input slot that reads this value, also in nested sub-graphs, in node order."""
        if not self._sorted:
            self._uses = dict.fromkeys(
                sorted(self._uses, key=lambda use: (_position(use.node, self.graph), use.index))
            )
            self._sorted = True
        return list(self._uses)

    @property
    def is_used(self) -> bool:
        """Whether a node reads this value or its graph returns it."""
        return bool(self._uses) or self.is_output

    def seat(self, node: Node, slot: int) -> None:
        """Make the node's output slot the value's producer."""
        self.producer, self._index = node, slot

    @property
    def is_constant(self) -> bool:
        """Whether the content is known before any run."""
        return self.constant is not None

    def numpy(self) -> Array:
        """Return the constant's content, read anew on each call.

        Raises: InvalidModel naming the tensor and the file if it cannot be read; ValueError if this
        is no constant.
        """
        if self.constant is None:
            raise ValueError(f"'{self.name}' is not a constant")
        return self.constant.numpy()


class Node(Linked["Node"]):
    """One operator call.

    Compared by identity. Inputs and outputs are None where the file has "". What a node computes is
    told by `op` alone, "Softmax" or "com.microsoft:Attention": whatever another domain calls by a
    standard operator's name has another `op`, a Sum of two is an "Add", and what adds 0 is an
    "Identity" (plain.py). `bare_op` is what the file says without the domain, for files and words.
    """

    __slots__ = (
        "_attributes",
        "alive",
        "bare_op",
        "changed",
        "domain",
        "graph",
        "inputs",
        "name",
        "op",
        "outputs",
        "overload",
        "proto",
        "raw",
        "subgraph_of",
    )

    def __init__(self, op_type: str, domain: str, name: str, overload: str, graph: Graph) -> None:
        super().__init__()
        self.domain = domain_of(domain)
        self.op = op_of(self.domain, op_type)
        self.bare_op = op_type
        self.name = name
        self.overload = overload
        self.graph = graph
        self.inputs: list[Value | None] = []
        self.outputs: list[Value | None] = []
        self.proto: onnx.NodeProto | None = None  # as in the file; None for new nodes
        self.raw: memoryview | None = None  # its field in the file, tag included
        self.alive = True  # until it is removed
        self.changed = False  # whether inputs, outputs or a nested graph differ from `proto`
        self.subgraph_of: dict[str, Graph | list[Graph]] = {}
        self._attributes: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Node({self})"

    @property
    def label(self) -> str:
        """The name, or that of the first result if it has none."""
        return self.name or next((value.name for value in self.made), self.bare_op)

    def __str__(self) -> str:
        if self.name:
            return f"{self.bare_op} '{self.name}'"
        made = ", ".join(f"'{value.name}'" for value in self.made)
        return f"{self.bare_op} that makes {made or 'nothing'}"

    @property
    def attributes(self) -> Mapping[str, Any]:
        """All attributes in the file's order, tensors as arrays and graphs as Graph."""
        if self._attributes is None:
            assert self.proto is not None
            self._attributes = {
                attribute.name: self._decode(attribute) for attribute in self.proto.attribute
            }
        return MappingProxyType(self._attributes)

    def attr(self, name: str, default: Any = None) -> Any:
        """Return one attribute as a Python value, without reading the others."""
        if self._attributes is not None:
            return self._attributes.get(name, default)
        assert self.proto is not None
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return self._decode(attribute)
        return default

    def _decode(self, attribute: onnx.AttributeProto) -> Any:
        nested = self.subgraph_of.get(attribute.name)
        return decode(attribute, self.graph.model.tensor) if nested is None else nested

    def input(self, position: int) -> Value | None:
        """Return an input, None where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    @property
    def given(self) -> list[Value]:
        """The inputs that aren't left out, in order."""
        return [value for value in self.inputs if value is not None]

    @property
    def made(self) -> list[Value]:
        """The outputs that aren't left out, in order."""
        return [value for value in self.outputs if value is not None]

    @property
    def subgraphs(self) -> list[Graph]:
        """The nested graphs (branches, loop bodies), in attribute order."""
        result: list[Graph] = []
        for nested in self.subgraph_of.values():
            result.extend([nested] if isinstance(nested, Graph) else nested)
        return result

    def touch(self) -> None:
        """Note that this node, and so every node around it, has to be written anew."""
        self.changed = True
        self.graph.touch()


class Graph:
    """A model's graph, a sub-graph of a node, or a function's body."""

    def __init__(self, model: Model, parent: Node | None = None) -> None:
        self.name = ""
        self.model = model
        self.parent = parent
        self.function: Function | None = None if parent is None else parent.graph.function
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: NodeList[Node] = NodeList()
        self.raw: memoryview | None = None  # the GraphProto (or FunctionProto) as in the file
        self.changed = False
        self.removed: set[str] = set()  # names of values that are gone
        self._initializers: dict[Value, None] = {}

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {len(self.nodes)} nodes)"

    @property
    def initializers(self) -> list[Value]:
        """All initializers, also unused or overridable ones: in the file's order, then new ones."""
        return list(self._initializers)

    @property
    def opsets(self) -> dict[str, int]:
        """The version of each domain ("" is ai.onnx) that holds in this graph."""
        return self.model.opsets if self.function is None else self.function.opsets

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators that holds in this graph."""
        return self.opsets.get("", 1)

    @property
    def depth(self) -> int:
        """How many graphs stand around this one."""
        return 0 if self.parent is None else 1 + self.parent.graph.depth

    def walk(self) -> Iterator[Graph]:
        """Yield this graph, then the nested ones, depth first in node order."""
        yield self
        for node in self.nodes:
            for nested in node.subgraphs:
                yield from nested.walk()

    def unique_name(self, hint: str) -> str:
        """Return `hint`, or `hint_1`, ...: a name that no value of the model has or had."""
        return self.model.value_names.take(hint)

    def touch(self) -> None:
        """Note that this graph, and so every node around it, has to be written anew."""
        self.changed = True
        if self.parent is not None and not self.parent.changed:
            self.parent.touch()
        elif self.function is not None:
            self.function.changed = True

    def add_opset(self, domain: str, version: int) -> None:
        """Import a domain in the model, and in the function if the graph is in one."""
        self.model.add_opset(domain, version)
        if self.function is not None and domain not in self.function.opsets:
            self.function.opsets[domain] = version
            self.function.changed = True

    def add_read_initializer(self, value: Value) -> None:
        """Append an initializer that the file has."""
        self._initializers[value] = None

    def add_initializer(self, hint: str, constant: Constant | Array) -> Value:
        """Return a new initializer; its name is derived from `hint`.

        Raises: ValueError in a function, which has no initializers.
        """
        if self.function is not None and self.parent is None:
            raise ValueError("a function has no initializers")
        value = Value(self.unique_name(hint), self)
        content = constant if isinstance(constant, Constant) else Constant.from_array(constant)
        content.name = content.name or value.name
        value.constant = value.content = content
        value.dtype, value.shape = content.dtype, content.shape
        value.is_initializer = True
        self._initializers[value] = None
        self.touch()
        return value

    def add_constant(self, hint: str, content: Constant | Array) -> Value:
        """Return a new constant: an initializer, or in a function a node before all others."""
        if self.function is None:
            return self.add_initializer(hint, content)
        array = content.numpy() if isinstance(content, Constant) else content
        attributes = {"value": array}
        node = self.add_node("Constant", [], [hint], attributes=attributes, before=self.nodes[0])
        (value,) = node.made
        return value

    def add_node(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value | str | None],
        *,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        name: str = "",
        before: Node,
    ) -> Node:
        """Insert a node before `before` and return it.

        outputs: for each a name hint of a fresh value, None for an output that is left out, or a
        value of this graph, which is *re-seated*: it keeps its identity, name and uses, and this
        node becomes its producer (the old producer's slot becomes None).

        Raises: ValueError if a re-seated value has no producer in this graph.
        """
        if before.graph is not self:
            raise ValueError(f"{before} is not a node of this graph")
        unique = self.model.node_names.take(name) if name else ""
        node = Node(op_type, domain, unique, "", self)
        node._attributes = dict(attributes or {})
        node.changed = True
        for slot, output in enumerate(outputs):
            value = self._fresh(output) if isinstance(output, str) else output
            if value is not None:
                self._seat(node, slot, value)
            node.outputs.append(value)
        self.nodes.insert_before(before, node)
        for index, value in enumerate(inputs):
            node.inputs.append(value)
            if value is not None:
                add_use(value, node, index, in_order=False)
        self.touch()
        return node

    def move(self, node: Node, before: Node) -> None:
        """Put a node of this graph directly before another one."""
        self.nodes.remove(node)
        self.nodes.insert_before(before, node)
        for value in node.given:
            value._sorted = False
        node.touch()

    def _fresh(self, hint: str) -> Value:
        return Value(self.unique_name(hint), self)

    def _seat(self, node: Node, slot: int, value: Value) -> None:
        old = value.producer
        if value.graph is not self or value.is_input or value.is_initializer:
            raise ValueError(f"'{value.name}' is not made by a node of this graph")
        if old is not None:
            old.outputs[value._index] = None
            old.touch()
        value.seat(node, slot)
        value.constant = None

    def replace_input(self, node: Node, index: int, value: Value | None) -> None:
        """Let the node's input slot `index` read `value` (None: leave the input out)."""
        old = node.inputs[index]
        if old is value:
            return
        if old is not None:
            del old._uses[Use(node, index)]
        node.inputs[index] = value
        if value is not None:
            add_use(value, node, index, in_order=False)
        node.touch()

    def remove_dead(self, roots: Iterable[Node], awaited: Container[Value] = ()) -> None:
        """Remove those of `roots` that nobody reads, and of their inputs what nobody reads then.

        A node whose output is read, awaited or returned stays, and so does one that has no outputs
        at all (it is there for its effect). What was dead or unused before stays, unless it is
        among `roots`.
        """
        waiting = list(roots)[::-1]
        while waiting:
            node = waiting.pop()
            is_needed = any(value.is_used or value in awaited for value in node.made)
            if not node.alive or not node.outputs or is_needed:
                continue
            for value in _remove(node):
                if value.is_used or value in awaited:
                    continue
                if value.producer is not None:
                    waiting.append(value.producer)
                elif value.is_initializer and not value.is_input:
                    value.graph.remove_initializer(value)

    def defines(self, value: Value) -> bool:
        """Return whether a node or initializer of this graph, not yet removed, makes the value."""
        if value.producer is not None:
            return value.producer.graph is self and value.producer.alive
        return value in self._initializers

    def remove_initializer(self, value: Value) -> None:
        """Remove an initializer that nobody reads."""
        if value.is_used or value.is_input:
            raise ValueError(f"'{value.name}' is still needed")
        del self._initializers[value]
        self.removed.add(value.name)
        self.touch()


def add_use(value: Value, node: Node, index: int, *, in_order: bool) -> None:
    """Record that the node's input slot reads `value`; `in_order`: after all earlier uses of it."""
    value._uses[Use(node, index)] = None
    if not in_order:
        value._sorted = False


def _position(node: Node, graph: Graph) -> tuple[int, ...]:
    """Return the node's place in `graph`, where it may lie nested; places compare in node order."""
    ranks: list[int] = []
    current: Node | None = node
    while current is not None:
        ranks.append(current.rank)
        if current.graph is graph:
            break
        current = current.graph.parent
    return tuple(ranks[::-1])


def _remove(node: Node) -> list[Value]:
    """Take the node, with its nested graphs, out of its graph and return the values it read."""
    read: dict[Value, None] = {}
    _release(node, read)
    node.graph.removed.update(value.name for value in node.made)
    node.graph.nodes.remove(node)
    node.graph.touch()
    return list(read)


def _release(node: Node, read: dict[Value, None]) -> None:
    node.alive = False
    for index, value in enumerate(node.inputs):
        if value is not None:
            del value._uses[Use(node, index)]
            if value.graph.parent is None or value.graph.parent.alive:
                read[value] = None
    for nested in node.subgraphs:
        for inner in nested.nodes:
            _release(inner, read)
