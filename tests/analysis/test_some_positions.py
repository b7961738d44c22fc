"""Rotations of some positions only, and what is nearly one."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_fuse
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operand_twins import rotated_but_the_first, swapped
from tests.analysis.samples.twins import BATCH, ROWS, Step, twin
from tests.analysis.verdicts import ALL, BOTH, OUT, Make, check_fused, operands
from tests.sessions import plain_session

END = 1 << 31
TABLES = ("q_cos", "q_sin", "k_cos", "k_sin")
TURNED = (*ALL, *TABLES, *OUT)
EXTENTS = (BATCH, NUM_HEADS, ROWS)


def turn(w: Writer, value: str, *shape: int, lanes: int = HEAD_DIM, by_pairs: bool = False) -> str:
    """Rotate the first lanes, with tables of this shape."""
    b = w.b
    kept: list[str] = []
    if lanes < HEAD_DIM:
        value, *kept = b.split(value, [lanes, HEAD_DIM - lanes], 3)
    if by_pairs:
        matrix = np.kron(np.eye(lanes // 2), [[0.0, 1.0], [-1.0, 0.0]]).astype(np.float32)
        crossed = b.op("MatMul", value, b.const(matrix))
    else:
        first, second = b.split(value, [lanes // 2] * 2, 3)
        crossed = b.op("Concat", b.op("Neg", second), first, axis=-1)
    cos, sin = (b.const(w.random(*shape, lanes)) for _ in range(2))
    made = b.op("Add", b.op("Mul", value, cos), b.op("Mul", crossed, sin))
    return b.op("Concat", made, *kept, axis=-1) if kept else made


def parts(*spans: tuple[int, int, bool], axis: int = 2, lanes: int = HEAD_DIM) -> Step:
    """Join spans (start, stop, whether it is rotated) of one axis."""

    def rotated(w: Writer, value: str, name: str) -> str:
        found: list[str] = []
        for start, stop, is_rotated in spans:
            part = w.b.slice(value, start, stop, axis)
            shape = [1, 1, ROWS]
            shape[axis] = len(range(EXTENTS[axis])[start:stop])
            found.append(turn(w, part, *shape, lanes=lanes) if is_rotated else part)
        return w.b.op("Concat", *found, axis=axis)

    return rotated


def split(w: Writer, value: str, name: str) -> str:
    """Rotate the second part of a Split, by tables of each head."""
    first, rest = w.b.split(value, [1, ROWS - 1], 2)
    return w.b.op("Concat", first, turn(w, rest, NUM_HEADS, ROWS - 1), axis=2)


def behind_all(w: Writer, value: str, name: str) -> str:
    """Rotate all rows, and take the first one from before."""
    rest = w.b.slice(turn(w, value, ROWS), 1, END, 2)
    return w.b.op("Concat", w.b.slice(value, 0, 1, 2), rest, axis=2)


def alike(w: Writer, value: str, name: str) -> str:
    """Rotate all rows but the first by one row of tables."""
    rest = w.b.slice(value, 1, END, 2)
    return w.b.op("Concat", w.b.slice(value, 0, 1, 2), turn(w, rest, 1), axis=2)


def as_many(w: Writer, value: str) -> str:
    """Rotate by the first rows of longer tables, as many as there are."""
    b, zero = w.b, w.b.const([0], np.int64)
    length = b.op("Gather", b.op("Shape", value), b.const([2], np.int64))
    cos, sin = (b.op("Slice", b.const(w.random(16, HEAD_DIM)), zero, length, zero) for _ in "cs")
    crossed = b.op("Mul", swapped(w, value), sin)
    return b.op("Add", b.op("Mul", value, cos), crossed)


def but_the_first_five(w: Writer, value: str, name: str) -> str:
    """Of fewer rows none is rotated."""
    first, rest = w.b.slice(value, 0, 5, 2), w.b.slice(value, 5, END, 2)
    return w.b.op("Concat", first, as_many(w, rest), axis=2)


def but_the_last_two(w: Writer, value: str, name: str) -> str:
    """The rows are counted from the end."""
    rest, last = w.b.slice(value, 0, -2, 2), w.b.slice(value, -2, END, 2)
    return w.b.op("Concat", as_many(w, rest), last, axis=2)


def of_flat_heads(w: Writer, value: str, name: str) -> str:
    """Join rows that hold all heads side by side."""
    b, width = w.b, NUM_HEADS * HEAD_DIM
    rows = b.reshape(b.transpose(value, 0, 2, 1, 3), BATCH, ROWS, width)
    first, rest = b.split(rows, [1, ROWS - 1], 1)
    heads = b.transpose(b.reshape(rest, BATCH, ROWS - 1, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)
    flat = b.transpose(turn(w, heads, ROWS - 1), 0, 2, 1, 3)
    made = b.op("Concat", first, b.reshape(flat, BATCH, ROWS - 1, width), axis=1)
    return b.transpose(b.reshape(made, BATCH, ROWS, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)


def by_pairs(w: Writer, value: str, name: str) -> str:
    """Rotate neighbours."""
    first, rest = w.b.split(value, [1, ROWS - 1], 2)
    return w.b.op("Concat", first, turn(w, rest, ROWS - 1, by_pairs=True), axis=2)


def written(places: list[int], *, read: tuple[int, int], **attributes: str) -> Step:
    """Write rotated rows over others, by their places on the first axis."""

    def rotated(w: Writer, value: str, name: str) -> str:
        part = turn(w, w.b.slice(value, *read, 2), len(places))
        rows, new = (w.b.transpose(each, 2, 1, 0, 3) for each in (value, part))
        indices = w.b.const([[place] for place in places], np.int64)
        made = w.b.op("ScatterND", rows, indices, new, **attributes)
        return w.b.transpose(made, 2, 1, 0, 3)

    return rotated


def written_by_three(
    first: tuple[int, int, int],
    counts: tuple[int, int, int],
    order: tuple[int, int, int] = (0, 1, 2),
) -> Step:
    """Write rotated rows over others, by places of three axes, which stand in this order."""

    def rotated(w: Writer, value: str, name: str) -> str:
        part = turn(w, w.b.slice(value, 1, 4, 2), 3)
        for axis, count in enumerate(counts):
            part = w.b.slice(part, 0, count, axis)
        places = np.indices([counts[axis] for axis in order])
        places = np.moveaxis(places, 0, -1) + np.array([first[axis] for axis in order])
        old, new = (w.b.transpose(each, *order, 3) for each in (value, part))
        made = w.b.op("ScatterND", old, w.b.const(places, np.int64), new)
        return w.b.transpose(made, *order, 3)

    return rotated


def at_both_ends(w: Writer, value: str, name: str) -> str:
    """Rows from both ends stay: of fewer than five, some would be twice among the keys."""
    spans = [w.b.slice(value, *span, 2) for span in ((0, 2), (2, -3), (-3, END))]
    return w.b.op("Concat", spans[0], turn(w, spans[1], 1), spans[2], axis=2)


WHOLE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "all rows but the first": (lambda: twin(rotated=rotated_but_the_first), TURNED),
    "all rows of a named number but the first": (
        lambda: twin(Form(dims="dynamic"), rotated=rotated_but_the_first),
        TURNED,
    ),
    "all rows of a named number but the first, by rows of tables": (
        lambda: twin(Form(dims="dynamic", rope="rows_behind")),
        TURNED,
    ),
    "all rows of a named number but the first five": (
        lambda: twin(Form(dims="dynamic"), rotated=but_the_first_five),
        TURNED,
    ),
    "all rows of a named number but the last two": (
        lambda: twin(Form(dims="dynamic"), rotated=but_the_last_two),
        TURNED,
    ),
    "all rows of a named number but some at both ends": (
        lambda: twin(Form(dims="dynamic"), rotated=at_both_ends),
        TURNED,
    ),
    "all rows but the last": (
        lambda: twin(rotated=parts((0, -1, True), (-1, END, False))),
        TURNED,
    ),
    "rows in the middle": (
        lambda: twin(rotated=parts((0, 2, False), (2, 4, True), (4, END, False))),
        TURNED,
    ),
    "rows at both ends": (
        lambda: twin(rotated=parts((0, 2, True), (2, 3, False), (3, END, True))),
        TURNED,
    ),
    "rows in two turns": (
        lambda: twin(rotated=parts((0, 2, True), (2, END, True))),
        TURNED,
    ),
    "all rows behind none": (
        lambda: twin(rotated=parts((0, 0, False), (0, END, True))),
        TURNED,
    ),
    "some lanes of all rows but the first": (
        lambda: twin(rotated=parts((0, 1, False), (1, END, True), lanes=HEAD_DIM // 2)),
        TURNED,
    ),
    "neighbours in all rows but the first": (lambda: twin(rotated=by_pairs), TURNED),
    "all rows but the first, by the tables of each head": (lambda: twin(rotated=split), TURNED),
    "all rows but the first, alike": (lambda: twin(rotated=alike), TURNED),
    "all rows, but the first one from before": (lambda: twin(rotated=behind_all), TURNED),
    "all rows but the first, heads side by side": (lambda: twin(rotated=of_flat_heads), TURNED),
    "all rows but the first of normed ones": (
        lambda: twin(Form(norm="rms"), rotated=parts((0, 1, False), (1, END, True))),
        (*ALL, "q_norm_weight", "k_norm_weight", *TABLES, *OUT),
    ),
    "all rows of grouped heads but the first": (
        lambda: twin(Form(heads="gqa_expand"), rotated=parts((0, 1, False), (1, END, True))),
        TURNED,
    ),
    "all heads but the first": (
        lambda: twin(rotated=parts((0, 1, False), (1, END, True), axis=1)),
        TURNED,
    ),
    "the second batch": (
        lambda: twin(rotated=parts((0, 1, False), (1, END, True), axis=0)),
        TURNED,
    ),
    "written over": (lambda: twin(rotated=written([1, 2, 3], read=(1, 4))), TURNED),
    "written over up to the last": (
        lambda: twin(rotated=written([2, 3, 4], read=(2, END))),
        TURNED,
    ),
    "written over from the first on": (
        lambda: twin(rotated=written([0, 1, 2], read=(0, 3))),
        TURNED,
    ),
    "written over by places of three axes": (
        lambda: twin(rotated=written_by_three((0, 0, 1), (BATCH, NUM_HEADS, 3))),
        TURNED,
    ),
}


# What is nearly a rotation of some positions ------------------------------------------------------


def changed(op_type: str) -> Step:
    """Change the row that isn't rotated by an operator."""

    def rotated(w: Writer, value: str, name: str) -> str:
        first, rest = w.b.split(value, [1, ROWS - 1], 2)
        inputs = {"Mul": (first, w.b.scalar(0.5)), "Relu": (first,)}[op_type]
        return w.b.op("Concat", w.b.op(op_type, *inputs), turn(w, rest, ROWS - 1), axis=2)

    return rotated


