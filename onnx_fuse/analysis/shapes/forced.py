"""Symbols of the inputs, and what is computed of them, that can only be one number, or another one.

They are so in every run that succeeds. A mask or a table that was traced at one length leaves
extents that are declared to vary and can't; and tools that name each input's extents apart leave a
batch of the tokens beside one of the cache, which is joined to what is made of the tokens. A
product sums axes of one length, a Reshape keeps the number of elements, what is joined is equal but
for the axis, an Attention has as many values as keys, and what can't be 1, as four times a batch
can't, isn't broadcast: then a letter of an Einsum has one length, too. A product of extents that a
Reshape counts tells each of them if each meets a number, so that it is that or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from itertools import product as each_of

from onnx_fuse.analysis.dims.dim import Dim, product
from onnx_fuse.analysis.dims.equations import solve, substitute
from onnx_fuse.analysis.dims.order import is_at_most
from onnx_fuse.analysis.dims.polynomials import bases_of
from onnx_fuse.analysis.shapes.control import captured, input_fact
from onnx_fuse.analysis.shapes.engine import Engine
from onnx_fuse.analysis.shapes.facts import as_dims
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.ir.model import Model

_BROADCASTS = frozenset({"Add", "And", "Div", "Mul", "Sub", "Where"})
_MOST_SYMBOLS = 6  # in an equation of which the solutions are tried
Pair = tuple[Dim, Dim]


def engine_of(model: Model, bindings: Mapping[str, int]) -> Engine:
    """Return facts of a model with these symbols replaced, and with those that can't vary.

    Of symbols that are equal the one that stands first at the inputs stays. What is computed of
    symbols may be one number where they can vary: of a past that is cut to its last three positions
    there are three, if a mask of that length meets them. What is declared inside the graph tells
    nothing of its inputs: it may be of the traced run.
    """
    known = {str(Dim.symbol(name)): Dim.of(number) for name, number in bindings.items()}
    while True:
        found = _forced(Engine(model, known, trusts_declared=False), model.graph)
        if not found.keys() - known.keys():
            return Engine(model, known)
        known = {symbol: substitute(dim, found) for symbol, dim in known.items()} | found


def _symbols(engine: Engine, graph: Graph) -> list[str]:
    """Return the texts of the extents of a graph's inputs that aren't numbers, in their order."""
    facts = map(engine.fact, graph.inputs)
    extents = (extent for fact in facts if fact.shape is not None for extent in fact.extents)
    return list(dict.fromkeys(str(extent) for extent in extents if extent.as_int() is None))


def _forced(engine: Engine, graph: Graph) -> dict[str, Dim]:
    """Return some of the inputs' symbols, by their text, and what an equation leaves for each."""
    place = {symbol: index for index, symbol in enumerate(_symbols(engine, graph))}
    if not place:
        return {}
    nodes = [*_always_run(graph)]
    pairs = [pair for node in nodes for pair in _equal(engine, node)]
    learned = {
        atom: solution
        for atom, solution in _solved(pairs)
        if atom not in place and solution.as_int() is not None
    }
    pairs += [pair for node in nodes for pair in _counted(engine, node, learned)]
    pairs += _decided(pairs, _broadcast(engine, nodes, place))
    found: dict[str, Dim] = {}
    for symbol, solution in _solved(pairs):
        if symbol not in place or symbol in found:
            continue
        number, other = solution.as_int(), place.get(str(solution))
        if (number is not None and number > 0) or (other is not None and other < place[symbol]):
            found[symbol] = substitute(solution, found)
            known = {symbol: found[symbol]}
            found |= {earlier: substitute(dim, known) for earlier, dim in found.items()}
    return found or _of_symbols(pairs, learned, place)


def _of_symbols(
    pairs: Sequence[Pair], learned: Mapping[str, Dim], symbols: Mapping[str, int]
) -> dict[str, Dim]:
    """Return those of the `learned` numbers above 1 that are computed of the inputs' symbols."""
    bases = {b.text: b for pair in pairs for dim in pair for b in bases_of(dim.polynomial)}
    return {
        text: number
        for text, number in learned.items()
        if bases[text].leaves <= symbols.keys() and number.bounds()[0] > 1
    }


def _solved(pairs: Sequence[Pair]) -> Iterator[tuple[str, Dim]]:
    """Yield atoms and what each is equal to, by one of the equations."""
    for pair in pairs:
        for left, right in (pair, pair[::-1]) if pair[0] != pair[1] else ():
            solved = solve(left, right)
            if solved is not None:
                yield solved


