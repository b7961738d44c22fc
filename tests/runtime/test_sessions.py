"""Sessions give their memory back: verification opens one after the other."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from onnx_fuse.runtime.cases import Case, find_cases
from onnx_fuse.runtime.inputs import InputMaker
from onnx_fuse.runtime.sessions import open_session, open_source, run
from tests.runtime.models import parse

PAIRS = """g (float[1, n, 4] x) => (float y) {
    s = Constant <value_ints = [-1, 2, 4]> () y = Reshape (x, s) }"""


def test_outputs_have_memory_of_their_own() -> None:
    session = open_session(open_source(parse(PAIRS), "pairs"))
    (made,) = run(session, {"x": np.ones((1, 6, 4), np.float32)})
    assert made.flags.owndata


def cases_of(kept: list[weakref.ref[Any]]) -> list[tuple[Case, list[Any]]]:
    """Find cases with a session, to which `kept` then refers."""
    session = open_session(open_source(parse(PAIRS), "pairs"))
    kept.append(weakref.ref(session))
    return list(find_cases(InputMaker(parse(PAIRS)), lambda feeds: run(session, feeds)))


def test_no_session_is_kept_by_sizes_that_do_not_run() -> None:
    kept: list[weakref.ref[Any]] = []
    gc.collect()
    gc.disable()
    try:
        found = cases_of(kept)
        assert kept[0]() is None
    finally:
        gc.enable()
    rows = {case.feeds["x"].shape[1] for case, _ in found}
    assert rows == {4, 16, 6, 70}  # 1, 7, 9, 13 and 33 make no pairs
