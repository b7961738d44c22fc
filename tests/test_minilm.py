"""The real model: all-MiniLM-L6-v2 with its weights, from both exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import onnx_fuse
from tests.sessions import LEVELS, plain_session

FOLDER = Path(__file__).parents[1] / "models" / "minilm"
BLOCKS = 6
# The last hidden state lies within +-6.4, where a float32's last place is 4.8e-7: 2e-5 is some 40
# of them after six layers, and onnxruntime's own optimisations take 8.
TOLERANCE = 2e-5
SHAPES = [(1, 1), (1, 8), (2, 16), (3, 33), (1, 64), (2, 128)]
EXPORTERS = ["ts", "dynamo"]


def feeds(batch: int, seq: int) -> dict[str, np.ndarray]:
    """Return ids with padding on the right of every second row."""
    random = np.random.default_rng(batch * 1000 + seq)
    mask = np.ones((batch, seq), np.int64)
    mask[1::2, (seq + 1) // 2 :] = 0
    ids = random.integers(1000, 30000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


@pytest.fixture(scope="module", params=EXPORTERS)
def original(request: pytest.FixtureRequest) -> Path:
    if not (FOLDER / "minilm.data").exists():
        pytest.fail("the weights are missing: run models/fetch_weights.py (make test does)")
    return FOLDER / f"minilm-{request.param}.onnx"


@pytest.fixture(scope="module")
def fused(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fused") / original.name
    result = onnx_fuse.fuse(original)
    assert (result.report.num_fused, result.report.num_declined) == (BLOCKS, 0)
    result.save(path)
    return path


@pytest.fixture(scope="module")
def expected(original: Path) -> list[np.ndarray]:
    session = plain_session(original)
    return [session.run(None, feeds(*shape))[0] for shape in SHAPES]


def largest_error(session: ort.InferenceSession, expected: list[np.ndarray]) -> float:
    found = [session.run(None, feeds(*shape))[0] for shape in SHAPES]
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def test_fused_model_is_the_original_with_the_library(
    fused: Path, expected: list[np.ndarray]
) -> None:
    assert largest_error(onnx_fuse.session(fused), expected) <= TOLERANCE


def test_fused_model_is_the_original_without_the_library(
    fused: Path, expected: list[np.ndarray]
) -> None:
    assert largest_error(plain_session(fused, LEVELS.ORT_ENABLE_ALL), expected) <= TOLERANCE


def test_unfused_model_is_the_original(
    fused: Path, expected: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "unfused.onnx"
    onnx_fuse.save(onnx_fuse.unfuse(fused), path)
    assert b"onnx_fuse" not in path.read_bytes()
    assert largest_error(plain_session(path, LEVELS.ORT_ENABLE_ALL), expected) <= TOLERANCE


def test_this_tolerance_sees_a_changed_mask(fused: Path, expected: list[np.ndarray]) -> None:
    inputs = feeds(2, 16)
    inputs["attention_mask"][1, 7] = 0
    found = onnx_fuse.session(fused).run(None, inputs)[0]
    assert float(np.abs(found - expected[SHAPES.index((2, 16))]).max()) > 100 * TOLERANCE
