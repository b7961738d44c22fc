"""The recogniser's checks, each with a text that disables it."""

from __future__ import annotations

from tests.mutation.mutants.blocks import BLOCKS
from tests.mutation.mutants.operands import OPERANDS
from tests.mutation.mutants.scores import SCORES
from tests.mutation.mutants.shapes import SHAPES
from tests.mutation.mutants.softmax import SOFTMAX

MUTANTS = (*SHAPES, *OPERANDS, *SCORES, *SOFTMAX, *BLOCKS)
