from __future__ import annotations

from pathlib import Path

from tests.zoo.times import Times, markdown, measure

FOLDER = Path(__file__).parents[2] / "models" / "zoo"


def test_page_has_medians_by_exporter_and_the_least_first() -> None:
    times = [
        Times("a", "dynamo", 2, 50.0, 1.5, 1.0),
        Times("b", "dynamo", 1, 60.0, 0.9, 1.2),
        Times("c", "torchscript", 1, 70.0, 2.0, 0.8),
    ]
    lines = markdown(times).splitlines()
    assert "| all | with the kernels | 1.50 | 0.90 | 1 of 3 |" in lines
    assert "| dynamo | plain | 1.10 | 1.00 | 0 of 2 |" in lines
    assert "| torchscript | plain | 0.80 | 0.80 | 1 of 1 |" in lines
    least = lines[lines.index("| model | blocks | original us | with the kernels | plain |") + 2 :]
    assert least[0] == "| b | 1 | 60 | 0.90 | 1.20 |"
    assert [line.split()[1] for line in least] == ["b", "a", "c"]


def test_model_is_timed_on_its_own_inputs() -> None:
    found = measure(FOLDER, "gqa_grouped-ts-eager-static", 0.01)
    assert found is not None
    assert (found.exporter, found.fused) == ("torchscript", 1)
    assert min(found.original_us, found.kernel, found.plain) > 0


def test_model_in_which_nothing_is_fused_has_no_times() -> None:
    assert measure(FOLDER, "mask_post-ts-eager-static", 0.01) is None
