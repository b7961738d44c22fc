"""Checks of what a block means, and its record."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

RECORD = (
    # arrangement.py
    Mutant(
        "an operator's heads may be rows",
        "heads = self.scores.index[1] if lifted.has_heads else ()",
        "heads = ()",
    ),
    Mutant(
        "a product with the values may be scaled where no projection follows",
        "if self.values.scale != 1.0 and output.projection is None:",
        "if False:",
    ),
    Mutant(
        "what scales weights scales a cache, too",
        "projection = None if part.past is not None else part.projection",
        "projection = part.projection",
    ),
    Mutant(
        "any scale of rows is one of heads",
        "projection is not None and step_atoms(steps) <= {*self.heads(name)}",
        "projection is not None",
    ),
    # enforced.py
    Mutant(
        "batches that meet in a product are one without a check",
        "if not equation.is_assumed or len(terms) == 1:",
        "if True:",
    ),
    Mutant(
        "tables tell what is equal",
        "for name, expr in block.sources.items():",
        "for name, expr in (block.sources | block.tables).items():",
    ),
    Mutant(
        "an extent of any operand may stand for another",
        "if (self._bases | self._made).isdisjoint(one.bases):",
        "if self._made.isdisjoint(one.bases):",
    ),
    Mutant(
        "an extent by which sources are viewed may stand for another",
        "self._made = _made_by_views(block, shapes)",
        "self._made: set[str] = set()",
    ),
    Mutant(
        "what sources are the greatest of may stand for it",
        'arguments = () if known.bases <= self._bases else known.arguments_of("max")',
        'arguments = known.arguments_of("max")',
    ),
    Mutant(
        "an extent of tables and masks may stand for several",
        "return self._aside.setdefault(one, other) == other",
        "return True",
    ),
    # assembly.py
    Mutant("causal rows may stand in any order", "if block.roles.rows != rows:", "if False:"),
    Mutant(
        "causal columns may stand in any order", "if block.roles.columns != columns:", "if False:"
    ),
    Mutant(
        "keys joined before a causal operator are a past",
        'if block.parts["k"].past is not None and not (lifted.pasts or lifted.parts):',
        "if False:",
    ),
    Mutant(
        "an operator's own mask has its columns turned",
        "(lifted.core or block.values.shown)",
        "block.values.shown",
    ),
    Mutant(
        "weights are shown in any order",
        "(lifted.core or block.values.shown)",
        "lifted.core",
    ),
    Mutant(
        "an operator takes any scale",
        "(is_kept and np.float32(own) <= 0)",
        "False",
    ),
    Mutant(
        "an operand's factor may make the scale infinite",
        "(own != 1.0 and abs(scale) > LARGEST_FLOAT) or ",
        "",
    ),
    Mutant(
        "a bias from the joined keys can be given",
        "if any(needs(value, {ref.value}, sources) for value in record.attended):",
        "if False:",
    ),
    Mutant(
        "bodies read nothing",
        "return (*unshaped(value), *captured(node))",
        "return unshaped(value)",
    ),
    # dependence.py
    Mutant(
        "places of nodes are compared across graphs",
        "node is not None and {node.graph} == graphs and node.rank < first",
        "node is not None and node.rank < first",
    ),
    # block_inputs.py
    Mutant(
        "a place that only a run knows is a number",
        "and are_numbers(choice.index[2:])",
        "and True",
    ),
    Mutant(
        "a packed operand needs no scale of its own",
        "if any(block.factors.values()):",
        "if False:",
    ),
    Mutant(
        "parts of one tensor stand side by side at any positions",
        "if choice.index[:2] == rows\n            and",
        "if",
    ),
    Mutant(
        "queries, keys and values side by side have no order",
        "and (evaluate(choice.index[2], own.values) == start + np.arange(own.count)).all()",
        "",
    ),
    Mutant("a norm may run over any axes", "if over != own and not all_heads:", "if False:"),
    Mutant(
        "a norm may be scaled by position", "if step_atoms(steps) - own - {*heads}:", "if False:"
    ),
    Mutant(
        "a norm's weight is finite",
        "if not np.isfinite((factor, shift)).all():",
        "if False:",
    ),
    Mutant("rms norms may be shifted", 'if shift.any() and norm.kind != "layer":', "if False:"),
    # block_outputs.py
    Mutant("keys and values may be one cache", "if found and not _are_whole(*found):", "if False:"),
    Mutant(
        "shown weights have the softmax's own columns",
        "(roles.batch, roles.heads, roles.rows, roles.columns)",
        "(roles.batch, roles.heads, roles.rows, block.space.resolve(block.scores.column))",
    ),
    Mutant(
        "weights are laid out in any way",
        "if layout_cost(result.axes, result.ref, block.extents) is None:",
        "if False:",
    ),
    Mutant(
        "parts of two tensors may be one cache",
        "if keys.ref is None or values.ref is None or keys.ref.value is not values.ref.value:",
        "if keys.ref is None or values.ref is None:",
    ),
    Mutant(
        "parts may lie across each other",
        "return keys.stack_axis == values.stack_axis and",
        "return",
    ),
    Mutant("a cache may be any two parts", "and {keys.part, values.part} == {0, 1}", ""),
    # content.py
    Mutant(
        "a bias of pairs is any bias", "return bool(rows) and rows | columns <= have", "return True"
    ),
    Mutant(
        "what is chosen for queries is lost in the softmax",
        '(part == "bias" and own.isdisjoint(columns))',
        "own.isdisjoint(columns)",
    ),
    Mutant(
        "a bias of sides may be made of the scores",
        "return not needs(at.value, made)",
        "return True",
    ),
    Mutant(
        "any bias is of keys or of queries",
        'if node is None or node.op not in ("Add", "Sub"):',
        "if node is None:",
    ),
    Mutant(
        "a bias of one set of keys is one of all",
        "if not columns <= space.atoms_of(*scores.index):",
        "if False:",
    ),
    # copies.py
    Mutant(
        "values of any kind are joined side by side",
        "if what is not None and values.lanes:",
        "if values.lanes:\n            continue\n        if False:",
    ),
    Mutant(
        "keys are copied for each query",
        "counts is not None and math.prod(counts) >= _FEWEST_QUERIES",
        "counts is not None",
    ),
    # dependence.py
    Mutant(
        "a type is read as numbers are",
        "made_by(value, *_SIZED, *TYPED)",
        "made_by(value, *_SIZED)",
    ),
    Mutant(
        "what a softmax weighs may be constant",
        " and all(factor.constant is None for factor in factors)",
        "",
    ),
    # masking.py
    Mutant(
        "a mask of one column in some runs is turned",
        "if not placed.is_exact(self.extents.views):",
        "if False:",
    ),
    Mutant("a factor above the cap is one below", "self.cap *= factor", "self.scale *= factor"),
    Mutant(
        "a bias is not scaled with the scores",
        "self.bias = None if self.bias is None else _times(self.bias, factor)",
        "pass",
    ),
    Mutant(
        "a fill is not scaled with the scores",
        "self.fill = None if self.fill is None else _times(self.fill, factor)",
        "pass",
    ),
    Mutant(
        "a row may be scaled after its mask",
        "if self.tanh is not None or self.bias is not None or self.keep is not None:",
        "if False:",
    ),
    Mutant(
        "a cap may follow a mask",
        "if self.tanh is not None or self.bias is not None or self.may_divide_by_zero:",
        "if self.may_divide_by_zero:",
    ),
    Mutant(
        "no divisor of rows under a cap is 0",
        "if self.tanh is not None or self.bias is not None or self.may_divide_by_zero:",
        "if self.tanh is not None or self.bias is not None:",
    ),
    Mutant("a bias is not added to the fill", 'self.fill = Call("Add", (self.fill, term))', "pass"),
    Mutant("a selection keeps what it fills", 'condition = Call("Not", (condition,))', "pass"),
    Mutant(
        "a second selection replaces the first",
        'else Call("And", (self.keep, condition))',
        "else condition",
    ),
    Mutant("a cap may turn the sign", "if softcap <= 0:", "if False:"),
    # meaning.py
    Mutant("float64 is float32", "        _check_types(views, part, own)\n", ""),
    Mutant("constants are computed", "        _check_constants(views, node, part, own)\n", ""),
    Mutant("channels are positions", "        _check_channels(views, node, part)\n", ""),
    Mutant("a bias may come from the query", "        check_content(views, part)\n", ""),
    Mutant("keys may be picked by rank", "        _check_selection(views, part)\n", ""),
    Mutant(
        "a context may meet another softmax",
        "        _check_use(views, node, own)\n",
        "        pass\n",
    ),
    Mutant(
        "weights may be scaled by their scores",
        "made = set() if product is None else {product}",
        "made = set()",
    ),
    Mutant(
        "rows may be scaled by their scores",
        "if isinstance(operation, RowScale) and all(needs(v, made) for v in operation.node.given):",
        "if False:",
    ),
    Mutant(
        "a gate may be made of the scores",
        "if gate is not None and needs(gate.factor.value, made, sources):",
        "if False:",
    ),
    Mutant(
        "weights that callers may replace are queries of scores",
        "        _check_given(views, node, scores)\n        return\n",
        "        return\n",
    ),
    Mutant(
        "a constant key may weigh what is computed",
        "if key and not shapes.is_constant(values.value.value):",
        "if False:",
    ),
    Mutant(
        "a query may be activated before learned keys",
        "any(map(_is_activated, ascent(views, other))) or",
        "",
    ),
    Mutant("a query may be a stream of residuals", " or _is_mixed(views, other)", ""),
    Mutant(
        "learned values may be one number each",
        "if key and all(atom.extent == Dim.of(1) for atom in depth):",
        "if False:",
    ),
    Mutant(
        "a network may score positions",
        "if query and any(_is_activated(ref) for ref in ascent(views, scores.key)):",
        "if False:",
    ),
    Mutant(
        "what scores positions may have gates",
        'factors = node.given if node is not None and node.op == "Mul" else [ref.value]',
        "factors = [ref.value]",
    ),
    Mutant(
        "parts of the same products are mixed",
        "return () if contraction_of(value.producer, shapes) is not None else inputs_of(value)",
        "return ()",
    ),
    Mutant("constants are mixed in", "met - {frozenset()}", "met"),
    Mutant(
        "a convolution's channels are positions",
        'if made_by(at.value, "Conv") and column & views.space.atoms_of(*at.index[1:2]):',
        "if False:",
    ),
    Mutant(
        "positions may not be compared over others, too",
        "depth.isdisjoint(columns) and not depth.isdisjoint(read)",
        "not depth.isdisjoint(read)",
    ),
    # records.py
    Mutant(
        "a cache may be parts of three",
        "or digit.extent.as_int() != 2:\n        return None",
        ":\n        return None",
    ),
    # reordered.py
    Mutant(
        "lanes are put in order by copies",
        "if expr is not None and not nodes_added(expr)",
        "if expr is not None",
    ),
    Mutant(
        "keys that others read are joined twice",
        "return all(only_reader(view.value) is not None for view in block.sources(ref))",
        "return True",
    ),
    # roles.py
    Mutant(
        "keys may be behind the others, and values before them",
        "(size(past.new), past.length, past.is_behind)",
        "(size(past.new), past.length)",
    ),
    Mutant(
        "a block may join what no weight makes with a cache",
        "if not any(self.parts[name].projection for name in pasts):",
        "if False:",
    ),
    Mutant(
        "keys and values have caches of any two lengths",
        'if pasts and (set(pasts) != {"k", "v"} or sizes["k"] != sizes["v"]):',
        'if pasts and set(pasts) != {"k", "v"}:',
    ),
    Mutant("keys may be of pairs", "if own & seen[name] - seen[other]:", "if False:"),
    Mutant(
        "rows before the output's own are heads",
        "found = [a for a in found if a in behind]",
        "found = [*found]",
    ),
    Mutant(
        "a bias may differ by position",
        "if not part.projection.are_of_columns(part.projection.steps):",
        "if False:",
    ),
    # rotation.py
    Mutant(
        "queries and keys may pair other lanes", "if (rope.pair != first.pair).any():", "if False:"
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
        "what enters may have its lanes in any order",
        "elif part.rope is not None and not _is_whole(part.rope, head_dim):",
        "elif False:",
    ),
)
