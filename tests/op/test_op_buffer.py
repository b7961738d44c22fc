"""A cache that is a buffer: the reference against blocks without one, the body against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_fuse.op.check_block import check
from onnx_fuse.op.form import form_of
from onnx_fuse.op.function import body
from onnx_fuse.op.schema import Argument, InvalidBlock
from tests.op import buffers, cases
from tests.op.buffers import CASES, EXTRAS, LATEST, LATEST_EXTRAS, LENGTHS
from tests.op.cases import CLOSE
from tests.sessions import LEVELS, plain_session


def check_held(found: np.ndarray, expected: np.ndarray, held: int) -> None:
    """A batch's cache (heads, positions, size) holds these positions first, and zeros behind."""
    np.testing.assert_allclose(found[:, :held], expected, **CLOSE)
    assert not found[:, held:].any()


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_reference_is_that_of_each_batch_alone(name: str, case: cases.Case, extra: str) -> None:
    lengths = LENGTHS[name]
    block = buffers.make(case, lengths, EXTRAS[extra])
    output, key, value = cases.expected(block)
    for batch, start in enumerate(lengths.starts()):
        single = buffers.alone(block, lengths, batch)
        expected = cases.expected(single)
        np.testing.assert_allclose(output[batch], expected[0][0], **CLOSE)
        for found, other in zip((key, value), expected[1:], strict=True):
            assert found.shape[2] == max(lengths.past, lengths.total)
            check_held(found[batch], other[0], start + lengths.q_seq)


@pytest.mark.parametrize("extra", [name for name in EXTRAS if EXTRAS[name].is_known()])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_body_computes_the_reference(name: str, case: cases.Case, extra: str) -> None:
    lengths = LENGTHS[name]
    block = buffers.make(case, lengths, EXTRAS[extra])
    session = plain_session(cases.model(block, 17), LEVELS.ORT_ENABLE_ALL)
    found = session.run(None, cases.feeds(block.operands))
    expected = cases.expected(block)
    tolerance = cases.tolerance(block)
    for own, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=tolerance)
    for batch, length in enumerate(lengths.each):
        # What a padded prompt's last rows hold was undefined up to onnxruntime 1.23.
        rows = min(length, lengths.q_seq)
        own, other = found[0][batch, :rows], expected[0][batch, :rows]
        np.testing.assert_allclose(own, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("extra", LATEST_EXTRAS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LATEST)
def test_latest_positions_are_those_of_all(name: str, case: cases.Case, extra: str) -> None:
    lengths = LATEST[name]
    block = buffers.make(case, lengths, LATEST_EXTRAS[extra])
    output, key, value = cases.expected(block)
    for batch, length in enumerate(lengths.each):
        single = buffers.alone(block, lengths, batch)
        expected = cases.expected(single)
        np.testing.assert_allclose(output[batch], expected[0][0], **CLOSE)
        held = buffers.resident(length, lengths.past, block.attributes.window_size)
        for found, other in zip((key, value), expected[1:], strict=True):
            assert found.shape[2] == lengths.past
            check_held(found[batch], other[0][:, -held:], held)


@pytest.mark.parametrize("extra", [n for n in LATEST_EXTRAS if LATEST_EXTRAS[n].is_known()])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", LATEST)
def test_body_keeps_the_latest_positions(name: str, case: cases.Case, extra: str) -> None:
    lengths = LATEST[name]
    block = buffers.make(case, lengths, LATEST_EXTRAS[extra])
    session = plain_session(cases.model(block, 17), LEVELS.ORT_ENABLE_ALL)
    found = session.run(None, cases.feeds(block.operands))
    expected = cases.expected(block)
    tolerance = cases.tolerance(block)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=tolerance)
    for batch, length in enumerate(lengths.each):
        count = buffers.resident(length, lengths.past, block.attributes.window_size)
        held = np.s_[batch, :, :count]
        for own, other in zip(found[1:], expected[1:], strict=True):
            assert own.shape == other.shape
            np.testing.assert_allclose(own[held], other[held], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_body_is_one_operator_between_the_projections(case: cases.Case) -> None:
    block = buffers.make(case, LENGTHS["ragged"])
    form = form_of(block.op_type, block.arguments(), block.attributes, 3, 17)
    operators = [node.op_type for node in body(form, 17).node]
    assert operators.count("GroupQueryAttention") == 1
    assert not {"Softmax", "Concat"} & {*operators} - ({"Concat"} if case.norm != "none" else set())


WRONG = {
    "no total": (["total_sequence_length"], {}, {}, "needs total_sequence_length"),
    "no past": (["past_key", "past_value"], {}, {}, "needs past_key"),
    "a window to both sides": (
        [],
        {},
        {"is_causal": 0, "window_size": 3},
        "window_size needs operand seqlens_k and is_causal = 1",
    ),
    "a mask": (
        [],
        {"attn_mask": Argument(9, (1, 1)), "mask_fill": Argument(1, ())},
        {},
        "exclude each other",
    ),
    "a cache without a window": ([], {}, {"window_cache": 1}, "window_cache needs window_size"),
    "positions of int32": ([], {"position_ids": Argument(6, (2, 1))}, {}, "is int32"),
    "positions without a rotation": (
        ["cos_cache", "sin_cache"],
        {"position_ids": Argument(7, (2, 1))},
        {"rotary_embedding_dim": 0},
        "needs cos_cache",
    ),
    "lengths of int64": ([], {"seqlens_k": Argument(7, (2,))}, {}, "is int64"),
    "one length": ([], {"seqlens_k": Argument(6, (1,))}, {}, "has 1 in dim 0"),
    "two totals": ([], {"total_sequence_length": Argument(6, (2,))}, {}, "has 2 in dim 0"),
    "cosines alone": (["sin_cache"], {}, {}, "needs sin_cache"),
    "a cache of pairs": ([], {"cos_cache": Argument(1, (40, 16))}, {}, "has 16 in dim 1"),
    "tables by row too": (
        [],
        {"q_cos": Argument(1, None), "q_sin": Argument(1, None)},
        {},
        "exclude each other",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_block_is_refused(name: str) -> None:
    missing, other, attributes, message = WRONG[name]
    block = buffers.make(CASES[1], LENGTHS["ragged"])
    arguments = {k: v for k, v in (block.arguments() | other).items() if k not in missing}
    with pytest.raises(InvalidBlock, match=message):
        check(arguments, replace(block.attributes, **attributes), 3)


def test_weights_of_a_buffer_are_not_shown() -> None:
    block = buffers.make(CASES[0], LENGTHS["ragged"])
    check(block.arguments(), block.attributes, 3)
    sentence = r"^the block has 4 outputs, expected 3, because of seqlens_k$"
    with pytest.raises(InvalidBlock, match=sentence):
        check(block.arguments(), block.attributes, 4)
