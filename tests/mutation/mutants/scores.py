"""What is checked on the way from the product to the softmax."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

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
        "and found.alpha == 1.0 and found.bias is None",
        "and found.alpha == 1.0",
    ),
    Mutant(
        "a sink is shifted by anything",
        "if negates and other is not None and views.same(other, shift.taken):",
        "if negates and other is not None:",
    ),
    Mutant(
        "a sink has no part of a sum",
        "is_one = self.sums_to_one and not may_have_sinks",
        "is_one = self.sums_to_one",
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
        "if self.values.scale != 1.0 and output.projection is None:",
        "if False:",
    ),
    Mutant(
        "views behind a factor are of the same numbers",
        "if not scales and not differing:  # behind one, these are other numbers",
        "if not differing:",
    ),
    Mutant(
        "what scales rows scales lanes",
        "if step_atoms(before) - summed:",
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
        "if asks is None or node.inputs[kept] is not weights.value:",
        "if asks is None:",
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
        "joined scores may be changed before",
        "masks = all_known(_masks(part, walk.views) for part in parts)",
        "masks = [_masks(part, walk.views) or [] for part in parts]",
    ),
    Mutant(
        "joined scores may be rounded before",
        "if not is_finite or scores.products or chain.sinks is not None or any(others):",
        "if not is_finite or scores.products or chain.sinks is not None or chain.zeroings:",
    ),
    Mutant(
        "joined scores may be NaN before",
        "if not is_finite or scores.products or chain.sinks is not None or any(others):",
        "if not is_finite or scores.products or chain.sinks is not None or chain.roundings:",
    ),
    Mutant(
        "masks of all sets are of one kind",
        "masks.pop(0) if masks and _alike(masks[0], first) else None",
        "masks.pop(0) if masks else None",
    ),
    Mutant(
        "what is joined beside scores may broadcast",
        "if part is not None and not term.is_exact(extents.views):",
        "if False:",
    ),
    Mutant("what compares is compared by its name", "if first.op != second.op or", "if"),
    Mutant(
        "minus infinity times zero is zero",
        'if node.op == "Where" or not any(ranks) or self._is_infinite(other.value):',
        'if node.op == "Where" or not any(ranks):',
    ),
    Mutant(
        "any bound is as good as none",
        "if not (low <= LOWEST_REAL_SCORE and high >= -LOWEST_REAL_SCORE):",
        "if False:",
    ),
    Mutant(
        "a cap may follow a mask",
        "if self.tanh is not None or self.bias is not None:",
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
    Mutant("a query's scale counts for nothing", "scale=held.scale * number", "scale=held.scale"),
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
        "edited parts may be joined in any order",
        "if not views.same(read, Ref(self.source, spliced(whole.index, axis, there))):",
        "if False:",
    ),
    Mutant(
        "what is taken off a part is added to it",
        "return Call(node.op, (inner, other) if main == 0 else (other, inner))",
        'return Call("Add", (inner, other))',
    ),
    Mutant(
        "a part may be taken off a table",
        'for main in (0, 1) if node.op == "Add" else (0,):',
        "for main in (0, 1):",
    ),
    Mutant(
        "a part that is written twice was read between",
        "is_edit = below is not None and below.op in SCATTERS and source is before",
        "is_edit = False",
    ),
    Mutant(
        "scatters along an axis write to any place",
        "return None if place is None else spliced(own, at, place)",
        "return written",
    ),
    Mutant(
        "places that vary along two axes vary along one",
        "if (data != np.expand_dims(chosen, at)).any():",
        "if False:",
    ),
    Mutant(
        "what is repeated has its own places",
        "if below is None or self.views.space.resolve_index(whole.index) != below.index:",
        "if below is None:",
    ),
    Mutant(
        "what is added in another type is of the scores' type",
        "if self.views.shapes.dtype(other) != self.views.shapes.dtype(self.source):",
        "if False:",
    ),
    Mutant(
        "a position below zero is counted from the start",
        "self.ranged((), extent + int(table.ravel()[0]), 1, extent)",
        "self.ranged((), Dim.of(0), 1, extent)",
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
_BOUNDS = (
    Mutant(
        "what is divided by zeros is kept",
        'kept = self._kept(factor, ref) if node.op == "Mul" else None',
        "kept = self._kept(factor, ref)",
    ),
    Mutant(
        "a sum of any pairs is a product",
        'product_node is None or product_node.op != "Mul"',
        "product_node is None",
    ),
    Mutant("a mask's name is never 1", "any(full)", "False"),
    Mutant(
        "a mask's name for batch and heads is never 1",
        "len(own) > 1 or (own and size(own).as_int() is not None)",
        "own and size(own).as_int() is not None",
    ),
    Mutant(
        "a mask's name beside a number is never 1",
        "len(own) > 1 or (own and size(own).as_int() is not None)",
        "len(own) > 1",
    ),
    Mutant(
        "a mask's number beside a name is that name",
        "extent.as_int() is not None and (not is_last or size(own).as_int() is not None)",
        "False",
    ),
    Mutant("plus infinity hides", "scaled[scaled != -np.inf]", "scaled[np.isfinite(scaled)]"),
    Mutant(
        "infinity times zero is bounded",
        "return size if math.isinf(size) else size * abs(factor)",
        "return size * abs(factor)",
    ),
)

_LANES = (
    Mutant(
        "lanes are 0 in queries alone",
        "for ref in (scores.query, scores.key):\n        zero &=",
        "for ref in (scores.query,):\n        zero &=",
    ),
    Mutant(
        "a Pad is one by zeros",
        "return outside if padding_of(node, views.shapes) == 0.0 else None",
        "return outside",
    ),
    Mutant(
        "what is there is one number",
        'if node.attr("mode", "constant") != "constant":',
        "if False:",
    ),
    Mutant(
        "what is joined to the depth is 0",
        "number_of(value, views.shapes) == 0.0 for value",
        "number_of(value, views.shapes) is not None for value",
    ),
    Mutant(
        "infinity times zero is zero",
        "if number is None or value is None or not math.isfinite(number) or not number:",
        "if number is None or value is None or not number:",
    ),
    Mutant(
        "a place is on a part of an axis",
        "or limits[0] < start or limits[1] >= start + number:",
        ":",
    ),
    Mutant(
        "a cut leaves the other axes as they are",
        "            case _ if left != new:\n                return None\n",
        "",
    ),
    Mutant(
        "a context that is cut is read by nobody else",
        "use = only_reader(at.value)\n        if use is None or use.node.graph is not graph or",
        "use = at.value.uses[0]\n        if",
    ),
)

SCORES = (*_SCORES, *_CHOICES, *_BOUNDS, *_LANES)