def _equal(engine: Engine, node: Node) -> list[Pair]:
    """Return pairs of extents that are equal in every run of a node."""
    facts = [input_fact(engine, node, index) for index in range(len(node.inputs))]
    if node.op == "Attention":  # as many values as keys
        known = [fact.extents for fact in facts[1:3] if fact.shape is not None]
        return [(known[0][-2], known[1][-2])] if [*map(len, known)] in ([3, 3], [4, 4]) else []
    shapes = [fact.extents for fact in facts if fact.shape is not None]
    if len(shapes) < 2 or len(shapes) != len(facts):
        return []
    first, second = shapes[:2]
    if node.op == "Concat":
        axis = int(node.attr("axis", 1)) % (len(first) or 1)
        beside = [(*shape[:axis], *shape[axis + 1 :]) for shape in shapes]
        return [pair for other in beside[1:] for pair in zip(beside[0], other, strict=False)]
    if node.op in _BROADCASTS:
        return _met(first, second)
    if node.op == "MatMul" and first and second:
        summed = (first[-1], second[-2 if len(second) > 1 else 0])
        return [summed, *_met(first[:-2], second[:-2])]
    if node.op == "Einsum":
        return _of_one_letter(node.attr("equation", ""), shapes)
    return []


def _met(first: Sequence[Dim], second: Sequence[Dim]) -> list[Pair]:
    """Return pairs of extents that meet where shapes broadcast, and that can't be 1."""
    pairs = zip(first[::-1], second[::-1], strict=False)
    return [pair for pair in pairs if all(extent.is_not(1) for extent in pair)]


def _of_one_letter(equation: str, shapes: Sequence[Sequence[Dim]]) -> list[Pair]:
    """Return pairs of extents with one letter in an Einsum, of which one may be broadcast, too."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "..." in equation or [*map(len, terms)] != [*map(len, shapes)]:
        return []
    named = [each for own in zip(terms, shapes, strict=True) for each in zip(*own, strict=True)]
    pairs = [
        (extent, other) for (name, extent), (same, other) in combinations(named, 2) if name == same
    ]
    return [pair for pair in pairs if _met(pair[:1], pair[1:])]


def _counted(engine: Engine, node: Node, learned: Mapping[str, Dim]) -> list[Pair]:
    """Return how many elements a Reshape takes and makes: the same in every run.

    What it leaves open is a quotient, exact there, of which something may have been `learned`.
    """
    if node.op != "Reshape" or None in node.made:
        return []
    taken, stated = (input_fact(engine, node, index) for index in (0, 1))
    if taken.shape is None or stated.content is None:
        return []
    made = as_dims(stated.content)
    # 0 and -1 stand for an extent of the input, and for what is left of it.
    if made is None or any(is_at_most(extent, 0) for extent in made):
        result = engine.fact(node.made[0])
        if result.shape is None:
            return []
        made = [substitute(extent, learned) for extent in result.extents]
    return [(product(taken.extents), product(made))]


def _broadcast(
    engine: Engine, nodes: Sequence[Node], symbols: Mapping[str, int]
) -> dict[str, set[int]]:
    """Return what each of those symbols may be that meet a number above 1: that, or 1."""
    options: dict[str, set[int]] = {}
    for node in nodes:
        if node.op not in _BROADCASTS:
            continue
        facts = [input_fact(engine, node, index) for index in range(len(node.inputs))]
        shapes = [fact.extents for fact in facts if fact.shape is not None]
        for first, second in permutations(shapes, 2):
            for extent, other in zip(first[::-1], second[::-1], strict=False):
                number, symbol = other.as_int(), str(extent)
                if symbol in symbols and number is not None and number > 1:
                    options[symbol] = options.get(symbol, {1, number}) & {1, number}
    return options


def _decided(pairs: Sequence[Pair], options: Mapping[str, set[int]]) -> Iterator[Pair]:
    """Yield symbols and what they must be where only one of their options fulfils an equation.

    A table of 2 batches with 7 rows, added to `(batch, seq, ...)`, leaves 1 or 2, and 1 or 7;
    where a Reshape makes 14 rows of both, 2 and 7 are left.
    """
    for pair in pairs:
        bases = {base for dim in pair for base in bases_of(dim.polynomial)}
        names = sorted(base.text for base in bases)
        if not 1 < len(names) <= _MOST_SYMBOLS or not options.keys() >= {*names}:
            continue
        tried = each_of(*(sorted(options[name]) for name in names))
        known = [dict(zip(names, map(Dim.of, numbers), strict=True)) for numbers in tried]
        fulfil = [one for one in known if substitute(pair[0], one) == substitute(pair[1], one)]
        for base in bases:
            numbers = {one[base.text] for one in fulfil}
            if len(numbers) == 1:
                yield Dim.of_base(base), numbers.pop()


def _always_run(graph: Graph) -> Iterator[Node]:
    """Yield the nodes that some output of the model is computed from: others may be left out."""
    waiting, seen = [*graph.outputs], set[Node]()
    while waiting:
        node = waiting.pop().producer
        if node is None or node in seen or node.graph is not graph:
            continue
        seen.add(node)
        waiting += node.given
        waiting += captured(node) if node.subgraph_of else ()
        yield node
