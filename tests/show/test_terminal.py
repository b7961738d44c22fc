"""What a report looks like in a pipe."""

from __future__ import annotations

import pytest

from onnx_fuse.report import BlockReport, Code, Outside, Report, Step
from onnx_fuse.show.terminal import print_result, render_report

FUSED = BlockReport(
    name="first",
    status="fused",
    kind="self",
    num_heads=4,
    kv_num_heads=2,
    head_dim=8,
    batch="batch",
    seq=16,
    rope="half",
    outside=(Outside.needed("k", "keys", "gate", "Mul"),),
)
STEPS = (Step("softmax", ("s",)), Step("scores", ("m",)))
DECLINED = [
    BlockReport.decline(name, Code.GATE, {"node": "g"}, node="g", steps=STEPS)
    for name in ("second", "third")
]


def shown(capsys: pytest.CaptureFixture[str], *, details: bool) -> list[str]:
    report = Report(model="m.onnx", output="n.onnx", blocks=(FUSED, *DECLINED))
    print_result(render_report(report, details=details))
    return capsys.readouterr().out.splitlines()


def test_each_block_has_a_line_of_facts(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [" ".join(line.split()) for line in shown(capsys, details=False)]
    assert lines[1] == "fused first self 4/2 8 batch x 16 half none k"
    assert lines[2] == "declined second - - - - - - -"


def test_blocks_declined_for_one_reason_are_told_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown(capsys, details=False)
    assert "declined  gate  second and 1 more" in lines
    assert sum(line.lstrip().startswith("hint:") for line in lines) == 1
    assert lines[-1] == "1 of 3 blocks fused, 2 declined -> n.onnx"


def test_details_tell_of_each_block_how_far_it_was_understood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line.strip() for line in shown(capsys, details=True)]
    assert lines.count("understood: softmax; stopped in scores at 'g'") == len(DECLINED)
    assert any(line.startswith("k stays outside: the product 'keys'") for line in lines)
