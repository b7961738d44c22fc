"""The recogniser's checks, each with a text that disables it, by the folders of their sources."""

from __future__ import annotations

from tests.mutation.mutants.algebra import ALGEBRA
from tests.mutation.mutants.operands import OPERANDS
from tests.mutation.mutants.operators import OPERATORS
from tests.mutation.mutants.passes import PASSES
from tests.mutation.mutants.recogniser import RECOGNISER
from tests.mutation.mutants.record import RECORD
from tests.mutation.mutants.scores import SCORES
from tests.mutation.mutants.shapes import SHAPES
from tests.mutation.mutants.softmax import SOFTMAX

MUTANTS = (
    *SHAPES,
    *ALGEBRA,
    *SCORES,
    *SOFTMAX,
    *OPERANDS,
    *OPERATORS,
    *RECORD,
    *RECOGNISER,
    *PASSES,
)
