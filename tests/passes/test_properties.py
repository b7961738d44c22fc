"""What must hold for whatever graph is fused, and for however it is written down."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from onnx import helper

import onnx_fuse
from onnx_fuse.ir.check import check_model
from onnx_fuse.op.schema import DOMAIN
from tests.analysis.check import check_record, check_results, fused, run
from tests.analysis.samples.forms import LEVELS, Form, is_possible
from tests.analysis.samples.graphs import Sample, sample
from tests.rewording import RULES, reword
from tests.sessions import plain_session

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(VERSION < (1, 24), reason="some forms are of opset 23")
# A form is small as it is: nothing is gained by shrinking it.
PHASES = (Phase.explicit, Phase.generate)
EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True, phases=PHASES)
forms = st.builds(Form, **{k: st.sampled_from(v) for k, v in LEVELS.items()}).filter(is_possible)
seeds = st.integers(0, 2**16)
Change = Callable[[onnx.ModelProto, random.Random], None]
COMMUTATIVE = ("Add", "Mul", "And")
# Rules of operators that no form has.
OF_NO_FORM = {"the_only_one_gathered"}


def changed(made: Sample, change: Change, seed: int) -> Sample:
    """Return the same graph, written down differently."""
    model = copy.deepcopy(made.model)
    change(model, random.Random(seed))
    onnx.checker.check_model(model)
    return Sample(model, made.feeds, made.record)


# Ways to write the same down --------------------------------------------------------------------


def rename(model: onnx.ModelProto, rng: random.Random) -> None:
    """Give every node and every value but the graph's inputs another name."""
    graph = model.graph
    kept = {value.name for value in graph.input}
    names: dict[str, str] = {"": ""}

    def new(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"n{rng.getrandbits(48):x}")

    for number, node in enumerate(graph.node):
        node.name = f"node{(number * 7919) % 10007}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for tensor in (*graph.initializer, *graph.output):
        tensor.name = new(tensor.name)


def drop_node_names(model: onnx.ModelProto, _: random.Random) -> None:
    """Nodes need no names."""
    graph = model.graph
    for node in graph.node:
        node.name = ""


def reorder(model: onnx.ModelProto, rng: random.Random) -> None:
    """Choose another topological order."""
    graph = model.graph
    waiting, placed = list(graph.node), []
    made = {name for node in graph.node for name in node.output}
    while waiting:
        ready = [node for node in waiting if not made & set(node.input)]
        node = rng.choice(ready)
        waiting.remove(node)
        placed.append(node)
        made -= set(node.output)
    del graph.node[:]
    graph.node.extend(placed)


def swap(model: onnx.ModelProto, rng: random.Random) -> None:
    """Exchange the operands of sums and products."""
    graph = model.graph
    for node in graph.node:
        if node.op_type in COMMUTATIVE and not node.domain and rng.random() < 0.7:
            node.input[:] = list(node.input)[::-1]


def constants_as_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    """Write some initializers as Constant nodes."""
    graph = model.graph
    for tensor in list(graph.initializer):
        if rng.random() < 0.5:
            node = helper.make_node("Constant", [], [tensor.name], tensor.name, value=tensor)
            graph.initializer.remove(tensor)
            graph.node.insert(0, node)


CHANGES: dict[str, Change] = {
    "rename": rename,
    "drop_node_names": drop_node_names,
    "reorder": reorder,
    "swap": swap,
    "constants_as_nodes": constants_as_nodes,
}


@pytest.mark.parametrize("change", CHANGES)
@EXAMPLES
@given(form=forms, seed=seeds)
@example(form=Form(heads="gqa_concat", dims="batch", extra="wide_values"), seed=606)
def test_record_is_the_same_however_it_is_written(change: str, form: Form, seed: int) -> None:
    made = changed(sample(form), CHANGES[change], seed)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in OF_NO_FORM])
@settings(EXAMPLES, max_examples=5, suppress_health_check=[HealthCheck.filter_too_much])
@given(form=forms, seed=seeds)
@example(form=Form(heads="gqa_concat", dims="batch", extra="wide_values"), seed=606)
def test_record_is_the_same_in_other_words(rule: str, form: Form, seed: int) -> None:
    made = sample(form)
    model = copy.deepcopy(made.model)
    assume(reword(model, random.Random(seed), [rule], share=0.5))
    onnx.checker.check_model(model)
    result = run(Sample(model, made.feeds, made.record))
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@EXAMPLES
@given(form=forms)
def test_fusing_again_changes_nothing(form: Form) -> None:
    once = fused(sample(form).model)
    again = onnx_fuse.fuse(once, threshold=None)
    assert again.model.SerializeToString() == once.SerializeToString()
    assert [block.code for block in again.report.blocks] == ["already_fused"]


@EXAMPLES
@given(form=forms)
def test_same_input_gives_same_bytes_and_is_left_alone(form: Form) -> None:
    model = sample(form).model
    before = model.SerializeToString()
    first, second = fused(model), fused(model)
    assert first.SerializeToString() == second.SerializeToString()
    assert model.SerializeToString() == before


@EXAMPLES
@given(form=forms)
def test_fused_model_is_valid(form: Form) -> None:
    made = sample(form).model
    result = onnx_fuse.fuse(made, threshold=None)
    check_model(result.graph)
    onnx.checker.check_model(result.model, full_check=made.opset_import[0].version < 23)
    assert [value.name for value in result.model.graph.output] == [
        value.name for value in made.graph.output
    ]
    assert list(result.model.graph.input) == list(made.graph.input)


@EXAMPLES
@given(form=forms)
def test_explain_says_what_fuse_does(form: Form) -> None:
    model = sample(form).model
    report = onnx_fuse.explain(model, threshold=None)
    assert report.blocks == onnx_fuse.fuse(model, threshold=None).report.blocks


@EXAMPLES
@given(form=forms)
def test_unfused_model_computes_the_same_without_a_trace_of_us(form: Form) -> None:
    made = sample(form)
    model = onnx_fuse.unfuse(fused(made.model))
    assert DOMAIN not in {opset.domain for opset in model.opset_import}
    assert not model.functions
    assert DOMAIN not in {node.domain for node in model.graph.node}
    onnx.checker.check_model(model)
    expected = plain_session(made.model).run(None, made.feeds)
    check_results(plain_session(model).run(None, made.feeds), expected)


def of_constants(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that read nothing but constants, by their first outputs."""
    known = {"", *(tensor.name for tensor in model.graph.initializer)}
    return {node.output[0] for node in model.graph.node if known.issuperset(node.input)}


@EXAMPLES
@given(form=forms)
def test_unfused_model_computes_no_more_of_constants_alone(form: Form) -> None:
    made = sample(form).model
    assert of_constants(onnx_fuse.unfuse(fused(made))) <= of_constants(made)


@EXAMPLES
@given(form=forms)
def test_nothing_dead_is_left_behind(form: Form) -> None:
    model = fused(sample(form).model)
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output]
    unread = [name for name in made if name not in read]
    assert unread == []
    assert [t.name for t in model.graph.initializer if t.name not in read] == []
