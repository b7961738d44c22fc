"""Shapes that exporters compute in graphs, and what comes near to them: all that is claimed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from onnx import parser

from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model


def model_of(body: str, inputs: str, *, opset: int = 17, output: str = "y") -> Model:
    """A model from ONNX's text syntax; what the file declares of its output is only a name."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => (y) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.output[0].name = output
    proto.graph.output[0].ClearField("type")
    return load(proto)


def repeated_at(place: int, attributes: str = "") -> str:
    """A graph that tiles x by a OneHot of a length at this one of three places."""
    return f"""n = Shape<start = 1, end = 2>(x) o = Constant<value_ints = [1]>()
        v = Concat<axis = 0>(o, n) i = Constant<value_ints = [{place}]>()
        d = Constant<value_int = 3>() h = OneHot{attributes}(i, d, v)
        m = Constant<value_ints = [-1]>() r = Reshape(h, m) y = Tile(x, r)"""


def shape_text(body: str, inputs: str, **options: Any) -> str:
    model = model_of(body, inputs, **options)
    shape = Shapes(model).shape(model.graph.outputs[0])
    return "unknown" if shape is None else ", ".join(map(str, shape))


HIDDEN = "float[batch, seq, 48] x"
# How many places a convolution of kernel 3 and stride 2 leaves; integers are rounded towards zero.
PLACES = """s = Shape<start = 2>(x) k = Constant<value_ints = [3]>() d = Sub(s, k)
    two = Constant<value_ints = [2]>() h = Div(d, two) more = Constant<value_ints = [{}]>()
    n = Add(h, more)"""

