"""Inferred shapes, contents and constants are those of real runs, for all extents of inputs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model
from tests.sessions import plain_session

ZOO = Path(__file__).parents[2] / "models" / "zoo"
MODELS = sorted(path.name for path in ZOO.glob("*.onnx"))
# Of all values of a zoo model's graph, at least so many are known in terms of the inputs' extents.
KNOWN_SHARE = 0.99

Array = np.ndarray[Any, np.dtype[Any]]


def outputs_of(model: Model) -> Iterator[Value]:
    for graph in model.graphs():
        for node in graph.nodes:
            yield from (value for value in node.outputs if value is not None)


def value_of(model: Model, name: str) -> Value:
    return next(value for value in outputs_of(model) if value.name == name)


def exposed(path: Path) -> bytes:
    """The model with every value of its main graph as an output."""
    proto = onnx.load(path)
    there = {output.name for output in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in there:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return proto.SerializeToString()


def unknowns(dims: Any) -> list[str]:
    return [leaf for dim in dims for leaf in sorted(dim.leaves) if leaf.startswith("?")]


def learned(dim: Dim, number: int, symbols: dict[str, int]) -> int | None:
    """What the dim is for these symbols; a symbol that is met for the first time is `number`."""
    if dim.leaves == {str(dim)}:
        symbols.setdefault(str(dim), number)
    return dim.evaluate(symbols)


def check_run(model: Model, shapes: Shapes, feeds: dict[str, Array], got: dict[str, Any]) -> None:
    symbols: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.name in feeds:
            check_value(value, shapes, feeds[value.name], symbols)
    for node in model.graph.nodes:
        for value in node.outputs:
            if value is not None and isinstance(got.get(value.name), np.ndarray):
                check_value(value, shapes, got[value.name], symbols)


def check_value(value: Value, shapes: Shapes, real: Array, symbols: dict[str, int]) -> None:
    shape, dtype, content = shapes.shape(value), shapes.dtype(value), shapes.content(value)
    if shape is not None:
        found = tuple(learned(d, n, symbols) for d, n in zip(shape, real.shape, strict=True))
        assert found == real.shape, f"{value.name}: {shape}"
    if dtype is not None:
        assert helper.tensor_dtype_to_np_dtype(dtype) == real.dtype, value.name
    if content is not None:
        numbers = [
            learned(d, int(n), symbols) for d, n in zip(content.flat, real.flat, strict=True)
        ]
        assert numbers == [int(number) for number in real.flat], f"{value.name}: {content}"
    if value.constant is None and (constant := shapes.constant(value)) is not None:
        assert constant.dtype == real.dtype
        # Both computed it in the type; a function of libm may differ in its last place, and a few
        # of them may follow one another.
        exact = real.dtype.kind in "biu"
        step = 0.0 if exact else 16 * float(np.finfo(real.dtype).eps)
        np.testing.assert_allclose(constant, real, rtol=step, atol=step, err_msg=value.name)


@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_a_zoo_model_is_what_a_run_gives(name: str) -> None:
    model = load(ZOO / name)
    shapes = Shapes(model)
    session = plain_session(exposed(ZOO / name))
    names = [output.name for output in session.get_outputs()]
    with np.load(ZOO / name.replace(".onnx", ".npz")) as arrays:
        stored = {key: arrays[key] for key in arrays.files}
    for case in sorted({key.split("/")[0] for key in stored}):
        feeds = {k.split("/", 1)[1]: a for k, a in stored.items() if k.split("/")[0] == case}
        check_run(model, shapes, feeds, dict(zip(names, session.run(names, feeds), strict=True)))
    values = [value for node in model.graph.nodes for value in node.outputs if value is not None]
    known = [v for v in values if (s := shapes.shape(v)) is not None and not unknowns(s)]
    if json.loads((ZOO / name.replace(".onnx", ".json")).read_text())["expressible"]:
        assert len(known) >= KNOWN_SHARE * len(values)


@pytest.mark.parametrize("keepdims", [-1, 0, 1, 2])
@pytest.mark.parametrize("source", ["an input", "a constant"])
def test_reduced_axis_is_kept_by_one_alone(keepdims: int, source: str) -> None:
    """onnxruntime takes any other number as 0."""
    made = "" if source == "an input" else "x = ConstantOfShape(sizes)"
    given = "float[2, 3] x" if source == "an input" else "float[2, 3] unread"
    proto = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g ({given}) => (float[A, B] y, int64[C, D] z) <int64[2] sizes = {{2, 3}}> {{
        {made}
        y = ReduceMax <axes = [1], keepdims = {keepdims}> (x)
        z = ArgMax <axis = 1, keepdims = {keepdims}> (x)
      }}""")
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    model, feeds = load(proto), {proto.graph.input[0].name: np.zeros((2, 3), dtype=np.float32)}
    got = dict(zip("yz", plain_session(proto).run(None, feeds), strict=True))
    shapes = Shapes(model)
    check_run(model, shapes, feeds, got)
    assert shapes.shape(value_of(model, "y")) is not None
    is_folded = shapes.constant(value_of(model, "z")) is not None
    assert is_folded == (source == "a constant")


