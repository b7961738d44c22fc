"""Checks of the way from the product to the softmax."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

SCORES = (
    # bounds.py
    Mutant("no scale is steep", "max(1.0, abs(factor))", "1.0"),
    Mutant(
        "a bias moves no score",
        "highest, greatest = highest + added, greatest + added",
        "pass",
    ),
    Mutant(
        "an inner fill is no score",
        "highest = max(highest, magnitude(fill.expr, shapes))",
        "pass",
    ),
    Mutant(
        "no fill is above the scores",
        "greatest = max(greatest, _greatest(fill, shapes))",
        "pass",
    ),
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
    Mutant("plus infinity hides", "scaled[scaled != -np.inf]", "scaled[np.isfinite(scaled)]"),
    Mutant(
        "infinity times zero is bounded",
        "return size if math.isinf(size) else size * abs(factor)",
        "return size * abs(factor)",
    ),
    Mutant(
        "a constant hides no row",
        "return all(own[axis] <= columns for axis in axes) and bool(left.any(axis=axes).all())",
        "return True",
    ),
    Mutant(
        "what is no number is small",
        "return math.inf if math.isnan(largest) else largest",
        "return largest",
    ),
    Mutant(
        "zero bounds what it multiplies",
        "return math.inf if math.inf in parts else math.prod(parts)",
        "return 0.0 if 0.0 in parts else math.prod(parts)",
    ),
    # chain.py
    Mutant("a mask's name is never 1", "any(full)", "False"),
    Mutant(
        "a mask's name beside a number is never 1",
        "len(own) > 1 or (own and size(own).as_int() is not None)",
        "len(own) > 1",
    ),
    Mutant(
        "a mask's name for batch and heads is never 1",
        "len(own) > 1 or (own and size(own).as_int() is not None)",
        "own and size(own).as_int() is not None",
    ),
    Mutant(
        "what is joined beside scores may broadcast",
        "if part is not None and not term.is_exact(extents.views):",
        "if False:",
    ),
    Mutant(
        "what hides by any number hides for good",
        "return isinstance(fill, np.ndarray) and bool((fill == -np.inf).all())",
        "return isinstance(fill, np.ndarray)",
    ),
    Mutant(
        "any fill hides for good",
        "or (isinstance(op, Select) and op.fill.only_number(shapes) == -math.inf)",
        "or isinstance(op, Select)",
    ),
    # choices.py
    Mutant(
        "a mask may be dropped by chance",
        "if node is None or is_random(node, shapes):",
        "if node is None:",
    ),
    Mutant("any factor is a choice", "if not np.isin(data, (0, amount)).all():", "if False:"),
    Mutant(
        "a Cast keeps a choice's amount",
        "return whole if whole is not None and whole.amount == 1.0 else None",
        "return whole",
    ),
    Mutant(
        "a number less any choice is one",
        "if whole is not None and whole.amount == number and math.isfinite(number):",
        "if whole is not None:",
    ),
    Mutant(
        "a choice of two numbers is one of zero",
        "numbers[1] is None or 0.0 not in numbers:",
        "numbers[1] is None:",
    ),
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
        "a choice may be reduced over anything",
        "if over is None or atoms_of(over) != atoms_of(column):",
        "if over is None:",
    ),
    Mutant("what compares is compared by its name", "if first.op != second.op or", "if"),
    Mutant(
        "comparisons with any number are alike",
        "if not _are_alike(parts[0], parts[1], formula, deepest - 1):",
        "if False:",
    ),
    # edited_parts.py
    Mutant(
        "a part that is written twice was read between",
        "is_edit = below is not None and below.op in SCATTERS and source is before",
        "is_edit = False",
    ),
    Mutant("all that is written is one number", "if len(flags.numbers) <= 1 and not", "if not"),
    Mutant(
        "what is added behind a number that was written isn't added to it",
        "on_canvas(kept), on_canvas(content))",
        "on_canvas(kept), Placed.number([*flags.numbers][0]))",
    ),
    Mutant(
        "what is repeated has its own places",
        "if below is None or self.views.space.resolve_index(whole.index) != below.index:",
        "if below is None:",
    ),
    Mutant(
        "a part may be taken off a table",
        'for main in (0, 1) if node.op == "Add" else (0,):',
        "for main in (0, 1):",
    ),
    Mutant(
        "what is added in another type is of the scores' type",
        "if self.views.shapes.dtype(other) != self.views.shapes.dtype(self.source):",
        "if False:",
    ),
    Mutant(
        "what is taken off a part is added to it",
        "return Call(node.op, (inner, other) if main == 0 else (other, inner))",
        'return Call("Add", (inner, other))',
    ),
    Mutant(
        "edited parts may be joined in any order",
        "if not views.same(read, Ref(self.source, spliced(whole.index, axis, there))):",
        "if False:",
    ),
    Mutant(
        "a part comes back to its place",
        "return self.views.same(self._unedited(Ref(data, places)), self._unedited(part))",
        "return True",
    ),
    Mutant(
        "scatters along an axis write to any place",
        "return None if place is None else spliced(own, at, place)",
        "return written",
    ),
    Mutant(
        "places may be counted from any number",
        "return counted.index[0] if (start, step) == (0.0, 1.0) else None",
        "return counted.index[0]",
    ),
    Mutant(
        "places that vary along two axes vary along one",
        "if (data != np.expand_dims(chosen, at)).any():",
        "if False:",
    ),
    # edits.py
    Mutant("any reduction writes", 'if reduction not in ("none", "add"):', "if False:"),
    Mutant("any rows are written alike", "if (data == first).all():", "if True:"),
    # joined_keys.py
    Mutant(
        "joined scores may be changed before",
        "masks = all_known(_masks(part, walk.views) for part in parts)",
        "masks = [_masks(part, walk.views) or [] for part in parts]",
    ),
    Mutant(
        "scores of different queries may be joined",
        "if not all(_has_same_query(first, part, walk.views) for part in parts[1:]):",
        "if False:",
    ),
    Mutant(
        "joined scores may be NaN before",
        "if not is_finite or scores.products or chain.sinks is not None or any(others):",
        "if not is_finite or scores.products or chain.sinks is not None or chain.roundings:",
    ),
    Mutant(
        "joined scores may be rounded before",
        "if not is_finite or scores.products or chain.sinks is not None or any(others):",
        "if not is_finite or scores.products or chain.sinks is not None or chain.zeroings:",
    ),
    # joined_masks.py
    Mutant(
        "masks of all sets are of one kind",
        "masks.pop(0) if masks and _alike(masks[0], first) else None",
        "masks.pop(0) if masks else None",
    ),
    # leads.py
    Mutant(
        "a sum of squares is a product of queries and keys",
        "if not factors or (contraction is not None and contraction.is_of_squares):",
        "if not factors:",
    ),
    # repeated_operands.py
    Mutant(
        "a repeat is anything", "if axis and {*atoms(axis)} <= same else axis", "if axis else axis"
    ),
    # scores.py
    Mutant(
        "a column may choose queries and keys",
        "if sides[0] and sides[1]:\n            raise",
        "if False:\n            raise",
    ),
    Mutant(
        "a product's bias counts for nothing",
        "if bias is not None:\n            chain.operations",
        "if False:\n            chain.operations",
    ),
    Mutant(
        "factors of scores may make their scale infinite",
        "if abs(chain.factor) > LARGEST_FLOAT:",
        "if False:",
    ),
    Mutant(
        "a product's alpha may make the scale infinite",
        "if not abs(chain.factor) <= LARGEST_FLOAT:",
        "if False:",
    ),
    Mutant("a product's alpha counts for nothing", "if contraction.alpha != 1.0:", "if False:"),
    Mutant(
        "a product of a sum may broadcast", "if not is_whole(part.ref, self.views):", "if False:"
    ),
    Mutant(
        "the biases of products in a sum count for nothing",
        "biases += [replace(bias, sign=bias.sign * part.factor) for bias in added]",
        "pass",
    ),
    Mutant(
        "a sink may follow a mask",
        "if found is None or not chain.consists_of(Scale, Shift):",
        "if found is None:",
    ),
    Mutant(
        "a sink is not scaled with the scores",
        "        if chain.factor != 1.0:\n            scaled",
        "        if False:\n            scaled",
    ),
    Mutant(
        "any one number is no bias",
        "if number_of(node.inputs[1 - main], self.shapes) == 0.0:",
        "if number_of(node.inputs[1 - main], self.shapes) is not None:",
    ),
    Mutant(
        "what is taken off is of any scores",
        "if not formula.is_over(reduced, scores, column):",
        "if reduced is None:",
    ),
    Mutant(
        "a mean of masked scores is lost in the softmax",
        "chain.centrings.append((len(chain.operations) + 1, node))",
        "pass",
    ),
    Mutant(
        "a mask may show anything beside the largest",
        "formula.number(made, 2) != -math.inf",
        "False",
    ),
    Mutant(
        "the largest may be of other scores that a mask shows",
        "return formula.is_over(replace(reduced, source=kept), scores, column) and any(",
        "return any(",
    ),
    Mutant(
        "the largest may be of what another mask shows",
        "other is not None and agree_over(reduced, shown, other, column, formula)",
        "other is not None",
    ),
    Mutant(
        "what is divided by zeros is kept",
        'kept = self._kept(factor, ref) if node.op == "Mul" else None',
        "kept = self._kept(factor, ref)",
    ),
    Mutant(
        "numbers of a row are its scale",
        "if self.views.space.atoms_of(column) & set(index_atoms(other.index)):",
        "if False:",
    ),
    Mutant(
        "minus infinity times zero is zero",
        'if node.op == "Where" or not any(ranks) or self._is_infinite(other.value):',
        'if node.op == "Where" or not any(ranks):',
    ),
    Mutant(
        "only what is high has to be beyond the scores",
        "chain.limits.append((len(chain.operations), node, min(high, -low)))",
        "chain.limits.append((len(chain.operations), node, high))",
    ),
    Mutant(
        "only what is low has to be beyond the scores",
        "chain.limits.append((len(chain.operations), node, min(high, -low)))",
        "chain.limits.append((len(chain.operations), node, -low))",
    ),
    Mutant(
        "any bound is as good as none",
        "if not (low <= LOWEST_REAL_SCORE and high >= -LOWEST_REAL_SCORE):",
        "if False:",
    ),
    # sink_column.py
    Mutant("two columns may be joined", "if width[axis] == ONE else None", ""),
    Mutant(
        "several columns are padded",
        "if scores is None or padding is None or {padding.before, padding.behind} != {0, 1}:",
        "if scores is None or padding is None:",
    ),
    # sums.py
    Mutant(
        "a product of a sum may be of any factor",
        "usable = all(math.isfinite(part.factor) and part.factor for part in found)",
        "usable = True",
    ),
    # zero_lanes.py
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
        "what is joined to the depth is 0",
        "number_of(value, views.shapes) == 0.0 for value",
        "number_of(value, views.shapes) is not None for value",
    ),
)
