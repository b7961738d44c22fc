"""Quantized models: a last bit moves a number by a whole step, and the verifier allows for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.runtime.noise import noisy_sources
from onnx_fuse.runtime.sessions import open_session, open_source, run
from onnx_fuse.runtime.verify import verify
from tests.runtime.models import attention, parse

LAYERS, WIDTH = 6, 256


def chain(gain: float, *, order: str = "scales first", factor: float = 1.0) -> onnx.ModelProto:
    """Dynamically quantized layers, each `gain` times its input before a tanh.

    order: of two multiplications, which is all that tells two right models apart. factor: of one
    layer's scale, in a wrong one.
    """
    rng = np.random.default_rng(3)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        weight = rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
        scale = gain * np.sqrt(3 / WIDTH) / 127 * (factor if layer == LAYERS // 2 else 1)
        weights += [
            numpy_helper.from_array(weight, f"weight{layer}"),
            numpy_helper.from_array(np.float32(scale), f"scale{layer}"),
        ]
        pairs = [("step", "scale"), ("product", "real")]
        if order == "product first":
            pairs = [("real", "step"), ("product", "scale")]
        text = f"""
            code, step, zero = DynamicQuantizeLinear ({last})
            whole = MatMulInteger (code, weight, zero)
            real = Cast <to = 1> (whole)
            product = Mul ({", ".join(pairs[0])})
            scaled = Mul ({", ".join(pairs[1])})
            y = Tanh (scaled)
        """
        steps = parse(f"g (float[2] {last}) => (float[2] y) {{ {text} }}").graph.node
        names = {name for step in steps for name in step.output} | {"weight", "scale"}
        for step in steps:
            for field in (step.input, step.output):
                field[:] = [f"{name}{layer}" if name in names else name for name in field]
        nodes += steps
        last = f"y{layer}"
    shape = ["rows", WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gain", [2.0, 3.0])
def test_right_model_passes_though_steps_differ(gain: float, seed: int) -> None:
    report = verify(chain(gain), chain(gain, order="product first"), seed=seed)
    assert report.passed, report.failures


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gain", "factor"), [(2.0, 1.1), (3.0, 1.5), (3.0, 0.0)])
def test_wrong_model_fails_though_steps_differ(gain: float, factor: float, seed: int) -> None:
    assert not verify(chain(gain), chain(gain, factor=factor), seed=seed).passed


def test_model_that_makes_everything_of_its_errors_equals_itself_and_no_other() -> None:
    """Noise alone would allow any result; agreement to the last bits is none by chance."""
    report = verify(chain(9.0), chain(9.0))
    assert report.passed, report.failures
    assert not verify(chain(9.0), chain(9.0, factor=1.1)).passed


def test_samples_differ_and_are_the_same_for_the_same_seed() -> None:
    source = open_source(chain(2.0), "chain")
    before = source.proto.SerializeToString()
    first, again = ([s.opened for s in noisy_sources(source, 1e-5, 7)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert source.proto.SerializeToString() == before
    feeds = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    (right,) = run(open_session(source), feeds)
    for sample in noisy_sources(source, 1e-5, 7):
        (made,) = run(open_session(sample), feeds)
        assert 0 < np.abs(made - right).max() < 0.1


def test_model_that_quantizes_nothing_has_no_samples() -> None:
    assert not list(noisy_sources(open_source(attention(), "block"), 1e-5, 0))


def test_quantizers_in_branches_and_static_ones_get_noise_and_weights_none() -> None:
    model = parse(
        """
        g (float[2,4] x, bool c) => (float[2,4] y) {
            code = QuantizeLinear (x, s)
            fixed = QuantizeLinear (w, s)
            back = DequantizeLinear (code, s)
            more = DequantizeLinear (fixed, s)
            sum = Add (back, more)
            y = If (c) <
                then_branch = t () => (float[2,4] u) {
                    a, b, d = DynamicQuantizeLinear (sum)
                    u = DequantizeLinear (a, b, d)
                },
                else_branch = e () => (float[2,4] v) { v = Neg (sum) }>
        }""",
        s=np.float32(0.1),
        w=np.ones((2, 4), np.float32),
    )
    (sample, *_) = noisy_sources(open_source(model, "branches"), 1e-2, 0)
    text = onnx.printer.to_text(sample.proto)
    assert text.count("RandomUniformLike") == 2
    assert "QuantizeLinear (w, s)" in text
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    assert np.isfinite(run(open_session(sample), feeds)[0]).all()


def test_external_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    onnx.save(chain(2.0), str(path), save_as_external_data=True, location="w", size_threshold=0)
    samples = list(noisy_sources(open_source(path, "chain"), 1e-5, 0))
    assert len(samples) == 3
    for sample in samples:
        open_session(sample)
