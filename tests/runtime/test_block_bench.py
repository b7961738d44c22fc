from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnx_fuse
import onnx_fuse.runtime.block_bench
from onnx_fuse import cli
from onnx_fuse.cli import benchmarks
from onnx_fuse.errors import InvalidOption, UnsupportedModel
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.runtime.block_bench import BlockBenchReport, BlockRow, Measured, block_bench
from onnx_fuse.runtime.block_models import (
    BLOCKS,
    Block,
    BlockShape,
    attention_chain,
    exporter_chain,
    make_blocks,
    make_feeds,
    make_reference,
    multi_head_chain,
)
from onnx_fuse.runtime.limits import Bound, Limits
from onnx_fuse.runtime.peers import Peer, onnxruntime_peer, openvino_peers
from onnx_fuse.runtime.plot import draw
from onnx_fuse.runtime.timing import Spread
from onnx_fuse.show.bench_tables import block_cells, block_page, summary_cells
from tests.runtime.conftest import Clock

SHAPE = BlockShape(32, 4)
ROPE = BlockShape(32, 4, rope=True)
Chain = Callable[[BlockShape, list[Block]], onnx.ModelProto]


def fuse(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    return onnx_fuse.fuse(model, threshold=None, precision=precision).model


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


def error_of(peer: Peer, shape: BlockShape, batch: int = 2, seq: int = 5) -> float:
    """The largest difference from float64, in units of the result's rms."""
    feeds = make_feeds(shape, batch, seq)
    expected = make_reference(shape, make_blocks(shape), feeds["hidden"])
    return float(np.abs(peer.prepare(feeds)() - expected).max() / np.sqrt(np.mean(expected**2)))


# Each of the 4 products of a block sums hidden_size terms, at worst one half unit of rounding each;
# of a block's input the error grows at most by the norm of its weights, which is about 2.
FLOAT_TOLERANCE = BLOCKS * 2 * 4 * SHAPE.hidden_size * 2.0**-24
# Two products follow each other in a block; rounding both factors of a term to 8 bits changes it by
# sqrt(2/3) * 2**-9 rms. Six deviations of the whole chain, and the same growth.
BF16_TOLERANCE = 6 * 2 * math.sqrt(2 * BLOCKS) * math.sqrt(2 / 3) * 2.0**-9
FORMS = {"exporter": exporter_chain, "Attention": attention_chain, "MHA": multi_head_chain}


@pytest.mark.parametrize(
    ("form", "shape"),
    [("exporter", SHAPE), ("Attention", SHAPE), ("MHA", SHAPE), ("exporter", ROPE), ("MHA", ROPE)],
    ids=lambda value: str(value),
)
def test_every_form_computes_the_same(form: str, shape: BlockShape) -> None:
    peer = onnxruntime_peer(form, FORMS[form](shape, make_blocks(shape)), 1)
    assert error_of(peer, shape) < FLOAT_TOLERANCE


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [SHAPE, ROPE], ids=str)
def test_our_form_is_the_exporters_fused_completely(
    shape: BlockShape, precision: Precision
) -> None:
    fused = fuse(exporter_chain(shape, make_blocks(shape)), precision)
    ours = [node.op_type for node in fused.graph.node if node.domain == "onnx_fuse"]
    assert ours == ["FusedAttentionBlock"] * BLOCKS
    peer = onnxruntime_peer("ours", fused, 1, kernels=True)
    tolerance = BF16_TOLERANCE if precision == "bf16" else FLOAT_TOLERANCE
    assert error_of(peer, shape) < tolerance


def test_one_changed_weight_is_seen() -> None:
    blocks = make_blocks(SHAPE)
    blocks[-1].weights[3][0, 0] += 1
    assert error_of(onnxruntime_peer("wrong", exporter_chain(SHAPE, blocks), 1), SHAPE) > 0.1


def test_blocks_have_different_weights() -> None:
    first, second, *_ = make_blocks(SHAPE)
    assert not np.array_equal(first.weights[0], second.weights[0])


@pytest.mark.parametrize(
    ("hidden", "heads", "rope"), [(32, 5, False), (32, 0, False), (9, 3, True)]
)
def test_impossible_shape_is_an_error(hidden: int, heads: int, rope: bool) -> None:
    with pytest.raises(InvalidOption, match=f"{hidden}x{heads}"):
        BlockShape(hidden, heads, rope)


