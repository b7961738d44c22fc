"""The engine of shape inference: which rule, in which order, in which scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.analysis.dims.equations import substitute
from onnx_fuse.analysis.malformed import MALFORMED
from onnx_fuse.analysis.shapes import elementwise, movers, producers, products, quantized
from onnx_fuse.analysis.shapes.control import captured, common_fact, evaluate_graphs
from onnx_fuse.analysis.shapes.elementwise import INTEGERS, held
from onnx_fuse.analysis.shapes.facts import (
    MAX_CONTENT,
    NOTHING,
    CallFacts,
    Content,
    Fact,
    PartialShape,
    Rule,
    content_of,
    elements,
    mapped,
)
from onnx_fuse.analysis.shapes.functions import Functions, defaults, is_resolved
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Function, Model

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **movers.RULES,
    **products.RULES,
    **quantized.RULES,
    **producers.RULES,
}

# Calls in calls, to this depth; what lies deeper is not followed.
_MAX_DEPTH = 32
# Nodes of functions that are evaluated once more for their calls; beyond, calls are opaque.
_MAX_CALLED = 500_000
# Elements of a tensor of integers that get a name when nothing is known of them: a shape has no
# more.
_MAX_NAMED = 8
_NAMED_TYPES = (TensorProto.INT64, TensorProto.INT32)
# Types whose constants are followed as integers: shapes are sometimes computed in floats.
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass
class _Scope:
    """What was found of the model, or of the functions' bodies in one call.

    `attributes` are that call's; None where no call is followed.
    """

    attributes: Mapping[str, Any] | None = None
    facts: dict[Value, Fact] = field(default_factory=dict)
    entered: dict[Node, None] = field(default_factory=dict)  # nodes whose graphs have facts


class Engine:
    """Facts of one model's values, found when asked for and then kept."""

    def __init__(self, model: Model, bindings: Mapping[str, Dim], *, trusts_declared: bool = True):
        """Facts of `model` with these symbols, or what is computed of them, by its text, replaced.

        trusts_declared: whether what is declared inside the graph counts where nothing is known.
        """
        self.model = model
        self._trusts_declared = trusts_declared
        self.loop_depth = 0
        self.folded: Callable[[CallFacts], Any] | None = None  # a node's result from constants
        self._bindings = dict(bindings)
        self._scope = _Scope()
        self._owners: dict[str, Value] = {}  # of unknown extents and elements, by their text
        self._functions = Functions(model)
        self._results: dict[object, list[Fact]] = {}  # of calls
        self._depth = 0  # of calls within calls
        self._called = 0  # nodes that were evaluated for calls

    # --- what is asked ----------------------------------------------------------------------------

    def fact(self, value: Value) -> Fact:
        """Return what is known of the value; every extent of a known rank has a dim."""
        if value not in self._scope.facts:
            self._find(value)
        return self._scope.facts[value]

    def opset(self, node: Node) -> int:
        """Version of the node's domain in its graph; above all if it is not imported."""
        return node.graph.opsets.get(node.domain, 1 << 16)

    # --- order ------------------------------------------------------------------------------------

    def _find(self, wanted: Value) -> None:
        """Evaluate what `wanted` depends on, then itself; not by recursion, as graphs are deep."""
        stack, facts = [wanted], self._scope.facts
        opened: dict[Value, None] = {}
        while stack:
            value = stack[-1]
            if value in facts:
                stack.pop()
                continue
            node = self._task(value)
            if value not in opened:  # on a cycle, the second visit goes on without what is missing
                opened[value] = None
                if node is not None:
                    stack.extend(need for need in self._needs(node) if need not in facts)
                continue
            if node is None:
                facts[value] = self._source(value)
            else:
                self._evaluate(node)
                facts.setdefault(value, self._completed(value, NOTHING))

    def _task(self, value: Value) -> Node | None:
        """Return the node to evaluate: the outermost around without facts, or the producer."""
        task, graph = value.producer, value.graph
        while graph.parent is not None:
            if graph.parent not in self._scope.entered:
                task = graph.parent
            graph = graph.parent.graph
        return task

    def _needs(self, node: Node) -> Iterable[Value]:
        return [*node.given, *captured(node)] if node.subgraph_of else node.given

    def run(self, graph: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """Evaluate a nested graph (again) for these inputs; return the facts of its outputs."""
        facts, entered = self._scope.facts, self._scope.entered
        for nested in graph.walk():
            for node in nested.nodes:
                entered.pop(node, None)
                for value in node.made:
                    facts.pop(value, None)
        if graph.parent is not None:
            entered[graph.parent] = None
        for value in graph.initializers:
            facts[value] = self._source(value)
        for index, value in enumerate(graph.inputs):
            fact = inputs[index] if index < len(inputs) else NOTHING
            facts[value] = self._completed(value, fact)
        for node in graph.nodes:
            self._evaluate(node)
        return [facts.get(value) or self._completed(value, NOTHING) for value in graph.outputs]

    # --- one node ---------------------------------------------------------------------------------

    def _evaluate(self, node: Node) -> None:
        facts = self._outcome(node)
        for index, value in enumerate(node.outputs):
            if value is not None:
                self._scope.facts[value] = self._completed(
                    value, facts[index] if index < len(facts) else NOTHING
                )

    def _outcome(self, node: Node) -> Sequence[Fact]:
        facts = self._scope.facts
        inputs = tuple(None if v is None else facts.get(v, NOTHING) for v in node.inputs)
        if node.subgraph_of:
            self._scope.entered[node] = None
            return evaluate_graphs(self, node)
        bound = self._attributes_around(node)
        call = CallFacts(node, inputs, self.opset(node), bound)
        function = self._functions.called_by(node)
        if function is not None:
            return self._call(function, call)
        rule = RULES.get(node.op)
        if rule is None or (node.graph.function is not None and not is_resolved(node, bound)):
            return []
        try:
            return self._with_numbers(call, rule(call))
        except MALFORMED:  # an invalid node, which never runs: no facts
            return []

    def _with_numbers(self, call: CallFacts, facts: Sequence[Fact]) -> Sequence[Fact]:
        """Return the facts, with integers computed from constants in floats: 16 ** 0.5, say.

        How many places of a constant are not 0 is such a number, too, and how many steps of a
        constant range there are.
        """
        graph = call.node.graph
        if self.folded is None or len(facts) != 1 or graph.parent is not None or graph.function:
            return facts
        if call.node.op == "NonZero" or (call.node.op == "Range" and facts[0].shape == [None]):
            made = self.folded(call)
            if made is None:
                return facts
            return [Fact([Dim.of(extent) for extent in made.shape], facts[0].dtype)]
        if facts[0].dtype not in _NAMED_TYPES:
            return facts
        if facts[0].content is not None and None not in elements(facts[0].content):
            return facts
        numbers = numbers_of(facts[0].shape)
        if numbers is None or len(numbers) > 1 or math.prod(numbers) > _MAX_NAMED:
            return facts
        array = self.folded(call)
        if array is None or array.shape != numbers:
            return facts
        content = content_of(array.reshape(-1).tolist()).reshape(numbers)
        return [Fact(facts[0].shape, facts[0].dtype, content)]

    def _completed(self, value: Value, fact: Fact) -> Fact:
        """Return the fact with what the file declares, and with names for what is still unknown."""
        if value.constant is not None:
            return self._source(value)
        declared = value.shape if self._trusts_declared else None
        shape: PartialShape | None = fact.shape
        if fact.items is not None:
            return fact
        if shape is None and declared is not None:
            shape = [None] * len(declared)
        dtype = fact.dtype if fact.dtype is not None else value.dtype
        if shape is None:
            return Fact(None, dtype)
        fits = declared is not None and len(declared) == len(shape)
        extents: list[Dim] = []
        for axis, extent in enumerate(shape):
            hint = declared[axis] if fits and declared is not None else None
            if extent is not None and extent.bounds()[1] < 0:  # nor does this run
                extent = None
            if extent is None and isinstance(hint, int) and hint >= 0:
                extent = Dim.of(hint)
            known = None if extent is None else substitute(extent, self._bindings)
            extents.append(self._unknown(value, axis, extent=True) if known is None else known)
        return Fact(tuple(extents), dtype, self._named(value, extents, dtype, fact.content))

    def _unknown(self, value: Value, index: int, *, extent: bool) -> Dim:
        """Return a new symbol; values of the same name (in two functions, say) are kept apart."""
        label = value.name
        while True:
            dim = Dim.unknown(label, index, extent=extent)
            if self._owners.setdefault(str(dim), value) is value:
                return dim
            label += "'"

    def _named(
        self, value: Value, shape: Sequence[Dim], dtype: int | None, content: Content | None
    ) -> Content | None:
        """Return the content, integers that are not known named."""
        if content is not None and (
            content.size > MAX_CONTENT or content.shape != numbers_of(shape)
        ):
            content = None
        if dtype not in _NAMED_TYPES:
            return content
        if content is None:
            numbers = numbers_of(shape) if len(shape) <= 1 else None
            if numbers is None or (numbers and numbers[0] > _MAX_NAMED):
                return None
            content = np.full(numbers, None, dtype=object)
        if None not in elements(content):
            return content
        named = content.copy()
        for place, index in enumerate(np.ndindex(named.shape)):
            if named[index] is None:
                named[index] = self._unknown(value, place, extent=False)
        return named

    # --- where facts begin ------------------------------------------------------------------------

    def _source(self, value: Value) -> Fact:
        """Return the fact of a value that no node computes."""
        constant = value.constant
        if constant is not None:
            shape = tuple(Dim.of(extent) for extent in constant.shape)
            return Fact(shape, constant.dtype, _constant_content(value))
        if value.graph.function is not None and value.graph.parent is None and value.is_input:
            return self._argument(value)
        if value.shape is None:
            return Fact(None, value.dtype)
        extents: list[Dim] = []
        for axis, extent in enumerate(value.shape):
            if isinstance(extent, str) and extent:
                dim = Dim.symbol(extent)
            elif isinstance(extent, int) and extent >= 0:
                dim = Dim.of(extent)
            else:
                dim = self._unknown(value, axis, extent=True)
            extents.append(self._bindings.get(str(dim), dim))
        return self._completed(value, Fact(extents, value.dtype))

    # --- functions --------------------------------------------------------------------------------

    def _call(self, function: Function, call: CallFacts) -> Sequence[Fact]:
        """Return facts of a call's outputs: the body is evaluated for its inputs in a scope."""
        graph = function.graph
        if self._depth >= _MAX_DEPTH or self._called > _MAX_CALLED:
            return []
        given = {name: call.attr(name) for name in call.node.attributes}
        attributes = {**defaults(function), **given}
        key = (id(function), tuple(map(_frozen, call.inputs)), repr(attributes))
        if key not in self._results:
            around, self._scope = self._scope, _Scope(attributes)
            self._depth += 1
            self._called += len(graph.nodes)
            try:
                results = self.run(graph, [fact or NOTHING for fact in call.inputs])
            finally:
                self._scope = around
                self._depth -= 1
            self._results[key] = [self.exported(fact, graph) for fact in results]
        return self._results[key]

    def exported(self, fact: Fact, graph: Graph) -> Fact:
        """Return the fact without what only has a meaning inside `graph`."""

        def outside(dim: Dim | None) -> Dim | None:
            leaves = () if dim is None else dim.leaves
            return None if any(self._is_inside(leaf, graph) for leaf in leaves) else dim

        if fact.items is not None:
            return Fact(items=tuple(self.exported(item, graph) for item in fact.items))
        content = None if fact.content is None else mapped(outside, fact.content)
        return Fact(
            None if fact.shape is None else [outside(dim) for dim in fact.shape],
            fact.dtype,
            content,
        )

    def _is_inside(self, leaf: str, graph: Graph) -> bool:
        owner = self._owners.get(leaf)
        inner = None if owner is None else owner.graph
        while inner is not None and inner is not graph:
            inner = None if inner.parent is None else inner.parent.graph
        return inner is not None

    def _argument(self, value: Value) -> Fact:
        """Return what holds of a function's input at every call."""
        function = value.graph.function
        assert function is not None
        if self._depth >= _MAX_DEPTH:
            return self._completed(value, NOTHING)
        index = value.graph.inputs.index(value)
        self._depth += 1
        facts = []
        for call in self._functions.calls_of(function):
            given = call.input(index)
            facts.append(NOTHING if given is None else self.fact(given))
        self._depth -= 1
        return self._completed(value, common_fact(facts) if facts else NOTHING)

    def _attributes_around(self, node: Node) -> Mapping[str, Any]:
        """Attributes of the call that is followed; in a definition, what all calls agree on."""
        function = node.graph.function
        if function is None:
            return {}
        followed = self._scope.attributes
        return self._functions.agreed(function) if followed is None else followed


def _frozen(fact: Fact | None) -> object:
    """Return the fact as a key: equal for equal facts."""
    if fact is None:
        return None
    items = None if fact.items is None else tuple(map(_frozen, fact.items))
    content = None if fact.content is None else (fact.content.shape, *elements(fact.content))
    return None if fact.shape is None else tuple(fact.shape), fact.dtype, content, items


def _constant_content(value: Value) -> Content | None:
    constant = value.constant
    assert constant is not None
    whole = constant.dtype in INTEGERS or constant.dtype == TensorProto.BOOL
    if not (whole or constant.dtype in _FLOATS):
        return None
    if math.prod(constant.shape) > (MAX_CONTENT if whole else _MAX_NAMED):
        return None
    numbers = constant.numpy()
    content = np.full(numbers.shape, None, dtype=object)
    flat = content.reshape(-1)
    for index, number in enumerate(numbers.reshape(-1).tolist()):
        if whole or number.is_integer():
            flat[index] = held(Dim.of(int(number)), constant.dtype)
    return content
