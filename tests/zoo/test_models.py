"""What holds for every sample model of the zoo, whatever is fused in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_fuse
from tests.conftest import ZOO
from tests.zoo.check import (
    TOLERANCE,
    largest_difference,
    open_plain,
    read_cases,
    run_all,
    tolerance_for,
)

ROOT = Path(__file__).parents[2]
NAMES = sorted(ZOO)
UNOPTIMISED = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
# onnx.reference computes each operator in Python: a few small models, each of another kind.
REFERENCE = [
    "bert-ts-eager-static",
    "bert_nomask-dynamo-sdpa-static",
    "gqa_interleave-dynamo-sdpa-static",
    "mha_cross-ts-sdpa-static",
    "plain_base-dynamo-sdpa-static",
    "qk_layernorm-ts-eager-static",
    "rope_half-dynamo-sdpa-static",
    "sinks-ts-eager-static",
    "softcap-ts-eager-static",
    "value_width-dynamo-sdpa-static",
]
# One of each exporter and some that share weights, have sub-graphs or several bodies.
HASHED = [
    "albert-dynamo-eager-static",
    "bart-dynamo-sdpa-dynamic",
    "bert-ts-eager-dynamic-op11",
    "cond_branches-dynamo-eager-static",
    "keras_gqa-tf2onnx-eager-dynamic",
    "llama-ts-sdpa-dynamic",
    "local_functions-onnxscript-eager-dynamic",
    "t5-dynamo-sdpa-dynamic",
    "whisper-dynamo-sdpa-dynamic",
]


@cache
def fused(name: str) -> onnx_fuse.FuseResult:
    return onnx_fuse.fuse(ZOO[name], threshold=None)


@cache
def fused_bytes(name: str) -> bytes:
    return fused(name).model.SerializeToString()


def passes_checker(model: onnx.ModelProto) -> str:
    """What the checker says, `""` if nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_fused_model_is_as_valid_as_its_original(name: str) -> None:
    found = passes_checker(fused(name).model)
    assert found == "" or passes_checker(onnx.load(ZOO[name])) != ""


@pytest.mark.parametrize("name", NAMES)
def test_fusing_twice_changes_nothing(name: str) -> None:
    again = onnx_fuse.fuse(fused(name).model, threshold=None)
    assert again.report.num_fused == 0
    assert again.model.SerializeToString() == fused_bytes(name)


@pytest.mark.parametrize("name", NAMES)
def test_message_gives_the_same_bytes_as_its_file_and_stays_as_it_was(name: str) -> None:
    model = onnx.load(ZOO[name])
    before = model.SerializeToString()
    result = onnx_fuse.fuse(model, threshold=None)
    assert result.model.SerializeToString() == fused_bytes(name)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", NAMES)
def test_explain_says_what_fuse_does(name: str) -> None:
    assert onnx_fuse.explain(ZOO[name], threshold=None).blocks == fused(name).report.blocks


@pytest.mark.parametrize("name", NAMES)
def test_each_fused_block_is_one_node(name: str) -> None:
    bodies = [fused(name).model.graph, *fused(name).model.functions]
    nodes = [node for body in bodies for node in every_node(body)]
    ours = [node.name for node in nodes if node.domain == "onnx_fuse"]
    reported = [b.name for b in fused(name).report.blocks if b.status == "fused"]
    assert len(set(ours)) == len(ours) == len(reported)


def every_node(body: onnx.GraphProto | onnx.FunctionProto) -> list[onnx.NodeProto]:
    """The nodes of a body and of its sub-graphs."""
    found = list(body.node)
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += every_node(attribute.g)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_unfused_model_has_no_trace_of_us_and_computes_the_same(name: str) -> None:
    unfused = onnx_fuse.unfuse(fused(name).model)
    serialized = unfused.SerializeToString()
    assert b"onnx_fuse" not in serialized
    assert list(unfused.graph.output) == list(onnx.load(ZOO[name]).graph.output)
    cases = read_cases(ZOO[name].with_suffix(".npz"))
    expected = run_all(open_plain(str(ZOO[name]), UNOPTIMISED), cases)
    found = run_all(open_plain(serialized, UNOPTIMISED), cases)
    error = largest_difference(found, expected)
    assert error <= tolerance_for(onnx.load(ZOO[name]), 0.0)


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_evaluator_computes_what_onnxruntime_does(name: str) -> None:
    assert fused(name).report.num_fused > 0
    cases = read_cases(ZOO[name].with_suffix(".npz"))
    expected = run_all(open_plain(str(ZOO[name]), UNOPTIMISED), cases)
    evaluator = ReferenceEvaluator(fused(name).model)
    with np.errstate(all="ignore"):
        found = [evaluator.run(None, case) for case in cases]
    assert largest_difference(found, expected) <= TOLERANCE


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "import hashlib, sys, onnx_fuse\n"
        "for path in sys.argv[1:]:\n"
        "    model = onnx_fuse.fuse(path, threshold=None).model.SerializeToString()\n"
        "    sys.stdout.write(hashlib.sha256(model).hexdigest() + '\\n')\n"
    )
    command = [sys.executable, "-c", script, *(str(ZOO[name]) for name in HASHED)]
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    output = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    here = [hashlib.sha256(fused_bytes(name)).hexdigest() for name in HASHED]
    assert output.split() == here
