"""What a fused node must say of masks and sinks, and the check that it does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import pytest

import onnx_fuse
from tests.analysis.check import TOLERANCE, fused_nodes
from tests.analysis.samples.graphs import Sample
from tests.passes.test_properties import CHANGES, Change, changed
from tests.rewording import reword
from tests.sessions import plain_session

SELECT, BIAS, SINKS = ("attn_mask", "mask_fill"), ("attn_bias",), ("sinks",)
# What a form may be rewritten by, of what leaves the meaning alone.
_BEHIND = (
    *("identity", "dropout", "cast", "plus_zero", "joined_alone"),
    *("own_shape", "own_extents", "two_turns"),
)


def _reworded(rule: str) -> Change:
    def change(model: onnx.ModelProto, rng: random.Random) -> None:
        reword(model, rng, [rule], share=0.5)

    return change


_CHANGES: dict[str, Change] = {
    "as it is": lambda model, rng: None,
    "swap": CHANGES["swap"],
    **{name: _reworded(f"{name}_behind") for name in _BEHIND},
}
Write = Callable[[Sample], Sample]


def however_written(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test of (name, write) for each form: `write` leaves it, or writes it another way."""
    ways = [
        pytest.param(name, partial(changed, change=change, seed=len(name)), id=f"{name}, {way}")
        for name in names
        for way, change in _CHANGES.items()
    ]
    return pytest.mark.parametrize(("name", "write"), ways)


class Meaning(NamedTuple):
    """The mask operands of a fused node, and whether what is no number is zero."""

    operands: tuple[str, ...]
    zero_nan: int = 0


def check_same(sample: Sample, model: onnx.ModelProto) -> None:
    """Compare results, no numbers included, with those of plain onnxruntime."""
    (expected,), (found,) = (
        plain_session(m).run(None, sample.feeds) for m in (sample.model, model)
    )
    assert not np.isnan(expected).all()
    bound = TOLERANCE * max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def check_meaning(meaning: Meaning, sample: Sample, *, is_number: bool = True) -> None:
    """Check what the fused node says, and (if that is a number) what the fused model computes."""
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    (node,) = fused_nodes(model)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    operands = attributes["operands"].decode().split(",")
    masks = {*BIAS, *SELECT, *SINKS}
    assert tuple(name for name in operands if name in masks) == meaning.operands
    assert attributes["zero_nan"] == meaning.zero_nan
    if is_number:
        check_same(sample, model)
