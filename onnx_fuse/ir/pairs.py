"""Einsums of more than two tensors, written out as products of two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx

from onnx_fuse.ir.bodies import Body, bodies
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.rewritten import rewritten

_PAIR = 2
_DOTS = "."  # stands for "...", as if it were one letter


def in_pairs(model: Model) -> Model | None:
    """Return a model as loaded with each product of several tensors as products of two.

    Einsum multiplies two tensors after the other anyway. None where there is nothing to write out.
    """
    long = (node for graph in model.graphs() for node in graph.nodes if len(node.inputs) > _PAIR)
    if all(node.op != "Einsum" for node in long):
        return None
    return rewritten(model, _rewrite)


def _rewrite(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Write out the products of a message; None where there was none."""
    names = {name for body in bodies(proto) for name in _names(body)}
    written = [_written_out(body, names) for body in bodies(proto)]
    return proto if any(written) else None


def _names(body: Body) -> set[str]:
    """Return every name of a body's values and nodes."""
    found = {name for node in body.node for name in (*node.input, *node.output, node.name)}
    if isinstance(body, onnx.GraphProto):
        found |= {value.name for value in (*body.input, *body.output, *body.initializer)}
    return found


def _written_out(body: Body, names: set[str]) -> bool:
    """Put products of two in the place of longer ones; return whether there was one."""
    constants = {node.output[0] for node in body.node if node.op_type == "Constant"}
    if isinstance(body, onnx.GraphProto):
        constants |= {value.name for value in body.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in body.node:
        is_long = node.op_type == "Einsum" and node.domain in ("", "ai.onnx")
        pairs = _products(node, constants, names) if is_long and len(node.input) > _PAIR else None
        nodes += pairs or [node]
    is_changed = len(nodes) > len(body.node)
    if is_changed:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del body.node[:]
        body.node.extend(nodes)
    return is_changed


def _products(
    node: onnx.NodeProto, constants: set[str], names: set[str]
) -> list[onnx.NodeProto] | None:
    """Return the products of two whose last one makes what the node makes; None if unsure."""
    equation = next((each.s.decode() for each in node.attribute if each.name == "equation"), "")
    inputs, arrow, out = equation.replace(" ", "").replace("...", _DOTS).partition("->")
    terms = inputs.split(",")
    has_run = any(_DOTS in term for term in terms)
    if not arrow or len(terms) != len(node.input) or (has_run and _DOTS not in out):
        return None
    left = list(zip(node.input, terms, strict=True))
    made: list[onnx.NodeProto] = []
    while len(left) > _PAIR:
        first, second = _next_pair(left, out, constants)
        rest = [each for place, each in enumerate(left) if place not in (first, second)]
        term = _kept(left[first][1], left[second][1], [*(term for _, term in rest), out])
        name = _unique(f"{node.output[0]}_pair", names)
        made.append(_product(node, [left[first], left[second]], name, term, names))
        left = [*rest[:first], (name, term), *rest[first:]]
    made.append(_product(node, left, node.output[0], out, names))
    made[-1].name = node.name
    return made


def _next_pair(left: Sequence[tuple[str, str]], out: str, constants: set[str]) -> tuple[int, int]:
    """Return which two to multiply next: those whose product has the fewest axes, the first such.

    Of those rather a tensor and a weight that sums all that they share: a projection. Two constants
    only if there is nothing else: a product of two weights has more columns than either. A number
    comes last, which then scales the whole.
    """

    def cost(pair: tuple[int, int]) -> tuple[bool, bool, int, bool]:
        others = [term for place, (_, term) in enumerate(left) if place not in pair]
        known = sum(left[place][0] in constants for place in pair)
        first, second = (left[place][1] for place in pair)
        kept = _kept(first, second, [*others, out])
        projects = known == 1 and not {*first} & {*second} & {*kept}
        return not (first and second), known == len(pair), len(kept), not projects

    return min(itertools.combinations(range(len(left)), 2), key=cost)


def _kept(first: str, second: str, others: Sequence[str]) -> str:
    """Return the letters of a product of two that something else reads, each once."""
    return "".join(
        letter for letter in dict.fromkeys(first + second) if any(letter in o for o in others)
    )


def _product(
    node: onnx.NodeProto,
    factors: Sequence[tuple[str, str]],
    name: str,
    term: str,
    names: set[str],
) -> onnx.NodeProto:
    equation = f"{','.join(own for _, own in factors)}->{term}".replace(_DOTS, "...")
    made = onnx.helper.make_node("Einsum", [each for each, _ in factors], [name], equation=equation)
    made.name = _unique(f"{node.name}_pair", names) if node.name else ""
    made.domain = node.domain
    return made


def _unique(hint: str, names: set[str]) -> str:
    """Return a name that nothing has."""
    free = (f"{hint}_{number}" for number in itertools.count())
    name = next(each for each in free if each not in names)
    names.add(name)
    return name
