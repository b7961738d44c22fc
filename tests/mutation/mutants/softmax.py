"""What is checked around a softmax: its scores, its weights, and what they mean."""

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
        "a hidden power is any number",
        "if place is None or other is None or other.amount:",
        "if place is None or other is None:",
    ),
    Mutant(
        "a mask of powers is any number",
        "or choice is None or choice.amount != 1.0:\n        return None\n    return Select(",
        "or choice is None:\n        return None\n    return Select(",
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
        "if len(padded) != 1 or amounts[padded[0]] != 1:",
        "if False:",
    ),
    Mutant(
        "columns are padded by any numbers",
        'or node.attr("mode", "constant") != ("constant")',
        "",
    ),
)
_SCORES = (
    Mutant(
        "a product of a sum may broadcast", "if not is_whole(part.ref, self.views):", "if False:"
    ),
    Mutant(
        "a product of a sum may be of any factor",
        "usable = all(math.isfinite(part.factor) and part.factor for part in found)",
        "usable = True",
    ),
    Mutant(
        "a product may add to a sum of powers",
        "contraction.bias is not None:\n            return None\n        data",
        "False:\n            return None\n        data",
    ),
    Mutant(
        "a sink is shifted by anything",
        "if negates and other is not None and views.same(other, shift.taken):",
        "if negates and other is not None:",
    ),
    Mutant(
        "a sink has no part of a sum",
        "is_one = sums_to_one and chain is not None and chain.sinks is None",
        "is_one = sums_to_one",
    ),
    Mutant(
        "rows of zeros have a sum",
        "is_one and not (steps or guards.zero_nan or ref.value.is_output)",
        "is_one and not (steps or ref.value.is_output)",
    ),
    Mutant("powers of nothing have a sum", "sums_to_one=not written.zero_nan", "sums_to_one=True"),
    Mutant(
        "a repeat is anything", "if axis and {*atoms(axis)} <= same else axis", "if axis else axis"
    ),
    Mutant(
        "a column may choose queries and keys",
        "if sides[0] and sides[1]:\n            raise",
        "if False:\n            raise",
    ),
    Mutant("scores may be rounded away", "if not keeps_scores(", "if False and ("),
    Mutant(
        "what is added takes nothing of rounded scores",
        "case Bias() if size > exact:",
        "case Bias() if False:",
    ),
    Mutant(
        "what is chosen may become infinite",
        "case Select() | Clamp() if size > highest:",
        "case Select() | Clamp() if False:",
    ),
    Mutant(
        "infinities of both signs are a sum",
        "if math.isinf(fill) and any(_is_above_all(op, formula) for op in below):",
        "if False:",
    ),
    Mutant(
        "a product with the values may be scaled where no projection follows",
        "if self.values.scale != 1.0 and output.weight is None:",
        "if False:",
    ),
    Mutant(
        "views behind a factor are of the same numbers",
        "if scales.is_empty and not differing:  # behind one, these are other numbers",
        "if not differing:",
    ),
    Mutant(
        "what scales rows scales lanes",
        "if step_atoms(steps) - {*atoms(space.resolve(output.summed))}:",
        "if False:",
    ),
    Mutant(
        "what scaled the context is forgotten",
        "        if self.row_scales:\n",
        "        if False:\n",
    ),
    Mutant(
        "a product with the values may be added to others",
        "if product.bias is not None and product.beta != 0.0:",
        "if False:",
    ),
    Mutant(
        "the biases of products in a sum count for nothing",
        "biases += [replace(bias, sign=bias.sign * part.factor) for bias in added]",
        "pass",
    ),
    Mutant(
        "a product's bias counts for nothing",
        "if bias is not None:\n            chain.operations",
        "if False:\n            chain.operations",
    ),
    Mutant(
        "the largest may be of other scores that a mask shows",
        "return formula.is_over(replace(reduced, source=kept), scores, column) and any(",
        "return any(",
    ),
    Mutant("a product's alpha counts for nothing", "if contraction.alpha != 1.0:", "if False:"),
    Mutant(
        "a scale may be infinite",
        "if not math.isfinite(number) or (node.op",
        "if (node.op",
    ),
    Mutant(
        "comparisons with any number are alike",
        "if not _are_alike(parts[0], parts[1], formula, deepest - 1):",
        "if False:",
    ),
    Mutant(
        "the largest may be of what is below zero",
        "if choice is None or choice.amount <= 0:",
        "if choice is None:",
    ),
    Mutant(
        "what is joined is its first part",
        'if len(node.inputs) > 1 and node.op == "Concat":',
        "if False:",
    ),
    Mutant(
        "a guard may keep anything",
        "if kept is not weights.value or asks is None:",
        "if asks is None:",
    ),
    Mutant(
        "a sum is never bounded above",
        "if made.node.input(2) is not None:  # an upper bound",
        "if False:",
    ),
    Mutant("a mask may be turned", "if not steps or outer <= 0:", "if not steps:"),
    Mutant(
        "any sum of weights is of zeros",
        "return Ref(result, weights.index) if _is_zero(other, formula) else None",
        "return Ref(result, weights.index)",
    ),
    Mutant(
        "a choice may be reduced over anything",
        "if over is None or atoms_of(over) != atoms_of(column):",
        "if over is None:",
    ),
    Mutant(
        "powers of hidden rows are in the sum",
        "shift is not None and shift.floor is None and not powers.masks",
        "shift is not None and shift.floor is None",
    ),
    Mutant("any factor is a choice", "if not np.isin(data, (0, amount)).all():", "if False:"),
    Mutant(
        "a difference of two parts is a choice",
        'if made.node.op != "Add":\n        return None\n    products',
        "if False:\n        return None\n    products",
    ),
    Mutant(
        "any two parts are a choice", "if agree(condition, other, formula) is False:", "if True:"
    ),
    Mutant(
        "constants that differ anywhere are opposite",
        "    if not differ.all():\n",
        "    if False:\n",
    ),
    Mutant(
        "parts of the weights may come in any order",
        "there = space.ranged(part.column, start, 1, space.known(extent))",
        "return True\n    there = space.ranged(part.column, start, 1, space.known(extent))",
    ),
    Mutant(
        "parts of the weights may be read by others",
        "sums = [node for node in reads.values() if node.op in _SUMS]",
        "reads |= {value: None for value in waiting if value not in reads}\n"
        "        sums = [node for node in reads.values() if node is not None and node.op in _SUMS]",
    ),
    Mutant(
        "scores of different queries may be joined",
        "if not all(_has_same_query(first, part, walk.views) for part in parts[1:]):",
        "if False:",
    ),
    Mutant(
        "joined scores may be masked before",
        "if not all(_is_only_scaled(part) for part in parts):",
        "if False:",
    ),
    Mutant("what compares is compared by its name", "if first.op != second.op or", "if"),
    Mutant(
        "minus infinity times zero is zero",
        'if node.op == "Where" or max(ranks) == 0 or self._is_infinite(other.value):',
        'if node.op == "Where" or max(ranks) == 0:',
    ),
    Mutant(
        "any bound is as good as none",
        "if not (low <= LOWEST_REAL_SCORE and high >= -LOWEST_REAL_SCORE):",
        "if False:",
    ),
    Mutant(
        "a cap may follow a mask",
        "if self.is_capped or self.bias is not None or self.keep is not None:",
        "if False:",
    ),
    Mutant("a factor above the cap is one below", "self.cap *= factor", "self.scale *= factor"),
    Mutant("two columns may be joined", "if width[axis] == ONE else None", ""),
    Mutant("a selection keeps what it fills", 'condition = Call("Not", (condition,))', "pass"),
    Mutant(
        "a second selection replaces the first",
        'else Call("And", (self.keep, condition))',
        "else condition",
    ),
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
    Mutant("a bias is not added to the fill", 'self.fill = Call("Add", (self.fill, term))', "pass"),
    Mutant(
        "a query's scale counts for nothing", "scale=held.scale * number[1]", "scale=held.scale"
    ),
)
_WEIGHTS = (
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
        "if in_layout(np.zeros(()), result.axes, result.ref, block.extents) is None:",
        "if False:",
    ),
    Mutant(
        "weights may be scaled by row and column",
        "if not step_atoms((step.resolve(space),)) <= own:",
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
        "highest += magnitude(term.expr, shapes)",
        "pass",
    ),
    Mutant(
        "an inner fill is no score",
        "highest = max(highest, magnitude(fill.expr, shapes))",
        "pass",
    ),
    Mutant(
        "zeros may stand where a mask shows",
        "kept is not None and agree(kept, zeroed.condition, formula) is (not mask.inverted)",
        "kept is not None",
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
    Mutant("a NaN guard may put any number", "number_of(fill, self._views.shapes) != 0.0", "False"),
    Mutant(
        "others may read the context",
        "return found[0] if len(found) == 1 and not value.is_output else None",
        "return found[0] if found else None",
    ),
    Mutant("an output projection may see the rows", "if {*columns} & positions:", "if False:"),
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
        "agree_over(reduced, shown, mask, column, formula) for mask in shown_by(chain, formula)",
        "mask for mask in shown_by(chain, formula)",
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
        "if sink is None or not _holds_floor(sink, shift):",
        "if not sink:",
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
        "kept = None if infinite else kept",
        "pass",
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
        "return self.views.same(there, self._unedited(part))",
        "return True",
    ),
    Mutant(
        "all that is written is one number",
        "if kept is None or len(canvas.numbers) != 1:",
        "if kept is None:",
    ),
    Mutant(
        "any activation makes weights",
        "return is_projected(views, scores.query) and is_projected(views, scores.key)",
        "return True",
    ),
    Mutant("any rows are written alike", "if (kept == first).all():", "if True:"),
    Mutant(
        "others may read what is divided late",
        "if value.is_output or len(readers(value)) > count:",
        "if False:",
    ),
)
_BOUNDS = (
    Mutant(
        "what is divided by zeros is kept",
        'kept = self.kept(factor, ref) if node.op == "Mul" else None',
        "kept = self.kept(factor, ref)",
    ),
    Mutant(
        "a sum of any pairs is a product",
        'product_node is None or product_node.op != "Mul"',
        "product_node is None",
    ),
    Mutant("plus infinity hides", "scaled[scaled != -np.inf]", "scaled[np.isfinite(scaled)]"),
    Mutant(
        "infinity times zero is bounded",
        "return size if math.isinf(size) else size * abs(factor)",
        "return size * abs(factor)",
    ),
)
_MEANING = (
    Mutant("float64 is float32", "        _check_types(views, part, values)\n", ""),
    Mutant("constants are computed", "        _check_constants(views, node, part, values)\n", ""),
    Mutant("channels are positions", "        _check_channels(views, node, part)\n", ""),
    Mutant("a bias may come from the query", "        check_content(views, part)\n", ""),
    Mutant("a context may meet another softmax", "    _check_use(views, node, values)\n", ""),
)
_CHOICES = (
    Mutant(
        "a choice of two numbers is one of zero",
        "numbers[1] is None or 0.0 not in numbers:",
        "numbers[1] is None:",
    ),
    Mutant(
        "a number less any choice is one",
        "if whole is not None and whole.amount == number and math.isfinite(number):",
        "if whole is not None:",
    ),
    Mutant(
        "a Cast keeps a choice's amount",
        "return whole if whole is not None and whole.amount == 1.0 else None",
        "return whole",
    ),
    Mutant(
        "a mask may be dropped by chance",
        "if node is None or is_random(node, shapes):",
        "if node is None:",
    ),
    Mutant(
        "what hides by any number hides for good",
        "return isinstance(fill, np.ndarray) and bool((fill == -np.inf).all())",
        "return isinstance(fill, np.ndarray)",
    ),
    Mutant(
        "what is taken off a bias is added to it",
        'Call("Sub" if is_opposite else "Add", (made, value))',
        'Call("Add", (made, value))',
    ),
    Mutant(
        "edits may change what they leave", "        if not _is_move(node):", "        if False:"
    ),
    Mutant(
        "places may be counted from any number",
        "return counted.index[0] if (start, step) == (0.0, 1.0) else None",
        "return counted.index[0]",
    ),
    Mutant(
        "zero bounds what it multiplies",
        "return math.inf if math.inf in parts else math.prod(parts)",
        "return 0.0 if 0.0 in parts else math.prod(parts)",
    ),
    Mutant(
        "a sink is not scaled with the scores",
        "        if chain.factor != 1.0:\n            scaled",
        "        if False:\n            scaled",
    ),
    Mutant(
        "any two comparisons ask for minus infinity",
        "return found if formula.views.same(found, other) else None",
        "return found",
    ),
)
SOFTMAX = (*_REWRITTEN, *_SCORES, *_CHOICES, *_WEIGHTS, *_SUMS, *_BOUNDS, *_MEANING)
