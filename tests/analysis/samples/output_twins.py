"""Steps from the context to the output, and those that only look like them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx

from tests.analysis.samples.builder import Extent
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, OUT, SIZES
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.operand_twins import swapped
from tests.analysis.samples.twins import BATCH, ROWS, USUAL, Step, twin


def joined_heads(*order: int) -> Step:
    """Cut the context into its heads, and join them in an order along the depth."""

    def merged(w: Writer, context: str) -> str:
        heads = w.b.split(context, [1] * NUM_HEADS, 1)
        joined = w.b.op("Concat", *(heads[head] for head in order), axis=3)
        return w.b.reshape(joined, "B", "S", NUM_HEADS, HEAD_DIM)

    return merged


def viewed_heads(by: str, *order: int, rectified: int | None = None) -> Step:
    """Cut the context into its heads, view each without its axis, and join them in an order.

    rectified: a head that is joined so, as the last one.
    """

    def merged(w: Writer, context: str) -> str:
        b, axes = w.b, w.b.const([1], np.int64)
        if by == "Gather":
            places = [b.const(head, np.int64) for head in range(NUM_HEADS)]
            heads = [b.op("Gather", context, place, axis=1) for place in places]
        else:
            cut = [b.slice(context, head, head + 1, 1) for head in range(NUM_HEADS)]
            cut = b.split(context, [1] * NUM_HEADS, 1) if by == "Split" else cut
            if by == "SplitToSequence":
                parts = b.op(by, context, b.const(1, np.int64), axis=1)
                places = [b.const(head, np.int64) for head in range(NUM_HEADS)]
                cut = [b.op("SequenceAt", parts, place) for place in places]
            heads = [b.op("Squeeze", head, axes) for head in cut]
        if rectified is not None:
            heads.append(b.op("Relu", heads[rectified]))
        joined = b.op("Concat", *(heads[head] for head in order), axis=2)
        return b.reshape(joined, "B", "S", NUM_HEADS, HEAD_DIM)

    return merged


def half_of_the_heads(w: Writer, context: str) -> str:
    """Cut half of the heads away, view each of the others, and join them, twice."""
    b, count = w.b, NUM_HEADS // 2
    kept = b.slice(context, 0, count, 1)
    heads = [b.op("Gather", kept, b.const(head, np.int64), axis=1) for head in range(count)]
    joined = b.op("Concat", *heads, axis=2)
    joined = b.op("Concat", joined, joined, axis=2)
    return b.reshape(joined, "B", "S", NUM_HEADS, HEAD_DIM)


def heads_read_beside(op_type: str, **attributes: int) -> Sample:
    """The heads in their own order, and what another operator makes of them, as an output."""
    made = twin(merged=viewed_heads("Slice", *range(NUM_HEADS)))
    graph = made.model.graph
    heads = [node.output[0] for node in graph.node if node.op_type == "Squeeze"]
    read = heads if op_type == "Concat" else heads[:1]
    graph.node.append(onnx.helper.make_node(op_type, read, ["beside"], **attributes))
    graph.output.append(onnx.ValueInfoProto(name="beside"))
    graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return made


def shown_heads() -> Sample:
    """The same in their own order, with the first head among the outputs."""
    made = twin(merged=joined_heads(*range(NUM_HEADS)))
    split = next(node for node in made.model.graph.node if node.name.startswith("Split"))
    shown = onnx.ValueInfoProto(name=split.output[0])
    shown.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    made.model.graph.output.append(shown)
    return made


def of_any_batches(w: Writer, context: str) -> str:
    """Merge the heads, and take what is left for the batch: nothing says how many there are."""
    return w.b.op("Reshape", context, w.b.const([-1, SIZES["S"], NUM_HEADS * HEAD_DIM], np.int64))


def runtime_output(w: Writer, context: str) -> str:
    """Project by a matrix that is a graph input."""
    width = NUM_HEADS * HEAD_DIM
    matrix = w.b.input("matrix", w.random(width, OUT), (width, OUT))
    return w.b.op("MatMul", w.b.reshape(context, "B", "S", width), matrix)


def output_by_batch(w: Writer, context: str) -> str:
    """Project each batch by a constant matrix of its own."""
    width = NUM_HEADS * HEAD_DIM
    flat = w.b.reshape(context, "B", "S", width)
    return w.b.op("MatMul", flat, w.b.const(w.random(BATCH, width, OUT)))


def repeated_output(*batches: Extent) -> Step:
    """Project by a constant matrix that is repeated for each batch."""

    def projected(w: Writer, context: str) -> str:
        width = NUM_HEADS * HEAD_DIM
        matrix, shape = w.b.const(w.random(width, OUT)), w.b.shape((*batches, width, OUT))
        flat = w.b.reshape(context, "B", "S", width)
        return w.b.op("MatMul", flat, w.b.op("Expand", matrix, shape))

    return projected


def output_with_bias_of_rows(w: Writer, context: str) -> str:
    """Project by a Gemm that adds numbers of its own to each row."""
    width = NUM_HEADS * HEAD_DIM
    flat = w.b.reshape(context, -1, width)
    matrix, bias = w.b.const(w.random(width, OUT)), w.b.const(w.random(BATCH * ROWS, OUT))
    return w.b.reshape(w.b.op("Gemm", flat, matrix, bias), "B", "S", OUT)


def position_output(w: Writer, context: str) -> str:
    """Project over the positions too."""
    flat = w.b.reshape(context, "B", ROWS * NUM_HEADS * HEAD_DIM)
    return w.b.op("MatMul", flat, w.b.const(w.random(ROWS * NUM_HEADS * HEAD_DIM, OUT)))


def output_with_bias_of_input(w: Writer, context: str) -> str:
    """Project by a Gemm whose bias is known at run time only."""
    flat = w.b.reshape(context, -1, NUM_HEADS * HEAD_DIM)
    bias = w.b.input("bias", w.random(OUT), (OUT,))
    made = w.b.op("Gemm", flat, w.b.const(w.random(NUM_HEADS * HEAD_DIM, OUT)), bias)
    return w.b.reshape(made, "B", "S", OUT)


def added_to_another_product(w: Writer, context: str) -> str:
    """Give the context to a Gemm as its bias."""
    b, width, rows = w.b, NUM_HEADS * HEAD_DIM, BATCH * ROWS
    other = b.input("other", w.random(rows, width), (rows, width))
    made = b.op("Gemm", b.const(w.random(rows, rows)), other, b.reshape(context, -1, width))
    return b.reshape(made, "B", "S", width)


def added_to_product_of_constant() -> Sample:
    """One head whose context is what a Gemm adds to a constant matrix times another tensor.

    All extents are one number: its rows and columns could be those of an output projection.
    """
    w, size = Writer(USUAL), HEAD_DIM
    hidden = w.b.input("hidden", w.random(1, size, size), (1, size, size))
    parts = [w.b.op("MatMul", hidden, w.b.const(w.random(size, size))) for _ in range(3)]
    scores = w.b.op("MatMul", parts[0], w.b.transpose(parts[1], 0, 2, 1))
    context = w.b.op("MatMul", w.b.op("Softmax", scores, axis=-1), parts[2])
    other = w.b.input("other", w.random(size, size), (size, size))
    factors = (w.b.const(w.random(size, size)), other, w.b.reshape(context, size, size))
    made = w.b.op("Gemm", *factors, transB=1)
    return Sample(w.b.model(w.b.reshape(made, 1, size, size)), w.b.feeds, w.record)


def biased_at_run_time(w: Writer, output: str) -> str:
    """Add numbers of columns that only the run knows."""
    return w.b.op("Add", output, w.b.input("bias", w.random(OUT), (OUT,)))


def output_over_heads(w: Writer, context: str) -> str:
    """Mix the heads, each place of the depth by itself."""
    mixed = w.b.const(w.random(NUM_HEADS, OUT))
    made = w.b.op("Einsum", context, mixed, equation="bsnd,no->bsdo")
    return w.b.reshape(made, "B", "S", HEAD_DIM * OUT)


def output_over_depth(w: Writer, context: str) -> str:
    """Project each head by itself, all by one matrix."""
    shared = w.b.const(w.random(HEAD_DIM, OUT))
    made = w.b.op("Einsum", context, shared, equation="bsnd,do->bsno")
    return w.b.reshape(made, "B", "S", NUM_HEADS * OUT)


def in_rows(w: Writer, value: str) -> str:
    """Put all rows beside each other, with columns left open: those of nothing are none."""
    return w.b.reshape(value, ("B", "S"), -1)


def viewed(*shapes: Sequence[Extent]) -> Step:
    """Give a tensor these shapes, one after the other."""

    def views(w: Writer, value: str) -> str:
        return reduce(lambda made, shape: w.b.reshape(made, *shape), shapes, value)

    return views


def projected_as_many_rows(w: Writer, context: str) -> str:
    """Project as many rows as there are; how many batches there are is left open."""
    rows = w.b.slice(w.b.op("Shape", context), 1, 2, 0)
    opened, width = (w.b.const([n], np.int64) for n in (-1, NUM_HEADS * HEAD_DIM))
    shape = w.b.op("Concat", opened, rows, width, axis=0)
    weight = w.b.const(w.random(NUM_HEADS * HEAD_DIM, OUT))
    return w.b.op("MatMul", w.b.op("Reshape", context, shape), weight)


def by_tables_of_other_rows(w: Writer, value: str, name: str) -> str:
    """Rotate by tables that the run knows, whose rows have a name of their own."""
    tables = (
        w.b.input(f"{kind}_{name}", w.random(ROWS, HEAD_DIM), ("T", HEAD_DIM))
        for kind in ("cos", "sin")
    )
    straight, crossed = (
        w.b.op("Mul", part, table)
        for part, table in zip((value, swapped(w, value)), tables, strict=True)
    )
    return w.b.op("Add", straight, crossed)


def projected_rows(*dims: int) -> Step:
    """Project rows of these extents behind their number."""

    def projected(w: Writer, context: str) -> str:
        width = NUM_HEADS * HEAD_DIM
        rows = w.b.reshape(context, ("B", "S"), *dims)
        made = w.b.op("MatMul", rows, w.b.const(w.random(width, OUT)))
        return made if len(dims) == 1 else w.b.reshape(made, -1, OUT)

    return projected


def residual(w: Writer, output: str) -> str:
    """Add a tensor, not a bias."""
    return w.b.op("Add", output, w.b.input("residual", w.random(BATCH, ROWS, OUT), ("B", "S", OUT)))


def whole_numbers(w: Writer, value: str) -> str:
    """Drop the fractions."""
    return w.b.op(
        "Cast", w.b.op("Cast", value, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT
    )


def normed_rows(w: Writer, output: str) -> str:
    """Norm each row by constants of its own."""
    moments = [w.b.const(np.abs(w.random(ROWS))) for _ in range(4)]
    return w.b.op("BatchNormalization", output, *moments)


def biased_rows(w: Writer, output: str) -> str:
    """Add a constant of its own to each row."""
    return w.b.op("Add", output, w.b.const(w.random(ROWS, OUT)))


def scaled_at_run_time(w: Writer, output: str) -> str:
    """Multiply columns by numbers that only the run knows."""
    return w.b.op("Mul", output, w.b.input("factor", w.random(OUT), (OUT,)))
