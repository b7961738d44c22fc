from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

import onnx_fuse.runtime.library
import onnx_fuse.runtime.verify
from onnx_fuse import api
from onnx_fuse.errors import InvalidModel, LibraryUnavailable
from onnx_fuse.op.schema import DOMAIN
from onnx_fuse.runtime.sessions import Source, open_session, open_source
from onnx_fuse.runtime.verify import verify
from tests.runtime.models import HEAD_DIM, Variant, attention, parse

ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
ZOO = Path(__file__).parents[2] / "models" / "zoo"


def scaled(name: str, factor: float) -> Variant:
    def edit(weights: dict[str, np.ndarray]) -> None:
        weights[name] = weights[name] * np.float32(factor)

    return Variant(edit)


def one_element(weights: dict[str, np.ndarray]) -> None:
    weights["v_weight"][3, 5] += 0.05


def swapped_heads(weights: dict[str, np.ndarray]) -> None:
    columns = np.arange(weights["q_weight"].shape[1])
    columns[: 2 * HEAD_DIM] = np.roll(columns[: 2 * HEAD_DIM], HEAD_DIM)
    weights["q_weight"] = weights["q_weight"][:, columns]


def not_finite(weights: dict[str, np.ndarray]) -> None:
    weights["out_bias"][0] = np.inf


def scale_in_weight(weights: dict[str, np.ndarray]) -> None:
    weights["q_weight"] = weights["q_weight"] * weights["scale"]
    weights["scale"] = np.ones(1, np.float32)


WRONG = {
    "weight by one percent": scaled("q_weight", 1.01),
    "one element of a weight": Variant(one_element),
    "two heads swapped": Variant(swapped_heads),
    "scale by one percent": scaled("scale", 1.01),
    "no scale": Variant(text=[("Mul (s0, scale)", "Identity (s0)")]),
    "no mask": Variant(text=[("Add (s1, m3)", "Identity (s1)")]),
    "mask the other way round": Variant(text=[("Sub (one, m1)", "Identity (m1)")]),
    "mask of a weak fill": scaled("fill", 1e-4),
    "mask on rows": Variant(text=[("value_ints = [1, 2]", "value_ints = [1, 3]")]),
    "softmax over rows": Variant(text=[("axis = -1", "axis = -2")]),
    "no bias": scaled("out_bias", 0.0),
    "bias by a thousandth": scaled("out_bias", 1.001),
    "infinity": Variant(not_finite),
    "another shape": Variant(
        text=[
            (
                "output = Add (c3, out_bias)",
                "c4 = Add (c3, out_bias) output = Concat<axis=1>(c4,c4)",
            )
        ]
    ),
    "it does not run": Variant(text=[("[0, 0, 4, 8]", "[0, 0, 4, 7]")]),
    "it does not load": Variant(text=[("Softmax", "Softmin")]),
    "another output": Variant(text=[("output = Add", "result = Add"), ("] output)", "] result)")]),
}
RIGHT = {
    "itself": Variant(),
    "scale folded into a weight": Variant(scale_in_weight),
    "addends swapped": Variant(text=[("Add (s1, m3)", "Add (m3, s1)")]),
    "scale before the product": Variant(
        text=[
            ("MatMul (q, k)", "MatMul (qs, k)"),
            ("s0 =", "qs = Mul (q, scale) s0 ="),
            ("Mul (s0, scale)", "Identity (s0)"),
        ]
    ),
}


@pytest.mark.parametrize("variant", WRONG.values(), ids=WRONG)
def test_wrong_model_fails_with_a_sentence(variant: Variant) -> None:
    report = verify(attention(), attention(variant))
    assert not report.passed
    assert report.failures
    assert all(failure.count("\n") == 0 for failure in report.failures)


@pytest.mark.parametrize("variant", RIGHT.values(), ids=RIGHT)
def test_right_model_passes(variant: Variant) -> None:
    report = verify(attention(), attention(variant))
    assert report.passed, report.failures
    assert report.cases == 6
    assert report.runs == ("plain",)
    assert report.max_abs_err <= report.tolerance


def test_tolerance_is_near_the_rounding_error() -> None:
    report = verify(attention(), attention(Variant(scale_in_weight)))
    # Outputs are near 1: between a float32's last bit there and a thousand of them.
    assert 2.0**-23 < report.tolerance < 1000 * 2.0**-23


