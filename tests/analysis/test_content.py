"""Biases made of the block's source: by its own rows, or by what another softmax weighs.

Those of pairs are another kind of attention; those of keys alone, or of queries alone, are not.
"""

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
    "the source's rows, for each key": lambda: twin(**after("scores", steps.bias_of_columns)),
    "the source's rows, for each query": lambda: twin(**after("scores", steps.bias_of_rows)),
    "distances of queries and keys": lambda: twin(scored=steps.distances),
    "a difference of both": lambda: twin(**after("scores", steps.bias_of_both("Sub"))),
}
DECLINED: dict[str, Make] = {
    "learned rows that a softmax weighs": lambda: twin(
        **after("scores", steps.bias_from_another(steps.gates_weighed))
    ),
    "a product of both": lambda: twin(**after("scores", steps.bias_of_both("Mul"))),
    "a fill for each query": lambda: twin(**after("scores", steps.filled_by_rows)),
    "the scores' mean over their rows": lambda: twin(**after("scores", steps.bias_of_mean(2))),
}


@pytest.mark.parametrize("name", FUSED)
def test_bias_is_an_operand(name: str) -> None:
    check_meaning(Meaning(BIAS), FUSED[name]())


@pytest.mark.parametrize("name", DECLINED)
def test_bias_of_pairs_of_own_rows_is_declined(name: str) -> None:
    sample = DECLINED[name]()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert Code.CONTENT_BIAS in [block.code for block in result.report.blocks]
    assert result.model.SerializeToString() == sample.model.SerializeToString()
