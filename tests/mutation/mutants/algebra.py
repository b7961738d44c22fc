"""Checks of views, products, and expressions in terms of axes."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

ALGEBRA = (
    # arrange.py
    Mutant("a past is never empty", "if any(map(extents.is_maybe_empty, after)):", "if False:"),
    Mutant(
        "a slice with steps goes to the end",
        "if step != 1 and count == ceil_quotient(first.extent - start, step):",
        "if step != 1:",
    ),
    Mutant(
        "what is cached may be some of a tensor",
        "if not all(isinstance(digit, Atom) for axis in index for digit in axis):",
        "if False:",
    ),
    # contraction.py
    Mutant(
        "rows that meet their own kind are squared",
        "return self.left is self.right and self.left_labels == self.right_labels",
        "return self.left is self.right",
    ),
    Mutant(
        "a product may add to a sum of powers",
        "and found.alpha == 1.0 and found.bias is None",
        "and found.alpha == 1.0",
    ),
    Mutant(
        "what a FusedGemm applies counts for nothing",
        'node.op == "com.microsoft:FusedGemm" and node.attr("activation") is not None',
        "False",
    ),
    Mutant(
        "a convolution may be of groups",
        'and int(node.attr("group", 1)) == 1',
        "",
    ),
    Mutant(
        "a convolution may leave positions out",
        'and all(int(stride) == 1 for stride in node.attr("strides") or [])',
        "",
    ),
    Mutant(
        "a convolution may add positions",
        'and not any(int(pad) for pad in node.attr("pads") or [])',
        "",
    ),
    Mutant(
        "labels may be summed in one factor alone",
        "if any(letter not in out for letter in {*left_term} ^ {*right_term}):",
        "if False:",
    ),
    Mutant(
        "labels are never broadcast",
        "_are_alike(*extents) or (letter in out and ONE in extents)",
        "True",
    ),
    Mutant(
        "a sum of any pairs is a product",
        'product_node is None or product_node.op != "Mul"',
        "product_node is None",
    ),
    Mutant(
        "a product that others read is a sum's alone",
        "if len(value.uses) != 1 or value.is_output:\n            return None, ()",
        "if False:\n            return None, ()",
    ),
    # expr.py
    Mutant(
        "who asks for a shape reads its elements",
        'case Call("Shape"):',
        'case Call("ShapeOf"):',
    ),
    # formula.py
    Mutant(
        "what takes many numbers takes two",
        "if node.op in _VARIADIC and len(node.inputs) != 2:",
        "if False:",
    ),
    Mutant(
        "a constant condition chooses the first",
        "return shown if data.all() else None if data.any() else other",
        "return shown",
    ),
    Mutant(
        "what has a lower bound has no upper one",
        "if bounded is None or bounded.high < _LARGEST_FLOAT:",
        "if bounded is None:",
    ),
    Mutant(
        "any number by the sum inverts it",
        'case "Div" if self.number(made, 0) == 1.0:',
        'case "Div":',
    ),
    Mutant(
        "a number over a sum is a mean",
        'is_product = made is not None and made.node.op == "Mul"\n'
        "        for main in (0, 1) if is_product else (0,):",
        'is_product = made is not None and made.node.op == "Mul"\n        for main in (0, 1):',
    ),
    Mutant(
        "a sum over any number is a mean",
        "if abs(times - 1.0) <= _ROUNDING:",
        "if True:",
    ),
    Mutant("a norm need not divide its own input", "if above.value is not own.value:", "if False:"),
    Mutant(
        "a reduction may run over any axis",
        "return self.views.space.atoms_of(over) == self.views.space.atoms_of(axis)",
        "return True",
    ),
    # linear.py
    Mutant(
        "a Gemm's beta counts for nothing",
        ".astype(np.float64) * self.factor",
        ".astype(np.float64)",
    ),
    Mutant(
        "weights may be scaled by infinity",
        "if data is None or not np.isfinite(data).all():",
        "if data is None:",
    ),
    Mutant(
        "weights may be divided by zero",
        'if op == "Div" and not np.all(np.abs(data) >= 1.0 / LARGEST_FLOAT):',
        "if False:",
    ),
    Mutant(
        "a number divided by a query is a query divided",
        'or (main == 1 and node.op == "Div"):',
        ":",
    ),
    Mutant(
        "a projection may be scaled by infinity",
        'if node.op in ("Mul", "Div") and scale_by(node.op, constant, shapes) is None:',
        "if False:",
    ),
    Mutant(
        "a batch norm may train",
        'is_trained = node.attr("training_mode", 0) or len(node.made) > 1',
        "is_trained = False",
    ),
    Mutant(
        "a variance may have no root",
        "if not np.all(np.asarray(data[3]) + epsilon > 0):",
        "if False:",
    ),
    Mutant("a projection's bias is not added", "shift = shift + values", "pass"),
    Mutant("a Gemm's alpha counts for nothing", "factor = factor * self.alpha", "pass"),
    Mutant(
        "what scaled the context is forgotten",
        "        if self.row_scales:\n",
        "        if False:\n",
    ),
    Mutant("a position may choose the matrix", "if positions & columns or", "if"),
    Mutant("only a run may know the matrix", "or not are_numbers(weight.index):", "or False:"),
    Mutant(
        "a bias is known before any run",
        "if not views.shapes.is_constant(bias.value):",
        "if False:",
    ),
    # linear_sums.py
    Mutant(
        "any operator is a sum of terms",
        "if node.op not in _SUMS:",
        "if False:",
    ),
    Mutant(
        "what is added to a sum is added to each term",
        "scales = [step for step in steps[::-1] if step.scales]",
        "scales = steps[::-1]",
    ),
    Mutant(
        "what is taken off is added",
        'is_taken_off = node.op == "Sub" and place > 0',
        "is_taken_off = False",
    ),
    Mutant(
        "of a sum that is taken off, one term is",
        'sum(step.op == "Rsub" for step in steps) % 2 > 0',
        "False",
    ),
    Mutant(
        "what is added to a term that is taken off is added",
        "step if step.scales else replace(step, factor=-step.factor)",
        "step",
    ),
    Mutant(
        "a term may depend on positions",
        "if {*term.column_atoms} != {*base.column_atoms} or not term.are_of_columns(term.steps):",
        "if {*term.column_atoms} != {*base.column_atoms}:",
    ),
    Mutant(
        "what is between two products may depend on positions",
        "if before is None or not before.are_of_columns(before.steps):",
        "if before is None:",
    ),
    Mutant(
        "terms may be of several tensors",
        "if own.value is not other.value:",
        "if False:",
    ),
    Mutant(
        "terms may be of any positions",
        "if not all(whole) or size(one) != size(two):",
        "if False:",
    ),
    # empty_reshapes.py
    Mutant(
        "an axis left open has its extent in each run",
        "return None if not differing or _are_never_empty(differing, node, shapes) else opened[0]",
        "return None",
    ),
    Mutant(
        "a Reshape fails where it states a 0 that is another extent",
        "any(all(extent.divide(factor) is not None for extent in pair) for pair in pairs)",
        "any(pair[0].divide(factor) is not None for pair in pairs)",
    ),
    Mutant(
        "a Reshape fails where it states all extents",
        "if stated is not None and -1 in stated[0]:",
        "if stated is not None:",
    ),
    # nodes.py
    Mutant(
        "what is there is one number",
        'if node.attr("mode", "constant") != "constant":',
        "if False:",
    ),
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
        "others may read the context",
        "return found[0] if len(found) == 1 and not value.is_output else None",
        "return found[0] if found else None",
    ),
    # refs.py
    Mutant(
        "what is beside other elements tells of extents",
        "or own is None or self.space.known(product(own)) != count:",
        "or own is None:",
    ),
    Mutant(
        "an Expand may be broadcasting",
        "extent != ONE and extent != size(self.space.resolve(axis)) for",
        "False for",
    ),
    Mutant(
        "a name beside a number is that number",
        "elif _numbers(extent, size(own)):",
        "elif False:",
    ),
    Mutant(
        "a mask's number beside a name is that name",
        "extent.as_int() is not None and (not is_last or size(own).as_int() is not None)",
        "False",
    ),
    # scatters.py
    Mutant(
        "numbers of an axis may be counted in any order",
        "and (int(start), int(step)) == (0, 1)",
        "",
    ),
    Mutant(
        "positions may be written in any order",
        "self.places[0] >= 0 and (np.diff(self.places) == 1).all()",
        "self.places[0] >= 0",
    ),
    Mutant(
        "written places count from the front",
        "self.places[0] >= 0 and (np.diff(self.places) == 1).all()",
        "(np.diff(self.places) == 1).all()",
    ),
    Mutant(
        "lanes may be added to what they are written over",
        'if node is None or node.op != "ScatterND" or node.attr("reduction", "none") != "none":',
        'if node is None or node.op != "ScatterND":',
    ),
    Mutant(
        "rows may be written in another order",
        "if extent != Dim.of(len(table)) or (table != np.arange(len(table))).any()",
        "if extent != Dim.of(len(table))",
    ),
    Mutant(
        "a lane may be written twice at once",
        "if len(cut) != 1 or len({*tables[cut[0]].tolist()}) != counts[cut[0]]:",
        "if len(cut) != 1:",
    ),
    Mutant(
        "some of several axes may be written",
        "if len(cut) != 1 or len(",
        "if not cut or len(",
    ),
    # space.py
    Mutant(
        "a reading that fails teaches what is equal",
        "self._parts, self._equal = parts, equal",
        "self._parts = parts",
    ),
    Mutant(
        "extents that broadcast are equal if one is bounded by the other",
        "small[0] if len(small) == 1 else dim",
        "small[0] if small else dim",
    ),
    Mutant(
        "quotients are 1",
        "_is_never_negative(arguments[1] - arguments[0], depth)",
        "depth >= 0",
    ),
    Mutant(
        "a place is on a part of an axis",
        "or limits[0] < start or limits[1] >= start + number:",
        ":",
    ),
    Mutant(
        "a position below zero is counted from the start",
        "self.ranged((), extent + int(table.ravel()[0]), 1, extent)",
        "self.ranged((), Dim.of(0), 1, extent)",
    ),
    Mutant(
        "a table of two numbers is one of one",
        "if table.size and (table == table.ravel()[0]).all():",
        "if table.size and (table == table.ravel()[0]).any():",
    ),
    Mutant(
        "any table repeats",
        "if not np.array_equal(table, table[0] + step * (np.arange(len(table)) // each % count)):",
        "if False:",
    ),
    Mutant("a reshape may cut a range anywhere", "if start is None or count is None:", "if False:"),
    Mutant("the same may stand in other places", "return own is other", "return True"),
    # uniform.py
    Mutant(
        "what is written may be one number of many",
        "is_one = data.size > 0 and (data == data.ravel()[0]).all()",
        "is_one = data.size > 0",
    ),
    Mutant(
        "what is joined is its first part",
        'if len(node.inputs) > 1 and node.op == "Concat":',
        "if False:",
    ),
    # uniform.py
    Mutant(
        "a scale may be infinite",
        "if below is not None and math.isfinite(number) and abs(factor) <= LARGEST_FLOAT:",
        "if below is not None:",
    ),
    # view_rules.py
    Mutant(
        "a part may reach beyond what is split",
        "if end is not None and extent is not None and end > extent:",
        "if False:",
    ),
    Mutant(
        "a slice from the end starts at 0",
        "place = place_on(extent, start) if",
        "place = Dim.of(0) if",
    ),
    Mutant("rows may be counted backwards", "if step < 1 or place is None:", "if place is None:"),
    Mutant("all parts of a split are the first", "start = start + before[axis]", "pass"),
    # views.py
    Mutant(
        "what tokens pick of a table is a constant",
        "node is not None and node.op in _COPIERS else None",
        "node is not None and node.op in CARRIERS else None",
    ),
    Mutant(
        "what repeats itself once repeats itself everywhere",
        "place in asked if (data == data.take([0], place)).all()}",
        "place in asked if (data == data.take([0], place)).any()}",
    ),
    Mutant(
        "parts are joined in any order",
        "if shape is None or join.inputs != outputs or any(value.is_output for value in outputs):",
        "if shape is None:",
    ),
    Mutant(
        "what is joined again may be a part",
        "if sorted(map(id, merged(read))) != sorted(map(id, merged(own))):",
        "if False:",
    ),
    Mutant(
        "what is cut may be joined twice",
        "return next(iter(joins)) if len(joins) == 1 else None",
        "return next(iter(joins), None)",
    ),
    Mutant(
        "what is written in part is left as it is",
        "return None if before is None and behind is None else Ref(written.data, ref.index)",
        "return Ref(written.data, ref.index)",
    ),
    Mutant(
        "what is picked may differ by several axes",
        "if shape is None or len(differing) != 1:",
        "if shape is None or not differing:",
    ),
    Mutant(
        "a Concat repeats its first input",
        "if all(views.space.match((first,), (other,)) is not None for other in column):",
        "if True:",
    ),
    Mutant("parts may be joined in any order", "and int(other[0].index) == position", ""),
)
