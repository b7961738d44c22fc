"""Views that are made for nothing but their shape: who reads one reads no element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import onnx_fuse
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.verdicts import ALL, OUT, check_fused, operands

View = Callable[[Writer, str], str]
DIMS = ("static", "dynamic")


def transposed(w: Writer, value: str) -> str:
    return w.b.transpose(value, 0, 1, 3, 2)


def flattened(w: Writer, value: str) -> str:
    """Return a view with the extents that a transposed one has, by other operators."""
    turned = w.b.unsqueeze(w.b.op("Identity", transposed(w, value)), 0)
    return w.b.op("Squeeze", turned, w.b.const([0], np.int64))


def asked(view: View, *readers: str) -> Step:
    """Give a value the shape that it has, as a view tells it; `readers` read the view, too."""

    def step(w: Writer, value: str) -> str:
        made = view(w, value)
        order = w.b.const([0, 1, 3, 2], np.int64)
        result = w.b.op("Reshape", value, w.b.op("Gather", w.b.op("Shape", made), order))
        for reader in readers:
            most = w.b.op("ReduceMax", w.b.op(reader, made), keepdims=0)
            result = w.b.op("Add", result, w.b.op("Mul", most, w.b.scalar(0.0)))
        return result

    return step


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("view", [transposed, flattened])
@pytest.mark.parametrize("place", ["product", "weights", "scored"])
def test_a_view_asked_for_its_shape_reads_nothing(view: View, place: str, dims: str) -> None:
    sample = twin(Form(dims=dims), **after(place, asked(view)))
    check_fused(sample, (*ALL, *OUT))
    fused = onnx_fuse.fuse(sample.model, threshold=None).model
    assert [node.op_type for node in fused.graph.node] == ["FusedAttentionBlock"]


@pytest.mark.parametrize("dims", DIMS)
def test_a_view_that_others_read_is_read(dims: str) -> None:
    sample = twin(Form(dims=dims), **after("product", asked(transposed, "Neg")))
    check_fused(sample, ALL)


@pytest.mark.parametrize("dims", DIMS)
def test_a_view_that_is_returned_is_read(dims: str) -> None:
    names: list[str] = []

    def noted(w: Writer, value: str) -> str:
        names.append(transposed(w, value))
        return names[0]

    sample = twin(Form(dims=dims), **after("product", asked(noted)))
    kind = onnx.helper.make_tensor_value_info(names[0], onnx.TensorProto.FLOAT, [*"bhdr"])
    sample.model.graph.output.append(kind)
    fused = onnx_fuse.fuse(sample.model, threshold=None).model
    assert operands(fused) == [ALL]