def test_report_has_a_row_for_each_point(no_openvino: None) -> None:
    report = block_bench(
        {SHAPE: (1, 3)}, fuse=fuse, threads=(1, 2), precisions=("fp32",), seconds=0.01
    )
    assert [(row.seq, row.threads) for row in report.rows] == [(1, 1), (3, 1), (1, 2), (3, 2)]
    assert list(report.rows[0].peers) == [
        "onnxruntime",
        "onnxruntime Attention",
        "onnxruntime MultiHeadAttention",
        "onnx-fuse fp32",
    ]
    assert any("OpenVINO" in note for note in report.notes)
    assert any("limits" in note for note in report.notes)
    assert report.rows[0].share("fp32") is None
    data = json.loads(json.dumps(report.to_json()))
    assert (data["points"][0]["hidden_size"], data["points"][0]["rope"]) == (32, False)
    assert {"cpu", "cores"} <= data["machine"].keys()


def test_time_is_that_of_one_block(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    peer = onnxruntime_peer("right", exporter_chain(SHAPE, make_blocks(SHAPE)), 1)

    def slow(feeds: Any) -> Any:
        run = peer.prepare(feeds)
        return lambda: (clock.wait(0.006), run())[1]

    open_peers = lambda *_: ([Peer("slow", slow)], [])  # noqa: E731
    monkeypatch.setattr(onnx_fuse.runtime.block_bench, "open_peers", open_peers)
    (row,) = block_bench({SHAPE: (1,)}, fuse=fuse, threads=(1,), seconds=0.01).rows
    assert row.peers["slow"].us.median == pytest.approx(1000, rel=1e-3)


def test_peer_that_fails_or_computes_something_else_is_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = make_blocks(SHAPE)
    right = onnxruntime_peer("right", exporter_chain(SHAPE, blocks), 1)
    wrong = onnxruntime_peer("wrong", exporter_chain(SHAPE, blocks[::-1]), 1)
    other = onnxruntime_peer("other", exporter_chain(ROPE, make_blocks(ROPE)), 1)
    monkeypatch.setattr(
        onnx_fuse.runtime.block_bench, "open_peers", lambda *_: ([right, wrong, other], [])
    )
    report = block_bench({SHAPE: (2,)}, fuse=fuse, threads=(1,), seconds=0.01)
    assert list(report.rows[0].peers) == ["right"]
    assert any("other does not run: " in note for note in report.notes)
    assert any("2 rows: wrong computes something else" in note for note in report.notes)


def test_too_long_a_sequence_is_an_error() -> None:
    with pytest.raises(InvalidOption, match="5000"):
        block_bench({SHAPE: (1, 5000)}, fuse=fuse)


def test_unknown_isa_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_FUSE_ISA", "sse9")
    with pytest.raises(InvalidOption, match=r"ONNX_FUSE_ISA names no kernel .*portable"):
        block_bench({SHAPE: (1,)}, fuse=fuse)


def test_openvino_computes_the_same_for_every_length() -> None:
    pytest.importorskip("openvino")
    peers, _ = openvino_peers(exporter_chain(ROPE, make_blocks(ROPE)), 1)
    assert peers[0].name == "OpenVINO fp32"
    assert error_of(peers[0], ROPE, seq=5) < FLOAT_TOLERANCE
    assert error_of(peers[0], ROPE, seq=2) < FLOAT_TOLERANCE


# --- tables and pictures


def row(rows: int, **us: float) -> BlockRow:
    names = {"plain": "onnxruntime", "mha": "onnxruntime MultiHeadAttention"}
    names |= {"ov": "OpenVINO fp32", "ours": "onnx-fuse fp32"}
    peers = {names[key]: Measured(Spread(value, value, value), 1e-7) for key, value in us.items()}
    return BlockRow(SHAPE, 1, rows, 1, peers, {"fp32": Bound(50.0, "read")})


REPORT = BlockBenchReport(
    "avx2",
    (row(8, plain=300, mha=200, ov=400, ours=100), row(128, plain=150, mha=190, ov=90, ours=200)),
    (Limits(1, {"avx2": 100e9}),),
    ("a note",),
)


def test_ratios_are_against_the_best_form() -> None:
    faster, slower = REPORT.rows
    assert faster.best_onnxruntime() == "onnxruntime MultiHeadAttention"
    assert faster.ratio(faster.best_onnxruntime(), "fp32") == 2
    assert slower.ratio(slower.best_onnxruntime(), "fp32") == 0.75
    assert faster.ratio("OpenVINO bf16", "fp32") is None
    assert faster.ratio("OpenVINO fp32", "bf16") is None
    assert faster.share("fp32") == 0.5


def test_table_has_what_was_measured_and_no_empty_column() -> None:
    cells = block_cells(REPORT)
    assert "OpenVINO bf16" not in cells.heads
    first = dict(zip(cells.heads, cells.lines[0], strict=True))
    assert first["onnxruntime"] == "200 MHA"
    assert (first["fp32 / ort"], first["fp32 / ov"]) == ("2.00x", "4.00x")
    assert (first["fp32 limit"], first["fp32 share"]) == ("50.0 read", "50%")


def test_summary_counts_the_points_that_are_slower() -> None:
    lines = {line[:2]: line[2:] for line in summary_cells(REPORT).lines}
    assert lines["rows <= 64", "fp32 against OpenVINO fp32"] == ("4.00", "4.00", "0 of 1")
    assert lines["rows > 64", "fp32 against OpenVINO fp32"] == ("0.45", "0.45", "1 of 1")


def test_page_has_table_pictures_machine_and_notes() -> None:
    page = "\n".join(block_page(REPORT, "make it", ["a.svg"]))
    for part in ("make it", "![latency against rows](a.svg)", "| 32x4 | 8 |", "a note", "avx2 100"):
        assert part in page


def test_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in ("a.svg", "b.svg", "c.png")]
    draw(REPORT, 1, paths[:1])
    draw(REPORT, 1, paths[1:])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_picture_shows_a_peer_wherever_it_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some = replace(REPORT, rows=(row(8, plain=300, ov=400), row(16, plain=400), REPORT.rows[1]))
    none = replace(REPORT, rows=(row(8, plain=300), row(16, plain=400), row(128, plain=150)))
    draw(some, 1, [tmp_path / "some.svg"])
    draw(none, 1, [tmp_path / "none.svg"])
    blue = ("#0072b2" in (tmp_path / name).read_text() for name in ("some.svg", "none.svg"))
    assert tuple(blue) == (True, False)


