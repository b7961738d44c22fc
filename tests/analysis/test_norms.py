"""Norms of queries and keys: which are taken, and beside them those that stay outside."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

import onnx_fuse
from tests.analysis.samples import norm_twins, steps
from tests.analysis.samples.forms import HEAD_DIM, Form
from tests.analysis.samples.twins import ROWS, on, twin
from tests.analysis.verdicts import ALL, KEY, OUT, QUERY, Make, check_fused, operands

TAKEN = (*ALL, "k_norm_weight", *OUT)

# The operands that the block has: those of its norms, or the query or key as a value.
NORMS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "key of length one": (
        lambda: twin(**on("k", "normed", steps.unary("LpNormalization", p=2))),
        TAKEN,
    ),
    "key of length one, or 0": (
        lambda: twin(**on("k", "normed", norm_twins.unit_or_nothing)),
        (*KEY[:-2], "k_norm_weight", *OUT),
    ),
    **{
        f"key by the root of a sum, {what}": (partial(twin, **on("k", "normed", step)), found)
        for what, step, found in (
            ("of its squares", norm_twins.of_sum(), TAKEN),
            ("of squares by one operator", norm_twins.of_sum_of_squares, TAKEN),
            ("of squares of what is centred", norm_twins.of_sum(centred=-1), TAKEN),
            (
                "of squares of what is centred by rows",
                norm_twins.of_sum(centred=1),
                (*KEY[:-2], "k_norm_weight", *OUT),
            ),
            ("of squares over positions", norm_twins.of_sum(axis=1), KEY),
            ("of fourth powers", norm_twins.of_sum(power=4.0), KEY),
            ("of its squares, as a power", norm_twins.of_sum(root=0.5), TAKEN),
            ("of its squares, the fourth one", norm_twins.of_sum(root=0.25), KEY),
        )
    },
    "key whose numbers' sum is one": (
        lambda: twin(**on("k", "normed", steps.unary("LpNormalization", p=1))),
        KEY,
    ),
    "key of length one over positions": (
        lambda: twin(**on("k", "normed", steps.unary("LpNormalization", p=2, axis=1))),
        KEY,
    ),
    "key norm bounded by two numbers": (
        lambda: twin(**on("k", "normed", norm_twins.norm_bounded_by_two)),
        KEY,
    ),
    "query norm behind the rotation": (
        lambda: twin(Form(rope="half"), **on("q", "rotated", norm_twins.norm_along(-1))),
        (*ALL, "q_norm_weight", "q_cos", "q_sin", "k_cos", "k_sin", *OUT),
    ),
    "key norm of a weight that isn't finite": (
        lambda: twin(**on("k", "normed", norm_twins.weighted_by(np.inf))),
        KEY,
    ),
    "key norm of a weight that is finite": (
        lambda: twin(**on("k", "normed", norm_twins.weighted_by(0.0))),
        TAKEN,
    ),
    "key norm of a weight of ones for all elements": (
        lambda: twin(**on("k", "normed", norm_twins.weighted_alike(1.0))),
        TAKEN,
    ),
    "key norm of a weight of halves for all elements": (
        lambda: twin(**on("k", "normed", norm_twins.weighted_alike(0.5))),
        TAKEN,
    ),
    "key norm clipped to a half": (
        lambda: twin(**on("k", "normed", norm_twins.norm_bounded_above)),
        KEY,
    ),
    "key norm by moments that have a bound": (
        lambda: twin(**on("k", "normed", norm_twins.variance_bounded_by(9.0))),
        KEY,
    ),
    "key norm by moments that are no less than 0": (
        lambda: twin(**on("k", "normed", norm_twins.variance_bounded_by(0.0))),
        TAKEN,
    ),
    "key norm by moments clipped from 0": (
        lambda: twin(**on("k", "normed", norm_twins.variance_bounded_by(0.0, op="Clip"))),
        TAKEN,
    ),
    "key norm by moments clipped to less than 9": (
        lambda: twin(**on("k", "normed", norm_twins.variance_bounded_by(0.0, 9.0, op="Clip"))),
        KEY,
    ),
    "key norm by moments bounded by two numbers": (
        lambda: twin(**on("k", "normed", norm_twins.variance_bounded_by(0.0, 9.0))),
        KEY,
    ),
    **{
        f"key norm by sums over their number, {what}": (
            partial(twin, **on("k", "normed", norm_twins.by_sums(**options))),
            TAKEN,
        )
        for what, options in (
            ("divided", {}),
            ("multiplied", {"by": "Mul"}),
            ("of squares made before", {"squares": "ReduceSum"}),
            ("without a bound", {"bound": None}),
            ("less the mean's square", {"negated": True}),
            ("chosen by a constant", {"chosen": True}),
        )
    },
    **{
        f"key norm by sums over their number, {what}": (
            partial(twin, **on("k", "normed", norm_twins.by_sums(**options))),
            KEY,
        )
        for what, options in (
            ("but for the mean", {"counts": (HEAD_DIM - 1, HEAD_DIM)}),
            ("but for the squares", {"counts": (HEAD_DIM, HEAD_DIM - 1)}),
            ("bounded above", {"bound": (0.0, 0.5)}),
            ("bounded by one", {"bound": (1.0,)}),
            ("chosen to be no number", {"chosen": False}),
        )
    },
    **{
        f"key norm by a {op_type} and a {by}": (
            partial(twin, **on("k", "normed", norm_twins.rms_by_sum(op_type, by=by))),
            TAKEN,
        )
        for op_type in ("ReduceSum", "ReduceSumSquare")
        for by in ("Div", "Mul")
    },
    "key norm by a sum over the wrong number": (
        lambda: twin(**on("k", "normed", norm_twins.rms_by_sum("ReduceSum", count=HEAD_DIM - 1))),
        KEY,
    ),
    "key norm by a number over the sum": (
        lambda: twin(**on("k", "normed", norm_twins.rms_by_sum("ReduceSum", by="over"))),
        KEY,
    ),
    "key norm in float64": (
        lambda: twin(**on("k", "normed", norm_twins.in_wider_type)),
        TAKEN,
    ),
    "norm in float64 of a rectified key": (
        lambda: twin(
            **on(
                "k",
                "normed",
                lambda w, x: norm_twins.in_wider_type(w, w.b.op("Relu", x)),
            )
        ),
        (*KEY[:-2], "k_norm_weight", *OUT),
    ),
    "key norm in float64, in whole numbers": (
        lambda: twin(
            **on("k", "normed", partial(norm_twins.in_wider_type, back=onnx.TensorProto.INT32))
        ),
        KEY,
    ),
    "key norm, as one operator, of what is centred": (
        lambda: twin(**on("k", "normed", norm_twins.centred_before(-1))),
        TAKEN,
    ),
    **{
        f"key norm, as one operator, {what}": (
            partial(twin, **on("k", "normed", norm_twins.centred_before(axis, factor=factor))),
            (*KEY[:-2], "k_norm_weight", *OUT),
        )
        for what, axis, factor in (
            ("of rows that are centred", 1, 1.0),
            ("of what is centred in part", -1, 0.5),
        )
    },
    "key norm of two differences": (
        lambda: twin(**on("k", "normed", norm_twins.centred_apart())),
        TAKEN,
    ),
    **{
        f"key norm of two differences, {what}": (
            partial(twin, **on("k", "normed", norm_twins.centred_apart(**options))),
            KEY,
        )
        for what, options in (
            ("one from a mean of rows", {"above": 1}),
            ("the other from a mean of rows", {"below": 1}),
            ("one of which is none", {"above": None}),
            ("the other of which is none", {"below": None}),
            ("of different numbers", {"factor": 2.0}),
        )
    },
    **{
        f"key norm centred behind its factor, {what}": (
            partial(twin, **on("k", "normed", norm_twins.centred_behind(way, **options))),
            (*ALL, "k_norm_weight", *shift, *OUT),
        )
        for what, way, options, shift in (
            ("plain", "less", {}, ()),
            ("by a negated mean", "negated", {}, ()),
            ("shifted", "shifted", {}, ("k_norm_bias",)),
            ("without a weight", "less", {"weighs": False}, ()),
        )
    },
    **{
        f"key norm centred behind its factor, {what}": (
            partial(twin, **on("k", "normed", norm_twins.centred_behind(way, **options))),
            KEY,
        )
        for what, way, options in (
            ("by a mean of rows", "less", {"mean": 1}),
            ("by a variance of rows", "less", {"square": 1}),
            ("by a variance around a mean of rows", "less", {"centre": 1}),
            ("by another factor", "less", {"factor": 2.0}),
            ("the mean added", "more", {}),
            ("taken from the mean", "taken from", {}),
        )
    },
    "key by the inverse root of its square": (
        lambda: twin(**on("k", "normed", norm_twins.by_power_of_square(-0.5, least=HEAD_DIM))),
        TAKEN,
    ),
    "key by the inverse root of a square that is never below 0": (
        lambda: twin(**on("k", "normed", norm_twins.by_power_of_square(-0.5, least=-1.0))),
        TAKEN,
    ),
    "key by the inverse root of its square and more": (
        lambda: twin(**on("k", "normed", norm_twins.by_power_of_square(-0.5, plus=1.0))),
        KEY,
    ),
    **{
        f"key by {what} of its mean square": (
            partial(twin, **on("k", "normed", norm_twins.by_inverse_root(inverse))),
            TAKEN if is_norm else KEY,
        )
        for what, inverse, is_norm in (
            ("one over the root", norm_twins.over_root(1.0), True),
            ("two over the root", norm_twins.over_root(2.0), False),
            ("the inverse root", norm_twins.power(-0.5), True),
            ("the inverse third root", norm_twins.power(-1 / 3), False),
        )
    },
    **{
        f"key by the inverse of its length, {what}": (
            partial(twin, **on("k", "normed", norm_twins.by_bounded_inverse(bound, **options))),
            TAKEN if is_norm else KEY,
        )
        for what, bound, options, is_norm in (
            ("no more than a large number", norm_twins.bounded("Min", 1e7), {}, True),
            ("no more than a small number", norm_twins.bounded("Min", 0.3), {}, True),
            ("clipped from 0", norm_twins.bounded("Clip", 0.0, 0.3), {}, True),
            ("clipped from more", norm_twins.bounded("Clip", 0.2, 0.3), {}, False),
            ("no more than a number below 0", norm_twins.bounded("Min", -0.3), {}, False),
            ("no more than two numbers", norm_twins.bounded("Min", 0.3, 0.2), {}, False),
            ("no more than an input", norm_twins.bounded_at_run_time, {}, False),
            ("no less", norm_twins.bounded("Max", 0.3), {}, False),
            ("to which something is added", norm_twins.bounded("Min", 0.3), {"plus": 1.0}, False),
            (
                "if it is the root of a mean",
                norm_twins.bounded("Min", 0.9),
                {"plus": 1e-5, "over": "ReduceMean"},
                False,
            ),
        )
    },
    "key by the inverse square": (
        lambda: twin(**on("k", "normed", norm_twins.by_power_of_square(-1.0, least=HEAD_DIM))),
        KEY,
    ),
    "key by the root of its square": (
        lambda: twin(**on("k", "normed", norm_twins.by_power_of_square(0.5, least=HEAD_DIM))),
        KEY,
    ),
    "query norm over positions": (
        lambda: twin(**on("q", "normed", norm_twins.norm_along(1))),
        QUERY,
    ),
    "query norm over heads alone": (
        lambda: twin(**on("q", "normed", norm_twins.norm_along(2))),
        QUERY,
    ),
    "key norm over batches": (lambda: twin(**on("k", "normed", norm_twins.norm_along(0))), KEY),
    "key norm over batches and depth": (
        lambda: twin(Form(heads="gqa_expand"), **on("k", "normed", norm_twins.norm_along(0, 3))),
        KEY,
    ),
    "key norm of fourth powers": (
        lambda: twin(**on("k", "normed", norm_twins.quartic_norm)),
        KEY,
    ),
    "key norm by another tensor": (
        lambda: twin(**on("k", "normed", norm_twins.lopsided_norm)),
        KEY,
    ),
    "key norm by another's moments": (
        lambda: twin(**on("k", "normed", norm_twins.moments_of_two)),
        KEY,
    ),
    "key norm by other heads": (lambda: twin(**on("k", "normed", norm_twins.turned_norm)), KEY),
    "key norm by mixed squares": (
        lambda: twin(**on("k", "normed", norm_twins.mixed_square_norm)),
        KEY,
    ),
    "key centred over positions": (
        lambda: twin(**on("k", "normed", norm_twins.shifted_mean_norm)),
        (*KEY[:-2], "k_norm_weight", *OUT),
    ),
    "key norm of rounded numbers": (
        lambda: twin(**on("k", "normed", norm_twins.rounding_norm)),
        KEY,
    ),
    "key norm bounded above": (norm_twins.old_clip, KEY),
    "query norm scaled by position, rotated": (
        lambda: twin(Form(norm="rms", rope="half"), **on("q", "normed", steps.times(ROWS, 1, 1))),
        (*QUERY[:-2], "k_norm_weight", "k_cos", "k_sin", *OUT),
    ),
    "query norm shifted": (
        lambda: twin(Form(norm="rms"), **on("q", "normed", steps.plus(HEAD_DIM))),
        (*QUERY[:-2], "k_norm_weight", *OUT),
    ),
    "key norm by moments of two axes": (
        lambda: twin(**on("k", "normed", norm_twins.moments_of_two_axes)),
        KEY,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_is_taken_where_it_is_one(name: str) -> None:
    make, expected = NORMS[name]
    check_fused(make(), expected)


@pytest.mark.parametrize("op_type", ["RMSNormalization", "LayerNormalization", "LpNormalization"])
def test_norm_of_another_domain_stays_outside(op_type: str) -> None:
    sample = norm_twins.norm_of_another_domain(op_type)
    assert operands(onnx_fuse.fuse(sample.model, threshold=None).model) == [KEY]