# Optimised, onnxruntime asks for (0, 0, 2, -1), which is nothing where there are no rows.
NO_ROWS = """
g (float[batch,seq,4] x) => (float[batch,rows,2,last] output, float[batch,seq,4] same)
<int64[1] from = {8}, int64[1] all = {99}, int64[1] axis = {1}, int64[1] two = {2},
 int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}> {
  rest = Slice (x, from, all, axis) b = ADDEND
  s0 = Shape (b) g0 = Gather (s0, i0) g1 = Gather (s0, i1) g2 = Gather (s0, i2)
  d0 = Unsqueeze <axes = [0]> (g0) d1 = Unsqueeze <axes = [0]> (g1)
  half = Div (g2, i2) d2 = Unsqueeze <axes = [0]> (half)
  shape = Concat <axis = 0> (d0, d1, two, d2)
  output = Reshape (b, shape)
  same = Identity (x)
}"""


def without_rows(addend: str) -> onnx.ModelProto:
    text = NO_ROWS.replace("ADDEND", addend)
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 12]>{text}')


def test_case_on_which_the_original_fails_for_its_users_is_left_out() -> None:
    report = verify(without_rows("Add (rest, rest)"), without_rows("Sum (rest, rest)"))
    assert report.passed, report.failures
    left_out = [note for note in report.notes if note.startswith("not compared (plain, ")]
    assert len(left_out) == 2
    assert all(note.endswith("as users run it, the original fails, too") for note in left_out)


def test_case_on_which_only_the_other_model_fails_is_a_failure() -> None:
    other = without_rows("Add (rest, rest)")
    original = onnx.ModelProto()
    original.CopyFrom(other)
    next(node for node in original.graph.node if node.op_type == "Concat").input[3] = "two"
    report = verify(original, other)
    assert len(report.failures) == 2
    assert all("does not run (plain, " in failure for failure in report.failures)


def test_failure_names_output_session_and_case() -> None:
    report = verify(attention(), attention(WRONG["no mask"]))
    assert report.failures[0].startswith("output 'output' differs (plain, ")
    assert "mask right" in report.failures[0]


def test_models_are_not_changed() -> None:
    first, second = attention(), attention()
    before = first.SerializeToString(), second.SerializeToString()
    verify(first, second)
    assert (first.SerializeToString(), second.SerializeToString()) == before


def test_same_seed_gives_the_same_report() -> None:
    variant = Variant(scale_in_weight)
    first, second = (verify(attention(), attention(variant)) for _ in range(2))
    assert first == second


def test_paths_with_external_data(tmp_path: Path) -> None:
    paths = []
    for name, variant in (("right", Variant()), ("wrong", WRONG["scale by one percent"])):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(
            attention(variant),
            str(paths[-1]),
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
    assert verify(paths[0], paths[0]).passed
    assert not verify(paths[0], paths[1]).passed


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"none\.onnx"):
        verify(tmp_path / "none.onnx", attention())


def test_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"text\.onnx"):
        verify(attention(), tmp_path / "text.onnx")


def test_original_that_imports_the_operators_and_uses_none_is_plain() -> None:
    """As onnxruntime saves a model in a process that has registered them."""
    original = attention()
    original.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    report = verify(original, api.fuse(original).model)
    assert report.passed, report.failures


def test_original_that_needs_the_kernels_is_named() -> None:
    fused = api.fuse(attention(), fallback=False).model
    (failure,) = verify(fused, attention()).failures
    assert failure.startswith("the original model is fused and has no fallback")
    assert verify(attention(), fused).passed


# Models that can't be shown to be equal even to themselves, and what is said of them.
INCOMPARABLE = {
    "does not run": (
        "g (float[2,3] x) => (float[2,3] y) { y = MatMul (x, x) }",
        "original does not run",
    ),
    "unknown operator of unstated type": (
        "g (float[2,3] x) => (float y) { z = custom.Unknown () y = Add (x, z) }",
        "'z'",
    ),
    "input that cannot be made up": (
        "g (string[2] x) => (string[2] y) { y = Identity (x) }",
        "'x'",
    ),
    "always zero": (
        "g (float[4,4] x) => (float[4,4] y) { y = Sub (x, x) }",
        "nothing was compared",
    ),
}


