"""The zoo's own checker finds what is wrong, and its table says it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_fuse
from tests.conftest import ZOO
from tests.zoo.check import (
    TOLERANCE,
    Decline,
    Outcome,
    check,
    count_roundings,
    difference,
    half_tolerance,
    tolerance_for,
)
from tests.zoo.table import faults, markdown, ratio, rows_of, summary

MODEL = ZOO["alibi-ts-eager-static"]
INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("found", "expected", "result"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.0], 0.0, id="same"),
        pytest.param([1.0, 2.5], [1.0, 2.0], 0.25, id="relative-to-the-largest"),
        pytest.param([NAN, 2.0], [NAN, 2.0], 0.0, id="nan-in-the-same-place"),
        pytest.param([NAN, 2.0], [1.0, 2.0], INF, id="nan-where-a-number-was"),
        pytest.param([1.0, 2.0], [NAN, 2.0], INF, id="number-where-nan-was"),
        pytest.param([INF, 2.0], [-INF, 2.0], INF, id="infinity-of-another-sign"),
        pytest.param([1.0], [1.0, 2.0], INF, id="shape"),
        pytest.param([0.5], [0.0], 0.5, id="absolute-where-all-is-zero"),
    ],
)
def test_difference(found: list[float], expected: list[float], result: float) -> None:
    assert difference(np.array(found), np.array(expected)) == pytest.approx(result)


def test_difference_in_type_or_in_integers_is_infinite() -> None:
    assert difference(np.zeros(2, np.float32), np.zeros(2, np.float64)) == INF
    assert difference(np.array([1, 2]), np.array([1, 3])) == INF
    assert difference(np.array([1, 2]), np.array([1, 2])) == 0


def chain(dtype: int, length: int) -> onnx.ModelProto:
    """`length` additions one after the other, a view between each two of them."""
    nodes = []
    for step in range(length):
        nodes.append(helper.make_node("Add", [f"x{step}", "c"], [f"y{step}"]))
        nodes.append(helper.make_node("Identity", [f"y{step}"], [f"x{step + 1}"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", dtype, [1])],
        [helper.make_tensor_value_info(f"x{length}", dtype, [1])],
        [numpy_helper.from_array(np.ones(1, helper.tensor_dtype_to_np_dtype(dtype)), "c")],
    )
    return helper.make_model(graph)


def test_views_round_nothing() -> None:
    assert count_roundings(chain(TensorProto.FLOAT, 7).graph) == 7


def test_half_precision_allows_what_its_roundings_add_up_to() -> None:
    assert tolerance_for(chain(TensorProto.FLOAT, 16), 0.0) == TOLERANCE
    half = tolerance_for(chain(TensorProto.FLOAT16, 16), 0.0)
    assert half == half_tolerance(2.0**-11, 16)
    assert half == pytest.approx(4 * half_tolerance(2.0**-11, 1))
    assert tolerance_for(chain(TensorProto.FLOAT, 16), 0.5) == 0.5


def test_good_model_has_no_problem() -> None:
    outcome = check(MODEL.parent, MODEL.stem)
    assert outcome.is_complete
    assert (outcome.fused, outcome.blocks, outcome.problem) == (1, 1, "")


@pytest.mark.parametrize("where", ["kernel", "plain"])
def test_model_that_computes_something_else_is_a_problem(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong scale on the node reaches both sessions; one in the body only the plain one."""
    fuse = onnx_fuse.fuse

    def fuse_wrongly(path: Path, **options: Any) -> SimpleNamespace:
        result = fuse(path, **options)
        model = result.model
        if where == "kernel":
            node = next(node for node in model.graph.node if node.domain == "onnx_fuse")
            next(a for a in node.attribute if a.name == "scale").f *= 1.5
        else:
            step = next(n for n in model.functions[0].node if n.op_type == "Softmax")
            next(a for a in step.attribute if a.name == "axis").i = -2
        return SimpleNamespace(model=model, report=result.report)

    monkeypatch.setattr(onnx_fuse, "fuse", fuse_wrongly)
    outcome = check(MODEL.parent, MODEL.stem)
    assert "plain session differs" in outcome.problem
    assert outcome.kernel_error is not None
    assert (outcome.kernel_error > outcome.tolerance) == (where == "kernel")


def outcome(name: str, fused: int, blocks: int, **more: Any) -> Outcome:
    return Outcome(
        name=f"{name}-x", architecture=name, blocks=blocks, fused=fused,
        **{"exporter": "dynamo", "expressible": blocks, **more},
    )  # fmt: skip


OUTCOMES = [
    outcome("b", 2, 2, kernel_error=1e-7, plain_error=3e-6),
    outcome("a", 1, 2, declined=[Decline("gate", "it | is")], exporter="other"),
    outcome("a", 0, 1, expressible=0, problem="the process crashed"),
]


def test_table_has_a_row_for_each_architecture_and_the_sum() -> None:
    rows = {row.architecture: row for row in rows_of(OUTCOMES)}
    assert list(rows) == ["a", "b", "all"]
    assert rows["a"].cells == ("", "0 / 0 / 1", "other: 1 / 2")
    assert rows["b"].cells == ("", "2 / 2", "")
    assert (rows["a"].declined, rows["b"].error, rows["all"].problems) == ("gate", "3e-06", 1)


def test_ratio_names_blocks_that_have_no_fused_form() -> None:
    assert ratio(OUTCOMES[:2]) == "3 / 4"
    assert ratio(OUTCOMES) == "3 / 4 / 5"


def test_faults_name_each_model_that_is_not_as_it_should_be() -> None:
    surplus = outcome("c", 2, 2, expressible=1)
    assert faults([*OUTCOMES, surplus]) == [
        "a-x: the process crashed",
        "a-x: 1 fused of 2: gate",
        "c-x: 2 fused, only 1 expressible",
    ]


def test_page_keeps_its_columns_and_says_the_sum() -> None:
    page = markdown(OUTCOMES, "versions")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables}
    assert widths == {8, 5}
    assert summary(OUTCOMES) in page
    assert "it \\| is" in page
