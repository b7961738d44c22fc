"""Checks of the softmax, and the way down to the output."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

SOFTMAX = (
    # ahead.py
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
    # cut_lanes.py
    Mutant(
        "a context that is cut is read by nobody else",
        "use = only_reader(at.value)\n        if use is None or use.node.graph is not graph or",
        "use = at.value.uses[0]\n        if",
    ),
    Mutant(
        "a cut leaves the other axes as they are",
        "            case _ if left != new:\n                return None\n",
        "",
    ),
    # empty_rows.py
    Mutant(
        "rows of anything are empty",
        "if shown is None or _asks_for_any(zeroed.condition, shown, column, formula) is not True:",
        "if shown is None:",
    ),
    Mutant("columns are rows", "if at & formula.views.space.atoms_of(column):", "if False:"),
    Mutant(
        "no row is no number",
        "if not is_guarded and may_be_infinite(chain.operations, chain.product, shapes):",
        "if False:",
    ),
    Mutant(
        "any two comparisons ask for minus infinity",
        "return found if formula.views.same(found, other) else None",
        "return found",
    ),
    Mutant(
        "the largest may be any number",
        "if formula.number(made, 1 - main) == -math.inf:",
        "if formula.number(made, 1 - main) is not None:",
    ),
    Mutant(
        "the largest may be of what is below zero",
        "if choice is None or choice.amount <= 0:",
        "if choice is None:",
    ),
    Mutant("all is any", "if hidden is None or hidden is not of_all:", "if hidden is None:"),
    # gate_sinks.py
    Mutant(
        "a maximum below a mask is none of a gate's",
        "if chain.sinks is not None or values.shown is not None or is_shifted:",
        "if chain.sinks is not None or values.shown is not None:",
    ),
    Mutant(
        "weights that are shown may have a sink",
        "if chain.sinks is not None or values.shown is not None or is_shifted:",
        "if chain.sinks is not None or is_shifted:",
    ),
    Mutant(
        "any activation makes a sink of a gate",
        'made = formula.made(gate, "Sigmoid") if op',
        'made = formula.made(gate, "Sigmoid", "Tanh") if op',
    ),
    Mutant(
        "a gate that is shown is a sink",
        "if gate is None or only_reader(views.origin(gate).value) is None:",
        "if gate is None:",
    ),
    Mutant(
        "a gate's exponent has any sign",
        "total, sink = difference if sign > 0 else difference[::-1]",
        "total, sink = difference",
    ),
    Mutant(
        "any number may be added to a gate's power",
        "power = None if added is None or added[1] != 1.0 else",
        "power = None if added is None else",
    ),
    Mutant(
        "minus a logarithm is a logarithm",
        "if sign > 0 and _is_logarithm(level, chain, column, formula):",
        "if _is_logarithm(level, chain, column, formula):",
    ),
    Mutant(
        "a gate's sum runs over any axis",
        "return over is not None and atoms_of(over) == atoms_of(column)",
        "return over is not None",
    ),
    # guards.py
    Mutant(
        "a guard may keep anything",
        "if asks is None or node.inputs[kept] is not weights.value:",
        "if asks is None:",
    ),
    Mutant(
        "a NaN guard may put any number", "self._formula.number(whole, 3 - kept) != 0.0", "False"
    ),
    Mutant(
        "a NaN guard may ask for anything",
        "asks = None if any(map(self._is_other, sources)) else _ASKS",
        "asks = _ASKS",
    ),
    # logarithm.py
    Mutant(
        "another number is added than was taken off",
        "if shifted is None or not formula.views.same(shifted[1], shift):",
        "if shifted is None:",
    ),
    # output.py
    Mutant(
        "views behind a factor are of the same numbers",
        "if not scales and not differing and gate is None:  # behind one, these are other numbers",
        "if not differing and gate is None:",
    ),
    Mutant(
        "views behind a gate are of the same numbers",
        "if not scales and not differing and gate is None:  # behind one, these are other numbers",
        "if not scales and not differing:",
    ),
    Mutant(
        "a gate may have more than the context has",
        "factor is None or self.shapes.shape(output) != self.shapes.shape(ref.value)",
        "factor is None",
    ),
    Mutant(
        "the last one of several gates counts",
        "if below is None and node is not None and gate is None and not differing:",
        "if below is None and node is not None and not differing:",
    ),
    # gates.py
    Mutant(
        "a gate may wait for its own block",
        "late = inside | {*_given(own)}",
        "late = inside",
    ),
    Mutant(
        "a gate may be of what another block keeps to itself",
        "late = inside | {*_given(own)}",
        "late = {*_given(own)}",
    ),
    Mutant(
        "a gate may wait for a block that waits for its own",
        "return (*node.given, *captured(node)) if block is None else block.read",
        "return (*node.given, *captured(node))",
    ),
    Mutant(
        "what reads the context in a branch is taken out of it",
        "return use.node if use is not None and use.node.graph is self.node.graph else None",
        "return None if use is None else use.node",
    ),
    Mutant(
        "an output projection may see the rows",
        "if columns & positions:",
        "if False:",
    ),
    Mutant(
        "an output weight may repeat the context",
        "if {*index_atoms(output.index)} - columns - positions:",
        "if False:",
    ),
    Mutant(
        "what scales rows scales lanes",
        "if step_atoms(before) - summed:",
        "if False:",
    ),
    Mutant(
        "an output's bias is computed",
        "if bias is not None and not self.shapes.is_constant(bias.value):",
        "if False:",
    ),
    Mutant(
        "an output's bias may differ by position",
        "return (made, output) if made.are_of_columns(steps) else None",
        "return made, output",
    ),
    Mutant(
        "what is open is summed",
        "return all(each and each <= {*index_atoms(projection.summed)} for each in found)",
        "return True",
    ),
    Mutant(
        "a Cast keeps the context's fractions",
        "if output is None or self.shapes.dtype(output) not in FLOATS:",
        "if output is None:",
    ),
    Mutant(
        "constants behind an output may differ by position",
        "if stepped is None or not projection.resolve(space).are_of_columns(stepped[0]):",
        "if stepped is None:",
    ),
    # parted.py
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
    # renormalised.py
    Mutant(
        "a sum is compared with any number",
        "if compared is None or formula.number(made, zero) != 0.0:",
        "if compared is None:",
    ),
    Mutant(
        "anything takes the place of weights of which nothing is left",
        "if formula.number(made, 3 - main) != 0.0 or result is None:",
        "if result is None:",
    ),
    # scalings.py
    Mutant(
        "what is computed may divide weights",
        'is_product = node.op == "Mul" and not shapes.is_constant(factor)',
        "is_product = not shapes.is_constant(factor)",
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
    # side_by_side.py
    Mutant(
        "contexts are joined wherever their depths stand",
        "if depths is None or any(other != rest[0] for other in rest):",
        "if depths is None:",
    ),
    Mutant(
        "contexts are joined along any axis",
        "if any({*atoms(index[place])} & scored for index in indices):",
        "if False:",
    ),
    Mutant(
        "contexts are joined to anything",
        "if len(node.inputs) != len(values) or {*node.inputs} != {*values}:",
        "if False:",
    ),
    # weights.py
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
    Mutant(
        "nobody else reads the weights",
        "if ref.value.is_output or len(uses) > 1:",
        "if False:",
    ),
    Mutant(
        "what is shown may be changed on",
        "if shown is not None and node.op in SCALERS:",
        "if False:",
    ),
    Mutant("scaled weights may be renormalised", "if not steps:", "if True:"),
    Mutant(
        "scaled weights are the operator's",
        "if is_scaled:\n            raise",
        "if False:\n            raise",
    ),
    Mutant("weights may meet values twice", "if meets and self._several is None:", "if False:"),
    Mutant(
        "others may read what is divided late",
        "if value.is_output or len(readers(value)) > count:",
        "if False:",
    ),
    Mutant(
        "powers are read by others",
        "if value.is_output or len(readers(value)) > count:",
        "if value.is_output:",
    ),
    Mutant(
        "a row of which a guard leaves nothing is zero",
        "if is_any or not may_be_infinite(chain.operations, chain.product, self.shapes):",
        "if True:",
    ),
    Mutant(
        "a sink may be cut off anywhere",
        "if self.views.space.match((cut,), (theirs,)) is None:",
        "if False:",
    ),
    Mutant(
        "the softmax may run over any axis",
        "if space.atoms_of(*own.summed_axes(ref.index)) != space.atoms_of(column):",
        "if False:",
    ),
    Mutant(
        "weights that callers may replace are values",
        "if given or self.shapes.is_constant(own.right):",
        "if self.shapes.is_constant(own.right):",
    ),
    Mutant(
        "a product with the values may be added to others",
        "if product.bias is not None and product.beta != 0.0:",
        "if False:",
    ),
    # written.py
    Mutant(
        "a sum of powers is bounded above",
        "if is_clip and made is not None and made.node.input(2) is not None:",
        "if False:",
    ),
    Mutant(
        "a sum may be of other powers", "if data is None or not (data == 1).all():", "if False:"
    ),
    Mutant(
        "powers of hidden rows are in the sum",
        "shift is not None and shift.floor is None and not powers.masks",
        "shift is not None and shift.floor is None",
    ),
    Mutant(
        "a sum may be below any number",
        "if is_one and number is not None and number <= 1.0:",
        "if number is not None:",
    ),
    Mutant(
        "what is lost in a sum is lost in any",
        "if number == 0.0 or (is_one and 0 < number < lost):",
        "if number == 0.0 or 0 < number < lost:",
    ),
    Mutant("any number is lost in a sum", "0 < number < lost", "0 < number"),
    Mutant(
        "a sink need not be shifted",
        "if number > 0 and math.isfinite(number) and shift is None:",
        "if number > 0:",
    ),
    Mutant(
        "powers of all bases are one",
        "extra = formula.beside(made, position) if powers.factor == 1.0 else None",
        "extra = formula.beside(made, position)",
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
        "the largest score is bounded above",
        "if bounded is None or bounded.node.input(2) is not None:",
        "if bounded is None:",
    ),
    Mutant(
        "a sink may be shifted by anything",
        "if scaled is not None and scaled[1] == -1.0 and views.same(scaled[0], shift.taken):",
        "if scaled is not None and scaled[1] == -1.0:",
    ),
    Mutant(
        "a sink is shifted by anything",
        "if difference is None or not views.same(difference[1], shift.taken):",
        "if difference is None:",
    ),
    # zeroed.py
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
        "weights may be halved",
        "return None\n    return Zeroed(choice.condition",
        "pass\n    return Zeroed(choice.condition",
    ),
    Mutant(
        "any sum of weights is of zeros",
        "return Ref(result, weights.index) if _is_zero(other, formula) else None",
        "return Ref(result, weights.index)",
    ),
    Mutant("a mask may be turned", "if not steps or outer <= 0:", "if not steps:"),
    Mutant(
        "zeros may stand where a sum shows",
        "if choice is None or agree(choice.condition, zeroed.condition, formula) is not False:",
        "if choice is None:",
    ),
    Mutant(
        "infinities of both signs are a sum",
        "if math.isinf(fill) and any(_is_above_all(op, formula) for op in below):",
        "if False:",
    ),
    Mutant("any fill hides its column", "if not hides:", "if False:"),
    Mutant(
        "a hidden row is zero",
        "if math.isinf(fill) and zeroed.takes_nan and may_be_infinite(",
        "if False and may_be_infinite(",
    ),
    Mutant(
        "zero times NaN is zero", "return zeroed.takes_nan or math.isfinite(fill)", "return True"
    ),
    Mutant(
        "a mask of one's own may raise",
        "added = below if _number(mask.fill, formula) <= _KEEPS else added",
        "added = below",
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
        "zeros may stand where a mask shows",
        "shown is not None and agree(shown, zeroed.condition, formula) is True",
        "shown is not None",
    ),
    # zeroed_rows.py
    Mutant(
        "weights that others read may become zero",
        "if values.shown is not None or values.several is not None or values.factors:",
        "if values.several is not None or values.factors:",
    ),
    Mutant(
        "rows of any other mask are empty",
        "if zero_nan is None:\n        return values\n    trail.add_between(found.weights",
        "trail.add_between(found.weights",
    ),
    Mutant(
        "a context that is put to zero is read by nobody else",
        "use = only_reader(ref.value)\n        if use is None or use.node.graph is not node.graph:",
        "use = ref.value.uses[0]\n        if use.node.graph is not node.graph:",
    ),
)
