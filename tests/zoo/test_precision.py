"""How far a model is from another, and what the page says of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.zoo.precision import Comparison, Distance, distance, farthest, markdown

ONE = np.array([[3.0, 4.0]], np.float32)


@pytest.mark.parametrize(
    ("found", "expected", "cosine", "error"),
    [
        pytest.param(ONE, ONE, 1, 0, id="equal"),
        pytest.param(ONE * 2, ONE, 1, 1, id="twice"),
        pytest.param(ONE * [[1, -1]], ONE, (9 - 16) / 25, 2, id="one sign"),
        pytest.param(np.append(ONE, np.inf), np.append(ONE, np.inf), 1, 0, id="infinity left out"),
        pytest.param(ONE, np.zeros_like(ONE), 1, 0, id="nothing to compare with"),
        pytest.param(np.array([1]), np.array([2]), 1, 0, id="no floats"),
    ],
)
def test_distance(found: np.ndarray, expected: np.ndarray, cosine: float, error: float) -> None:
    apart = distance(found, expected)
    assert apart.cosine == pytest.approx(cosine)
    assert apart.error == pytest.approx(error)


def test_a_value_that_is_lost_shows() -> None:
    assert math.isnan(distance(ONE * [[np.nan, 1]], ONE).join(Distance()).error)


def test_farthest_takes_the_worst_of_all_outputs_and_cases() -> None:
    worst = farthest([[ONE, ONE], [ONE * 3, ONE]], [[ONE, ONE], [ONE, ONE]])
    assert worst.error == pytest.approx(2)


def test_page_has_a_line_for_each_architecture_with_its_worst_model() -> None:
    def model(architecture: str, cosine: float) -> Comparison:
        return Comparison(architecture, 2, {"bf16x3": Distance(), "bf16": Distance(cosine, 0.02)})

    page = markdown([model("b", 0.5), model("a", 0.9), model("a", 0.7)])
    lines = [line for line in page.splitlines() if line.startswith(("| a", "| b", "| **all"))]
    assert lines[1:] == [
        "| a | 2 | 4 | 1.000000 | 0e+00 | 0.700000 | 2e-02 |",
        "| b | 1 | 2 | 1.000000 | 0e+00 | 0.500000 | 2e-02 |",
        "| **all** | 3 | 6 | 1.000000 | 0e+00 | 0.500000 | 2e-02 |",
    ]