def exchanged(w: Writer, value: str, name: str) -> str:
    """The row that isn't rotated has its halves exchanged."""
    first, rest = w.b.split(value, [1, ROWS - 1], 2)
    halves = w.b.split(first, [HEAD_DIM // 2] * 2, 3)
    other = w.b.op("Concat", *reversed(halves), axis=3)
    return w.b.op("Concat", other, turn(w, rest, ROWS - 1), axis=2)


def in_two_ways(w: Writer, value: str, name: str) -> str:
    """Some rows are rotated by halves, the others by pairs."""
    first, rest = w.b.split(value, [2, ROWS - 2], 2)
    made = (turn(w, first, 2), turn(w, rest, ROWS - 2, by_pairs=True))
    return w.b.op("Concat", *made, axis=2)


def learned(w: Writer, value: str, name: str) -> str:
    """The row that isn't rotated is a learned one."""
    rest = turn(w, w.b.slice(value, 1, END, 2), ROWS - 1)
    token = w.b.const(w.random(BATCH, NUM_HEADS, 1, HEAD_DIM))
    return w.b.op("Concat", token, rest, axis=2)


def projected_apart(w: Writer, value: str, name: str) -> str:
    """The row that isn't rotated has a projection of its own."""
    made = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS * HEAD_DIM)))
    rows = w.b.transpose(w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)
    rest = turn(w, w.b.slice(value, 1, END, 2), ROWS - 1)
    return w.b.op("Concat", w.b.slice(rows, 0, 1, 2), rest, axis=2)


