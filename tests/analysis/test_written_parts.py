"""Parts of the scores that are written back by an index for each axis: fused, or why not."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT, Meaning, check_meaning
from tests.analysis.samples import part_twins as parts
from tests.analysis.samples import steps
from tests.analysis.samples.edit_twins import halved
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step, after, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.verdicts import check_declined

FORMS = {"static": Form(), "dynamic": Form(dims="dynamic")}
MORE = steps.binary("Add", 1.5)
KNOWN = (BATCH, 1, ROWS - 1, ROWS - 1)
NAMED = ("B", 1, "rest", "rest")


def _more_in_double(w: Writer, part: str) -> str:
    return w.b.op("Add", part, w.b.const(1.5, np.float64))


FUSED: dict[str, tuple[Step, tuple[str, ...]]] = {
    "a number added to later rows and columns": (parts.part_edited(MORE), BIAS),
    "a number added, written twice": (parts.part_edited(MORE, is_twice=True), BIAS),
    "a number added to later columns": (parts.part_edited(MORE, starts=(0, 0, 0, 2)), BIAS),
    "a number added to later heads": (parts.part_edited(MORE, starts=(0, 1, 0, 0)), BIAS),
    "a number added to the last row": (parts.row_edited(MORE), BIAS),
    "a number added to the last row, written twice": (
        parts.row_edited(MORE, is_twice=True),
        BIAS,
    ),
    "a number added to the second row": (parts.row_edited(MORE, row=1, back=1), BIAS),
    "a number written by a mask": (parts.part_edited(parts.chosen(-7.0)), SELECT),
    "a number written in double precision": (
        parts.part_edited(parts.in_double(parts.chosen(-7.0, np.float64))),
        SELECT,
    ),
    "two numbers written": (
        parts.part_edited(each(parts.chosen(-7.0), parts.chosen(-8.0))),
        SELECT,
    ),
    "a number added, then one written": (
        parts.part_edited(each(MORE, parts.chosen(-7.0))),
        (*BIAS, *SELECT),
    ),
    "a number written, then one added": (
        parts.part_edited(each(parts.chosen(-7.0), MORE)),
        (*BIAS, *SELECT),
    ),
    "a number added to later rows, then to the last one": (
        each(parts.part_edited(MORE), parts.row_edited(MORE)),
        BIAS,
    ),
}
GIVEN: dict[str, tuple[Step, Step, tuple[str, ...]]] = {
    "an input added": (parts.given_added(*KNOWN), parts.given_added(*NAMED), BIAS),
    "an input to which a part is added": (
        parts.given_added(*KNOWN, is_turned=True),
        parts.given_added(*NAMED, is_turned=True),
        BIAS,
    ),
    "an input taken off": (
        parts.given_added(*KNOWN, op="Sub"),
        parts.given_added(*NAMED, op="Sub"),
        BIAS,
    ),
    "a number written where an input doesn't say": (
        parts.given_chosen(*KNOWN),
        parts.given_chosen(*NAMED),
        SELECT,
    ),
    "a number written where an input says": (
        parts.given_chosen(*KNOWN, is_turned=True),
        parts.given_chosen(*NAMED, is_turned=True),
        SELECT,
    ),
}
DECLINED: dict[str, Step] = {
    "later rows and columns exchanged": parts.part_edited(MORE, axes=(0, 1, 3, 2)),
    "later rows written from the first on": parts.part_edited(
        MORE, starts=(0, 0, 1, 0), back=(0, 0, 0, 0)
    ),
    "the last row written to the first": parts.row_edited(MORE, back=0),
    "the first row written to the last": parts.row_edited(MORE, row=0),
    "the last row written to the last but one": parts.row_edited(MORE, back=-2),
    "a part halved": parts.part_edited(halved),
    "numbers written by the scores themselves": parts.part_edited(parts.chosen_by_themselves),
    "numbers of their own written": parts.part_edited(parts.chosen_of_table),
    "a row that is repeated": parts.row_repeated,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=[*FORMS])
@pytest.mark.parametrize("name", FUSED)
def test_a_part_written_back_is_fused(name: str, form: Form) -> None:
    step, meaning = FUSED[name]
    check_meaning(Meaning(meaning), twin(form, **after("scores", step)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GIVEN)
def test_a_part_edited_by_an_input_is_fused(name: str, form: str) -> None:
    known, named, meaning = GIVEN[name]
    step = parts.part_edited(known if form == "static" else named, is_twice=True)
    check_meaning(Meaning(meaning), twin(FORMS[form], **after("scores", step)))


@pytest.mark.parametrize("form", FORMS.values(), ids=[*FORMS])
@pytest.mark.parametrize("name", DECLINED)
def test_a_part_that_moves_or_changes_is_declined(name: str, form: Form) -> None:
    made = after("scores", DECLINED[name])
    check_declined(lambda: twin(form, **made), Code.CONTENT_BIAS)


def test_what_is_added_in_another_type_is_no_bias_of_the_scores() -> None:
    edited = parts.part_edited(parts.in_double(_more_in_double))
    check_declined(lambda: twin(FORMS["dynamic"], **after("scores", edited)), Code.CONTENT_BIAS)