IDIOMS = {
    "reshape to heads with extents from Shape": (
        """s = Shape(x) zero = Constant<value_int = 0>() one = Constant<value_int = 1>()
        b = Gather(s, zero) n = Gather(s, one) ax = Constant<value_ints = [0]>()
        b1 = Unsqueeze(b, ax) n1 = Unsqueeze(n, ax) h = Constant<value_ints = [4]>()
        d = Constant<value_ints = [-1]>() t = Concat<axis = 0>(b1, n1, h, d) y = Reshape(x, t)""",
        HIDDEN,
        "batch, seq, 4, 12",
    ),
    "heads left to Reshape beside an extent that pooling shortens": (
        """p = AveragePool<kernel_shape = [5], strides = [2]>(x)
        r = Transpose<perm = [0, 2, 1]>(p) s = Shape<start = 0, end = 2>(r)
        d = Constant<value_ints = [-1, 12]>() t = Concat<axis = 0>(s, d) y = Reshape(r, t)""",
        "float[batch, 48, n] x",
        "batch, ((n + 1) // 2) - 2, 4, 12",
    ),
    "zeros in the target are copied": (
        "t = Constant<value_ints = [0, 0, 4, -1]>() y = Reshape(x, t)",
        HIDDEN,
        "batch, seq, 4, 12",
    ),
    "zeros are zeros with allowzero": (
        "t = Constant<value_ints = [0, 3]>() y = Reshape<allowzero = 1>(x, t)",
        "float[0, n] x",
        "0, 3",
    ),
    "flattened rows": (
        "t = Constant<value_ints = [-1, 48]>() y = Reshape(x, t)",
        HIDDEN,
        "batch*seq, 48",
    ),
    "start and end of Shape": (
        """s = Shape<start = 0, end = -1>(x) m = Constant<value_ints = [-1]>()
        t = Concat<axis = 0>(s, m) y = Reshape(x, t)""",
        HIDDEN,
        "batch, seq, 48",
    ),
    "a third of the columns, divided": (
        """s = Shape<start = 2>(x) three = Constant<value_ints = [3]>() e = Div(s, three)
        b = Constant<value_ints = [0]>() ax = Constant<value_ints = [2]>()
        y = Slice(x, b, e, ax)""",
        HIDDEN,
        "batch, seq, 16",
    ),
    "Expand by ones where a shape says -1": (
        """t = Constant<value_ints = [2, -1, -1]>() m = Constant<value_ints = [-1]>()
        c = Equal(t, m) n = Constant<value_ints = [3]>()
        o = ConstantOfShape<value = int64[1] {1}>(n)
        w = Where(c, o, t) y = Expand(x, w)""",
        "float[1, seq, 48] x",
        "2, seq, 48",
    ),
    "Expand by the length of a part, unless that says -1": (
        """one = Constant<value_ints = [1]>() e = Constant<value_ints = [9999999999]>()
        z = Slice(x, one, e, one) i = Constant<value_int = 1>() s = Shape(z)
        m = Constant<value_ints = [-1]>() c = Equal(s, m) n = Constant<value_ints = [3]>()
        o = ConstantOfShape<value = int64[1] {1}>(n) w = Where(c, o, s)
        f = Constant<value_ints = [1, 1, 1]>() k = Shape(f) a = ConstantOfShape(f)
        y = Expand(a, w)""",
        HIDDEN,
        "batch, seq - 1, 48",
    ),
    "Reshape to the lengths of parts": (
        """one = Constant<value_ints = [1]>() two = Constant<value_ints = [2]>()
        e = Constant<value_ints = [9999999999]>()
        z = Slice(x, one, e, one) s = Shape(z) q = Slice(p, one, e, one) t = Shape(q)
        h = Slice(t, one, two) k = Slice(s, one, two) w = Concat<axis = 0>(h, k)
        y = Reshape(v, w)""",
        f"{HIDDEN}, float[batch, past, 48] p, float[m] v",
        "past - 1, seq - 1",
    ),
    "positions behind a past": (
        """p = Shape<start = 1, end = 2>(x) q = Shape<start = 1, end = 2>(z) t = Add(p, q)
        a = Constant<value_ints = [0]>() p0 = Squeeze(p, a) t0 = Squeeze(t, a)
        one = Constant<value_int = 1>() y = Range(p0, t0, one)""",
        "float[batch, past] x, float[batch, seq] z",
        "seq",
    ),
    "places between positions": (
        """s = Shape(x) i = Constant<value_int = 1>() n = Gather(s, i) f = Cast<to = 1>(n)
        h = Constant<value_float = 0.5>() one = Constant<value_float = 1.0>()
        y = Range(h, f, one)""",
        HIDDEN,
        "seq",
    ),
    "places up to a fraction that is computed from constants": (
        """f = Constant<value_float = 6.0>() h = Constant<value_float = 0.5>() e = Sub(f, h)
        zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>()
        y = Range(zero, e, one)""",
        HIDDEN,
        "6",
    ),
    "every second place downwards": (
        """s = Shape(x) i = Constant<value_int = 1>() n = Gather(s, i) f = Cast<to = 1>(n)
        h = Constant<value_float = 8.5>() down = Constant<value_float = -2.0>()
        y = Range(h, f, down)""",
        HIDDEN,
        "max(((seq // 2) - seq + 5), 0)",
    ),
    "the last rows of a causal table": (
        """p = Shape<start = 1, end = 2>(x) q = Shape<start = 1, end = 2>(z) t = Add(p, q)
        one = Constant<value_ints = [1]>() y = Slice(table, p, t, one)""",
        "float[batch, past] x, float[batch, seq] z, float[1, total] table",
        "1, min((past + seq), total) - min(past, total)",
    ),
    "a table's slice meets what it belongs to": (
        """n = Shape<start = 1, end = 2>(x) z = Constant<value_ints = [0]>()
        m = Slice(table, z, n, one) one = Constant<value_ints = [1]>() y = Add(m, x)""",
        "float[batch, seq] x, float[1, 40] table",
        "batch, seq",
    ),
    "repeated heads by Tile": (
        "r = Constant<value_ints = [1, 3, 1]>() y = Tile(x, r)",
        "float[batch, heads, seq] x",
        "batch, 3*heads, seq",
    ),
    "rows repeated as a OneHot says": (
        repeated_at(0),
        HIDDEN,
        "batch*seq, seq, 48",
    ),
    "columns repeated as a OneHot says, from the end": (
        repeated_at(-1, "<axis = 0>"),
        HIDDEN,
        "batch, seq, 48*seq",
    ),
    "a OneHot without a place repeats nothing": (
        repeated_at(3),
        HIDDEN,
        "batch, seq, 48",
    ),
    "Split on a shape": (
        """s = Shape(x) b, n, h = Split<axis = 0>(s) m = Mul(b, n) t = Concat<axis = 0>(m, h)
        y = Reshape(x, t)""",
        HIDDEN,
        "batch*seq, 48",
    ),
    "ScatterND on a shape": (
        """s = Shape(x) i = Constant<value = int64[1, 1] {2}>() u = Constant<value_ints = [-1]>()
        t = ScatterND(s, i, u) y = Reshape(x, t)""",
        HIDDEN,
        "batch, seq, 48",
    ),
    "a shape padded with ones to a rank": (
        """s = Shape(x) r = Shape(s) four = Constant<value_ints = [4]>() d = Sub(four, r)
        none = Constant<value_ints = [0]>() p = Concat<axis = 0>(d, none)
        one = Constant<value_int = 1>() t = Pad(s, p, one) y = Reshape(x, t)""",
        HIDDEN,
        "1, batch, seq, 48",
    ),
    "ReduceProd, Size and Cast through float": (
        """s = Shape(x) p = ReduceProd<keepdims = 1>(s) f = Cast<to = 11>(p) i = Cast<to = 7>(f)
        y = Reshape(x, i)""",
        HIDDEN,
        "48*batch*seq",
    ),
    "an extent computed from constants in floats": (
        """n = Constant<value_float = 16.0>() h = Constant<value_float = 0.5>() p = Pow(n, h)
        i = Cast<to = 7>(p) a = Constant<value_ints = [0]>() u = Unsqueeze(i, a)
        m = Constant<value_ints = [-1]>() t = Concat<axis = 0>(m, u, u) y = Reshape(x, t)""",
        HIDDEN,
        "3*batch*seq, 4, 4",
    ),
    "Flatten": ("y = Flatten<axis = 2>(x)", HIDDEN, "batch*seq, 48"),
    "every second row": (
        """a = Constant<value_ints = [0]>() e = Constant<value_ints = [9223372036854775807]>()
        ax = Constant<value_ints = [1]>() st = Constant<value_ints = [2]>()
        y = Slice(x, a, e, ax, st)""",
        HIDDEN,
        "batch, ((seq + 1) // 2), 48",
    ),
    "from the second row to an end that no axis has": (
        """a = Constant<value_ints = [1]>() e = Constant<value_ints = [1000000000]>()
        ax = Constant<value_ints = [1]>() y = Slice(x, a, e, ax)""",
        HIDDEN,
        "batch, seq - 1, 48",
    ),
    "the last row": (
        """a = Constant<value_ints = [-1]>() e = Constant<value_ints = [9223372036854775807]>()
        ax = Constant<value_ints = [1]>() y = Slice(x, a, e, ax)""",
        HIDDEN,
        "batch, 1, 48",
    ),
    "windows": (
        """w = Constant<value_ints = [0, -1, 7, 48]>() y = Reshape(x, w)""",
        "float[batch, windows, 7, 48] x",
        "batch, windows, 7, 48",
    ),
    "strided convolution": (
        "y = Conv<strides = [2], kernel_shape = [3], pads = [1, 1]>(x, w)",
        "float[batch, 8, frames] x, float[16, 8, 3] w",
        "batch, 16, ((frames + 1) // 2)",
    ),
    "places of a strided convolution that the graph computes, too": (
        """c = Conv<strides = [2], kernel_shape = [3]>(x, w) p = Transpose<perm = [0, 2, 1]>(c)
        b = Shape<end = 1>(x) heads = Constant<value_ints = [-1, 4]>()
        t = Concat<axis = 0>(b, n, heads) y = Reshape(p, t) """
        + PLACES.format(1),
        "float[batch, 8, frames] x, float[16, 8, 3] w",
        "batch, ((frames + 1) // 2) - 1, 4, 4",
    ),
    "what stands beside the places of a strided convolution": (
        """c = Conv<strides = [2], kernel_shape = [3]>(x, w) zero = Constant<value_int = 0>()
        step = Constant<value_int = 1>() e = Squeeze(n) r = Range(zero, e, step)
        a = Constant<value_ints = [0]>() u = Unsqueeze(r, a) b = Shape<end = 1>(x)
        t = Concat<axis = 0>(b, n) m = Expand(u, t) i = Constant<value_ints = [1]>()
        f = Cast<to = 1>(m) g = Unsqueeze(f, i) y = Add(g, c) """
        + PLACES.format(1),
        "float[batch, 8, frames] x, float[16, 8, 3] w",
        "batch, 16, ((frames + 1) // 2) - 1",
    ),
    "rows that are split by their own extent": (
        """s = Shape(x) z = Constant<value_ints = [0]>() o = Constant<value_ints = [1]>()
        b = Gather(s, z) m = Constant<value_ints = [-1]>() c = Constant<value_ints = [80]>()
        t = Concat<axis = 0>(b, m, c) y = Reshape(x, t)""",
        "float[batch, samples] x",
        "batch, (samples // 80), 80",
    ),
    "einsum over heads": (
        """y = Einsum<equation = "bnd,hde->bhne">(x, w)""",
        "float[batch, seq, 48] x, float[4, 48, 12] w",
        "batch, 4, seq, 12",
    ),
    "an element of a split sequence": (
        """q = SplitToSequence<axis = 2>(x, n) n = Constant<value_int = 16>()
        i = Constant<value_int = -1>() y = SequenceAt(q, i)""",
        HIDDEN,
        "batch, seq, 16",
    ),
}


