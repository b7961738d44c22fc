"""Models that draw random numbers are compared on the same numbers."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
from onnx import helper

import onnx_fuse
from onnx_fuse.runtime.chance import seeded
from onnx_fuse.runtime.sessions import open_source
from onnx_fuse.runtime.verify import verify
from tests.runtime.models import Variant, attention

# Behind the block: there nodes of the fused model have other numbers than those of the original.
DRAWN = {
    "normal": "RandomNormalLike <scale = 0.5> (output)",
    "normal around another mean": "RandomNormalLike <mean = 3.0> (output)",
    "uniform": "RandomUniformLike <low = -1.0> (output)",
    "of a shape": "RandomNormal <shape = [1, 1, 32]> ()",
    "given a seed": "RandomNormalLike <seed = 7.0> (output)",
}


def drawing(drawn: str, variant: Variant | None = None) -> onnx.ModelProto:
    """The block, with random numbers added to its result."""
    model = attention(variant or Variant())
    (output,) = model.graph.output
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n] output) => (float[n] shown) {{
            drawn = {drawn}
            shown = Add (output, drawn)
        }}"""
    model.graph.node.extend(onnx.parser.parse_model(text).graph.node)
    output.name = "shown"
    return model


@pytest.mark.parametrize("name", DRAWN)
def test_fused_model_draws_what_the_original_does(name: str) -> None:
    model = drawing(DRAWN[name])
    result = onnx_fuse.fuse(model)
    assert result.report.num_fused == 1
    report = verify(model, result.model)
    assert report.passed, report.failures
    assert report.tolerance < 1e-3  # chance is no noise of the model's


@pytest.mark.parametrize(
    "other",
    [
        drawing(DRAWN["normal"], Variant(text=[("Mul (s0, scale)", "Identity (s0)")])),
        drawing("RandomNormalLike <scale = 0.52> (output)"),
        drawing("RandomNormalLike <scale = 0.5, mean = 0.01> (output)"),
        drawing(DRAWN["uniform"]),
    ],
    ids=["another block", "another scale", "another mean", "another distribution"],
)
def test_other_models_are_told_apart(other: onnx.ModelProto) -> None:
    assert not verify(drawing(DRAWN["normal"]), other).passed


def test_model_without_chance_is_left_as_it_is() -> None:
    source = open_source(attention(Variant()), "a model")
    assert seeded(source) is source


@pytest.mark.parametrize(("inputs", "draws"), [("x", False), ("x,r", False), ("x,r,t", True)])
def test_dropout_draws_only_in_training(inputs: str, draws: bool) -> None:
    model = attention(Variant())
    model.graph.node.append(helper.make_node("Dropout", inputs.split(","), ["y"]))
    source = open_source(model, "a model")
    assert (seeded(source) is not source) == draws
