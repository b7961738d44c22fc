"""What explain says of blocks that are fused in part, and of those that are whole."""

from __future__ import annotations

from pathlib import Path

from tests.cli.program import run

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def test_explain_says_which_projections_stay_outside() -> None:
    in_part = ZOO / "head_list-dynamo-eager-dynamic.onnx"
    explained, dry = run("explain", in_part).stdout, run("fuse", in_part, "--dry-run").stdout
    assert explained.splitlines()[0].split()[-1] == "outside"
    assert dry.splitlines()[0].split()[-1] == "outside"
    assert "out stays outside: " in explained
    assert "stays outside: " not in dry


def test_no_column_tells_that_nothing_stays_outside(model: Path) -> None:
    assert "outside" not in run("explain", model).stdout
