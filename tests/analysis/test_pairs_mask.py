"""Masks of batch and heads as one axis, whose extent has a name of its own and may be 1."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step, after, twin
from tests.analysis.verdicts import ALL, OUT, check_declined, check_fused


def _masked(pairs: int, *, is_bool: bool) -> Step:
    """Apply a mask of so many pairs, called `pairs`, to scores of (batch * heads, rows, rows)."""

    def step(w: Writer, scores: str) -> str:
        numbers = w.random(pairs, ROWS, ROWS)
        mask = w.b.input("mask", numbers > 0 if is_bool else numbers, (pairs, "S", "S"))
        w.b.inputs[-1].type.tensor_type.shape.dim[0].dim_param = "pairs"
        if is_bool:
            return w.b.op("Where", mask, scores, w.b.scalar(-np.inf))
        return w.b.op("Add", scores, mask)

    return step


MASKS = {False: BIAS, True: SELECT}


@pytest.mark.parametrize("is_bool", MASKS)
@pytest.mark.parametrize("pairs", [1, BATCH * NUM_HEADS])
def test_a_mask_of_pairs_may_be_one_for_all(pairs: int, is_bool: bool) -> None:
    masked = after("scored", _masked(pairs, is_bool=is_bool))
    sample = twin(Form(order="3d", dims="dynamic"), **masked)
    check_fused(sample, (*ALL, *MASKS[is_bool], *OUT))


def test_a_name_beside_a_number_may_be_one() -> None:
    masked = after("scored", _masked(1, is_bool=False))
    check_declined(lambda: twin(Form(order="3d"), **masked), Code.SHAPE_UNKNOWN)
