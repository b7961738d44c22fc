"""Checks of operators that already are attention."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

OPERATORS = (
    # attention_operators.py
    Mutant(
        "an operator's options count for nothing",
        "if name not in self.attributes and node.attr(name) not in self.neutral.get(name, ()):",
        "if False:",
    ),
    Mutant("operators have only what is read of them", "operator.check(node)", "pass"),
    # microsoft.py
    Mutant(
        "a causal order hides for good",
        "if highest_score(operations[::-1], None, masks.views.shapes) <= _ABOVE_LOWEST:",
        "if True:",
    ),
    Mutant(
        "what padding hides is hidden by the order, too",
        "operations.insert(place, Select(Placed(visible, index), Placed.number(_LOWEST)))",
        "operations.append(Select(Placed(visible, index), Placed.number(_LOWEST)))",
    ),
    # standard.py
    Mutant(
        "a NaN of any cause is zero",
        "lifted_parts(node, refs, made, context, chain, zero_nan=2)",
        "lifted_parts(node, refs, made, context, chain, zero_nan=1)",
    ),
    Mutant(
        "a single row behind a past has an order",
        "if is_causal and made.past is not None and size(made.rows) != size(made.new):",
        "if False:",
    ),
    # grouped_query.py
    Mutant(
        "a window needs no order",
        "if window == 0 or (window > 0 and not is_causal):",
        "if window == 0:",
    ),
    Mutant(
        "a window of nothing is none",
        "if window == 0 or (window > 0 and not is_causal):",
        "if window > 0 and not is_causal:",
    ),
    Mutant(
        "a cache of the latest positions needs no window",
        "if latest not in (0, 1) or (latest and window < 0):",
        "if latest not in (0, 1):",
    ),
    Mutant(
        "the lowest number of a bias hides nothing",
        "placed = replace(placed, expr=masks.infinite_for_lowest(bias, several))",
        "pass",
    ),
    Mutant(
        "the lowest number of a bias hides below a cap, too",
        'if float(node.attr("softcap", 0.0)) <= 0:',
        "if True:",
    ),
    Mutant(
        "the only column may be hidden",
        'is_lowest = Call("And", (is_lowest, where))',
        "pass",
    ),
    Mutant(
        "sinks are no smooth softmax",
        'int(node.attr("smooth_softmax", 0)) == 1 and node.input(_HEAD_SINK) is None',
        'int(node.attr("smooth_softmax", 0)) == 1',
    ),
)
