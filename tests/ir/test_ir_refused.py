"""What is no model, or no valid one, is refused with one line."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import to_proto
from onnx_fuse.ir.text import dump
from tests.ir import samples
from tests.ir.samples import parse


def write_bytes(path, data):
    path.write_bytes(data)
    return path


GOOD = parse(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent.onnx", "No such file"),
        (lambda folder: folder, "directory"),
        (lambda folder: write_bytes(folder / "m.onnx", b""), "empty"),
        (lambda folder: write_bytes(folder / "m.onnx", GOOD.SerializeToString()[:-9]), "complete"),
        (
            lambda folder: write_bytes(folder / "m.onnx", b"just some text\n" * 9),
            "not an ONNX model",
        ),
        (
            lambda folder: write_bytes(folder / "m.onnx", json.dumps({"a": [1]}).encode()),
            "not an ONNX model",
        ),
        (
            lambda folder: write_bytes(folder / "m.onnx", GOOD.graph.SerializeToString()),
            "not an ONNX model",
        ),
        (
            lambda folder: write_bytes(
                folder / "m.onnx", numpy_helper.from_array(np.eye(3)).SerializeToString()
            ),
            "not an ONNX model",
        ),
        (lambda folder: write_bytes(folder / "m.onnx", b"\x08\x08"), "no graph"),
        (lambda folder: write_bytes(folder / "m.onnx", b"\xff" * 40), "not an ONNX model"),
        (lambda folder: folder / "nul\0.onnx", "null (byte|character)"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_file_that_is_no_model_is_refused_in_one_line(make, words, tmp_path):
    path = make(tmp_path)
    with pytest.raises(InvalidModel, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [b"bytes", None, onnx.GraphProto()], ids=repr)
def test_what_is_neither_a_path_nor_a_model_is_named(source):
    with pytest.raises(TypeError, match=f"ModelProto, not as a {type(source).__name__}"):
        load(source)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load(tmp_path / "pipe.onnx")


BAD_GRAPHS = {
    "cycle": (
        "g (float[2] x) => (float[2] y) { a = Add(x, b) b = Neg(a) y = Abs(b) }",
        "has a cycle",
    ),
    "cycle through a branch": (
        (
            "g (float[2] x, bool c) => (float[2] y) { y = If(c) <"
            " then_branch = t () => (float[2] u) { u = Neg(y) },"
            " else_branch = e () => (float[2] v) { v = Neg(x) }> }"
        ),
        "has a cycle",
    ),
    "missing": ("g (float[2] x) => (float[2] y) { y = Add(x, weight) }", "'weight', which"),
    "missing output": ("g (float[2] x) => (float[2] z) { y = Neg(x) }", "'z' is made by no node"),
    "two producers": (
        "g (float[2] x) => (float[2] y) { y = Neg(x) y = Abs(x) }",
        "'y' is defined twice",
    ),
    "input made again": ("g (float[2] x) => (float[2] x) { x = Neg(x) }", "'x' is defined twice"),
    "two inputs": (
        "g (float[2] x, float[2] x) => (float[2] y) { y = Neg(x) }",
        "'x' is listed twice",
    ),
    "hidden by an initializer": (
        (
            "g (float[2] x, bool c) => (float[2] y) <float h = {1}> { y = If(c) <"
            " then_branch = t () => (float[2] u) <float h = {2}> { u = Mul(x, h) },"
            " else_branch = e () => (float[2] v) { v = Mul(x, h) }> }"
        ),
        "initializer 'h' hides a value",
    ),
    "read too early in a branch": (
        (
            "g (float[2] x, bool c) => (float[2] y) { y = If(c) <"
            " then_branch = t () => (float[2] u) { u = Neg(late) },"
            " else_branch = e () => (float[2] v) { v = Neg(x) }> late = Neg(x) }"
        ),
        "'late', which",
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_a_graph_that_is_not_valid_is_refused(text, words, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(parse(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString())
    with pytest.raises(InvalidModel, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_branches_may_name_their_initializers_alike():
    load(
        parse(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {'
            " y = If(c) <then_branch = t () => (float[2] u) <float h = {2}> { u = Mul(x, h) },"
            " else_branch = e () => (float[2] v) <float h = {3}> { v = Mul(x, h) }>"
            " h = Neg(x) }"
        )
    )


def test_duplicate_initializers_and_node_names_are_refused(small):
    small.graph.initializer.append(small.graph.initializer[0])
    with pytest.raises(InvalidModel, match="'w' is defined twice"):
        load(small)
    del small.graph.initializer[-1]
    small.graph.node[0].name = small.graph.node[1].name
    with pytest.raises(InvalidModel, match="two nodes are named 'adder'"):
        load(small)


def test_constants_may_share_a_name(small):
    number = numpy_helper.from_array(np.ones(1, np.float32))
    for output in ("first", "second"):
        small.graph.node.insert(
            0, helper.make_node("Constant", [], [output], name="adder", value=number)
        )
    assert [node.name for node in load(small).graph.nodes].count("adder") == 3


def test_a_name_that_is_not_text_is_refused(small):
    data = small.SerializeToString().replace(b"product", b"pr\xffduct")
    with pytest.raises(InvalidModel, match="not UTF-8"):
        load(onnx.ModelProto.FromString(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_model_or_an_invalid_model(data):
    """What is read can be written and printed again; what cannot be read is an InvalidModel."""
    raw = bytearray(samples.small_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        cut = data.draw(st.integers(0, 4))
        raw[at : at + cut] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(raw)
        try:
            model = load(path)
            dump(model)
        except InvalidModel:
            return
        for graph in model.graphs():
            for node in graph.nodes:
                node.touch()
        # Only now: a change raises an IR version below 4.
        assert dump(load(to_proto(model))) == dump(model)
