"""What explain says of blocks that are fused in part, and of those that are whole."""

from __future__ import annotations

from pathlib import Path

from tests.cli.program import run

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def test_explain_says_which_projections_stay_outside() -> None:
    gated = ZOO / "gated_output-ts-eager-static.onnx"
    explained, dry = run("explain", gated).stdout, run("fuse", gated, "--dry-run").stdout
    assert "mask  outside" in explained
    assert "mask  outside" in dry
    assert "out stays outside: " in explained
    assert "stays outside: " not in dry


def test_no_column_tells_that_nothing_stays_outside(model: Path) -> None:
    assert "outside" not in run("explain", model).stdout
