"""A cache that is a buffer: the kernel against the reference, in place, and refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from tests.native import blocks
from tests.native.blocks import ISAS
from tests.op import buffers, cases
from tests.op.buffers import CASES, EXTRAS, LATEST, LATEST_EXTRAS, LENGTHS, Extra, Lengths

# Those whose windows are not as wide as they say, for onnxruntime's own are not, have their test
# against its operator.
KNOWN = [name for name in EXTRAS if EXTRAS[name].is_known() or not EXTRAS[name].window]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("extra", KNOWN)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_kernel_computes_the_reference(name: str, case: cases.Case, extra: str, isa: str) -> None:
    block = buffers.make(case, LENGTHS[name], EXTRAS[extra])
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("extra", EXTRAS)
def test_work_is_shared_without_a_change_of_a_bit(extra: str) -> None:
    block = buffers.make(CASES[1], LENGTHS["long"], EXTRAS[extra])
    alone, shared = (blocks.run(block, threads=threads) for threads in (1, 2))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("extra", LATEST_EXTRAS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LATEST)
def test_kernel_keeps_the_latest_positions(
    name: str, case: cases.Case, extra: str, isa: str
) -> None:
    block = buffers.make(case, LATEST[name], LATEST_EXTRAS[extra])
    blocks.assert_right(blocks.run(block, isa), block)


def test_a_scalar_total_is_as_good_as_one_element() -> None:
    block = buffers.make(CASES[0], LENGTHS["ragged"])
    scalar = np.asarray(LENGTHS["ragged"].total, np.int32)
    other = blocks.change(block, {}, {"total_sequence_length": scalar})
    blocks.assert_right(blocks.run(other), block)


def _held(lengths: Lengths, extra: Extra) -> list[int]:
    """Return how many positions of each batch the cache holds."""
    if extra.window_cache:
        return [buffers.resident(each, lengths.past, extra.window) for each in lengths.each]
    return [start + lengths.q_seq for start in lengths.starts()]


IN_PLACE = {
    **{name: (LENGTHS[name], EXTRAS["plain"]) for name in LENGTHS if name.endswith("in a buffer")},
    **{f"latest, {name}": (LATEST[name], LATEST_EXTRAS["window"]) for name in LATEST},
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cache_is_written_in_place(name: str, case: cases.Case) -> None:
    """Past and present are one memory: only what is new is written, what lies behind it stays."""
    lengths, extra = IN_PLACE[name]
    block = buffers.make(case, lengths, extra)
    expected = [array.astype(np.float32) for array in cases.expected(block)]
    session = blocks.session(block)
    binding = session.io_binding()
    caches = {}
    for operand, array in cases.feeds(block.operands).items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        binding.bind_ortvalue_input(operand, value)
        caches[operand] = value
    binding.bind_output("output")
    for part in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{part}", caches[f"past_{part}"])
    session.run_with_iobinding(binding)
    tolerance = blocks.tolerance(block)
    output = binding.get_outputs()[0].numpy()
    np.testing.assert_allclose(output, expected[0], rtol=0, atol=tolerance)
    for part, other in (("key", expected[1]), ("value", expected[2])):
        found = caches[f"past_{part}"].numpy()
        for batch, end in enumerate(_held(lengths, extra)):
            np.testing.assert_allclose(
                found[batch, :, :end], other[batch, :, :end], rtol=0, atol=tolerance
            )
            if not extra.window_cache:
                before = block.operands[f"past_{part}"]
                np.testing.assert_array_equal(found[batch, :, end:], before[batch, :, end:])


REFUSED = {
    "longer than the total": Lengths(1, 6, 7, (7, 8)),
    "shorter than what is new": Lengths(3, 5, 8, (2,)),
    "more past than there is": Lengths(1, 3, 7, (7, 4)),
    "no length": Lengths(5, 0, 5, (5, 0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lengths_that_do_not_fit_are_refused(name: str) -> None:
    block = buffers.make(CASES[0], REFUSED[name])
    with pytest.raises(Exception, match=r"seqlens_k\[.\] is .*, which does not fit"):
        blocks.run(block)


def test_positions_beyond_the_rotation_are_refused() -> None:
    block = buffers.make(CASES[1], LENGTHS["ragged"])
    short = {name: block.operands[name][:5] for name in ("cos_cache", "sin_cache")}
    with pytest.raises(Exception, match="beyond the rotation's caches"):
        blocks.run(replace(block, operands=block.operands | short))


def test_bias_of_other_columns_is_refused() -> None:
    block = buffers.make(CASES[1], LENGTHS["ragged"])
    wrong = blocks.change(block, {}, {"attn_bias": np.zeros((1, 1, 1, 6), np.float32)})
    with pytest.raises(Exception, match="has 6 columns, expected total_sequence_length = 7"):
        blocks.run(wrong)


def test_length_beyond_the_bias_is_refused() -> None:
    """Without a bias the buffer alone limits the lengths."""
    lengths = Lengths(1, 40, 32, (32,))
    short = {"total_sequence_length": np.array([10], np.int32)}
    plain = blocks.change(buffers.make(CASES[1], lengths), {}, short)
    assert np.isfinite(blocks.run(plain)[0]).all()
    block = blocks.change(buffers.make(CASES[1], lengths), {}, short)
    block = blocks.change(block, {}, {"attn_bias": np.zeros((1, 1, 1, 10), np.float32)})
    with pytest.raises(Exception, match=r"seqlens_k\[0\] is 31, .* has only 10 columns"):
        blocks.run(block)


@pytest.mark.parametrize("position", [-1, 400])
def test_positions_outside_of_the_rotation_are_refused(position: int) -> None:
    block = buffers.make(CASES[1], LENGTHS["ragged"], EXTRAS["positions"])
    ids = np.array([[3], [position]])
    with pytest.raises(Exception, match=rf"position_ids\[1, 0\] is {position}, the rotation's"):
        blocks.run(blocks.change(block, {}, {"position_ids": ids}))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["long", "continuation", "padded prompt"])
def test_row_that_sees_nothing_is_zero_and_a_nan_stays(name: str, isa: str) -> None:
    block = buffers.make(CASES[1], LENGTHS[name])
    bias = np.zeros((1, 1, block.operands["hidden"].shape[1], LENGTHS[name].total), np.float32)
    bias[..., 1, :], bias[..., 2, 0] = -np.inf, np.nan
    block = blocks.change(block, {}, {"attn_bias": bias})
    found = blocks.run(block, isa)
    assert not found[0][:, 1].any()
    assert np.isnan(found[0][:, 2]).all()
    blocks.assert_right(found, block)


def test_cache_that_does_not_hold_a_window_is_refused() -> None:
    block = buffers.make(CASES[1], LATEST["it fits"], LATEST_EXTRAS["window"])
    with pytest.raises(Exception, match="a cache of 8 positions does not hold a window of 9"):
        blocks.run(blocks.change(block, {"window_size": 9}, {}))
