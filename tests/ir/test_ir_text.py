from __future__ import annotations

import numpy as np

from onnx_fuse.ir.load import load
from onnx_fuse.ir.text import dump
from tests.ir.samples import parse
from tests.ir.test_ir_save import make_external

GOLDEN = """\
model ir 10, opset ai.onnx 18, com.example 3
graph main (x: float[batch, 4]) -> (y: float[batch, 4]) {
  w = float[4, 4] 58dda328
  b = float[4] ad73b9ac
  unused = float[2] 39bf6050
  product = MatMul(x, w)
  sum = Add:variant(product, b)  # adder
  axes = Constant() {value_ints=[0]}
  dead = Unsqueeze(sum, axes)
  y = com.example:Strange(sum, , product) {alpha=0.5}
}
"""

NESTED = """\
model ir 10, opset ai.onnx 18, f 1
graph g (x: float[2], c: bool[]) -> (y: float[2]) {
  y = If(c)
    then_branch: t () -> (u: float[2]) {
      u = f:body(x) {k=1}
    }
    else_branch: e () -> (v: float[2]) {
      i = float[2] HASH
      v = Add(x, i)
    }
}
function f:body (p) -> (q) {
  k = Constant() {value_int=@k}
  q = Add(p, k)
}
"""


def test_a_model_is_one_line_a_node(small):
    assert dump(load(small)) == GOLDEN


def test_nested_graphs_and_functions_are_shown():
    model = load(
        parse(
            '<ir_version: 10, opset_import: ["" : 18, "f" : 1]>'
            " g (float[2] x, bool c) => (float[2] y) { y = If(c) <"
            " then_branch = t () => (float[2] u) { u = f.body<k = 1>(x) },"
            " else_branch = e () => (float[2] v) <float[2] i = {0, 0}> { v = Add(x, i) }> }"
            ' <opset_import: ["" : 18], domain: "f">'
            " body <k> (p) => (q) { k = Constant<value_int: int = @k>() q = Add(p, k) }"
        )
    )
    # sha256 of eight zero bytes
    assert dump(model) == NESTED.replace("HASH", "af5570f5")


def test_strings_and_long_attributes_are_told_by_a_hash():
    text = dump(
        load(
            parse(
                '<ir_version: 10, opset_import: ["" : 18]>'
                ' g () => (float[9] y, string[2] z) <string[2] words = {"a", "b"}> {'
                " y = Constant<value = float[9] {0, 0, 0, 0, 0, 0, 0, 0, 0}>()"
                " z = Identity(words) }"
            )
        )
    )
    assert "words = string[2] " in text
    assert "value=float[9] " in text


def test_a_hash_says_whether_the_content_is_equal(small):
    before = dump(load(small).graph)
    array = np.arange(16, dtype=np.float32)
    small.graph.initializer[0].ClearField("raw_data")
    small.graph.initializer[0].float_data.extend(array)
    assert dump(load(small).graph) == before
    small.graph.initializer[0].float_data[3] = -3
    assert dump(load(small).graph) != before


def test_large_external_data_is_told_by_its_place_and_not_read(small, tmp_path):
    path = make_external(small, tmp_path / "in")
    small.graph.initializer[0].dims[0] = 1 << 18
    small.graph.initializer[0].external_data[2].value = str(4 << 20)
    path.write_bytes(small.SerializeToString())
    (tmp_path / "in" / "w.bin").write_bytes(bytes(8 << 20))
    model = load(path)
    small.graph.initializer[0].external_data[1].value = "128"
    moved = load(small, base_dir=tmp_path / "in")
    first = dump(model.graph).splitlines()[1]
    assert first != dump(moved.graph).splitlines()[1]
    (tmp_path / "in" / "w.bin").write_bytes(b"changed: reading it would raise")
    del model.graph._initializers[model.graph.initializers[1]]
    del model.graph._initializers[model.graph.initializers[-1]]
    assert dump(model.graph).splitlines()[1] == first
