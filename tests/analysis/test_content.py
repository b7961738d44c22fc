"""Biases made of the block's source: by its own rows, or by what another softmax weighs."""

from __future__ import annotations

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, Meaning, check_meaning
from tests.analysis.samples import steps
from tests.analysis.samples.twins import after, twin
from tests.analysis.verdicts import Make

FUSED: dict[str, Make] = {
    "rows that another softmax weighs": lambda: twin(
        **after("scores", steps.bias_from_another(steps.rows_weighed))
    ),
}
DECLINED: dict[str, Make] = {
    "learned rows that a softmax weighs": lambda: twin(
        **after("scores", steps.bias_from_another(steps.gates_weighed))
    ),
    "the source's own rows": lambda: twin(**after("scores", steps.bias_from_source)),
}


@pytest.mark.parametrize("name", FUSED)
def test_bias_of_all_rows_is_an_operand(name: str) -> None:
    check_meaning(Meaning(BIAS), FUSED[name]())


@pytest.mark.parametrize("name", DECLINED)
def test_bias_of_own_rows_is_declined(name: str) -> None:
    sample = DECLINED[name]()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert Code.CONTENT_BIAS in [block.code for block in result.report.blocks]
    assert result.model.SerializeToString() == sample.model.SerializeToString()
