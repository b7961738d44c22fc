"""Scores of which parts are edited, written back or joined again: what is fused, and what not."""

from __future__ import annotations

import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT, Meaning, check_meaning
from tests.analysis.samples import edit_twins as edits
from tests.analysis.samples import steps
from tests.analysis.samples.forms import Form
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.verdicts import check_declined

DYNAMIC = Form(dims="dynamic")

FUSED: dict[str, tuple[Step, tuple[str, ...]]] = {
    "columns written, then the largest taken off": (
        each(edits.columns_written(-7.0), edits.shifted),
        SELECT,
    ),
    "a head biased and written back": (edits.head_biased(), BIAS),
    "a head biased by a table that stands first and written back": (
        edits.head_biased(is_turned=True),
        BIAS,
    ),
    "a table taken off a head and written back": (edits.head_biased("Sub"), BIAS),
    "a head biased by an input and written back": (edits.head_biased(is_input=True), BIAS),
    "rows of a head biased and written back": (edits.head_biased(rows=(0, 3)), BIAS),
    "a head biased and written back twice": (edits.head_biased(is_twice=True), BIAS),
    "a head biased, columns written, and written back": (
        edits.head_biased(is_written=True),
        (*BIAS, *SELECT),
    ),
    "a head biased, columns written, and written back twice": (
        edits.head_biased(is_written=True, is_twice=True),
        (*BIAS, *SELECT),
    ),
    "heads biased by a number each, joined again": (
        edits.joined(steps.binary("Add", 1.0), steps.binary("Add", 2.0)),
        BIAS,
    ),
    "heads biased by a number each behind the rows, joined again": (
        edits.exchanged(
            1, 2, edits.joined(steps.binary("Add", 1.0), steps.binary("Add", 2.0), axis=2)
        ),
        BIAS,
    ),
    "heads biased behind the rows, joined again": (
        edits.exchanged(1, 2, edits.joined(edits.biased(5, 1, 5), edits.biased(5, 3, 5), axis=2)),
        BIAS,
    ),
    "a head biased where it is turned, joined again": (
        edits.joined(edits.exchanged(2, 3, edits.biased(5, 5)), None),
        BIAS,
    ),
}
DECLINED: dict[str, tuple[Form, Step, Code]] = {
    "the largest taken off, then columns written": (
        Form(),
        each(edits.shifted, edits.columns_written(-7.0)),
        Code.CONTENT_BIAS,
    ),
    "a head written back above zero": (
        Form(),
        edits.nested(-7.0, changed=steps.binary("Max", 0.0)),
        Code.CONTENT_BIAS,
    ),
    "a head biased and written to another": (
        Form(),
        edits.head_biased(back=2),
        Code.CONTENT_BIAS,
    ),
    "a head biased and written to another twice": (
        Form(),
        edits.head_biased(back=2, is_twice=True),
        Code.CONTENT_BIAS,
    ),
    "rows of a head biased and written one row before": (
        Form(),
        edits.head_biased(rows=(1, 4)),
        Code.CONTENT_BIAS,
    ),
    "a head taken off a table and written back": (
        Form(),
        edits.head_biased("Sub", is_turned=True),
        Code.CONTENT_BIAS,
    ),
    "a head times a table and written back": (Form(), edits.head_biased("Mul"), Code.CONTENT_BIAS),
    **{
        f"heads {what}": (DYNAMIC, edits.heads_biased(**options), Code.CONTENT_BIAS)
        for what, options in (
            ("biased and written to others", {"back": (1, 3)}),
            ("biased and written in the opposite order", {"back": (2, 0)}),
            (
                "biased and written to each other",
                {"at": (0, 1), "back": (0, 1, 3, 2), "dims": (4, 1, 1)},
            ),
            (
                "biased, none of them, and written back",
                {"at": (9, 1), "back": (), "dims": (1,)},
            ),
            ("biased and written to the first ones", {"back": (0, 1)}),
            ("taken off a table and written back", {"op": "Sub", "is_turned": True}),
            ("times a table and written back", {"op": "Mul"}),
            ("biased by their own mean and written back", {"by_query": True}),
            ("biased by a table of one extent and written back", {"dims": (5, 5)}),
        )
    },
    "a number added to columns of a head": (
        Form(),
        edits.nested(-7.0, reduction="add"),
        Code.CONTENT_BIAS,
    ),
    "a head that an input chooses": (
        Form(),
        edits.nested(-7.0, is_given=True),
        Code.CONTENT_BIAS,
    ),
    "a number added to columns of rows": (
        DYNAMIC,
        edits.rows_edited(-7.0, -7.0, reduction="add"),
        Code.CONTENT_BIAS,
    ),
    "rows written back one before, counted from below zero": (
        DYNAMIC,
        edits.rows_edited(-7.0, -7.0, counted=(-1, 1)),
        Code.CONTENT_BIAS,
    ),
    "rows written back in the opposite order": (
        DYNAMIC,
        edits.rows_edited(-7.0, -7.0, counted=(0, -1)),
        Code.CONTENT_BIAS,
    ),
    # The meaning is the same, but what is written where has no operator of its own.
    "rows written back that labels leave as they are": (
        DYNAMIC,
        edits.rows_edited(-7.0, -7.0, changed=edits.by_labels),
        Code.CONTENT_BIAS,
    ),
}


BIASED: dict[str, Step] = {
    "every other head biased and written back": edits.heads_biased(),
    "heads biased by a table that stands first": edits.heads_biased(is_turned=True),
    "a table taken off heads": edits.heads_biased("Sub"),
    "a head biased": edits.heads_biased(at=(2, 9), back=(2,), dims=(1,)),
}


@pytest.mark.parametrize("form", [Form(), DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", BIASED)
def test_what_is_added_in_place_is_a_bias(name: str, form: Form) -> None:
    check_meaning(Meaning(BIAS), twin(form, **after("scores", BIASED[name])))


@pytest.mark.parametrize(
    ("step", "meaning"),
    [
        (edits.rows_edited(-7.0, -8.0), SELECT),
        (edits.heads_biased(is_written=True), (*BIAS, *SELECT)),
        (edits.rows_edited(-7.0, -7.0, changed=edits.in_parts), SELECT),
    ],
    ids=[
        "rows written by two numbers",
        "heads biased, rewritten in part and written back",
        "rows of which nothing is cut off",
    ],
)
@pytest.mark.parametrize("form", [Form(), DYNAMIC], ids=["static", "dynamic"])
def test_several_edits_are_read_at_once(step: Step, meaning: tuple[str, ...], form: Form) -> None:
    check_meaning(Meaning(meaning), twin(form, **after("scores", step)))


@pytest.mark.parametrize("name", FUSED)
def test_edited_scores_are_fused_with_their_meaning(name: str) -> None:
    step, meaning = FUSED[name]
    check_meaning(Meaning(meaning), twin(**after("scores", step)))


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_nearly_an_edit_is_declined(name: str) -> None:
    form, step, code = DECLINED[name]
    check_declined(lambda: twin(form, **after("scores", step)), code)