@pytest.mark.parametrize("name", INCOMPARABLE)
def test_model_that_shows_nothing_fails(name: str) -> None:
    text, words = INCOMPARABLE[name]
    model = parse(text)
    report = verify(model, model)
    assert not report.passed
    assert words in report.failures[0]


def test_output_that_shows_nothing_beside_another_is_noted() -> None:
    text = "g (float[4,4] x) => (float[4,4] y, float[4,4] z) { y = Sub (x, x) z = Neg (x) }"
    report = verify(parse(text), parse(text))
    assert report.passed
    assert report.notes == ("cannot show a difference: output y",)


CUSTOM = Variant(
    text=[
        ("output = Add", "c4 = Add"),
        ("out_bias)\n}", "out_bias) c5 = custom.Unknown (c4) output = Neg (c5) }"),
        ('"" : 17', '"" : 17, "custom" : 1'),
    ]
)


def test_model_with_an_unknown_operator_is_compared_around_it() -> None:
    original = attention(CUSTOM)
    shape = onnx.helper.make_tensor_value_info("c5", onnx.TensorProto.FLOAT, ["batch", "seq", 32])
    original.graph.value_info.append(shape)
    report = verify(original, api.fuse(original).model)
    assert report.passed, report.failures
    assert report.cases == 6
    assert "c5" in report.notes[0]
    wrong = attention(Variant(scaled("scale", 1.01).weights, CUSTOM.text))
    wrong.graph.value_info.append(shape)
    report = verify(original, wrong)
    assert "output 'c4' differs" in report.failures[0]


def test_result_is_no_model_and_named() -> None:
    result: Any = api.fuse(attention())
    with pytest.raises(TypeError, match="ModelProto, not as a FuseResult"):
        verify(attention(), result)
    assert verify(attention(), result.model).passed


def test_noise_that_would_hide_anything_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0

    def noisy(source: Source, **options: Any) -> Any:
        nonlocal opened
        opened += 1
        other = open_source(attention(WRONG["no scale"]), "noisy")
        return open_session(other if opened == 2 else source, **options)

    monkeypatch.setattr(onnx_fuse.runtime.verify, "open_session", noisy)
    report = verify(attention(), attention(WRONG["weight by one percent"]))
    assert not report.passed
    assert "nothing was compared" in report.failures[0]
    opened = 0
    assert verify(attention(), attention()).passed  # to the last bit, which noise does not give


def only_unoptimised(*names: str) -> Any:
    """Return what opens sessions, but of these models none with optimisations."""

    def opened(source: Source, **options: Any) -> Any:
        if source.name in names and options.get("level", ALL) == ALL:
            raise RuntimeError("an optimisation has lost a value")
        return open_session(source, **options)

    return opened


