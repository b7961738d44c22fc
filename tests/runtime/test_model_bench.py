from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.cli.benchmarks import _compact
from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.model_bench import SessionCost, _cost, model_bench, to_json
from onnx_fuse.runtime.timing import Spread
from onnx_fuse.show.bench_tables import cost_cells, model_cells, model_page
from tests.runtime.models import Variant, attention, parse


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model, and the same one fused; without OpenVINO."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    original, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    onnx.save(attention(), str(original))
    onnx_fuse.fuse(original, threshold=None).save(fused)
    return original, fused


def test_every_length_has_the_original_the_plain_session_and_ours(files: tuple[Path, Path]) -> None:
    original, fused = files
    rows, notes = model_bench(original, {"fp32": fused}, seqs=(1, 4), threads=(1, 2), seconds=0.01)
    assert [(row.seq, row.threads) for row in rows] == [(1, 1), (4, 1), (1, 2), (4, 2)]
    names = ["onnxruntime", "fused file, plain session", "onnx-fuse fp32"]
    assert list(rows[0].peers) == names
    for row in rows:
        assert row.peers["onnxruntime"].error == 0
        # Sums of 32 products in another order: far below a hundred of float32's last bits.
        assert all(measured.error < 100 * 2.0**-23 for measured in row.peers.values())
        assert all(measured.cosine > 0.999999 for measured in row.peers.values())
    assert any("OpenVINO" in note for note in notes)
    assert model_cells(rows).heads == ("tokens", "threads", *names)


def test_wrong_result_shows_in_error_and_cosine(files: tuple[Path, Path], tmp_path: Path) -> None:
    def turn(weights: dict[str, np.ndarray]) -> None:
        weights["out_weight"] = -weights["out_weight"]

    wrong = tmp_path / "wrong.onnx"
    onnx.save(attention(Variant(weights=turn)), str(wrong))
    rows, _ = model_bench(files[0], {"bf16": wrong}, seqs=(4,), threads=(1,), seconds=0.01)
    assert rows[0].peers["onnx-fuse bf16"].error > 0.1
    assert rows[0].peers["onnx-fuse bf16"].cosine < 0.9


def test_static_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "static.onnx"
    onnx.save(parse("g (float[2,5] x) => (float[2,5] y) { y = Relu (x) }"), str(path))
    with pytest.raises(UnsupportedModel, match="static"):
        model_bench(path, {}, seqs=(1,))


def test_session_takes_time_and_memory(tmp_path: Path) -> None:
    # A table large enough that its copy in the session is no noise: 50 MB.
    path = tmp_path / "large.onnx"
    text = "g (int64[batch,seq] ids) => (float[batch,seq,250] y) { y = Gather (table, ids) }"
    onnx.save(parse(text, table=np.ones((50_000, 250), np.float32)), str(path))
    seconds, resident, _ = _cost(path, kernels=False)
    assert 0 < seconds < 60
    assert 25e6 < resident < 200e6


def test_page_has_the_sessions_costs(files: tuple[Path, Path]) -> None:
    costs = [SessionCost("mine", *(Spread(value, value, value) for value in (0.25, 2e6, 3e6)))]
    assert cost_cells(costs).lines == (("mine", "250", "1.9", "2.9"),)
    rows, notes = model_bench(files[0], {}, seqs=(2,), threads=(1,), seconds=0.01)
    page = "\n".join(model_page("small", rows, costs, notes))
    assert "## small" in page
    assert "| mine | 250 | 1.9 | 2.9 |" in page
    data = json.loads(_compact(to_json(rows, costs)))
    assert data["sessions"][0]["seconds"]["median"] == 0.25
    assert data["rows"][0]["seq"] == 2


def test_figures_are_written_with_five_digits() -> None:
    text = _compact({"a": [{"b": 1.23456789}, {"b": 2}], "c": "d"})
    assert json.loads(text) == {"a": [{"b": 1.2346}, {"b": 2}], "c": "d"}
    assert len(text.splitlines()) == 7
