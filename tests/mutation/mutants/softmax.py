"""What is checked around a softmax: how it is written, its weights, and what they mean."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

_REWRITTEN = (
    Mutant(
        "parts are joined in any order",
        "if shape is None or join.inputs != outputs or any(value.is_output for value in outputs):",
        "if shape is None:",
    ),
    Mutant(
        "anything takes the place of weights of which nothing is left",
        "if formula.number(made, 3 - main) != 0.0 or result is None:",
        "if result is None:",
    ),
    Mutant(
        "a sum is compared with any number",
        "if compared is None or formula.number(made, zero) != 0.0:",
        "if compared is None:",
    ),
    Mutant(
        "what is chosen instead of weights is any number",
        "if asked is None or not _is_zero(other, formula):",
        "if asked is None:",
    ),
    Mutant(
        "a mask of weights is any number",
        "or choice is None or choice.amount != 1.0:\n        return None\n    return Zeroed(",
        "or choice is None:\n        return None\n    return Zeroed(",
    ),
    Mutant(
        "a sum of powers is bounded above",
        "if is_clip and made is not None and made.node.input(2) is not None:",
        "if False:",
    ),
    Mutant(
        "the largest score is bounded above",
        "if bounded is None or bounded.node.input(2) is not None:",
        "if bounded is None:",
    ),
    Mutant(
        "any number by the sum inverts it",
        'case "Div" if self.number(made, 0) == 1.0:',
        'case "Div":',
    ),
    Mutant(
        "several columns are padded",
        "if len(padded) != 1 or padded[0][1:] not in ((0, 1), (1, 0)):",
        "if False:",
    ),
)
_WEIGHTS = (
    Mutant(
        "scores of other rows are no values",
        "return rows <= self.space.atoms_of(*values.value.index) and is_made_of(",
        "return is_made_of(",
    ),
    Mutant(
        "contexts are joined along any axis",
        "if any({*atoms(index[place])} & scored for index in indices):",
        "if False:",
    ),
    Mutant(
        "contexts are joined wherever their depths stand",
        "if depths is None or any(other != rest[0] for other in rest):",
        "if depths is None:",
    ),
    Mutant(
        "contexts are joined to anything",
        "if len(node.inputs) != len(values) or {*node.inputs} != {*values}:",
        "if False:",
    ),
    Mutant(
        "values of any kind are joined side by side",
        "if what is not None and values.lanes:",
        "if values.lanes:\n            continue\n        if False:",
    ),
    Mutant(
        "scaled weights are the operator's",
        "if is_scaled:\n            raise",
        "if False:\n            raise",
    ),
    Mutant("weights may meet values twice", "if meets and self._several is None:", "if False:"),
    Mutant(
        "what is shown may be changed on",
        "if shown is not None and node.op in SCALERS:",
        "if False:",
    ),
    Mutant(
        "weights are laid out in any way",
        "if layout_cost(result.axes, result.ref, block.extents) is None:",
        "if False:",
    ),
    Mutant(
        "weights may be scaled by infinity",
        "if data is None or not np.isfinite(data).all():",
        "if data is None:",
    ),
    Mutant(
        "weights may be divided by zero",
        'if op == "Div" and not np.all(data):',
        "if False:",
    ),
    Mutant(
        "zero times infinity is zero",
        "if may_be_infinite(chain.operations[outside:], chain.product, self.shapes):",
        "if False:",
    ),
    Mutant(
        "what is no number is small",
        "return math.inf if math.isnan(largest) else largest",
        "return largest",
    ),
    Mutant(
        "a new sum has a sink's part",
        "return chain.sinks is None and highest_added(added",
        "return highest_added(added",
    ),
    Mutant(
        "a new sum restores what was hidden",
        "highest_added(added, formula.views.shapes) <= _KEEPS",
        "True",
    ),
    Mutant(
        "a mask of one's own may raise",
        "added = below if _number(mask.fill, formula) <= _KEEPS else added",
        "added = below",
    ),
    Mutant("scaled weights may be renormalised", "if not steps:", "if True:"),
    Mutant(
        "any one number is no bias",
        "if number_of(node.inputs[1 - main], self.shapes) == 0.0:",
        "if number_of(node.inputs[1 - main], self.shapes) is not None:",
    ),
    Mutant(
        "the softmax may run over any axis",
        "if space.atoms_of(*own.summed_axes(ref.index)) != space.atoms_of(column):",
        "if False:",
    ),
    Mutant(
        "a sink may be cut off anywhere",
        "if self.views.space.match((cut,), (theirs,)) is None:",
        "if False:",
    ),
    Mutant("any fill hides its column", "if not hides:", "if False:"),
    Mutant("no scale is steep", "max(1.0, abs(factor))", "1.0"),
    Mutant(
        "a bias moves no score",
        "highest, greatest = highest + added, greatest + added",
        "pass",
    ),
    Mutant(
        "no fill is above the scores",
        "greatest = max(greatest, _greatest(fill.expr, shapes))",
        "pass",
    ),
    Mutant(
        "an inner fill is no score",
        "highest = max(highest, magnitude(fill.expr, shapes))",
        "pass",
    ),
    Mutant(
        "zeros may stand where a mask shows",
        "shown is not None and agree(shown, zeroed.condition, formula) is True",
        "shown is not None",
    ),
    Mutant(
        "zeros may stand where a sum shows",
        "if choice is None or agree(choice.condition, zeroed.condition, formula) is not False:",
        "if choice is None:",
    ),
    Mutant(
        "zero times NaN is zero", "return zeroed.takes_nan or math.isfinite(fill)", "return True"
    ),
    Mutant(
        "weights may be halved",
        "return None\n    return Zeroed(choice.condition",
        "pass\n    return Zeroed(choice.condition",
    ),
    Mutant(
        "a NaN guard may put any number", "self._formula.number(whole, 3 - kept) != 0.0", "False"
    ),
    Mutant(
        "others may read the context",
        "return found[0] if len(found) == 1 and not value.is_output else None",
        "return found[0] if found else None",
    ),
    Mutant(
        "an output projection may see the rows",
        "if columns & ({*index_atoms(index)} - summed):",
        "if False:",
    ),
)
_SUMS = (
    Mutant(
        "what is lost in a sum is lost in any",
        "if number == 0.0 or (is_one and 0 < number < lost):",
        "if number == 0.0 or 0 < number < lost:",
    ),
    Mutant("any number is lost in a sum", "0 < number < lost", "0 < number"),
    Mutant(
        "a sum may be below any number",
        "if is_one and number is not None and number <= 1.0:",
        "if number is not None:",
    ),
    Mutant(
        "a sink need not be shifted",
        "if number > 0 and math.isfinite(number) and shift is None:",
        "if number > 0:",
    ),
    Mutant(
        "a sink may be shifted by anything",
        'case "Neg" if first is not None and views.same(first, shift.taken):',
        'case "Neg":',
    ),
    Mutant(
        "a sum may be of other powers", "if data is None or not (data == 1).all():", "if False:"
    ),
    Mutant(
        "the largest may be of what another mask shows",
        "other is not None and agree_over(reduced, shown, other, column, formula)",
        "other is not None",
    ),
    Mutant(
        "a mask may show anything beside the largest",
        "formula.number(made, 2) != -math.inf",
        "False",
    ),
    Mutant(
        "rows of anything are empty",
        "if shown is None or _asks_for_any(zeroed.condition, shown, column, formula) is not True:",
        "if shown is None:",
    ),
    Mutant("all is any", "if hidden is None or hidden is not of_all:", "if hidden is None:"),
    Mutant(
        "the largest may be any number",
        "if formula.number(made, 1 - main) == -math.inf:",
        "if formula.number(made, 1 - main) is not None:",
    ),
    Mutant("columns are rows", "if at & formula.views.space.atoms_of(column):", "if False:"),
    Mutant(
        "no row is no number",
        "if not is_guarded and may_be_infinite(chain.operations, chain.product, shapes):",
        "if False:",
    ),
    Mutant(
        "a maximum may have any floor",
        "if sink is None or not _holds_floor(sink, shift, formula):",
        "if not sink:",
    ),
    Mutant(
        "a maximum may have the floor of any tensor",
        "and formula.views.same(sink.ref, shift.floor)",
        "",
    ),
    Mutant(
        "powers of all bases are one",
        "extra = formula.beside(made, position) if powers.factor == 1.0 else None",
        "extra = formula.beside(made, position)",
    ),
    Mutant(
        "a hidden row is zero",
        "if math.isinf(fill) and zeroed.takes_nan and may_be_infinite(",
        "if False and may_be_infinite(",
    ),
    Mutant(
        "a row of which a guard leaves nothing is zero",
        "if is_any or not may_be_infinite(chain.operations, chain.product, self.shapes):",
        "if True:",
    ),
    Mutant(
        "a row of powers of which a guard leaves nothing is zero",
        "if may_be_infinite(inner, chain.product, self.shapes):",
        "if False:",
    ),
    Mutant("any reduction writes", 'if reduction not in ("none", "add"):', "if False:"),
    Mutant(
        "what is written may be one number of many",
        "same = data.size > 0 and (data == data.ravel()[0]).all()",
        "same = data.size > 0",
    ),
    Mutant(
        "a part comes back to its place",
        "return self.views.same(self._unedited(Ref(data, places)), self._unedited(part))",
        "return True",
    ),
    Mutant("all that is written is one number", "if len(flags.numbers) <= 1 and not", "if not"),
    Mutant(
        "what is added behind a number that was written isn't added to it",
        "on_canvas(kept), on_canvas(content))",
        "on_canvas(kept), Placed.number([*flags.numbers][0]))",
    ),
    Mutant(
        "columns of weights may be scaled by what is computed",
        "next((at for at in found if not space.atoms_of(*at.index) & columns), None)",
        "found[0]",
    ),
    Mutant(
        "columns of weights may be scaled by constants",
        "elif varies & columns:",
        "elif False:",
    ),
    Mutant(
        "what is computed may divide weights",
        'is_product = node.op == "Mul" and not shapes.is_constant(factor)',
        "is_product = not shapes.is_constant(factor)",
    ),
    Mutant(
        "weights may be scaled by their scores",
        "made = set() if product is None else {product}",
        "made = set()",
    ),
    Mutant(
        "behind what scales rows an output projection follows",
        "if values.factors:  # by them",
        "if False:  # by them",
    ),
    Mutant(
        "an entropy of logarithms weighs values",
        "if not in_place and _is_element_by_element(product, shapes):",
        "if False:",
    ),
    Mutant(
        "all that is multiplied and summed up is in its own place",
        'return product.node.op == "ReduceSum" and first is not None and first == second',
        "return True",
    ),
    Mutant(
        "any activation makes weights",
        "return is_projected(views, scores.query) and is_projected(views, scores.key)",
        "return True",
    ),
    Mutant("any rows are written alike", "if (data == first).all():", "if True:"),
    Mutant(
        "others may read what is divided late",
        "if value.is_output or len(readers(value)) > count:",
        "if False:",
    ),
)
_MEANING = (
    Mutant("float64 is float32", "        _check_types(views, part, own)\n", ""),
    Mutant("constants are computed", "        _check_constants(views, node, part, own)\n", ""),
    Mutant("channels are positions", "        _check_channels(views, node, part)\n", ""),
    Mutant("a bias may come from the query", "        check_content(views, part)\n", ""),
    Mutant(
        "what a softmax weighs may be constant",
        " and all(factor.constant is None for factor in factors)",
        "",
    ),
    Mutant(
        "a convolution's channels are positions",
        'if is_made_by(at.value, ("Conv",)) and column & views.space.atoms_of(*at.index[1:2]):',
        "if False:",
    ),
    Mutant(
        "rows may be scaled by their scores",
        "if isinstance(operation, RowScale) and all(needs(v, made) for v in operation.node.given):",
        "if False:",
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
        "what is chosen for queries is lost in the softmax",
        '(part == "bias" and own.isdisjoint(columns))',
        "own.isdisjoint(columns)",
    ),
    Mutant(
        "a bias of one set of keys is one of all",
        "if not columns <= space.atoms_of(*scores.index):",
        "if False:",
    ),
    Mutant(
        "a context may meet another softmax",
        "        _check_use(views, node, own)\n",
        "        pass\n",
    ),
)

SOFTMAX = (*_REWRITTEN, *_WEIGHTS, *_SUMS, *_MEANING)