# --- against ONNX's own test cases of every operator ----------------------------------------------


def node_cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():  # what its reference computations overflow is not our concern
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    return [case for case in cases if case.data_sets and case.model is not None]


def as_array(item: Any) -> Array | None:
    if isinstance(item, TensorProto):
        return numpy_helper.to_array(item)
    return np.asarray(item) if isinstance(item, np.ndarray | np.generic) else None


def prepared(case: Any, mode: str) -> tuple[Model, dict[str, int], list[Array | None]] | None:
    """The case with named extents, or with (integer) inputs as constants; nothing declared."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    given, expected = (list(map(as_array, items)) for items in case.data_sets[0])
    symbols: dict[str, int] = {}
    for index, (value, array) in enumerate(zip(list(proto.graph.input), given, strict=True)):
        if array is None or array.dtype.kind in "OUST":
            return None
        if mode == "constant" or (mode == "integers" and array.dtype.kind in "biu"):
            proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
            proto.graph.input.remove(value)
            continue
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for axis, extent in enumerate(array.shape):
            dims.add().dim_param = f"i{index}_{axis}"
            symbols[f"i{index}_{axis}"] = extent
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return load(proto), symbols, expected


@pytest.mark.parametrize("mode", ["symbolic", "integers", "constant"])
def test_no_operator_contradicts_its_test_cases(mode: str) -> None:
    ranks = constants = 0
    for case in node_cases():
        ready = prepared(case, mode)
        if ready is None:
            continue
        model, symbols, expected = ready
        shapes = Shapes(model)
        for value, real in zip(model.graph.outputs, expected, strict=False):
            if real is None or real.dtype.kind in "OUST":
                continue
            shape, content = shapes.shape(value), shapes.content(value)
            ranks += shape is not None
            if shape is not None:
                found = [learned(d, n, symbols) for d, n in zip(shape, real.shape, strict=True)]
                fits = [number in (None, n) for number, n in zip(found, real.shape, strict=True)]
                assert all(fits), f"{case.name}: {shape}"
            if content is not None and real.dtype.kind in "biu":
                for dim, number in zip(content.flat, real.flat, strict=True):
                    assert unknowns([dim]) or dim.evaluate(symbols) == int(number), case.name
            if (constant := shapes.constant(value)) is not None:
                constants += 1
                check_constant(case.name, constant, real)
    # Reading nothing would contradict nothing.
    assert ranks > 1500
    assert constants > (800 if mode == "constant" else 0)


def check_constant(name: str, constant: Array, real: Array) -> None:
    assert constant.shape == real.shape, name
    assert constant.dtype == real.dtype, name
    if real.dtype.kind in "biu":
        assert np.array_equal(constant, real), name
        return
    # The cases were computed in various orders and types: what they share is half of the digits.
    step = 1e-3 if real.dtype.itemsize < 4 else 1e-5
    wide = (array.astype(np.float64) for array in (constant, real))
    assert np.allclose(*wide, rtol=step, atol=1e-6, equal_nan=True), name
