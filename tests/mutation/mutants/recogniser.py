"""Checks of the recogniser itself."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

RECOGNISER = (
    # attention.py
    Mutant(
        "parts of a larger attention are fused",
        "if site.declined is not None and site.declined.code in _OTHER_PARTS:",
        "if False:",
    ),
    Mutant(
        "behind what scales rows an output projection follows",
        "if values.factors:  # by them",
        "if False:  # by them",
    ),
    Mutant(
        "values that are scaled by query are the same for some",
        'if name == "q" or (name == "v" and lifted.values.steps):',
        'if name == "q":',
    ),
    Mutant(
        "a row of powers of which a guard leaves nothing is zero",
        "if may_be_infinite(inner, chain.product, self.shapes):",
        "if False:",
    ),
    Mutant("powers of nothing have a sum", "sums_to_one=not written.zero_nan", "sums_to_one=True"),
    Mutant(
        "a network scores positions only where its weights meet values",
        "                    check_network(self.views, self.node, part)\n",
        "",
    ),
    Mutant(
        "a gate knows of masks behind the softmax",
        "if not (written.operations or is_masked):",
        "if not written.operations:",
    ),
    Mutant(
        "beside a sink no row is hidden as a whole",
        "if is_nan and may_hide_rows(inner, product, softmax.column, self.views):",
        "if False:",
    ),
    Mutant(
        "scores of other rows are no values",
        "return rows <= self.space.atoms_of(*values.value.index) and is_made_of(",
        "return is_made_of(",
    ),
    Mutant(
        "any bound is a mask",
        "if highest_score(inner[::-1], chain.product, self.shapes) > limit:",
        "if False:",
    ),
    Mutant(
        "a mean is as small as its scores, whatever is added to these",
        "if may_be_infinite(inner, chain.product, self.shapes) or not keeps_logarithm(\n"
        "                inner, chain.product, self.shapes\n            ):",
        "if may_be_infinite(inner, chain.product, self.shapes):",
    ),
    Mutant(
        "zero times infinity is zero",
        "if may_be_infinite(chain.operations[outside:], chain.product, self.shapes):",
        "if False:",
    ),
    Mutant("scores may be rounded away", "if not keeps_scores(", "if False and ("),
    # stray_weights.py
    Mutant(
        "any activation makes weights",
        "return is_projected(views, scores.query) and is_projected(views, scores.key)",
        "return True",
    ),
)
