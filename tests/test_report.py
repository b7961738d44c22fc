from __future__ import annotations

import json
import math
import string
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import onnx_fuse.report
from onnx_fuse.errors import VerificationFailed
from onnx_fuse.report import BlockReport, Code, Outside, Report, Step, VerifyReport

SCHEMA = json.loads(
    Path(onnx_fuse.report.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)
FACTS = {"batch": 2, "seq": 128, "rows": 256, "threshold": 64}
FUSED = BlockReport(
    name="/layer.0/attention",
    status="fused",
    kind="self",
    num_heads=12,
    kv_num_heads=12,
    head_dim=32,
    batch="batch",
    seq=16,
    rope="half",
    mask="causal",
    node="/layer.0/attention/MatMul",
    steps=(Step("softmax", ("a", "b")),),
)
DECLINED = BlockReport.decline("/layer.1/attention", Code.TOO_LARGE, FACTS, node="Softmax_3")
VERIFIED = VerifyReport(
    passed=True, max_abs_err=1e-6, tolerance=1e-5, worst_ratio=0.1, cases=6, runs=("plain",)
)


def report(*blocks: BlockReport, verify: VerifyReport | None = None) -> Report:
    return Report(model="model.onnx", output="out.onnx", blocks=blocks, verify=verify)


def check(data: dict[str, object]) -> None:
    jsonschema.validate(json.loads(json.dumps(data, allow_nan=False)), SCHEMA)


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_counts_follow_from_the_blocks() -> None:
    made = report(FUSED, DECLINED, FUSED)
    assert (made.num_fused, made.num_declined) == (2, 1)


@pytest.mark.parametrize(
    "made",
    [
        report(),
        report(FUSED, DECLINED),
        report(replace(FUSED, outside=(Outside.made("k", "/norm", "Mul"), Outside.shown("y")))),
        report(FUSED, verify=VERIFIED),
    ],
    ids=["empty", "blocks", "in part", "verified"],
)
def test_json_follows_the_schema(made: Report) -> None:
    check(made.to_json())


def test_json_has_no_steps() -> None:
    assert "steps" not in FUSED.to_json()


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_number_that_is_not_finite_is_null_in_json(number: float) -> None:
    verdict = VerifyReport(
        passed=False, max_abs_err=number, tolerance=number, worst_ratio=number, cases=1
    )
    data = report(FUSED, verify=verdict).to_json()
    check(data)
    assert data["verify"]["max_abs_err"] is None


def test_verdict_that_passed_raises_nothing() -> None:
    VERIFIED.check()


@pytest.mark.parametrize(
    ("failures", "words"),
    [(("output 'y' differs",), "output 'y' differs$"), (("a", "b", "c"), r"a \(and 2 more\)$")],
)
def test_verdict_of_models_that_differ_raises(failures: tuple[str, ...], words: str) -> None:
    with pytest.raises(VerificationFailed, match=words):
        replace(VERIFIED, passed=False, failures=failures).check()


@pytest.mark.parametrize(
    ("field", "value"),
    [("status", "skipped"), ("kind", "both"), ("rope", "full"), ("num_heads", 0), ("code", "Big")],
)
def test_schema_refuses_a_wrong_block(field: str, value: object) -> None:
    data = report(DECLINED).to_json()
    data["blocks"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        check(data)


def test_schema_refuses_a_declined_block_without_code() -> None:
    data = report(DECLINED).to_json()
    data["blocks"][0]["code"] = None
    with pytest.raises(jsonschema.ValidationError):
        check(data)


def test_schema_refuses_a_missing_field() -> None:
    data = report(FUSED).to_json()
    del data["blocks"][0]["node"]
    with pytest.raises(jsonschema.ValidationError):
        check(data)


def test_declined_block_needs_a_code() -> None:
    with pytest.raises(ValueError, match="code"):
        BlockReport(name="x", status="declined")


def test_fused_block_has_no_code() -> None:
    with pytest.raises(ValueError, match="code"):
        BlockReport(name="x", status="fused", code=Code.GATE)


def test_too_large_states_the_numbers_and_the_limit() -> None:
    assert DECLINED.reason == "batch*q_seq = 2*128 = 256 > threshold 64"
    assert DECLINED.hint is not None
    assert "--threshold 256" in DECLINED.hint


def test_code_reads_as_its_value() -> None:
    assert f"{Code.TOO_LARGE} {Code.TOO_LARGE!s}" == "too_large too_large"
    assert Code.TOO_LARGE == "too_large"


@pytest.mark.parametrize("code", list(Code), ids=str)
def test_code_is_lower_case_and_has_words(code: Code) -> None:
    assert code.value == code.name.lower()
    assert code.reason().strip()
    assert code.hint().strip()


@pytest.mark.parametrize("code", list(Code), ids=str)
def test_missing_fact_reads_as_its_name(code: Code) -> None:
    template = code._sentence
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    assert code.reason(**{name: name for name in names}) == code.reason()


def test_unknown_fact_is_ignored() -> None:
    assert Code.GATE.reason(node="n", weather="fine") == Code.GATE.reason(node="n")