def test_picture_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedModel, match=r"onnx-fuse\[bench\]"):
        draw(REPORT, 1, [tmp_path / "a.svg"])


def test_picture_of_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UnsupportedModel, match=r"a\.onnx: .*png.*svg"):
        draw(REPORT, 1, [tmp_path / "a.onnx"])


# --- command line


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_command_times_a_block(tmp_path: Path, no_openvino: None) -> None:
    path = tmp_path / "block.json"
    result = run(
        *("bench", "--block", "32x4", "--rows", "1,3", "--threads", 1, "--seconds", 0.01),
        *("--precision", "fp32", "--json", path),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split()[:2] == ["block", "rows"]
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    assert [point["seq"] for point in points] == [1, 3]
    assert all(math.isfinite(point["peers"]["onnx-fuse fp32"]["us"]["median"]) for point in points)


def test_plot_that_cannot_be_drawn_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(benchmarks, "block_bench", lambda *_, **__: pytest.fail("measured"))
    result = run("bench", "--block", "32x4", "--plot", tmp_path / "a.svg")
    assert result.exit_code == 1
    assert "plots need matplotlib" in result.stderr
    result = run("bench", "--block", "32x4", "--plot", tmp_path / "nowhere" / "a.svg")
    assert "there is no folder" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either MODEL or --block"),
        (("model.onnx", "--block", "32x4"), "either MODEL or --block"),
        (("--block", "32"), "HIDDENxHEADS"),
        (("--block", "32x5"), "multiple"),
        (("--block", "32x4", "--fused", "b.onnx"), "--fused"),
        (("--block", "32x4", "--probe", "nowhere"), "nowhere"),
        (("model.onnx", "--rope"), "--block"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_line_and_code_2(words: tuple[str, ...], said: str) -> None:
    result = run("bench", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