def put_in_front(w: Writer, value: str, name: str) -> str:
    """The last two rows come first."""
    rest, last = w.b.slice(value, 0, -2, 2), w.b.slice(value, -2, END, 2)
    return w.b.op("Concat", last, as_many(w, rest), axis=2)


IN_PART: dict[str, Step] = {
    "first row put behind": parts((1, END, True), (0, 1, False)),
    "last row put in front": parts((-1, END, False), (0, -1, True)),
    "rows in the middle exchanged": parts((0, 1, False), (3, 5, True), (1, 3, False)),
    "one row twice, another not at all": parts((0, 1, False), (0, 1, False), (2, END, True)),
    "first row in all places but the last": parts(*[(0, 1, False)] * 4, (4, 5, True)),
    "heads exchanged": parts((1, END, True), (0, 1, False), axis=1),
    "batches exchanged": parts((1, END, True), (0, 1, False), axis=0),
    "first row halved": changed("Mul"),
    "first row rectified": changed("Relu"),
    "first row with its halves exchanged": exchanged,
    "rows by halves and by pairs": in_two_ways,
    "first row learned": learned,
    "first row projected apart": projected_apart,
    "written one row on": written([1, 2, 3], read=(0, 3)),
    "written from the last to the first": written([3, 2, 1], read=(1, 4)),
    "written in another order": written([1, 3, 2], read=(1, 4)),
    "written with a gap": written([1, 2, 4], read=(1, 4)),
    "written from the end": written([-3, -2, -1], read=(2, END)),
    "added in place": written([1, 2, 3], read=(1, 4), reduction="add"),
    "written in some heads": written_by_three((0, 0, 1), (BATCH, 2, 3)),
    "written in the last heads": written_by_three((0, 2, 1), (BATCH, 2, 3)),
    "written in some heads, behind the rows": written_by_three(
        (0, 0, 1), (BATCH, 2, 3), order=(0, 2, 1)
    ),
    "written in one batch": written_by_three((0, 0, 1), (1, NUM_HEADS, 3)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_rotation_of_some_positions_is_fused(name: str) -> None:
    make, expected = WHOLE[name]
    check_fused(make(), expected)


@pytest.mark.parametrize("name", IN_PART)
def test_what_is_nearly_one_enters_as_values(name: str) -> None:
    check_fused(twin(rotated=IN_PART[name]), BOTH)


def test_rows_of_a_named_number_that_change_places_enter_as_values() -> None:
    check_fused(twin(Form(dims="dynamic"), rotated=put_in_front), BOTH)


@pytest.mark.parametrize("rotated", [but_the_first_five, but_the_last_two])
def test_parts_make_up_the_rows_however_few_there_are(rotated: Step) -> None:
    made = twin(Form(dims="dynamic"), rotated=rotated)
    fused = onnx_fuse.fuse(made.model, threshold=None).model
    assert operands(fused) == [TURNED]
    sessions = [plain_session(model) for model in (made.model, fused)]
    for rows in (1, 2, 3, 4, 6, 7):
        data = np.random.default_rng(rows).standard_normal((1, rows, HIDDEN))
        feeds = {"hidden": data.astype(np.float32)}
        expected, found = (session.run(None, feeds)[0] for session in sessions)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
