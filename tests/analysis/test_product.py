"""Every way to write attention down gives the record of what it means, and computes the same.

`make test` takes a pair of levels of any two factors each at least once; `make product` every
combination of STRENGTH levels of as many factors (3; 9 is the whole product, in which case PART=i/n
takes one part of n).
"""

from __future__ import annotations

import os
from itertools import islice

import pytest

import onnx_fuse
from onnx_fuse.errors import LibraryUnavailable
from tests.analysis.check import check_record, check_results, run
from tests.analysis.samples.forms import FACTORS, LEVELS, Form, all_forms, covering
from tests.analysis.samples.graphs import sample

STRENGTH = int(os.environ.get("ONNX_FUSE_PRODUCT", "0"))
PART, PARTS = map(int, os.environ.get("ONNX_FUSE_PRODUCT_PART", "0/1").split("/"))
PAIRS = covering(2)


def check(form: Form) -> None:
    made = sample(form)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@pytest.mark.parametrize("form", PAIRS, ids=str)
def test_form_gives_the_record_of_what_it_means(form: Form) -> None:
    check(form)


@pytest.mark.parametrize("form", PAIRS[::8], ids=str)
def test_kernel_computes_the_same(form: Form) -> None:
    made = sample(form)
    result = run(made)
    try:
        session = onnx_fuse.session(result.model)
    except LibraryUnavailable:
        pytest.skip("the library is not built")
    check_results(session.run(None, made.feeds), result.expected)


def test_every_level_is_in_the_pairs() -> None:
    found = {(name, level) for form in PAIRS for name, level in vars(form).items()}
    assert found == {(name, level) for name in FACTORS for level in LEVELS[name]}


@pytest.mark.slow
@pytest.mark.skipif(not STRENGTH, reason="make product sets ONNX_FUSE_PRODUCT")
def test_whole_product() -> None:
    forms = all_forms() if len(FACTORS) <= STRENGTH else iter(covering(STRENGTH))
    failed, count = [], 0
    for form in islice(forms, PART, None, PARTS):
        count += 1
        try:
            check(form)
        except Exception as error:
            failed.append(f"{form}: {str(error).strip().splitlines()[:1]}")
    assert not failed, f"{len(failed)} of {count} forms differ:\n" + "\n".join(failed[:50])
