"""What is checked of queries, keys and values: views, rotations, norms and projections."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

_VIEWS = (
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
        "labels may be summed in one factor alone",
        "if any(letter not in out for letter in {*left_term} ^ {*right_term}):",
        "if False:",
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
        "a convolution may be of groups",
        'and int(node.attr("group", 1)) == 1',
        "",
    ),
    Mutant(
        "lanes may be added to what they are written over",
        'if node is None or node.op != "ScatterND" or node.attr("reduction", "none") != "none":',
        'if node is None or node.op != "ScatterND":',
    ),
    Mutant(
        "a lane may be written twice at once",
        "if len(cut) != 1 or len({*tables[cut[0]].tolist()}) != counts[cut[0]]:",
        "if len(cut) != 1:",
    ),
    Mutant(
        "rows may be written in another order",
        "if extent != Dim.of(len(table)) or (table != np.arange(len(table))).any()",
        "if extent != Dim.of(len(table))",
    ),
    Mutant(
        "a mean that is taken off runs along the norm's axis",
        "if origin is None or over is None or _centred(source, over, formula) is None:",
        "if origin is None or over is None:",
    ),
    Mutant(
        "the mean below a square runs along the norm's axis",
        "source = None if centred is None else _centred(centred, mean.over, formula)",
        'source = formula.operand(formula.made(centred, "Sub"), 0)',
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
    Mutant(
        "a slice with steps goes to the end",
        "if step != 1 and count == ceil_quotient(first.extent - start, step):",
        "if step != 1:",
    ),
    Mutant(
        "what is beside other elements tells of extents",
        "or own is None or self.space.known(product(own)) != count:",
        "or own is None:",
    ),
    Mutant(
        "a name beside a number is that number",
        "elif _numbers(extent, size(own)) or not self.space.equate(size(own), extent):",
        "elif not self.space.equate(size(own), extent):",
    ),
    Mutant("a reshape may cut a range anywhere", "if start is None or count is None:", "if False:"),
    Mutant("rows may be counted backwards", "if step < 1 or place is None:", "if place is None:"),
    Mutant(
        "a slice from the end starts at 0",
        "place = place_on(extent, start) if",
        "place = Dim.of(0) if",
    ),
    Mutant(
        "ranges may begin anywhere",
        "digits.append(replace(digit, start=start))",
        "digits.append(replace(digit, start=Dim.of(0)))",
    ),
    Mutant("all parts of a split are the first", "start = start + before[axis]", "pass"),
    Mutant(
        "a Concat repeats its first input",
        "if all(views.space.match((first,), (other,)) is not None for other in column):",
        "if True:",
    ),
    Mutant(
        "an Expand may be broadcasting",
        "extent != ONE and extent != size(self.space.resolve(axis)) for",
        "False for",
    ),
    Mutant("a position may choose the matrix", "if positions & columns or", "if"),
    Mutant("only a run may know the matrix", "or not are_numbers(weight.index):", "or False:"),
    Mutant(
        "labels are never broadcast",
        "_are_alike(*extents) or (letter in out and ONE in extents)",
        "True",
    ),
    Mutant("a Gemm's alpha counts for nothing", "factor = factor * self.alpha", "pass"),
    Mutant(
        "a Gemm's beta counts for nothing",
        ".astype(np.float64) * self.factor",
        ".astype(np.float64)",
    ),
    Mutant("a projection's bias is not added", "shift = shift + values", "pass"),
)
_PARTS = (
    Mutant(
        "a norm's weight is finite",
        "if not np.isfinite((factor, shift)).all():",
        "if False:",
    ),
    Mutant(
        "keys enter as they were repeated",
        "if not along or along - queries",
        "if True",
    ),
    Mutant(
        "values that are scaled by query are the same for some",
        'if name == "q" or (name == "v" and lifted.values.steps):',
        'if name == "q":',
    ),
    Mutant(
        "a rotation may only exchange",
        "if (pair == np.arange(count)).all():",
        "if False:",
    ),
    Mutant(
        "rotated positions may stand anywhere",
        "if space.match((digits,), (axis[start:stop],)) is not None:",
        "if True:",
    ),
    Mutant(
        "positions may be rotated in several ways",
        "if (other != sigma).any() or ((own != pair).any() and (own != unpaired).any()):",
        "if False:",
    ),
    Mutant(
        "positions may be written in any order",
        "self.places[0] >= 0 and (np.diff(self.places) == 1).all()",
        "self.places[0] >= 0",
    ),
    Mutant(
        "some of several axes may be written",
        "if len(cut) != 1 or len(",
        "if not cut or len(",
    ),
    Mutant(
        "rows before the rotated ones are a cache",
        "if self._rope(node, ref, held) is not None:",
        "if False:",
    ),
    Mutant(
        "an operator rotates the heads that follow it",
        "if len(resolved) == 3 and own and width != own * count:",
        "if False:",
    ),
    Mutant(
        "a rotation's matrix may mix lanes",
        "if ((matrix != 0).sum(axis=0) > 1).any():",
        "if False:",
    ),
    Mutant(
        "queries and keys may pair other lanes", "if (rope.pair != first.pair).any():", "if False:"
    ),
    Mutant(
        "any mean is taken off behind a norm",
        'or not formula.is_over(formula.reduced(mean, "ReduceMean"), source, over):',
        ":",
    ),
    Mutant(
        "a mean is taken off times anything",
        "if is_taken_off and formula.views.same(factor, same):",
        "if is_taken_off:",
    ),
    Mutant(
        "a mean is added behind a norm",
        "if is_taken_off and formula.views.same(factor, same):",
        "if formula.views.same(factor, same):",
    ),
    Mutant("a norm may run over any axes", "if over != own and not all_heads:", "if False:"),
    Mutant("an operator divides by 0", 'Norm("l2", _BELOW_ANY_LENGTH,', 'Norm("l2", 0.0,'),
    Mutant(
        "a sum is a mean",
        "epsilon / count, (over,), (), factor=count**-0.5",
        "epsilon, (over,), ()",
    ),
    Mutant("any power is a square", "if formula.number(made, 1) == 2.0 else None", ""),
    Mutant("a norm need not divide its own input", "if above.value is not own.value:", "if False:"),
    Mutant("the same may stand in other places", "return own is other", "return True"),
    Mutant(
        "a reduction may run over any axis",
        "return self.views.space.atoms_of(over) == self.views.space.atoms_of(axis)",
        "return True",
    ),
    Mutant(
        "a NaN guard may ask for anything",
        "asks = None if any(map(self._is_other, sources)) else _ASKS",
        "asks = _ASKS",
    ),
    Mutant("parts may be joined in any order", "and int(other[0].index) == position", ""),
    Mutant("keys may be picked by rank", "        _check_selection(views, part)\n", ""),
    Mutant(
        "a sink may follow a mask",
        "if found is None or not chain.consists_of(Scale, Shift):",
        "if found is None:",
    ),
    Mutant(
        "keys may be normed after they are joined",
        "if held.rope is not None or held.norm is not None:",
        "if False:",
    ),
    Mutant(
        "a norm may be scaled by position", "if step_atoms(steps) - own - {*heads}:", "if False:"
    ),
    Mutant(
        "a bias from the joined keys can be given",
        "if any(needs(value, {ref.value}, sources) for value in read):",
        "if False:",
    ),
    Mutant(
        "parts of a larger attention are fused",
        "if site.declined is not None and site.declined.code in _OTHER_PARTS:",
        "if False:",
    ),
    Mutant(
        "a bias of pairs is any bias", "return bool(rows) and rows | columns <= have", "return True"
    ),
    Mutant(
        "numbers of a row are its scale",
        "if self.views.space.atoms_of(column) & set(index_atoms(other.index)):",
        "if False:",
    ),
    Mutant(
        "a row may be scaled after its mask",
        "if self.tanh is not None or self.bias is not None or self.keep is not None:",
        "if False:",
    ),
    Mutant(
        "a bias may differ by position",
        "if not part.projection.are_of_columns(part.projection.steps):",
        "if False:",
    ),
    Mutant(
        "any scale of rows is one of heads",
        "projection is not None and step_atoms(steps) <= {*self.heads(name)}",
        "projection is not None",
    ),
    Mutant(
        "what scales weights scales a cache, too",
        "projection = None if part.past is not None else part.projection",
        "projection = part.projection",
    ),
    Mutant(
        "a scale may leave a cache",
        "is_open = not self._pending and held.past is None",
        "is_open = not self._pending",
    ),
    Mutant(
        "an operator's heads may be rows",
        "heads = self.scores.index[1] if lifted.has_heads else ()",
        "heads = ()",
    ),
    Mutant(
        "queries, keys and values side by side have no order",
        "and (evaluate(choice.index[2], own.values) == start + np.arange(own.count)).all()",
        "",
    ),
    Mutant(
        "a window of nothing is none",
        "if window == 0 or (window > 0 and not is_causal):",
        "if window > 0 and not is_causal:",
    ),
    Mutant(
        "a window needs no order",
        "if window == 0 or (window > 0 and not is_causal):",
        "if window == 0:",
    ),
    Mutant(
        "a cache of the latest positions needs no window",
        "if latest not in (0, 1) or (latest and window < 0):",
        "if latest not in (0, 1):",
    ),
    Mutant(
        "sinks are no smooth softmax",
        'int(node.attr("smooth_softmax", 0)) == 1 and node.input(_HEAD_SINK) is None',
        'int(node.attr("smooth_softmax", 0)) == 1',
    ),
    Mutant(
        "an operator's options count for nothing",
        "if name not in self.attributes and node.attr(name) not in self.neutral.get(name, ()):",
        "if False:",
    ),
    Mutant(
        "a bias is known before any run",
        "if not shapes.is_constant(bias.value):",
        "if False:",
    ),
    Mutant(
        "a Cast keeps the context's fractions",
        "if output is None or self.shapes.dtype(output) not in FLOATS:",
        "if output is None:",
    ),
    Mutant(
        "what has a lower bound has no upper one",
        "if bounded is None or bounded.high < _LARGEST_FLOAT:",
        "if bounded is None:",
    ),
    Mutant(
        "a variance may be bounded",
        'formula.made(level, "Sub") if least <= 0 else None',
        'formula.made(level, "Sub")',
    ),
    Mutant("a scale goes through a shift", "is_open = not self._pending and", "is_open ="),
    Mutant("keys may be of pairs", "if own & seen[name] - seen[other]:", "if False:"),
    Mutant("rms norms may be shifted", 'if shift.any() and norm.kind != "layer":', "if False:"),
)
_LANES = (
    Mutant("lanes may be read twice", "if len({*sigma.tolist()}) == len(by_lane) else None", ""),
    Mutant(
        "lanes may be of other heads",
        "return (first,) if all(digit is first for digit in digits) else None",
        "return (first,)",
    ),
    Mutant("lanes may lose their fractions", "if source is None or not exact:", "if not source:"),
    Mutant("a rotation may pair any lanes", "if len(members) != 2 or len(at) != 2:", "if not at:"),
    Mutant(
        "an operator crosses a lane with itself",
        "(rope.pair[at], crossed.within(rotated), sin)",
        "(at, crossed.within(rotated), sin)",
    ),
    Mutant("an operator rotates all lanes", "rotated = rope.rotated[at]", "rotated = at >= 0"),
    Mutant("a pair may be of three", "if len(members) != 2 or", "if"),
    Mutant(
        "what enters may have its lanes in any order",
        "elif part.rope is not None and not _is_whole(part.rope, head_dim):",
        "elif False:",
    ),
    Mutant(
        "an operator may take all heads for one",
        "or (len(resolved) == 4 and heads) or",
        "or",
    ),
    Mutant(
        "the lanes of each head's table may stand in another order",
        "if outer:  # lanes of each head, in another order",
        "if False:",
    ),
    Mutant(
        "a table may be computed from what it turns",
        "if rope is not None and not any(may_be_made_of(value, base) for value in others):",
        "if rope is not None:",
    ),
    Mutant(
        "a table may be computed from what it multiplies",
        "or may_be_made_of(table.value, x.value)",
        "",
    ),
    Mutant("a table may be as large as what it multiplies", "or is_also or at is None", ""),
    Mutant(
        "lanes that stay may be multiplied",
        "if len(rope.spans) > 1 or not rope.rotated.all():",
        "if len(rope.spans) > 1:",
    ),
    Mutant(
        "positions that stay may be multiplied",
        "if len(rope.spans) > 1 or not rope.rotated.all():",
        "if not rope.rotated.all():",
    ),
)
_PLACES = (
    Mutant("causal rows may stand in any order", "if block.roles.rows != rows:", "if False:"),
    Mutant(
        "causal columns may stand in any order", "if block.roles.columns != columns:", "if False:"
    ),
    Mutant(
        "what is cached may be some of a tensor",
        "if not all(isinstance(digit, Atom) for axis in index for digit in axis):",
        "if False:",
    ),
    Mutant("a cache may be any two parts", "and {keys.part, values.part} == {0, 1}", ""),
    Mutant(
        "a cache may be parts of three",
        "or digit.extent.as_int() != 2:\n        return None",
        ":\n        return None",
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
)
_LENGTHS = (
    Mutant(
        "a norm behind a rotation may take off the mean",
        "if norm.kind not in _OF_LENGTHS or over != [space.resolve(depth)]:",
        "if over != [space.resolve(depth)]:",
    ),
    Mutant(
        "a norm behind a rotation may run over other lanes",
        "if norm.kind not in _OF_LENGTHS or over != [space.resolve(depth)]:",
        "if norm.kind not in _OF_LENGTHS:",
    ),
    Mutant(
        "lanes may be mirrored before a norm",
        "if (straight[lanes] * crossed[others] != -crossed[lanes] * straight[others]).any():",
        "if False:",
    ),
    Mutant(
        "lanes of a pair may have angles of their own",
        "return bool(pairs) and all(_is_one_angle(turn, *pair, views) for pair in pairs)",
        "return bool(pairs)",
    ),
    Mutant(
        "angles of a pair may be any constants",
        "return numbers is not None and all((own == numbers[0]).all() for own in numbers[1:])",
        "return numbers is not None",
    ),
    Mutant(
        "constant tables need no circle",
        "return all(bool((np.abs(off) <= _NEAR_ONE).all()) for off in wrong)",
        "return True",
    ),
    Mutant(
        "a sine is a cosine",
        '("Cos", "Cos", "Sin", "Sin")',
        '("Sin", "Sin", "Sin", "Sin")',
    ),
    Mutant(
        "no divisor of a rotation is zero",
        "return times(rope, factor) if is_safe else None",
        "return times(rope, factor)",
    ),
    Mutant(
        "no divisor is zero",
        "return (x, Factor(inverse, at.index)) if np.isfinite(inverse).all() else None",
        "return x, Factor(inverse, at.index)",
    ),
    Mutant(
        "a product that others read is a sum's alone",
        "if len(value.uses) != 1 or value.is_output:\n            return None, ()",
        "if False:\n            return None, ()",
    ),
    Mutant(
        "a norm's weight behind a rotation may be infinite",
        "if data is None or np.isinf(data).any() or np.isnan(data).any():",
        "if data is None:",
    ),
)

_ORDERS = (
    Mutant(
        "keys that others read are joined twice",
        "return all(only_reader(view.value) is not None for view in block.sources(ref))",
        "return True",
    ),
    Mutant(
        "lanes are put in order by copies",
        "if expr is not None and not nodes_added(expr)",
        "if expr is not None",
    ),
    Mutant(
        "written places count from the front",
        "self.places[0] >= 0 and (np.diff(self.places) == 1).all()",
        "(np.diff(self.places) == 1).all()",
    ),
    Mutant(
        "what is written in part is left as it is",
        "return None if before is None and behind is None else Ref(written.data, ref.index)",
        "return Ref(written.data, ref.index)",
    ),
)

OPERANDS = (*_ORDERS, *_VIEWS, *_PARTS, *_LANES, *_PLACES, *_LENGTHS)