def test_model_that_only_loads_unoptimised_is_compared_so(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = only_unoptimised("the original model", "the fused model")
    monkeypatch.setattr(onnx_fuse.runtime.verify, "open_session", opened)
    fused = api.fuse(attention()).model
    report = verify(attention(), fused)
    assert report.passed, report.failures
    assert report.runs == ("kernel", "plain")
    assert [note for note in report.notes if "without optimisations" in note] == [*report.notes]
    assert not verify(attention(), attention(WRONG["no scale"])).passed


def test_model_that_fusing_lets_load_no_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = only_unoptimised("the fused model")
    monkeypatch.setattr(onnx_fuse.runtime.verify, "open_session", opened)
    report = verify(attention(), attention())
    assert not report.passed
    assert "the fused model does not load (plain): an optimisation" in report.failures[0]


@pytest.mark.parametrize(("factor", "passes"), [(1.005, True), (1.001, False)])
def test_more_noise_is_measured_before_a_difference_counts(
    monkeypatch: pytest.MonkeyPatch, factor: float, passes: bool
) -> None:
    """The first sample shows no noise, later ones half or a tenth of the difference."""

    def moved(proto: onnx.ModelProto, files: object, seed: int) -> dict[str, np.ndarray]:
        constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        scale = numpy_helper.to_array(constants["scale"])
        return {"scale": scale * np.float32(factor if seed else 1)}

    monkeypatch.setattr(onnx_fuse.runtime.verify, "moved_weights", moved)
    report = verify(attention(), attention(WRONG["scale by one percent"]))
    assert report.passed is passes, report.failures
    assert verify(attention(), attention(WRONG["no scale"])).failures


def sharp(rounded: str, weight: np.ndarray, factor: float) -> onnx.ModelProto:
    """Return a softmax of large scores that differ little, so that their roundings count."""
    text = f"""g (float[4, 32] x) => (float[4, 8] y) {{
        u = Cast <to = 1> (w) a = MatMul (x, u) {rounded} b = Mul (c, factor) y = Softmax (b) }}"""
    return parse(text, w=weight, factor=np.float32(factor))


def test_half_precision_that_amplifies_its_own_roundings_is_compared_with_its_noise() -> None:
    """What computes in float32 is nearer to the exact result, and so differs from the original."""
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((32, 1)) + 0.02 * rng.standard_normal((32, 8))
    weight = weight.astype(np.float16)
    original = sharp("h = Cast <to = 10> (a) c = Cast <to = 1> (h)", weight, 40)
    report = verify(original, sharp("c = Identity (a)", weight, 40))
    assert report.passed, report.failures
    assert report.max_abs_err > 8 * np.finfo(np.float16).eps  # of a number below 1
    assert not verify(original, sharp("c = Identity (a)", weight, 30)).passed


def test_nan_in_the_same_places_passes() -> None:
    model = parse("g (float[8,8] x) => (float[8,8] y) { y = Sqrt (x) }")
    report = verify(model, model)
    assert report.passed, report.failures


def test_masks_in_which_1_means_masked_leave_something_to_compare() -> None:
    """Read the other way, all of a row is masked in 4 of 6 cases, and rows meet in the output."""
    text = """g (float[b,s] x, bool[b,s] m, bool[s] n) => (float[s] y) {
        a = Where (m, inf, x) c = Where (n, inf, a) w = Softmax (c)
        y = ReduceSum <keepdims = 0> (w, zero) }"""
    model = parse(text, inf=np.float32([-np.inf]), zero=np.int64([0]))
    report = verify(model, model)
    assert report.passed, report.failures


def test_nan_in_other_places_fails() -> None:
    plain = parse("g (float[8,8] x) => (float[8,8] y) { y = Sqrt (x) }")
    guarded = parse(
        "g (float[8,8] x) => (float[8,8] y) { s = Sqrt (x) n = IsNaN (s) y = Where (n, zero, s) }",
        zero=np.zeros(1, np.float32),
    )
    assert not verify(plain, guarded).passed
    assert not verify(guarded, plain).passed


def test_infinity_of_the_other_sign_fails() -> None:
    text = "g (float[8,8] x) => (float[8,8] y) {{ r = Relu (x) y = Div ({}, r) }}"
    one = {"one": np.ones(1, np.float32), "minus": -np.ones(1, np.float32)}
    assert verify(parse(text.format("one"), **one), parse(text.format("one"), **one)).passed
    assert not verify(parse(text.format("one"), **one), parse(text.format("minus"), **one)).passed


def test_integer_output_must_be_equal() -> None:
    text = "g (float[4,9] x) => (int64[4] y) {{ y = {} <axis = 1, keepdims = 0> (x) }}"
    largest, smallest = parse(text.format("ArgMax")), parse(text.format("ArgMin"))
    assert verify(largest, largest).passed
    report = verify(largest, smallest)
    assert not report.passed
    assert "not equal" in report.failures[0]


def test_fill_in_an_output_does_not_widen_the_bound() -> None:
    text = """g (float[8,8] x) => (float[8,8] y) {{
      t = Trilu <upper = 0> (x) b = Greater (t, x) s = {} y = Where (b, fill, s) }}"""
    values = {"fill": np.array([-3e38], np.float32), "c": np.array([1.001], np.float32)}
    right, wrong = (parse(text.format(s), **values) for s in ("Identity (x)", "Mul (x, c)"))
    assert verify(right, right).passed
    assert not verify(right, wrong).passed


def unavailable(*_: object) -> None:
    raise LibraryUnavailable("no library here")


def test_fused_model_runs_with_the_kernels_and_without() -> None:
    report = verify(attention(), api.fuse(attention()).model)
    assert report.passed, report.failures
    assert report.runs == ("kernel", "plain")


def test_broken_body_is_found_though_the_kernel_is_right() -> None:
    fused = api.fuse(attention()).model
    (body,) = fused.functions
    softmax = next(node for node in body.node if node.op_type == "Softmax")
    softmax.op_type = "LogSoftmax"
    report = verify(attention(), fused)
    assert not report.passed
    assert all("(plain, " in failure for failure in report.failures)


def test_wrong_attribute_is_found_in_both_sessions() -> None:
    fused = api.fuse(attention()).model
    (node,) = (node for node in fused.graph.node if node.domain == "onnx_fuse")
    next(a for a in node.attribute if a.name == "scale").f *= 1.01
    report = verify(attention(), fused)
    assert {failure.split("(")[1].split(",")[0] for failure in report.failures} == {
        "kernel",
        "plain",
    }


def test_missing_library_is_noted_and_the_plain_session_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_fuse.runtime.library, "register", unavailable)
    report = verify(attention(), api.fuse(attention()).model)
    assert report.passed, report.failures
    assert report.runs == ("plain",)
    assert "no library here" in report.notes[0]


