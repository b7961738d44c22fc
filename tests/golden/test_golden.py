"""The whole text dump of fused models, compared with a file; `make golden` rewrites the files.

The difference is then reviewed like code: it shows what a change does to a real graph.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import onnx_fuse

MODELS = Path(__file__).parents[2] / "models" / "zoo"
# Packed bias and padding mask; rope and grouped heads; a cache; cross-attention; If bodies.
NAMES = [
    "bert-ts-sdpa-dynamic",
    "llama-dynamo-sdpa-dynamic",
    "llama-dynamo-sdpa-dynamic-decode",
    "t5-dynamo-sdpa-dynamic",
    "cond_branches-dynamo-eager-static",
]


@pytest.mark.parametrize("name", NAMES)
def test_fused_graph_is_the_recorded_one(name: str) -> None:
    file = Path(__file__).parent / f"{name}.txt"
    dump = onnx_fuse.fuse(MODELS / f"{name}.onnx", threshold=None).dump
    if os.environ.get("ONNX_FUSE_GOLDEN") == "write":
        file.write_text(dump)
    assert dump == file.read_text(), "if this is right: make golden, and review the difference"
