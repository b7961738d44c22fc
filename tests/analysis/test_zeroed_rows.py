"""Rows of the context put to zero: within the block where the scores' own mask shows nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.analysis.meanings import SELECT, Meaning, Write, check_meaning, however_written
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.test_shown_weights import shows, with_output
from tests.analysis.verdicts import ALL, OUT, check_fused

DYNAMIC = Form(dims="dynamic")


def where(asked: Callable[[Writer], str], *, product: bool = False, other: float = 0.0) -> Step:
    """Put rows of the context to a number for which something is not so."""

    def step(w: Writer, context: str) -> str:
        if product:
            return w.b.op("Mul", context, ways.as_number(w, asked(w)))
        return w.b.op("Where", asked(w), context, w.b.scalar(other))

    return step


def zeroed(
    asked: Callable[[Writer], str] = rows.any_kept,
    form: Form = DYNAMIC,
    *,
    fill: float = -1e9,
    product: bool = False,
    behind: Step | None = None,
    other: float = 0.0,
) -> Callable[[], Sample]:
    """A fill by a mask, and rows of the context that are put to zero."""
    chosen = where(asked, product=product, other=other)
    step = chosen if behind is None else each(behind, chosen)
    changed = after("scores", ways.selected(fill)) | after("product", step)
    return lambda: twin(form, **changed)


def any_of_another(w: Writer) -> str:
    """Ask whether another mask shows anything."""
    other = ways.as_number(w, ways.keep_of(w, "other"))
    return w.b.op("Cast", w.b.reduce("ReduceMax", other, -1), to=ways.BOOL)


def kept_lanes(w: Writer) -> str:
    """Ask of each lane."""
    return w.b.const(np.arange(w.value_dim) > 0)


FUSED: dict[str, tuple[Callable[[], Sample], Meaning]] = {
    "chosen": (zeroed(), Meaning(SELECT, 1)),
    "static": (zeroed(form=Form()), Meaning(SELECT, 1)),
    "multiplied": (zeroed(product=True), Meaning(SELECT, 1)),
    "by the sum": (zeroed(rows.some_kept), Meaning(SELECT, 1)),
    "by the least": (zeroed(rows.not_all_hidden), Meaning(SELECT, 1)),
    "behind an infinite fill": (zeroed(fill=-np.inf), Meaning(SELECT, 1)),
    # Zero times what is no number is no number.
    "multiplied behind an infinite fill": (
        zeroed(fill=-np.inf, product=True),
        Meaning(SELECT, 0),
    ),
    "of a softmax that is written out": (
        zeroed(form=Form(dims="dynamic", extra="written_softmax")),
        Meaning(SELECT, 1),
    ),
}
# Their output projection stays outside, and the mask as it is.
IN_PART: dict[str, Callable[[], Sample]] = {
    "of which not all is shown": zeroed(rows.all_kept),
    "of which two are shown": zeroed(lambda w: rows.some_kept(w, number=2.0)),
    "by another mask": zeroed(any_of_another),
    "that are empty, put to one": zeroed(other=1.0),
    "behind a fill that scores reach": zeroed(fill=-7e7),
    "lanes": zeroed(kept_lanes),
}


@however_written(FUSED)
def test_rows_that_show_nothing_are_zero_within_the_block(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()))


@pytest.mark.parametrize("name", FUSED)
def test_the_output_is_projected_within_the_block(name: str) -> None:
    make, meaning = FUSED[name]
    if meaning.zero_nan:  # else rows are no numbers
        check_fused(make(), (*ALL, *SELECT, *OUT))


@pytest.mark.parametrize("name", IN_PART)
def test_other_rows_are_put_to_zero_behind_the_block(name: str) -> None:
    check_fused(IN_PART[name](), (*ALL, *SELECT))


def test_weights_that_are_given_out_are_not_put_to_zero() -> None:
    changed = after("scores", ways.selected(-1e9)) | after("product", where(rows.any_kept))
    check_fused(shows(form=DYNAMIC, **changed), (*ALL, *SELECT))


def test_a_context_that_is_given_out_is_not_put_to_zero() -> None:
    shown: list[str] = []

    def step(w: Writer, context: str) -> str:
        shown.append(context)
        return where(rows.any_kept)(w, context)

    make = twin(DYNAMIC, **after("scores", ways.selected(-1e9)), **after("product", step))
    check_fused(with_output(make, shown), (*ALL, *SELECT))


def test_rows_that_nothing_projects_are_put_to_zero_behind_the_block() -> None:
    form = Form(dims="dynamic", extra="no_output")
    check_fused(zeroed(form=form)(), (*ALL, *SELECT))
