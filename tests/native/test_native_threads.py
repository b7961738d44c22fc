"""How the work is split, and who else is at work, does not change a bit of the result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.native import blocks
from tests.op import cases

SIZES: dict[str, dict[str, Any]] = {
    "heads of whole panels": {"q_seq": 120, "hidden": 256, "heads": (4, 4), "dims": (64, 64)},
    "heads across panels": {"q_seq": 120, "hidden": 200, "heads": (5, 5), "dims": (40, 24)},
    "few kv heads": {"q_seq": 120, "hidden": 128, "heads": (9, 3), "dims": (32, 32)},
    "batch": {"batch": 7, "q_seq": 40, "hidden": 128, "heads": (4, 1), "dims": (32, 32)},
    "causal": {"q_seq": 400, "hidden": 64, "heads": (3, 3), "is_causal": 1},
    "weights": {"q_seq": 120, "hidden": 64, "heads": (3, 3), "attn_weights": True},
    "rows a page apart": {"q_seq": 300, "hidden": 1024, "heads": (2, 2)},
    "cross": {"q_seq": 150, "kv_seq": 400, "hidden": 160, "heads": (5, 5), "dims": (32, 48)},
}


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("name", SIZES)
def test_result_does_not_depend_on_the_number_of_threads(name: str, isa: str) -> None:
    block = blocks.make(**SIZES[name], out=160)
    alone = blocks.run(block, isa, threads=1)
    blocks.assert_right(alone, block)
    for threads in (2, 5):
        session = blocks.session(block, isa, threads)
        for _ in range(2):
            together = session.run(None, cases.feeds(block.operands))
            assert all(map(np.array_equal, alone, together))


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("name", ["heads of whole panels", "heads across panels"])
def test_result_of_a_sequence_does_not_depend_on_its_batch(name: str, isa: str) -> None:
    sizes = {**SIZES[name], "q_seq": 16}  # enough rows for every unit
    block = blocks.make(**sizes, batch=9)
    whole = blocks.run(block, isa)[0]
    for i in range(9):
        one = blocks.change(block, {}, {"hidden": block.operands["hidden"][i : i + 1]})
        assert np.array_equal(whole[i], blocks.run(one, isa)[0][0])


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_one_session_in_many_threads(threads: int, isa: str) -> None:
    sizes = (1, 3, 16, 40, 70)
    made = {q_seq: blocks.make(q_seq=q_seq, past=q_seq % 7 + 1, seed=3) for q_seq in sizes}
    model = cases.model(made[40], 17, with_function=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    session = blocks.session_of(model, isa, threads)
    weights = {n: a for n, a in made[40].operands.items() if cases.is_constant(n)}
    made = {q_seq: blocks.change(block, {}, weights) for q_seq, block in made.items()}
    expected = {
        q_seq: session.run(None, cases.feeds(block.operands)) for q_seq, block in made.items()
    }
    for q_seq, found in expected.items():
        blocks.assert_right(found, made[q_seq])

    def work(number: int) -> bool:
        q_seq = sizes[number % len(sizes)]
        found = session.run(None, cases.feeds(made[q_seq].operands))
        return all(map(np.array_equal, found, expected[q_seq]))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(200)))
