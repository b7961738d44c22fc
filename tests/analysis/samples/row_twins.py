"""Rows that show nothing or are put to zero, asked for in all ways, and what only looks so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operators import name_extents
from tests.analysis.samples.twins import Step
from tests.analysis.samples.weight_twins import (
    BATCH,
    BOOL,
    ROWS,
    as_number,
    keep_of,
    masked_twice,
    selected,
    selected_where_hidden,
    tri_without_rows,
)

Asked = Callable[[Writer, str], str]  # writes what is asked of scores


def reduced_bool(w: Writer, op_type: str, condition: str) -> str:
    """Reduce zeros and ones over the columns, and compare with 0."""
    return w.b.op("Cast", w.b.reduce(op_type, as_number(w, condition), -1), to=BOOL)


def any_kept(w: Writer) -> str:
    """Ask whether a mask shows anything, by the largest."""
    return reduced_bool(w, "ReduceMax", keep_of(w))


def some_kept(w: Writer, number: float = 0.0) -> str:
    """Ask whether a mask shows anything (or more than a number), by the sum."""
    count = w.b.reduce("ReduceSum", as_number(w, keep_of(w)), -1)
    return w.b.op("Greater", count, w.b.scalar(number))


def not_all_hidden(w: Writer) -> str:
    """Ask whether a mask hides not everything, by the least."""
    hidden = w.b.op("Not", keep_of(w))
    return w.b.op("Not", reduced_bool(w, "ReduceMin", hidden))


def all_kept(w: Writer) -> str:
    """Ask whether a mask shows everything."""
    return reduced_bool(w, "ReduceMin", keep_of(w))


def any_kept_below_zero(w: Writer) -> str:
    """Ask whether the largest of -1 where a mask shows, and of 0 elsewhere, isn't 0."""
    return w.b.op(
        "Cast", w.b.reduce("ReduceMax", w.b.op("Neg", as_number(w, keep_of(w))), -1), to=BOOL
    )


def any_kept_of_columns(w: Writer) -> str:
    """Ask whether a mask shows anything of a column."""
    column = w.b.reduce("ReduceMax", as_number(w, keep_of(w)), 0)
    return w.b.op("Cast", w.b.transpose(column, 1, 0), to=BOOL)


def any_kept_of_rows(w: Writer) -> str:
    """Ask the same, and leave the column where it stands."""
    return w.b.op("Cast", w.b.reduce("ReduceMax", as_number(w, keep_of(w)), 0), to=BOOL)


def zeroed_where_empty(w: Writer, weights: str) -> str:
    """Put to zero the rows of which a mask shows nothing."""
    return w.b.op("Where", any_kept(w), weights, w.b.scalar(0.0))


def rows_where(
    asked: Callable[[Writer], str],
    *,
    fill: float = -np.inf,
    product: bool = False,
    turned: bool = False,
) -> dict[str, Step]:
    """Fill by a mask, and put to zero behind the softmax the rows for which something is not so.

    turned: choose the fill where the mask hides, not the scores where it shows.
    """

    def behind(w: Writer, weights: str) -> str:
        if product:
            return w.b.op("Mul", weights, as_number(w, asked(w)))
        return w.b.op("Where", asked(w), weights, w.b.scalar(0.0))

    return masked_twice(selected_where_hidden(fill) if turned else selected(fill), behind)


def rows_of_bias(
    number: float = -np.inf,
    *,
    reads: str = "bias",
    columns: str = "",
    axis: int = -1,
    op_type: str = "Add",
) -> dict[str, Step]:
    """Add a bias of -inf, and put to zero the rows whose largest bias (or score) is that number."""
    made: dict[str, str] = {}

    def before(w: Writer, scores: str) -> str:
        hidden = np.where(tri_without_rows(1), 0, -np.inf).astype(np.float32)
        w.b.input("bias", hidden, ("S", "S"))
        if columns:
            w.b.inputs[-1].type.tensor_type.shape.dim[-1].dim_param = columns
        made["bias"], made["scores"] = "bias", w.b.op(op_type, scores, "bias")
        made["other"] = scores
        return made["scores"]

    def behind(w: Writer, weights: str) -> str:
        peak = w.b.reduce("ReduceMax", made[reads], axis)
        empty = w.b.op("Equal", peak, w.b.scalar(number))
        zero = w.b.op("CastLike", w.b.const(0, np.int32), weights)
        return w.b.op("Where", empty, zero, weights)

    return masked_twice(before, behind)


def safe_softmax(w: Writer, scores: str) -> str:
    """Zero for rows of which each score is -inf."""
    return _zero_where_hidden(w, scores, w.b.op("Softmax", scores, axis=-1))


