"""Norms of rotated queries and keys: those before which the rotation may stand, and the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from tests.analysis.check import check_results, fused, fused_nodes
from tests.sessions import plain_session

BATCH, HEADS, ROWS, DEPTH = 2, 2, 5, 8
HALF = DEPTH // 2
WIDTH = HEADS * DEPTH
TAKEN = ("hidden", "qkv_weight", "q_norm_weight", "k_norm_weight")
TABLES = ("q_cos", "q_sin", "k_cos", "k_sin")


class Case(NamedTuple):
    """How angles become tables, and how a rotation (to r) and a norm (to n) are written.

    In the last two, `@` stands for the operand's name, q or k.
    """

    tables: str
    rotation: str
    norm: str


RUN = """
  steps = Mul(at, pace)
  angles = Concat <axis = -1> (steps, steps)
  cos = Cos(angles)
  sin = Sin(angles)"""
HALVES = """
  a@, b@ = Split <axis = -1> (@h, halves)
  m@ = Neg(b@)
  t@ = Concat <axis = -1> (m@, a@)
  u@ = Mul(@h, cos)
  v@ = Mul(t@, sin)
  r@ = Add(u@, v@)"""
SQUARED = """
  s@ = Mul(r@, r@)
  e@ = ReduceMean <axes = [-1]> (s@)
  f@ = Add(e@, eps)
  g@ = Sqrt(f@)"""
PLAIN = (
    SQUARED
    + """
  n@ = Div(r@, g@)"""
)
WEIGHTED = (
    SQUARED
    + """
  d@ = Div(r@, g@)
  n@ = Mul(d@, weight@)"""
)
OF_SUM = WEIGHTED.replace("ReduceMean <axes = [-1]> (s@)", "ReduceSumSquare <axes = [-1]> (r@)")
UNIT = """
  n@ = LpNormalization <axis = -1, p = 2> (r@)"""
PAIRS = HALVES.replace(
    "a@, b@ = Split <axis = -1> (@h, halves)",
    "a@ = Gather <axis = -1> (@h, even) b@ = Gather <axis = -1> (@h, odd)",
).replace(
    "t@ = Concat <axis = -1> (m@, a@)",
    """x@ = Unsqueeze(m@, last) y@ = Unsqueeze(a@, last)
  z@ = Concat <axis = -1> (x@, y@)
  t@ = Reshape(z@, whole)""",
)
SIDE_BY_SIDE = RUN.replace(
    "angles = Concat <axis = -1> (steps, steps)",
    """column = Unsqueeze(steps, last)
  doubled = Concat <axis = -1> (column, column)
  angles = Reshape(doubled, rows)""",
)
CONSTANT = "cos = Identity(cosines) sin = Identity(sines)"
FIRST_LANES = """
  p@, o@ = Split <axis = -1> (@h, halves)
  a@, b@ = Split <axis = -1> (p@, quarters)
  m@ = Neg(b@)
  t@ = Concat <axis = -1> (m@, a@)
  u@ = Mul(p@, cos)
  v@ = Mul(t@, sin)
  j@ = Add(u@, v@)
  r@ = Concat <axis = -1> (j@, o@)"""
OF_WIDER = """
  a@, b@, o@ = Split <axis = -1> (@h, unequal)
  m@ = Neg(b@)
  p@ = Concat <axis = -1> (a@, b@)
  t@ = Concat <axis = -1> (m@, a@)
  i@, j@ = Split <axis = -1> (cos, halves)
  k@, l@ = Split <axis = -1> (sin, halves)
  u@ = Mul(p@, i@)
  v@ = Mul(t@, k@)
  r@ = Add(u@, v@)"""
FEWER = RUN.replace("Mul(at, pace)", "Mul(at, fewer)")
MOVED = {
    "no weight": Case(RUN, HALVES, PLAIN),
    "a weight for each lane": Case(RUN, HALVES, WEIGHTED),
    "one number as weight": Case(RUN, HALVES, WEIGHTED.replace("weight@", "number")),
    "a length of one": Case(RUN, HALVES, UNIT),
    "the root of a sum": Case(RUN, HALVES, OF_SUM),
    "an operator": Case(RUN, HALVES, "n@ = SimplifiedLayerNormalization (r@, weight@)"),
    "pairs side by side": Case(SIDE_BY_SIDE, PAIRS, WEIGHTED),
    "constant tables": Case(CONSTANT, HALVES, WEIGHTED),
    "constant angles": Case(RUN.replace("Mul(at, pace)", "Mul(places, pace)"), HALVES, WEIGHTED),
    "some lanes that aren't rotated": Case(FEWER, FIRST_LANES, PLAIN),
    "some lanes of what is projected": Case(
        FEWER, FIRST_LANES[: FIRST_LANES.index("  j@")] + "  r@ = Add(u@, v@)", PLAIN
    ),
}
STAYS = {
    "a mean that is taken off": Case(RUN, HALVES, "n@ = LayerNormalization (r@, weight@)"),
    "tables that are scaled": Case(
        RUN.replace("cos = Cos(angles)", "c0 = Cos(angles) cos = Mul(c0, number)"), HALVES, PLAIN
    ),
    "angles of two kinds": Case(RUN.replace("Sin(angles)", "Sin(others)"), HALVES, PLAIN),
    "constant angles that differ": Case(
        RUN.replace("angles = Concat <axis = -1> (steps, steps)", "angles = Identity(unlike)"),
        HALVES,
        PLAIN,
    ),
    "lanes of different angles": Case(
        RUN.replace("(steps, steps)", "(steps, more)"), HALVES, PLAIN
    ),
    "a reflection": Case(RUN, HALVES.replace("m@ = Neg(b@)", "m@ = Identity(b@)"), PLAIN),
    "a sine for a cosine": Case(RUN.replace("Cos(angles)", "Sin(angles)"), HALVES, PLAIN),
    "constant tables that are near": Case(
        CONSTANT.replace("cosines", "longer_cosines"), HALVES, PLAIN
    ),
    "constant tables of two kinds": Case(
        "cos = Identity(other_cosines) sin = Identity(other_sines)", HALVES, PLAIN
    ),
    "a weight where some lanes aren't rotated": Case(FEWER, FIRST_LANES, WEIGHTED),
    "lanes beside others that no norm sees": Case(
        FEWER.replace("(steps, steps)", "(steps, steps, steps, steps)"), OF_WIDER, PLAIN
    ),
    "a weight that isn't finite": Case(
        RUN, HALVES, "n@ = SimplifiedLayerNormalization (r@, infinite)"
    ),
    "a norm of each half": Case(
        RUN,
        HALVES,
        """
  c@ = Reshape(r@, split)
  s@ = Mul(c@, c@)
  e@ = ReduceMean <axes = [-1]> (s@)
  f@ = Add(e@, eps)
  g@ = Sqrt(f@)
  d@ = Div(c@, g@)
  n@ = Reshape(d@, whole)""",
    ),
}


def model_of(case: Case) -> onnx.ModelProto:
    heads = " ".join(
        f"{name}0 = MatMul(x, w{name}) {name}1 = Reshape({name}0, cut) "
        f"{name}h = Transpose <perm = [0, 2, 1, 3]> ({name}1)"
        for name in "qkv"
    )
    parts = " ".join((case.rotation + case.norm).replace("@", name) for name in "qk")
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[{BATCH}, {ROWS}, {WIDTH}] x, float[{ROWS}, 1] at,
         float[{ROWS}, {DEPTH}] others, float[{ROWS}, {HALF}] more) => (float[B, S, W] y) {{
        {heads} {case.tables} {parts}
        turned = Transpose <perm = [0, 1, 3, 2]> (nk)
        scores = MatMul(nq, turned)
        scaled = Mul(scores, scale)
        p = Softmax <axis = -1> (scaled)
        c = MatMul(p, vh)
        back = Transpose <perm = [0, 2, 1, 3]> (c)
        joined = Reshape(back, merged)
        y = MatMul(joined, wo)
      }}""")
    for name, data in constants().items():
        kind = data.dtype if data.dtype == np.int64 else np.float32
        tensor = onnx.numpy_helper.from_array(np.asarray(data, dtype=kind), name)
        model.graph.initializer.append(tensor)
    return model


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pace = 10.0 ** -np.arange(HALF)
    places = np.arange(ROWS)[:, None] + 1.0
    angles = np.concatenate([places * pace] * 2, axis=-1)
    unlike = np.concatenate([places * pace, places * pace[::-1]], axis=-1)
    return {
        **{f"w{name}": rng.standard_normal((WIDTH, WIDTH)) / 3 for name in "qkvo"},
        **{f"weight{name}": rng.standard_normal(DEPTH) for name in "qk"},
        "cut": np.array([BATCH, ROWS, HEADS, DEPTH]),
        "merged": np.array([BATCH, ROWS, WIDTH]),
        "whole": np.array([BATCH, HEADS, ROWS, DEPTH]),
        "split": np.array([BATCH, HEADS, ROWS, 2, HALF]),
        "rows": np.array([ROWS, DEPTH]),
        "halves": np.array([HALF, HALF]),
        "unequal": np.array([HALF // 2, HALF // 2, HALF]),
        "quarters": np.array([HALF // 2, HALF // 2]),
        "even": np.arange(0, DEPTH, 2),
        "odd": np.arange(1, DEPTH, 2),
        "last": np.array([-1]),
        "scale": np.array(0.35),
        "eps": np.array(1e-5),
        "number": np.array(1.2),
        "infinite": np.where(np.arange(DEPTH) == 1, np.inf, 1.0),
        "pace": pace,
        "fewer": pace[: HALF // 2],
        "places": places,
        "cosines": np.cos(angles),
        "sines": np.sin(angles),
        "longer_cosines": np.cos(angles) * 1.001,
        "unlike": unlike,
        "other_cosines": np.cos(unlike),
        "other_sines": np.sin(unlike),
    }


def operands_of(model: onnx.ModelProto) -> tuple[str, ...]:
    (node,) = fused_nodes(model)
    (found,) = (a.s.decode() for a in node.attribute if a.name == "operands")
    return tuple(found.split(","))


def check_same(model: onnx.ModelProto, made: onnx.ModelProto) -> None:
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((BATCH, ROWS, WIDTH)),
        "at": np.arange(ROWS)[:, None] + 3.0,
        "others": rng.standard_normal((ROWS, DEPTH)),
        "more": rng.standard_normal((ROWS, HALF)),
    }
    feeds = {name: data.astype(np.float32) for name, data in feeds.items()}
    expected = plain_session(model).run(None, feeds)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize("name", MOVED)
def test_rotation_keeps_the_length(name: str) -> None:
    model = model_of(MOVED[name])
    made = fused(model)
    assert operands_of(made) == (*TAKEN, *TABLES, "out_weight")
    check_same(model, made)


@pytest.mark.parametrize("name", STAYS)
def test_norm_stays_behind_the_rotation(name: str) -> None:
    model = model_of(STAYS[name])
    made = fused(model)
    assert {"query", "key", "v_weight"} <= {*operands_of(made)}
    if name != "a weight that isn't finite":
        check_same(model, made)
