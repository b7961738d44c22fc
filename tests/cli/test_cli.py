from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

import onnx_fuse.report
from onnx_fuse import api
from onnx_fuse.config import THRESHOLD_VARIABLE
from tests.cli.program import failed, run
from tests.runtime.models import attention, parse

SCHEMA = json.loads(
    Path(onnx_fuse.report.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)
COMMANDS = ("fuse", "explain", "verify", "bench", "unfuse", "info")


def test_fuse_writes_a_verified_model(model: Path, out: Path) -> None:
    result = run("fuse", model, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"1 of 1 block fused -> {out}" in result.stdout
    assert "verified: 6 cases" in result.stdout
    assert any(node.domain == "onnx_fuse" for node in onnx.load(str(out)).graph.node)


def test_fuse_leaves_nothing_else_behind(model: Path, out: Path) -> None:
    run("fuse", model, "-o", out)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.onnx", "out.onnx"]


def test_json_report_follows_the_schema(model: Path, out: Path, tmp_path: Path) -> None:
    result = run("fuse", model, "-o", out, "--json", tmp_path / "report.json")
    assert result.exit_code == 0
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, SCHEMA)
    assert (data["model"], data["output"]) == (str(model), str(out))
    assert (data["fused"], data["declined"]) == (1, 0)
    assert data["verify"]["passed"]


def test_json_to_stdout_is_json_alone(model: Path) -> None:
    result = run("explain", model, "--json", "-")
    assert result.exit_code == 0
    jsonschema.validate(json.loads(result.stdout), SCHEMA)


def test_explain_says_the_same_as_fuse_and_writes_nothing(model: Path) -> None:
    data = json.loads(run("explain", model, "--json", "-").stdout)
    fused = json.loads(run("fuse", model, "--dry-run", "--json", "-").stdout)
    assert data["blocks"] == fused["blocks"]
    assert list(model.parent.iterdir()) == [model]


def test_dry_run_verifies_and_writes_nothing(model: Path, out: Path) -> None:
    result = run("fuse", model, "-o", out, "--dry-run")
    assert result.exit_code == 0
    assert "verified" in result.stdout
    assert not out.exists()


def test_no_verify_says_nothing_of_verification(model: Path, out: Path) -> None:
    result = run("fuse", model, "-o", out, "--no-verify")
    assert result.exit_code == 0
    assert "verified" not in result.output
    assert out.exists()


def test_no_fallback_leaves_out_the_body(model: Path, out: Path) -> None:
    assert run("fuse", model, "-o", out, "--no-fallback", "--no-verify").exit_code == 0
    assert not onnx.load(str(out)).functions


def test_output_may_be_the_input(model: Path) -> None:
    before = model.read_bytes()
    assert run("fuse", model, "-o", model).exit_code == 0
    assert model.read_bytes() != before


def test_same_input_gives_the_same_bytes(model: Path, out: Path) -> None:
    run("fuse", model, "-o", out)
    first = out.read_bytes()
    run("fuse", model, "-o", out)
    assert out.read_bytes() == first


def test_model_with_external_data_is_verified(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(
        attention(), str(path), save_as_external_data=True, location="big.data", size_threshold=0
    )
    result = run("fuse", path, "-o", out)
    assert result.exit_code == 0, result.output
    assert "verified: 6 cases" in result.stdout
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_model_in_a_cache_of_links_is_verified_and_unfused(tmp_path: Path) -> None:
    """A download cache's form: the model and its data are links to files of other names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "view").mkdir()
    source = tmp_path / "view" / "model.onnx"
    onnx.save(
        attention(), str(source), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    for file in list(source.parent.iterdir()):
        blob = file.rename(tmp_path / "blobs" / f"of {file.name}")
        file.symlink_to(blob)
    fused, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    for words in (
        ("fuse", source, "-o", fused),
        ("unfuse", fused, "-o", plain),
        ("verify", source, plain),
    ):
        assert run(*words).exit_code == 0, words
    message = api.fuse(source).model
    assert not any(tensor.external_data for tensor in message.graph.initializer)


def test_unfuse_gives_standard_onnx_of_the_same_meaning(
    model: Path, out: Path, tmp_path: Path
) -> None:
    run("fuse", model, "-o", out)
    plain = tmp_path / "plain.onnx"
    result = run("unfuse", out, "-o", plain)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 block unfused -> ")
    assert not any(o.domain == "onnx_fuse" for o in onnx.load(str(plain)).opset_import)
    assert run("verify", model, plain).exit_code == 0


def test_unfuse_says_that_nothing_was_fused(model: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    result = run("unfuse", model, "-o", plain)
    assert (result.exit_code, result.stdout.partition(" -> ")[0]) == (0, "no block was fused")
    assert plain.read_bytes() == model.read_bytes()


def test_already_fused_model_is_unchanged_and_said_so(
    model: Path, out: Path, tmp_path: Path
) -> None:
    run("fuse", model, "-o", out)
    again = tmp_path / "again.onnx"
    result = run("fuse", out, "-o", again)
    assert result.exit_code == 0
    assert "already_fused" in result.stdout
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("command", [("info",), ("explain", "{model}")], ids=lambda c: c[0])
def test_lines_in_a_pipe_end_where_their_text_ends(command: tuple[str, ...], model: Path) -> None:
    lines = run(*(word.format(model=model) for word in command)).stdout.splitlines()
    assert lines
    assert lines == [line.rstrip() for line in lines]


def test_help_says_what_each_command_does_in_one_whole_line() -> None:
    assert "..." not in run("--help").stdout.split("Commands:")[1]


def test_model_without_attention_is_written_as_it_was(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "plain.onnx"
    onnx.save(parse("g (float[2] x) => (float[2] y) { y = Relu (x) }"), str(path))
    result = run("fuse", path, "-o", out)
    assert result.exit_code == 0
    assert result.stdout.startswith("0 blocks")
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("require", "threshold", "code"),
    [("1", "64", 0), ("2", "64", 3), ("all", "64", 0), ("all", "0", 3), ("0", "0", 0)],
)
def test_require_asks_for_so_many_fused_blocks(
    model: Path, out: Path, require: str, threshold: str, code: int
) -> None:
    words = ("fuse", model, "-o", out, "--require", require, "--threshold", threshold)
    assert run(*words).exit_code == code
    assert out.exists()


def test_require_all_of_a_model_without_attention_is_not_met(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "plain.onnx"
    onnx.save(parse("g (float[2] x) => (float[2] y) { y = Relu (x) }"), str(path))
    failed(run("fuse", path, "-o", out, "--require", "all"), 3, "--require")


def test_require_says_that_it_takes_all(model: Path, out: Path) -> None:
    failed(run("fuse", model, "-o", out, "--require", "ALL"), 2, "neither 'all' nor a whole number")


def test_size_that_has_no_effect_is_noted(tmp_path: Path, model: Path) -> None:
    path, page = tmp_path / "static.onnx", tmp_path / "report.json"
    fixed = attention()
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value or 2
    onnx.save(fixed, str(path))
    result = run("explain", path, "--batch", 3, "--json", page)
    assert "note: batch=3 has no effect: dimension 0 of every input is fixed" in result.stdout
    assert len(json.loads(page.read_text())["notes"]) == 1
    assert "note:" not in run("explain", model, "--batch", 3, "--seq", 9).stdout


def test_bound_size_above_the_threshold_is_declined_with_the_numbers(model: Path) -> None:
    result = run("explain", model, "--batch", 2, "--seq", 128)
    assert result.exit_code == 0
    assert "too_large" in result.stdout
    assert "2*128 = 256 > threshold 64" in result.stdout


@pytest.mark.parametrize(
    "words",
    [("--batch", 1, "--seq", 64), ("--dim", "batch=1", "--dim", "seq=64"), ("--threshold", "none")],
    ids=["at the threshold", "bound by name", "no threshold"],
)
def test_block_that_is_small_enough_is_fused(model: Path, words: tuple[object, ...]) -> None:
    assert "1 of 1 block fused" in run("explain", model, *words).stdout


def test_environment_gives_the_threshold(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THRESHOLD_VARIABLE, "0")
    assert "0 of 1 block fused" in run("explain", model).stdout
    assert "1 of 1 block fused" in run("explain", model, "--threshold", 64).stdout


USAGE = {
    "no output": ("fuse", "MODEL"),
    "no model": ("fuse",),
    "unknown command": ("melt", "MODEL"),
    "unknown option": ("fuse", "MODEL", "--fast"),
    "threshold": ("fuse", "MODEL", "-o", "OUT", "--threshold", "-1"),
    "threshold word": ("fuse", "MODEL", "-o", "OUT", "--threshold", "big"),
    "batch": ("fuse", "MODEL", "-o", "OUT", "--batch", "0"),
    "sequence that is no number": ("fuse", "MODEL", "-o", "OUT", "--seq", "x"),
    "dim without a number": ("fuse", "MODEL", "-o", "OUT", "--dim", "seq"),
    "dim of zero": ("fuse", "MODEL", "-o", "OUT", "--dim", "seq=0"),
    "dim given twice": ("fuse", "MODEL", "-o", "OUT", "--dim", "seq=1", "--dim", "seq=2"),
    "report over the input": ("fuse", "MODEL", "-o", "OUT", "--json", "MODEL"),
    "report over the output": ("fuse", "MODEL", "-o", "OUT", "--json", "OUT"),
    "page over the input": ("explain", "MODEL", "--html", "MODEL"),
    "report and page in one": ("explain", "MODEL", "--html", "OUT", "--json", "OUT"),
    "report over the original": ("verify", "MODEL", "MODEL", "--json", "MODEL"),
    "times over the model": ("bench", "MODEL", "--json", "MODEL"),
    "require": ("fuse", "MODEL", "-o", "OUT", "--require", "most"),
    "precision": ("fuse", "MODEL", "-o", "OUT", "--precision", "fp8"),
    "lengths": ("bench", "MODEL", "--seq", "1,x"),
    "threads": ("bench", "MODEL", "--threads", "0"),
    "seconds that never end": ("bench", "MODEL", "--seconds", "inf"),
    "seconds that are no number": ("bench", "MODEL", "--seconds", "nan"),
}


@pytest.mark.parametrize("words", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_code_two(words: tuple[str, ...], model: Path, out: Path) -> None:
    names = {"MODEL": str(model), "OUT": str(out)}
    failed(run(*(names.get(word, word) for word in words)), 2)
    assert not out.exists()


@pytest.mark.parametrize("place", ["nowhere/out.onnx", "model.onnx/out.onnx", "."])
def test_output_that_cannot_be_written_is_code_one(model: Path, place: str) -> None:
    failed(run("fuse", model, "-o", model.parent / place), 1)
    assert model.read_bytes() == attention().SerializeToString()


@pytest.mark.parametrize("place", ["nowhere/r.json", "model.onnx/r.json", ""])
def test_json_that_cannot_be_written_is_code_one_before_any_work(
    model: Path, out: Path, place: str
) -> None:
    failed(run("fuse", model, "-o", out, "--json", model.parent / place), 1, place)
    assert not out.exists()


def test_json_goes_to_a_device_as_it_is(model: Path) -> None:
    assert run("explain", model, "--json", "/dev/null").exit_code == 0
    assert not Path("/dev/null").is_file()


def test_json_of_verify_is_a_report_with_the_verdict_at_the_top_too(model: Path, out: Path) -> None:
    assert run("fuse", model, "-o", out).exit_code == 0
    data = json.loads(run("verify", model, out, "--json", "-").stdout)
    jsonschema.validate(data, SCHEMA)
    assert (data["model"], data["output"]) == (str(model), str(out))
    assert data["verify"]["passed"]
    assert data["verify"]["cases"] > 0
    assert data["verify"] == {name: data[name] for name in data["verify"]}


def test_dim_of_another_name_is_a_usage_error_that_names_the_known_ones(
    model: Path, out: Path
) -> None:
    result = run("fuse", model, "-o", out, "--dim", "sequence=8")
    failed(result, 2, "dim sequence=8", "batch, seq")
    assert not out.exists()


def broken(path: Path, **options: Any) -> api.FuseResult:
    """What `fuse` would return if it were wrong: the out bias is missing."""
    wrong = attention()
    bias = next(t for t in wrong.graph.initializer if t.name == "out_bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(32, np.float32), "out_bias"))
    report = api.fuse(path, **options).report
    return api.FuseResult(api.load(wrong), report)


def test_failed_verification_writes_nothing(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = broken(model)
    monkeypatch.setattr(api, "fuse", lambda *_, **__: wrong)
    result = run("fuse", model, "-o", out, "--json", tmp_path / "r.json")
    failed(result, 4, "nothing written")
    assert "output 'output' differs" in result.stdout
    assert not out.exists()
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, SCHEMA)
    assert (data["output"], data["verify"]["passed"]) == (None, False)


def test_failed_verification_comes_before_require(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = broken(model)
    monkeypatch.setattr(api, "fuse", lambda *_, **__: wrong)
    assert run("fuse", model, "-o", out, "--require", 5).exit_code == 4


def test_verify_tells_right_from_wrong(model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    onnx.save(broken(model).model, str(wrong))
    assert run("verify", model, model).exit_code == 0
    result = run("verify", model, wrong)
    assert result.exit_code == 4
    assert "verification failed" in result.stdout


def test_bench_fuses_a_model_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(
        attention(), str(path), save_as_external_data=True, location="big.data", size_threshold=0
    )
    result = run("bench", path, "--seq", 2, "--threads", 1, "--seconds", 0.01)
    assert result.exit_code == 0, result.output


def test_bench_prints_a_row_for_each_point(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = ("bench", model, "--seq", "1,4", "--threads", 1, "--seconds", 0.01, "--json", path)
    result = run(*words)
    assert result.exit_code == 0, result.output
    # On a busy machine a note says so.
    table = [line for line in result.stdout.splitlines() if not line.startswith("note: ")]
    assert len(table) == 3
    assert len(json.loads(path.read_text(encoding="utf-8"))["rows"]) == 2


def test_info_names_versions_and_the_library() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    assert "library" in result.stdout


def test_info_says_that_the_isa_asked_for_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_FUSE_ISA", "sse9")
    assert json.loads(run("info", "--json", "-").stdout)["isa"].startswith("none: ONNX_FUSE_ISA")


def test_unexpected_error_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("something\ninside")

    monkeypatch.setattr(api, "explain", fail)
    failed(run("explain", model), 1, "internal error", "KeyError")


def test_interruption_is_code_130(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "explain", interrupt)
    failed(run("explain", model), 130, "interrupted")


def test_verbose_logs_the_graph_on_stderr(model: Path) -> None:
    result = run("fuse", model, "--dry-run", "-v")
    assert "FusedAttentionBlock" in result.stderr
    assert "FusedAttentionBlock" not in result.stdout


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "[bold]model.onnx"
    onnx.save(attention(), str(path))
    assert str(path) in run("fuse", path, "-o", tmp_path / "[red]out.onnx").stdout.replace(
        "[red]out", "[bold]model"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"\n    onnx-fuse {command}" in result.stdout.split("Example:")[1]


def test_no_command_shows_the_help_and_is_code_two() -> None:
    result = run()
    assert result.exit_code == 2
    assert all(command in result.stderr for command in COMMANDS)


def test_explain_tells_of_softmaxes_that_are_no_attention(tmp_path: Path) -> None:
    text = """g (float[4, 4] x) => (float[4, 4] z)
    { a = Softmax (x) b = Mul (a, x) c = Softmax (b) d = Mul (c, b) z = Softmax (d) }"""
    onnx.save(parse(text), tmp_path / "m.onnx")
    result = run("explain", tmp_path / "m.onnx")
    assert "no attention  'a' and 1 more: its weights go into 'b' (Mul)" in result.stdout
    assert "no attention  'z': its weights are the output 'z'" in result.stdout
    fused = run("fuse", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert "no attention  " not in fused.stdout