def safe_softmax_written(*, asks_shifted: bool) -> Step:
    """The same, written out; or ask the scores less their largest, where such rows are NaN."""

    def step(w: Writer, scores: str) -> str:
        shifted = w.b.op("Sub", scores, w.b.reduce("ReduceMax", scores, -1))
        power = w.b.op("Exp", shifted)
        weights = w.b.op("Div", power, w.b.reduce("ReduceSum", power, -1))
        return _zero_where_hidden(w, shifted if asks_shifted else scores, weights)

    return step


def _zero_where_hidden(w: Writer, scores: str, weights: str) -> str:
    hidden = w.b.op("Equal", scores, w.b.scalar(-np.inf))
    empty = w.b.op("Not", reduced_bool(w, "ReduceMax", w.b.op("Not", hidden)))
    return w.b.op("Where", empty, w.b.scalar(0.0), weights)


def any_hidden(w: Writer) -> str:
    """Ask whether a mask hides anything."""
    return reduced_bool(w, "ReduceMax", w.b.op("Not", keep_of(w)))


def rows_zeroed(*dims: str | int) -> Step:
    """Put whole rows (or what else these axes are) to zero, whatever the scores were."""

    def step(w: Writer, weights: str) -> str:
        shape = [SIZES[dim] if isinstance(dim, str) else dim for dim in dims]
        rows = w.b.input("rows", w.rng.uniform(size=shape) < 1 / 2, dims)
        return w.b.op("Mul", weights, as_number(w, rows))

    return step


def zero_where(asked: Asked) -> Step:
    """Zero for rows of which each score is what is asked for."""

    def step(w: Writer, scores: str) -> str:
        empty = reduced_bool(w, "ReduceMin", asked(w, scores))
        return w.b.op("Where", empty, w.b.scalar(0.0), w.b.op("Softmax", scores, axis=-1))

    return step


def both(first: str, second: str, *, of: str = "Identity") -> Asked:
    """Whether two comparisons hold, the first with zero, the second of what an operator makes."""

    def asked(w: Writer, scores: str) -> str:
        zero, other = w.b.scalar(0.0), w.b.op(of, scores)
        compared = (other,) if second == "IsInf" else (other, zero)
        return w.b.op("And", w.b.op(first, scores, zero), w.b.op(second, *compared))

    return asked


def infinite(**signs: int) -> Asked:
    """Whether scores are infinite, by the signs that are asked for."""
    return lambda w, scores: w.b.op("IsInf", scores, **signs)


def equal_to_lowest(w: Writer, scores: str) -> str:
    """Whether minus infinity equals scores."""
    return w.b.op("Equal", w.b.scalar(-np.inf), scores)


def not_below_lowest(w: Writer, scores: str) -> str:
    """Whether minus infinity isn't greater than scores, which it never is."""
    return w.b.op("Not", w.b.op("Greater", w.b.scalar(-np.inf), scores))


def divided_by_kept(w: Writer, scores: str) -> str:
    """Divide by 1 where a mask shows, by 0 elsewhere."""
    return w.b.op("Div", scores, as_number(w, keep_of(w)))


def zeroed_where(hidden: Array) -> Step:
    """Put to zero what a constant of bool says."""

    def step(w: Writer, weights: str) -> str:
        return w.b.op("Where", w.b.const(hidden, bool), w.b.scalar(0.0), weights)

    return step


def kept_where(shown: Array) -> Step:
    """Keep what a constant of bool says, and put all else to zero."""
    return lambda w, weights: w.b.op("Where", w.b.const(shown, bool), weights, w.b.scalar(0.0))


def filled_like_scores(fill: float, *, computed: bool = False) -> Step:
    """Hide by a number that takes its type off the scores, or by one that is computed from them."""

    def step(w: Writer, scores: str) -> str:
        number = w.b.const(fill, np.float64)
        if computed:
            least = w.b.reduce("ReduceMin", scores, -1)
            number = w.b.op("Add", w.b.op("Cast", least, to=onnx.TensorProto.DOUBLE), number)
        return w.b.op("Where", keep_of(w), scores, w.b.op("CastLike", number, scores))

    return step


def expanded(*dims: str | int) -> Step:
    """Expand the weights to a shape."""
    return lambda w, weights: w.b.op("Expand", weights, w.b.shape(dims))


def expanded_like_another(w: Writer, weights: str) -> str:
    """Expand the weights to another input's shape, whose columns have a name of their own."""
    name_extents(w, M=ROWS)
    dims = ("B", NUM_HEADS, "S", "M")
    like = w.b.input("like", w.random(BATCH, NUM_HEADS, ROWS, ROWS), dims)
    return w.b.op("Expand", weights, w.b.op("Shape", like))
