"""The mutants are of today's sources: each check is there, once, and python without it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onnx_fuse
from tests.mutation.mutant import Mutant, places
from tests.mutation.mutants import MUTANTS

PACKAGE = Path(onnx_fuse.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_check_is_in_the_sources_once(mutant: Mutant) -> None:
    found = places(mutant, PACKAGE)
    assert len(found) == 1
    ast.parse(found[0].read_text().replace(mutant.check, mutant.without))


def test_names_are_different() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
