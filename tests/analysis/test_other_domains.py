"""A node of another domain may compute anything: whatever its name, it stays in the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx
import pytest

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.analysis.samples import edit_twins, operand_twins, softmax_twins, steps, twins
from tests.analysis.samples.forms import Form, covering
from tests.analysis.samples.graphs import Sample, sample
from tests.analysis.samples.twins import after, on, twin

OTHER = "com.example"
EVERY_LEVEL = covering(1)
STEP = 5
FORMS = (
    Form(mask="add2", rope="half", norm="rms", heads="gqa_expand"),
    Form(mask="renormalised", rope="interleaved", norm="layer_moments"),
    Form(mask="nan_guard", rope="complex", norm="l2"),
    Form(mask="zeroed", rope="permuted", norm="layer"),
    Form(rope="operator", norm="rms_operator", extra="sinks"),
    Form(projection="packed_3nd", mask="one_of_two_sums", extra="written_softmax"),
    Form(projection="conv", mask="sum_of_two_parts", extra="softcap"),
    Form(order="einsum", extra="log_of_sum"),
    Form(projection="gemm", mask="clamp", rope="half_split"),
    Form(projection="cast", mask="times_amount", rope="partial", heads="gqa_concat"),
)
SAMPLES: dict[str, Callable[[], Sample]] = {
    **{str(form): partial(sample, form) for form in FORMS},
    "cache": steps.stacked_cache(True),
    "division behind the values": lambda: twin(**softmax_twins.divided_behind()),
    "column padded": lambda: twin(weights=softmax_twins.padded_column(0, 1, 0.0, (0, twins.ROWS))),
    "query in half precision": lambda: twin(**on("q", "normed", operand_twins.halved)),
    "shifted sink": lambda: twin(weights=softmax_twins.floored_sink(0.0)),
    "columns written": lambda: twin(
        **after("scores", edit_twins.columns_written(-2.0, "add")),
    ),
}


def check_kept(model: onnx.ModelProto, step: int = 1) -> None:
    """Take each `step`th node of the model into another domain: it must stay."""
    # With what its result was, as a model may declare it.
    model = onnx.shape_inference.infer_shapes(model)
    model.opset_import.append(onnx.helper.make_opsetid(OTHER, 1))
    declared = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    read = {name for node in model.graph.node if node.op_type != "Shape" for name in node.input}
    shown = {value.name for value in model.graph.output}
    for node in model.graph.node[::step]:
        # Of a shape, the declarations tell all.
        if declared.get(node.output[0]) == onnx.TensorProto.INT64:
            continue
        if not {*read, *shown}.intersection(node.output):
            continue
        own, node.domain = node.domain, OTHER
        fused = onnx_fuse.fuse(model, threshold=None).model
        node.domain = own
        assert any(kept.domain == OTHER for kept in fused.graph.node), node.name


@pytest.mark.parametrize("name", SAMPLES)
def test_node_of_another_domain_is_kept(name: str) -> None:
    check_kept(SAMPLES[name]().model)


@pytest.mark.parametrize("form", EVERY_LEVEL, ids=str)
def test_node_of_another_domain_is_kept_in_every_form(form: Form) -> None:
    check_kept(sample(form).model, step=STEP)


@pytest.mark.parametrize(("domain", "outputs"), [("", 1), (OTHER, 2)])
def test_only_the_standard_takes_a_shape_without_its_numbers(domain: str, outputs: int) -> None:
    model = sample(Form()).model
    model.opset_import.append(onnx.helper.make_opsetid(OTHER, 1))
    weights = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    model.graph.node.append(onnx.helper.make_node("Shape", [weights], ["shape"], domain=domain))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, None)
    )
    (node,) = fused_nodes(onnx_fuse.fuse(model, threshold=None).model)
    assert len(node.output) == outputs
