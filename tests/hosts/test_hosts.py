"""Fused models run in hosts that know nothing of us: Node, the browser's WASM build, OpenVINO.

The JavaScript hosts run the fused file as it is, through the model-local function; OpenVINO's
frontend knows no model-local functions and takes what unfuse gives back. Each host's result of the
fused (or unfused) model is compared with its own result of the original. Slow, and needs packages
that `make test` doesn't install: run by `make test-hosts` alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_fuse

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models"
RUNNER = Path(__file__).parent / "run_models.mjs"
JAVASCRIPT_HOSTS = ["onnxruntime-node", "onnxruntime-web"]
# Both exporters; self- and cross-attention, causal, rope, grouped heads, caches, real weights.
NAMES = [
    "bert-ts-sdpa-dynamic",
    "bert-dynamo-eager-static",
    "gpt2-ts-eager-static",
    "llama-dynamo-sdpa-dynamic",
    "llama-dynamo-sdpa-dynamic-decode",
    "vit-ts-sdpa-dynamic",
    "bart-dynamo-sdpa-dynamic",
    "t5-dynamo-sdpa-dynamic",
    "minilm-ts",
    "minilm-dynamo",
]

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model in three forms, with inputs."""

    name: str
    original: Path
    fused: Path
    unfused: Path
    feeds: dict[str, np.ndarray]
    num_fused: int


def minilm_feeds() -> dict[str, np.ndarray]:
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    ids = np.random.default_rng(0).integers(1000, 30000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


def zoo_feeds(name: str) -> dict[str, np.ndarray]:
    with np.load(MODELS / "zoo" / f"{name}.npz") as file:
        return {key.split("/", 1)[1]: file[key] for key in file.files if key.startswith("case0/")}


def make_case(name: str, folder: Path) -> Case:
    is_minilm = name.startswith("minilm")
    original = MODELS / ("minilm" if is_minilm else "zoo") / f"{name}.onnx"
    if is_minilm and not original.with_name("minilm.data").exists():
        pytest.fail("the weights are missing: run models/fetch_weights.py")
    fused, unfused = folder / f"{name}.fused.onnx", folder / f"{name}.unfused.onnx"
    result = onnx_fuse.fuse(original, threshold=None)
    result.save(fused)
    onnx_fuse.save(onnx_fuse.unfuse(result), unfused)
    feeds = minilm_feeds() if is_minilm else zoo_feeds(name)
    return Case(name, original, fused, unfused, feeds, result.report.num_fused)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_case(name, folder) for name in NAMES}


def assert_same(found: Arrays, expected: Arrays) -> None:
    """The hosts fuse what surrounds the blocks differently: rounding may differ, meaning may not.

    A sum of n products formed in another order differs by at most about n * eps of its terms'
    magnitude; n is below 2000 in these models, and their few layers don't add up to more.
    """
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        bound = 2000 * np.finfo(np.float32).eps * max(1.0, float(np.abs(right).max(initial=0)))
        assert float(np.abs(left - right).max(initial=0)) <= bound


def write_inputs(case: Case, folder: Path) -> list[dict[str, object]]:
    inputs = []
    for number, (name, array) in enumerate(case.feeds.items()):
        file = folder / f"{case.name}.{number}.bin"
        array.tofile(file)
        entry = {"name": name, "type": array.dtype.name, "dims": array.shape, "file": str(file)}
        inputs.append(entry)
    return inputs


def read_outputs(prefix: Path) -> Arrays:
    entries = json.loads(prefix.with_name(prefix.name + ".json").read_text())
    return [
        np.fromfile(f"{prefix}.{number}.bin", entry["type"]).reshape(entry["dims"])
        for number, entry in enumerate(entries)
    ]


def data_files(model: Path) -> list[str]:
    """Return the model's external data files."""
    graph = onnx.load(model, load_external_data=False).graph
    names = {
        entry.value: None
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [str(model.parent / name) for name in names]


def run_in_javascript(host: str, case: Case, folder: Path) -> tuple[Arrays, Arrays]:
    """Return the host's outputs of the original and of the fused model."""
    node = shutil.which("node")
    modules = os.environ.get("ONNX_FUSE_HOSTS")
    if node is None or modules is None:
        pytest.fail(
            "node or ONNX_FUSE_HOSTS is missing: install Node 18 or newer, run `make test-hosts`"
        )
    inputs = write_inputs(case, folder)
    jobs = [
        {"model": str(m), "external": data_files(m), "inputs": inputs, "output": str(folder / key)}
        for key, m in (("original", case.original), ("fused", case.fused))
    ]
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    done = subprocess.run(
        [node, str(RUNNER), host, modules, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return read_outputs(folder / "original"), read_outputs(folder / "fused")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", JAVASCRIPT_HOSTS)
def test_javascript_host_runs_the_fused_file_as_it_is(
    host: str, name: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases[name]
    assert case.num_fused > 0
    original, fused = run_in_javascript(host, case, tmp_path)
    assert_same(fused, original)


@pytest.mark.parametrize("name", NAMES)
def test_openvino_runs_the_unfused_file(name: str, cases: dict[str, Case]) -> None:
    import openvino  # only this test needs it

    case = cases[name]

    def run(model: Path) -> Arrays:
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", config)
        return [np.array(value) for value in compiled(case.feeds).to_tuple()]

    assert_same(run(case.unfused), run(case.original))