def sorted_body(body: str) -> str:
    """The statements, each after those that it reads (so that tables above may be short)."""
    statements = re.findall(r"[\w, ]+ = \w+(?:<.*?>)?\([^()]*\)", " ".join(body.split()))
    done: list[str] = []
    made = {name.strip() for s in statements for name in s.split(" = ")[0].split(",")}
    known: set[str] = set()
    while statements:
        for statement in statements:
            reads = {name.strip() for name in statement.rpartition("(")[2].rstrip(")").split(",")}
            if not (reads & made) - known:
                break
        else:
            raise ValueError(f"a cycle in {body}")
        statements.remove(statement)
        known.update(name.strip() for name in statement.split(" = ")[0].split(","))
        done.append(statement.strip())
    return "\n".join(done)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idiom(idiom: str) -> None:
    body, inputs, expected = IDIOMS[idiom]
    assert shape_text(sorted_body(body), inputs) == expected


NEAR_MISSES = {
    "one place more than a strided convolution leaves": (
        """c = Conv<strides = [2], kernel_shape = [3]>(x, w) p = Transpose<perm = [0, 2, 1]>(c)
        b = Shape<end = 1>(x) heads = Constant<value_ints = [-1, 4]>()
        t = Concat<axis = 0>(b, n, heads) y = Reshape(p, t) """
        + PLACES.format(2),
        "float[batch, 8, frames] x, float[16, 8, 3] w",
        (
            "batch, trunc((frames - 3) / 2) + 2, "
            "((4*((frames + 1) // 2) - 4) // (trunc((frames - 3) / 2) + 2)), 4"
        ),
    ),
    "places up to a fraction that an input moves": (
        """h = Constant<value_float = 0.5>() e = Sub(v, h)
        zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>()
        y = Range(zero, e, one)""",
        "float v",
        "?y[0]",
    ),
    "rounding decides how many places there are": (  # in float32 their distance is 2
        """h = Constant<value_float = 0.7>() e = Constant<value_float = 2.7>()
        one = Constant<value_float = 1.0>() y = Range(h, e, one)""",
        HIDDEN,
        "?y[0]",
    ),
    "extents of two names may differ": ("y = Add(x, z)", "float[a] x, float[b] z", "max(a, b)"),
    "one less than a length may be -1 for Expand": (
        """s = Shape<start = 1, end = 2>(x) one = Constant<value_ints = [1]>() w = Sub(s, one)
        a = ConstantOfShape(one) y = Expand(a, w)""",
        HIDDEN,
        "?y[0]",
    ),
    "one less than each of two lengths may be -1 for Reshape": (
        """s = Shape<end = 2>(x) one = Constant<value_ints = [1]>() w = Sub(s, one)
        y = Reshape(v, w)""",
        f"{HIDDEN}, float[m] v",
        "?y[0], ?y[1]",
    ),
    "a length may be what isn't below zero": (
        """one = Constant<value_ints = [1]>() e = Constant<value_ints = [9999999999]>()
        z = Slice(x, one, e, one) i = Constant<value_ints = [1]>() s = Shape(z)
        t = Gather(s, i) m = Constant<value_ints = [0]>() c = Equal(t, m)
        w = Where(c, one, t) a = ConstantOfShape(one) y = Expand(a, w)""",
        HIDDEN,
        "?w{0}",
    ),
    "an unknown element of a shape may be -1": (
        "y = Reshape(x, t)",
        "float[batch, seq] x, int64[2] t",
        "?y[0], ?y[1]",
    ),
    "which axes Squeeze drops depends on the extents": (
        "y = Squeeze(x)",
        "float[batch, 1] x",
        "unknown",
    ),
    "a slice may take less than it says": (
        """a = Constant<value_ints = [0]>() e = Constant<value_ints = [5]>() y = Slice(x, a, e)""",
        "float[n] x",
        "min(5, n)",
    ),
    "an axis may be longer than a long slice": (
        """a = Constant<value_ints = [0]>() e = Constant<value_ints = [999999999]>()
        y = Slice(x, a, e)""",
        "float[n] x",
        "min(999999999, n)",
    ),
    "the sign of a bound is not known": ("y = Slice(x, a, a)", "float[n] x, int64[1] a", "?y[0]"),
    "two counts of non-zeros are two numbers": (
        "p = NonZero(x) q = NonZero(x) y = Concat<axis = 1>(p, q)",
        "float[n] x",
        "1, ?p[1] + ?q[1]",
    ),
    "places of a constant that are not 0 are counted": (
        "c = Constant<value = int64[2, 3] {1, 0, 1, 0, 0, 4}>() y = NonZero(c)",
        "float[n] x",
        "2, 3",
    ),
    "integers are rounded towards zero": (
        """s = Shape(x) three = Constant<value_ints = [3]>() two = Constant<value_ints = [2]>()
        d = Sub(s, three) h = Div(d, two) z = Constant<value_ints = [0]>() r = Max(h, z)
        y = ConstantOfShape(r)""",
        "float[n] x",
        "max(0, trunc((n - 3) / 2))",
    ),
    "float16 does not hold every extent": (
        "s = Shape(x) h = Cast<to = 10>(s) i = Cast<to = 7>(h) y = ConstantOfShape(i)",
        "float[n] x",
        "?i{0}",
    ),
    "a shape of more axes than any tensor has": (
        "k = Constant<value_ints = [4294967296]>() t = ConstantOfShape(k) y = Expand(x, t)",
        "float[n] x",
        "unknown",
    ),
    "a shape padded by reflection": (
        """s = Shape(x) p = Constant<value_ints = [0, 1]>() t = Pad<mode = "reflect">(s, p)
        y = Reshape(x, t)""",
        HIDDEN,
        "?y[0], ?y[1], ?y[2], ?y[3]",
    ),
    "a shape of which a pad cuts": (
        """s = Shape(x) p = Constant<value_ints = [1, -1]>() o = Constant<value_int = 1>()
        t = Pad(s, p, o) y = Reshape(x, t)""",
        HIDDEN,
        "?y[0], ?y[1], ?y[2]",
    ),
    "a shape padded with a number that the run knows": (
        """s = Shape(x) p = Constant<value_ints = [0, 1]>() t = Pad(s, p, n)
        y = ConstantOfShape(t)""",
        "float[batch, seq] x, int64 n",
        "batch, seq, ?n{0}",
    ),
    "heads left to Reshape beside another tensor's extent": (
        """p = AveragePool<kernel_shape = [5], strides = [2]>(u) s = Shape<start = 2>(p)
        b = Shape<end = 1>(x) d = Constant<value_ints = [-1, 12]>()
        t = Concat<axis = 0>(b, s, d) y = Reshape(x, t)""",
        "float[batch, seq, 48] x, float[batch, 48, n] u",
        "batch, ?y[1], ?y[2], 12",
    ),
    "an operator that nobody knows": ("y = strange.Thing(x)", "float[n] x", "unknown"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_nothing_is_claimed_that_may_be_otherwise(case: str) -> None:
    body, inputs, expected = NEAR_MISSES[case]
    assert shape_text(body if "strange" in body else sorted_body(body), inputs) == expected


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("ReorderInput (x)", "B, 6, 4, W"),
        ("ReorderInput <channels_last = 1> (x)", "B, W, 6, 4"),
        ("ReorderOutput <channels = 5> (x)", "B, 5, 4, W"),
        ("ReorderOutput <channels = 5, channels_last = 1> (x)", "B, 4, W, 5"),
    ],
)
def test_blocked_channels_stand_where_the_operator_puts_them(body: str, shape: str) -> None:
    text = f"y = com.microsoft.nchwc.{body}"
    assert shape_text(text, "float[B, 6, 4, W] x") == shape
