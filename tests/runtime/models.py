"""Small models for the tests: one attention block, right, written otherwise, or wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

HIDDEN, HEADS, HEAD_DIM, ROWS = 32, 4, 8, 50

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
attention (int64[batch,seq] input_ids, int64[batch,seq] attention_mask)
    => (float[batch,seq,32] output) {
  hidden = Gather (table, input_ids)
  q0 = MatMul (hidden, q_weight)
  k0 = MatMul (hidden, k_weight)
  v0 = MatMul (hidden, v_weight)
  split = Constant <value_ints = [0, 0, 4, 8]> ()
  merged = Constant <value_ints = [0, 0, 32]> ()
  q1 = Reshape (q0, split)
  k1 = Reshape (k0, split)
  v1 = Reshape (v0, split)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  s0 = MatMul (q, k)
  s1 = Mul (s0, scale)
  axes = Constant <value_ints = [1, 2]> ()
  m0 = Unsqueeze (attention_mask, axes)
  m1 = Cast <to = 1> (m0)
  m2 = Sub (one, m1)
  m3 = Mul (m2, fill)
  s2 = Add (s1, m3)
  p = Softmax <axis = -1> (s2)
  c0 = MatMul (p, v)
  c1 = Transpose <perm = [0, 2, 1, 3]> (c0)
  c2 = Reshape (c1, merged)
  c3 = MatMul (c2, out_weight)
  output = Add (c3, out_bias)
}
"""


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    made = {
        name: rng.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) / np.float32(4)
        for name in ("q_weight", "k_weight", "v_weight", "out_weight")
    }
    made["table"] = rng.standard_normal((ROWS, HIDDEN)).astype(np.float32)
    made["out_bias"] = rng.standard_normal(HIDDEN).astype(np.float32)
    made["scale"] = np.float32(1 / np.sqrt(HEAD_DIM)).reshape(1)
    made["one"] = np.ones(1, np.float32)
    made["fill"] = np.full(1, -10000, np.float32)
    return made


@dataclass
class Variant:
    """An edit of the block: of its weights, or of its text."""

    weights: Callable[[dict[str, np.ndarray]], None] | None = None
    text: list[tuple[str, str]] = field(default_factory=list)


def attention(variant: Variant | None = None) -> onnx.ModelProto:
    """The block, edited by the variant."""
    variant = variant or Variant()
    text = _TEXT
    for old, new in variant.text:
        assert old in text
        text = text.replace(old, new)
    weights = _weights()
    if variant.weights is not None:
        variant.weights(weights)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return model


def parse(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model of opset 17 from the text of its graph, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return model
