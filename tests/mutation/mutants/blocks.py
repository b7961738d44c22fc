"""What is checked of whole blocks: their ends, their roles and their place in the graph."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

_ENDS = (
    Mutant(
        "a view is made for its shape alone",
        "made.uses and not made.is_output and all(map(is_question, made.uses))",
        "made.uses and not made.is_output",
    ),
    Mutant(
        "a view made for its shape is not returned",
        "not made.is_output and all(map(is_question, made.uses))",
        "all(map(is_question, made.uses))",
    ),
    Mutant(
        "positions may not be compared over others, too",
        "depth.isdisjoint(columns) and not depth.isdisjoint(read)",
        "not depth.isdisjoint(read)",
    ),
    Mutant(
        "what takes many numbers takes two",
        "if node is None or (node.op in _VARIADIC and len(node.inputs) != 2):",
        "if node is None:",
    ),
    Mutant(
        "an output's bias is computed",
        "if bias is not None and not self.shapes.is_constant(bias.value):",
        "if False:",
    ),
    Mutant(
        "constants behind an output may differ by position",
        "if stepped is None or not projection.resolve(space).are_of_columns(stepped[0]):",
        "if stepped is None:",
    ),
    Mutant(
        "an axis left open has its extent in each run",
        "return None if all(_is_empty_too(*pair) for pair in pairs) else opened[0]",
        "return None",
    ),
    Mutant(
        "what is open is summed",
        "return all(each and each <= {*index_atoms(projection.summed)} for each in found)",
        "return True",
    ),
    Mutant(
        "bodies read nothing",
        "return (*unshaped(value), *captured(node))",
        "return unshaped(value)",
    ),
    Mutant(
        "a type is read as numbers are",
        "is_made_by(value, _SIZED | TYPED)",
        "is_made_by(value, _SIZED)",
    ),
    Mutant(
        "nobody else reads the weights",
        "if ref.value.is_output or len(uses) > 1:",
        "if False:",
    ),
    Mutant(
        "powers are read by others",
        "if value.is_output or len(readers(value)) > count:",
        "if value.is_output:",
    ),
)
_BLOCK = (
    Mutant(
        "a packed operand needs no scale of its own",
        "if any(block.factors.values()):",
        "if False:",
    ),
    Mutant(
        "a cache's lanes may be put in another order",
        'if block.parts["k"].past is not None and not is_straight:',
        "if False:",
    ),
    Mutant(
        "lanes of what is no projection may be, too",
        "if turned is None:\n                raise Misfit(next(iter(ropes)))",
        "if turned is None:\n                continue",
    ),
    Mutant(
        "what a FusedGemm applies counts for nothing",
        'node.op == "com.microsoft:FusedGemm" and node.attr("activation") is not None',
        "False",
    ),
    Mutant(
        "an output's bias may differ by position",
        "return (made, output) if made.are_of_columns(steps) else None",
        "return made, output",
    ),
    Mutant(
        "moments may be of any axis",
        "or not formula.is_over(first, source, second.over):",
        ":",
    ),
    Mutant(
        "a network may score positions",
        "if query and any(_is_activated(ref) for ref in ascent(views, scores.key)):",
        "if False:",
    ),
    Mutant(
        "a network scores positions only where its weights meet values",
        "                    check_network(self.views, self.node, part)\n",
        "",
    ),
    Mutant(
        "what scores positions may have gates",
        'factors = node.given if node is not None and node.op == "Mul" else [ref.value]',
        "factors = [ref.value]",
    ),
    Mutant(
        "a constant key may weigh what is computed",
        "if key and not shapes.is_constant(values.value.value):",
        "if False:",
    ),
    Mutant(
        "a number divided by a query is a query divided",
        'if main == 1 and node.op == "Div":',
        "if False:",
    ),
    Mutant(
        "shown weights have the softmax's own columns",
        "(roles.batch, roles.heads, roles.rows, roles.columns)",
        "(roles.batch, roles.heads, roles.rows, block.space.resolve(block.scores.column))",
    ),
    Mutant(
        "a projection may be scaled by infinity",
        'if node.op in ("Mul", "Div") and scale_by(node.op, constant, shapes) is None:',
        "if False:",
    ),
    Mutant(
        "parts of one tensor stand side by side at any positions",
        "if choice.index[:2] == rows\n            and",
        "if",
    ),
    Mutant("a cap may turn the sign", "if softcap <= 0:", "if False:"),
    Mutant(
        "what is made around a branch is taken into it",
        "if node is None or node.graph is not self.graph or self.shapes.is_constant(ref.value):",
        "if node is None or self.shapes.is_constant(ref.value):",
    ),
    Mutant(
        "what reads the context in a branch is taken out of it",
        "return use.node if use is not None and use.node.graph is self.node.graph else None",
        "return None if use is None else use.node",
    ),
    Mutant(
        "keys and values have caches of any two lengths",
        'if pasts and (set(pasts) != {"k", "v"} or sizes["k"] != sizes["v"]):',
        'if pasts and set(pasts) != {"k", "v"}:',
    ),
    Mutant("a query may be a stream of residuals", " or _is_mixed(views, other)", ""),
    Mutant(
        "a query may be activated before learned keys",
        "any(map(_is_activated, ascent(views, other))) or",
        "",
    ),
    Mutant(
        "learned values may be one number each",
        "if key and all(atom.extent == Dim.of(1) for atom in depth):",
        "if False:",
    ),
    Mutant("constants are mixed in", "met - {frozenset()}", "met"),
    Mutant(
        "parts of the same products are mixed",
        "return () if contraction_of(value.producer, shapes) is not None else inputs_of(value)",
        "return ()",
    ),
    Mutant(
        "a block may join what no weight makes with a cache",
        "if not any(self.parts[name].projection for name in pasts):",
        "if False:",
    ),
    Mutant("keys and values may be one cache", "if found and not _are_whole(*found):", "if False:"),
)
_PASS = (
    Mutant(
        "nobody else needs a projection's product",
        "why = _shared(part, at, blocks, columns) if way is None else _read(part, product, way)",
        "why = _shared(part, at, blocks, columns)",
    ),
    Mutant(
        "no columns are projected twice",
        "why = _shared(part, at, blocks, columns) if way is None else _read(part, product, way)",
        "why = None if way is None else _read(part, product, way)",
    ),
    Mutant(
        "blocks read no product",
        "if way[0].is_output or way[0] in read), None)",
        "if way[0].is_output), None)",
    ),
    Mutant(
        "what an operator gives out is computed beside it",
        "for made in use.node.made if made not in replaced)",
        "for made in use.node.made)",
    ),
    Mutant(
        "who asks for a shape reads its elements",
        'case Call("Shape"):',
        'case Call("ShapeOf"):',
    ),
    Mutant(
        "keys are copied for each query",
        "counts is not None and math.prod(counts) >= _FEWEST_QUERIES",
        "counts is not None",
    ),
    Mutant(
        "the output is always in place",
        "return ref.value if same and is_float else None",
        "return ref.value if is_float else None",
    ),
    Mutant(
        "the type is always float32",
        "is_float = self.shapes.dtype(ref.value) in (None, TensorProto.FLOAT)",
        "is_float = True",
    ),
    Mutant(
        "a weight stands where it is read first",
        "home = job.graph if job.graph.function else weight.graph",
        "home = job.graph",
    ),
    Mutant("a past is never empty", "if any(map(extents.is_maybe_empty, after)):", "if False:"),
    Mutant("operators have only what is read of them", "operator.check(node)", "pass"),
    Mutant("bodies are searched for blocks", "graph.function.domain == schema.DOMAIN", "False"),
)
BLOCKS = (*_ENDS, *_BLOCK, *_PASS)
