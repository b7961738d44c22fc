"""Checks of queries, keys and values: rotations, norms, projections."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

OPERANDS = (
    # joined.py
    Mutant(
        "ranges may begin anywhere",
        "digits.append(replace(digit, start=start))",
        "digits.append(replace(digit, start=Dim.of(0)))",
    ),
    Mutant(
        "rotated positions may stand anywhere",
        "if space.match((digits,), (axis[start:stop],)) is not None:",
        "if True:",
    ),
    # lane_parts.py
    Mutant(
        "what a Pad adds to lanes is 0",
        "if padding is None or padding.fill != 0 or source is None or shape is None:",
        "if padding is None or source is None or shape is None:",
    ),
    # norm.py
    Mutant("an operator divides by 0", 'Norm("l2", _BELOW_ANY_LENGTH,', 'Norm("l2", 0.0,'),
    Mutant(
        "any power is a root",
        'if made is not None and made.node.op == "Pow" and formula.number(made, 1) != 0.5:',
        "if False:",
    ),
    Mutant("any power is a square", "if formula.number(made, 1) == 2.0 else None", ""),
    Mutant(
        "a mean that is taken off runs along the norm's axis",
        "if origin is None or over is None or _centred(source, over, formula) is None:",
        "if origin is None or over is None:",
    ),
    Mutant(
        "a sum is a mean",
        "epsilon / count, (over,), (), factor=count**-0.5",
        "epsilon, (over,), ()",
    ),
    Mutant(
        "the mean below a square runs along the norm's axis",
        "source = None if centred is None else _centred(centred, mean.over, formula)",
        'source = formula.operand(formula.made(centred, "Sub"), 0)',
    ),
    Mutant(
        "a variance may be bounded",
        "formula.difference(level) if least <= 0 else None",
        "formula.difference(level)",
    ),
    Mutant(
        "moments may be of any axis",
        "return (source, second.over) if formula.is_over(first, source, second.over) else None",
        "return source, second.over",
    ),
    Mutant(
        "a mean is added behind a norm",
        "if is_taken_off and formula.views.same(factor, same):",
        "if formula.views.same(factor, same):",
    ),
    Mutant(
        "a mean is taken off times anything",
        "if is_taken_off and formula.views.same(factor, same):",
        "if is_taken_off:",
    ),
    Mutant(
        "any mean is taken off behind a norm",
        "or not formula.is_over(formula.mean(mean), source, over):",
        ":",
    ),
    # operand.py
    Mutant(
        "a Pad adds at one end only",
        "if padding is None or min(padding.before, padding.behind) != 0:",
        "if padding is None:",
    ),
    Mutant(
        "what is made around a branch is taken into it",
        "if node is None or node.graph is not self.graph or self.shapes.is_constant(ref.value):",
        "if node is None or self.shapes.is_constant(ref.value):",
    ),
    Mutant(
        "keys enter as they were repeated",
        "if not along or along - queries",
        "if True",
    ),
    Mutant(
        "keys may be normed after they are joined",
        "if held.rope is not None or held.norm is not None:",
        "if False:",
    ),
    Mutant(
        "rows before the rotated ones are a cache",
        "if self._rope(node, ref, held) is not None:",
        "if False:",
    ),
    Mutant(
        "a scale may leave a cache",
        "is_open = not self._pending and held.past is None",
        "is_open = not self._pending",
    ),
    Mutant("a scale goes through a shift", "is_open = not self._pending and", "is_open ="),
    Mutant(
        "a query's scale counts for nothing", "scale=held.scale * scaled[1]", "scale=held.scale"
    ),
    # rope_normed.py
    Mutant(
        "a norm behind a rotation may run over other lanes",
        "if norm.kind not in _OF_LENGTHS or over != [space.resolve(depth)]:",
        "if norm.kind not in _OF_LENGTHS:",
    ),
    Mutant(
        "a norm behind a rotation may take off the mean",
        "if norm.kind not in _OF_LENGTHS or over != [space.resolve(depth)]:",
        "if over != [space.resolve(depth)]:",
    ),
    Mutant(
        "a norm's weight behind a rotation may be infinite",
        "if data is None or np.isinf(data).any() or np.isnan(data).any():",
        "if data is None:",
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
        "a sine is a cosine",
        '("Cos", "Cos", "Sin", "Sin")',
        '("Sin", "Sin", "Sin", "Sin")',
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
    # rope_operator.py
    Mutant(
        "an operator may take all heads for one",
        "or (len(resolved) == 4 and heads) or",
        "or",
    ),
    Mutant(
        "an operator rotates the heads that follow it",
        "if len(resolved) == 3 and own and width != own * count:",
        "if False:",
    ),
    # rope_reading.py
    Mutant(
        "a table may be computed from what it turns",
        "if rope is not None and not any(may_be_made_of(value, base) for value in others):",
        "if rope is not None:",
    ),
    Mutant(
        "a rotation may only exchange",
        "if (pair == np.arange(count)).all():",
        "if False:",
    ),
    Mutant(
        "positions may be rotated in several ways",
        "if (other != sigma).any() or ((own != pair).any() and (own != unpaired).any()):",
        "if False:",
    ),
    Mutant("a pair may be of three", "if len(members) != 2 or", "if"),
    Mutant("a rotation may pair any lanes", "if len(members) != 2 or len(at) != 2:", "if not at:"),
    Mutant("lanes may be read twice", "if len({*sigma.tolist()}) == len(by_lane) else None", ""),
    Mutant(
        "lanes may be of other heads",
        "return (first,) if all(digit is first for digit in digits) else None",
        "return (first,)",
    ),
    # rope_scaled.py
    Mutant(
        "no divisor of a rotation is zero",
        "return times(rope, factor) if is_safe else None",
        "return times(rope, factor)",
    ),
    Mutant("a table may be as large as what it multiplies", "or is_also or at is None", ""),
    Mutant(
        "a table may be computed from what it multiplies",
        "or may_be_made_of(table.value, x.value)",
        "",
    ),
    Mutant(
        "no divisor is zero",
        "return (x, Placed(inverse, at.index)) if np.isfinite(inverse).all() else None",
        "return x, Placed(inverse, at.index)",
    ),
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
    # rope_table.py
    Mutant(
        "the lanes of each head's table may stand in another order",
        "if outer:  # lanes of each head, in another order",
        "if False:",
    ),
    # rope_terms.py
    Mutant("lanes may lose their fractions", "if source is None or not exact:", "if not source:"),
    Mutant("an operator rotates all lanes", "rotated = rope.rotated[at]", "rotated = at >= 0"),
    Mutant(
        "an operator crosses a lane with itself",
        "(rope.pair[at], crossed.within(rotated), sin)",
        "(at, crossed.within(rotated), sin)",
    ),
    Mutant(
        "a rotation's matrix may mix lanes",
        "if ((matrix != 0).sum(axis=0) > 1).any():",
        "if False:",
    ),
)