def test_model_without_fallback_is_run_with_the_kernels_alone() -> None:
    report = verify(attention(), api.fuse(attention(), fallback=False).model)
    assert report.passed, report.failures
    assert report.runs == ("kernel",)
    assert "fallback" in report.notes[0]


def test_model_that_runs_nowhere_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_fuse.runtime.library, "register", unavailable)
    report = verify(attention(), api.fuse(attention(), fallback=False).model)
    assert not report.passed
    assert "nothing was compared" in report.failures[0]


def zoo_models() -> list[str]:
    manifest = ZOO / "manifest.json"
    return list(json.loads(manifest.read_text(encoding="utf-8"))) if manifest.is_file() else []


@pytest.mark.skipif(not zoo_models(), reason="models/zoo isn't there")
@pytest.mark.parametrize("name", zoo_models()[::3])
def test_real_model_passes_against_itself_and_fails_with_a_changed_weight(name: str) -> None:
    path = ZOO / f"{name}.onnx"
    try:
        open_session(open_source(path, name))
    except Exception:
        pytest.skip("this onnxruntime is too old for the model")
    report = verify(path, path)
    assert report.passed, report.failures
    model = onnx.load(str(path))
    read = {i for n in model.graph.node if n.op_type in ("MatMul", "Gemm") for i in n.input}
    weights = [
        t
        for t in model.graph.initializer
        if t.name in read and t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2
    ]
    if not weights:
        return
    for weight in weights:
        changed = numpy_helper.to_array(weight) * np.float32(1.02)
        weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    assert not verify(path, model).passed


_VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))


@pytest.mark.skipif(_VERSION < (1, 32), reason="this onnxruntime's operator has no such cache")
@pytest.mark.parametrize(("scale", "passed"), [(0.25, True), (0.26, False)])
def test_what_a_cache_leaves_unwritten_is_not_compared(scale: float, passed: bool) -> None:
    model = onnx.parser.parse_model("""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[b, s, 64] x, float[b, 1, p, 16] k, float[b, 1, p, 16] v, int32[b, t] mask)
        => (float[b, s, 32] y, float[b, 1, p, 16] k1, float[b, 1, p, 16] v1) {
        length = ReduceSum <keepdims: int = 0> (mask, axis)
        last = Sub(length, one)
        shape = Shape(mask)
        all = Gather(shape, axis)
        total = Cast <to: int = 6> (all)
        y, k1, v1 = com.microsoft.GroupQueryAttention
          <num_heads: int = 2, kv_num_heads: int = 1, scale: float = 0.25,
           local_window_size: int = 4, sliding_window_cache: int = 1> (x, , , k, v, last, total)
      }""")
    for name, content in (("axis", np.array([1])), ("one", np.int32(1))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(content), name))
    other = api.fuse(model, threshold=None).model
    (node,) = (node for node in other.graph.node if node.domain == DOMAIN)
    next(a for a in node.attribute if a.name == "scale").f = scale
    report = verify(model, other)
    assert report.passed == passed, report.failures
    assert report.cases > 2
