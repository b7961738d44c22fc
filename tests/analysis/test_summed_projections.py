"""Projections that are sums: of products of one tensor they are one, others stay outside."""

from __future__ import annotations

import onnx
import pytest

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import ROWS, Step, on, twin
from tests.analysis.verdicts import ALL, OUT, QUERY, check_fused

WIDTH, RANK = NUM_HEADS * HEAD_DIM, 3


def heads(w: Writer, value: str) -> str:
    return w.b.reshape(value, "B", "S", NUM_HEADS, HEAD_DIM)


def source(w: Writer) -> str:
    return next(iter(w.b.feeds))


def product(w: Writer, value: str, rows: int = HIDDEN, columns: int = WIDTH) -> str:
    return w.b.op("MatMul", value, w.b.const(w.random(rows, columns) / 4))


def rectified(w: Writer, value: str) -> str:
    return w.b.op("Relu", value)


def shifted(w: Writer, value: str) -> str:
    """The first position behind the others."""
    return w.b.op("Concat", w.b.slice(value, 1, ROWS, 1), w.b.slice(value, 0, 1, 1), axis=1)


def by_position(w: Writer, value: str) -> str:
    return w.b.op("Mul", value, w.b.const(w.random(ROWS, 1)))


def scaled(w: Writer, value: str) -> str:
    return w.b.op("Mul", value, w.b.const(w.random(WIDTH)))


def more(w: Writer, value: str) -> str:
    """Add constants."""
    return w.b.op("Add", value, w.b.const(w.random(WIDTH)))


def more_inside(w: Writer, value: str) -> str:
    return w.b.op("Add", value, w.b.const(w.random(RANK)))


def kept(w: Writer, value: str) -> str:
    return value


def plus_product(*, of: Step = kept, behind: Step = kept, op_type: str = "Add") -> Step:
    """Add a product of what a step makes of the source."""

    def step(w: Writer, value: str) -> str:
        return w.b.op(op_type, value, heads(w, behind(w, product(w, of(w, source(w))))))

    return step


def of_three(op_type: str) -> Step:
    """Combine three products in one node."""

    def step(w: Writer, value: str) -> str:
        others = (heads(w, more(w, product(w, source(w)))) for _ in range(2))
        return w.b.op(op_type, value, *others)

    return step


def off_numbers(w: Writer, value: str) -> str:
    """Numbers less the value."""
    return w.b.op("Sub", w.b.const(w.random(NUM_HEADS, HEAD_DIM)), value)


def plus_low_rank(
    *, of: Step = kept, inside: Step = kept, behind: Step = kept, factor: float = 1.0
) -> Step:
    """Add a product of a product with few columns."""

    def step(w: Writer, value: str) -> str:
        few = inside(w, product(w, of(w, source(w)), columns=RANK))
        added = behind(w, product(w, few, rows=RANK))
        added = added if factor == 1.0 else w.b.op("Mul", added, w.b.scalar(factor))
        return w.b.op("Add", value, heads(w, added))

    return step


def each_of(*steps: Step) -> Step:
    def step(w: Writer, value: str) -> str:
        for one in steps:
            value = one(w, value)
        return value

    return step


def lanes(op_type: str) -> Step:
    """Scale or shift the lanes of the sum."""

    def step(w: Writer, value: str) -> str:
        return w.b.op(op_type, value, w.b.const(w.random(NUM_HEADS, HEAD_DIM)))

    return step


def low_rank_alone(w: Writer, value: str) -> str:
    """Two products of products, and no other."""
    parts = [product(w, product(w, source(w), columns=RANK), rows=RANK) for _ in range(2)]
    return heads(w, w.b.op("Add", *parts))


TAKEN: dict[str, Step] = {
    "of two products": plus_product(),
    "of two products, both with numbers added": plus_product(behind=more),
    "of two products, one scaled": plus_product(behind=scaled),
    "of low rank": plus_low_rank(),
    "of low rank, scaled": plus_low_rank(factor=2.0),
    "of low rank, with numbers added": plus_low_rank(behind=more),
    "of low rank, with numbers added inside": plus_low_rank(inside=more_inside, factor=0.5),
    "of two adapters": each_of(plus_low_rank(), plus_low_rank(factor=0.5)),
    "of three products": of_three("Sum"),
    "that is a difference": plus_product(behind=more, op_type="Sub"),
    "that is a difference, taken off numbers": each_of(
        plus_product(behind=more, op_type="Sub"), plus_low_rank(inside=more_inside), off_numbers
    ),
    "whose term is taken off numbers": plus_product(
        behind=lambda w, value: w.b.op("Sub", w.b.const(w.random(WIDTH)), value), op_type="Sub"
    ),
    "of a sum that is taken off numbers": each_of(
        plus_product(behind=more), off_numbers, plus_product()
    ),
    "that is taken off twice": each_of(
        plus_product(), off_numbers, lanes("Mul"), off_numbers, plus_product()
    ),
    "that is scaled": each_of(plus_low_rank(inside=more_inside), lanes("Mul")),
    "that is scaled, shifted and added to": each_of(
        plus_low_rank(), lanes("Mul"), lanes("Add"), plus_product(behind=more), lanes("Mul")
    ),
}
OUTSIDE: dict[str, Step] = {
    "of another tensor": plus_product(of=rectified),
    "of other positions": plus_product(of=shifted),
    "with an activation": plus_product(behind=rectified),
    "times a table": plus_product(behind=by_position),
    "of three products, the largest": of_three("Max"),
    "that is a difference, of another tensor": plus_product(of=rectified, op_type="Sub"),
    "of low rank, of another tensor": plus_low_rank(of=rectified),
    "of low rank, of other positions": plus_low_rank(of=shifted),
    "of low rank, with an activation": plus_low_rank(inside=rectified),
    "of low rank, times a table inside": plus_low_rank(inside=by_position),
    "of low ranks alone": low_rank_alone,
}


@pytest.mark.parametrize("name", TAKEN)
def test_sum_is_one_projection(name: str) -> None:
    check_fused(twin(**on("q", "normed", TAKEN[name])), (*ALL, *OUT))


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_sum_stays_outside(name: str) -> None:
    check_fused(twin(**on("q", "normed", OUTSIDE[name])), QUERY)


def test_sum_is_one_projection_of_open_extents() -> None:
    step = plus_low_rank(inside=more_inside, behind=more, factor=0.5)
    check_fused(twin(Form(dims="dynamic"), **on("q", "normed", step)), (*ALL, *OUT))


def test_sum_of_a_product_that_is_shown_stays_outside() -> None:
    made = twin(**on("q", "normed", plus_product()))
    graph = made.model.graph
    first = next(node.output[0] for node in graph.node if node.op_type == "MatMul")
    graph.output.append(onnx.ValueInfoProto(name=first))
    graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    check_fused(made, QUERY)
