"""Where a block ends: behind its output projection, or where that stops being plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

import onnx_fuse
from tests.analysis.check import run
from tests.analysis.samples import forms, graph_twins, output_twins, steps, weight_steps
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.twins import ROWS, Step, after, before, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.verdicts import (
    ALL,
    OUT,
    QUERY,
    ROUNDINGS,
    TABLES,
    VALUE,
    Make,
    check_fused,
)
from tests.sessions import plain_session

# The operands that the block has: those of the output's projection, or none of it.
TAKEN: dict[str, tuple[Make, tuple[str, ...]]] = {
    "heads joined one by one": (
        lambda: twin(merged=output_twins.joined_heads(0, 1, 2, 3)),
        (*ALL, *OUT),
    ),
    "rows that tables name otherwise": (
        lambda: twin(
            Form(dims="dynamic", rope="half"),
            rotated=output_twins.by_tables_of_other_rows,
            output=output_twins.projected_as_many_rows,
        ),
        (*ALL, "q_cos", "q_sin", "k_cos", "k_sin", OUT[0]),
    ),
    "output weight repeated for each batch": (
        lambda: twin(output=output_twins.repeated_output("B")),
        (*ALL, OUT[0]),
    ),
    "output weight repeated for each open batch": (
        lambda: twin(Form(dims="dynamic"), output=output_twins.repeated_output("B")),
        (*ALL, OUT[0]),
    ),
    "output weight repeated for more than each batch": (
        lambda: twin(output=output_twins.repeated_output(2, "B")),
        ALL,
    ),
    "heads joined in another order": (
        lambda: twin(merged=output_twins.joined_heads(0, 1, 3, 2)),
        ALL,
    ),
    "a head joined twice": (lambda: twin(merged=output_twins.joined_heads(0, 1, 2, 2)), ALL),
    **{
        f"heads that {by} cuts out, viewed and joined": (
            partial(twin, merged=output_twins.viewed_heads(by, 0, 1, 2, 3)),
            (*ALL, *OUT),
        )
        for by in ("Split", "Slice", "Gather", "SplitToSequence")
    },
    **{
        f"heads that {by} cuts out, viewed and joined in another order": (
            partial(twin, merged=output_twins.viewed_heads(by, 0, 2, 1, 3)),
            ALL,
        )
        for by in ("Slice", "SplitToSequence")
    },
    "half of the heads viewed and joined": (
        lambda: twin(merged=output_twins.half_of_the_heads),
        ALL,
    ),
    "a head viewed and joined twice": (
        lambda: twin(merged=output_twins.viewed_heads("Gather", 0, 1, 2, 2)),
        ALL,
    ),
    "heads viewed, one of them rectified": (
        lambda: twin(merged=output_twins.viewed_heads("Split", 0, 1, 2, 4, rectified=3)),
        ALL,
    ),
    "heads viewed and joined, one of them read": (
        lambda: output_twins.heads_read_beside("Relu"),
        ALL,
    ),
    "heads viewed and joined, twice": (
        lambda: output_twins.heads_read_beside("Concat", axis=1),
        ALL,
    ),
    "heads joined one by one, and shown": (output_twins.shown_heads, ALL),
    "output weight given at run time": (lambda: twin(output=output_twins.runtime_output), ALL),
    "output weight of each batch": (lambda: twin(output=output_twins.output_by_batch), ALL),
    "output with a bias of rows": (lambda: twin(output=output_twins.output_with_bias_of_rows), ALL),
    "output with a bias given at run time": (
        lambda: twin(output=output_twins.output_with_bias_of_input),
        ALL,
    ),
    "context added to another product": (
        lambda: twin(output=output_twins.added_to_another_product),
        ALL,
    ),
    "context added to a product of a constant, of one extent": (
        output_twins.added_to_product_of_constant,
        ("hidden", "qkv_weight"),
    ),
    "bias behind the output given at run time": (
        lambda: twin(
            Form(projection="no_bias"), **after("output", output_twins.biased_at_run_time)
        ),
        ("hidden", "qkv_weight", "out_weight"),
    ),
    "output over the depth alone": (
        lambda: twin(output=output_twins.output_over_depth),
        ALL,
    ),
    "output over heads alone": (lambda: twin(output=output_twins.output_over_heads), ALL),
    "product with the values scaled": (
        lambda: twin(product=weight_steps.scaled_product(2.0)),
        (*ALL, *OUT),
    ),
    "product with the values scaled, and no output": (
        lambda: twin(Form(extra="no_output"), product=weight_steps.scaled_product(2.0)),
        VALUE[:-2],
    ),
    "product with the values scaled, and a rectified context": (
        lambda: twin(
            product=weight_steps.scaled_product(2.0), **before("output", steps.unary("Relu"))
        ),
        VALUE[:-2],
    ),
    "context scaled": (
        lambda: twin(**after("product", steps.binary("Mul", 3.0))),
        (*ALL, *OUT),
    ),
    "context scaled twice": (
        lambda: twin(
            **after("product", steps.binary("Mul", 4.0)),
            **before("output", steps.binary("Div", 4.0)),
        ),
        (*ALL, *OUT),
    ),
    "context scaled, and its heads exchanged": (
        lambda: twin(
            **after("product", steps.binary("Mul", 4.0)),
            merged=output_twins.joined_heads(0, 1, 3, 2),
        ),
        ALL,
    ),
    "context scaled, and no output": (
        lambda: twin(Form(extra="no_output"), **after("product", steps.binary("Mul", 4.0))),
        ALL,
    ),
    "context scaled by head": (
        lambda: twin(**after("product", steps.times_by_head("Mul", 0.5, 2.0, 3.0, -1.0))),
        (*ALL, *OUT),
    ),
    "context divided by head": (
        lambda: twin(**after("product", steps.times_by_head("Div", 0.5, 2.0, 3.0, -1.0))),
        (*ALL, *OUT),
    ),
    "context scaled by lane": (
        lambda: twin(**before("output", steps.times(NUM_HEADS, HEAD_DIM))),
        (*ALL, *OUT),
    ),
    "context scaled by head and by lane": (
        lambda: twin(
            **after("product", steps.times(NUM_HEADS, 1, 1)),
            **before("output", steps.times(NUM_HEADS, HEAD_DIM)),
        ),
        (*ALL, *OUT),
    ),
    "context scaled by head, and no output": (
        lambda: twin(Form(extra="no_output"), **after("product", steps.times(NUM_HEADS, 1, 1))),
        ALL,
    ),
    "context scaled by head and row": (
        lambda: twin(**after("product", steps.times(NUM_HEADS, ROWS, 1))),
        ALL,
    ),
    "context scaled by infinite numbers": (
        lambda: twin(**after("product", steps.times_by_head("Mul", 1.0, 1.0, 1.0, np.inf))),
        ALL,
    ),
    "context of a head divided by zero": (
        lambda: twin(**after("product", steps.times_by_head("Div", 1.0, 1.0, 1.0, 0.0))),
        ALL,
    ),
    "context scaled by row": (
        lambda: twin(**after("product", steps.times(1, 1, ROWS, 1))),
        ALL,
    ),
    "context times zero": (
        lambda: twin(**after("product", steps.binary("Mul", 0.0))),
        (*ALL, *OUT),
    ),
    "rectified context": (lambda: twin(**before("output", steps.unary("Relu"))), ALL),
    "values' weight given at run time": (
        graph_twins.weighed_by,
        ("hidden", "context", "value", "q_weight", "k_weight", *OUT),
    ),
    "values' weight of each batch": (
        lambda: graph_twins.weighed_by("B", made_by="Tanh"),
        ("hidden", "context", "value", "q_weight", "k_weight", *OUT),
    ),
    "values' weight that may be overridden": (
        lambda: graph_twins.weighed_by(1, may_be_overridden=True),
        ("hidden", "context", "value", "q_weight", "k_weight", *OUT),
    ),
    "residual behind the output": (
        lambda: twin(**after("output", output_twins.residual)),
        (*ALL, *OUT),
    ),
    "output over all positions": (
        lambda: twin(output=output_twins.position_output),
        ("context", *QUERY[1:-1]),
    ),
    "whole numbers of the context": (
        lambda: twin(**after("product", output_twins.whole_numbers)),
        ALL,
    ),
    "rows normed behind the output": (
        lambda: twin(**after("output", output_twins.normed_rows)),
        (*ALL, *OUT),
    ),
    "rows' bias behind the output": (
        lambda: twin(Form(projection="no_bias"), **after("output", output_twins.biased_rows)),
        ("hidden", "qkv_weight", "out_weight"),
    ),
}
# Views of which some leave an axis open that is 0 where there are no rows, instead of those. Behind
# it the block goes on if that is what a product sums, which can't run then, or no run comes so far.
DIFFERING: dict[str, tuple[Make, tuple[str, ...], bool]] = {
    "context in rows": (
        lambda: twin(Form(dims="dynamic"), output=output_twins.in_rows),
        ALL,
        True,
    ),
    "output in rows": (
        lambda: twin(Form(dims="dynamic"), **after("output", output_twins.in_rows)),
        (*ALL, *OUT),
        True,
    ),
    "product over the open axis": (
        lambda: twin(Form(dims="dynamic"), output=output_twins.projected_rows(-1)),
        (*ALL, OUT[0]),
        False,
    ),
    "product beside the open axis": (
        lambda: twin(
            Form(dims="dynamic"), output=output_twins.projected_rows(-1, NUM_HEADS * HEAD_DIM)
        ),
        ALL,
        True,
    ),
    "product beside the open axis, which no operand can have had": (
        lambda: twin(
            Form(dims="dynamic"),
            **before("heads_first", output_twins.viewed(("B", "S", NUM_HEADS, -1))),
            output=output_twins.projected_rows(-1, NUM_HEADS * HEAD_DIM),
        ),
        (*ALL, OUT[0]),
        False,
    ),
    "product beside the open axis, behind one of operands in rows": (
        lambda: twin(
            Form(dims="dynamic"),
            **before(
                "heads_first",
                output_twins.viewed((-1, NUM_HEADS * HEAD_DIM), ("B", "S", NUM_HEADS, -1)),
            ),
            output=output_twins.projected_rows(-1, NUM_HEADS * HEAD_DIM),
        ),
        ALL,
        True,
    ),
    "product beside the open axis, and operands with none": (
        lambda: twin(
            Form(dims="dynamic"),
            **before("heads_first", output_twins.viewed(("B", "S", NUM_HEADS, HEAD_DIM))),
            output=output_twins.projected_rows(-1, NUM_HEADS * HEAD_DIM),
        ),
        ALL,
        True,
    ),
    "rows of a number": (
        lambda: twin(Form(), output=output_twins.projected_rows(-1, NUM_HEADS * HEAD_DIM)),
        (*ALL, OUT[0]),
        False,
    ),
}
ENDS = ("product", "merged")  # steps at which the block must end if others read their result


@pytest.mark.parametrize("name", TAKEN)
def test_projection_is_taken_where_it_is_plain(name: str) -> None:
    make, expected = TAKEN[name]
    check_fused(make(), expected)


# Steps behind the output, and the operators that the fused model has beside the block.
BEHIND: dict[str, tuple[Step, tuple[str, ...]]] = {
    "two biases": (each(steps.plus(forms.OUT), steps.plus(forms.OUT)), ()),
    "a number": (steps.binary("Mul", 0.25), ()),
    "a factor of each column": (steps.times(forms.OUT), ()),
    "a factor of each column, and a bias": (
        each(steps.times(forms.OUT), steps.plus(forms.OUT)),
        (),
    ),
    "a number that divides": (steps.binary("Div", 3.0), ()),
    "a number taken off": (steps.binary("Sub", 0.5), ()),
    "taken off a number": (steps.reversed_binary("Sub", 0.5), ()),
    "a factor of each row": (steps.times(ROWS, 1), ("Mul",)),
    "a factor of each row and column": (steps.times(ROWS, forms.OUT), ("Mul",)),
    "a factor of the run": (output_twins.scaled_at_run_time, ("Mul",)),
    "an infinite factor": (steps.binary("Mul", np.inf), ("Mul",)),
    "zero that divides": (steps.binary("Div", 0.0), ("Div",)),
    "a number over it": (steps.reversed_binary("Div", 0.5), ("Div",)),
    "a factor of more axes": (steps.times(1, 1, 1, forms.OUT), ("Mul",)),
}


@pytest.mark.parametrize("name", BEHIND)
def test_constants_of_columns_behind_the_output_are_in_the_block(name: str) -> None:
    step, left = BEHIND[name]
    with np.errstate(divide="ignore"):
        made = run(twin(**after("output", step)))
    nodes = [node.op_type for node in made.model.graph.node]
    assert nodes == ["FusedAttentionBlock", *left]
    expected, found = made.expected[0], made.found[0]
    odd = ~np.isfinite(expected)
    np.testing.assert_array_equal(found[odd], expected[odd])
    bound = ROUNDINGS * np.abs(expected[~odd]).max(initial=0.0)
    np.testing.assert_allclose(found[~odd], expected[~odd], rtol=0, atol=bound)


@pytest.mark.parametrize("name", DIFFERING)
def test_no_rows_have_the_shape_that_they_had(name: str) -> None:
    make, expected, runs = DIFFERING[name]
    made = make()
    check_fused(made, expected)
    fused = onnx_fuse.fuse(made.model, threshold=None).model
    feeds = {"hidden": made.feeds["hidden"][:, :0]}
    if runs:
        (shape,) = (output.shape for output in plain_session(made.model).run(None, feeds))
        for session in (plain_session(fused), onnx_fuse.session(fused)):
            assert [output.shape for output in session.run(None, feeds)] == [shape]


@pytest.mark.parametrize("step", ENDS)
@pytest.mark.parametrize("show", [graph_twins.shown, graph_twins.read_twice])
def test_block_ends_at_the_context_that_others_read(show: Callable[[str], Make], step: str) -> None:
    check_fused(show(step)(), (*ALL, *TABLES))
