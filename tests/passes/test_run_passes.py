"""Passes one after the other: each leaves a valid graph, or is named."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

import onnx_fuse
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.text import dump
from tests.runtime.models import attention


class Step:
    """A pass made of a function."""

    def __init__(self, name: str, run: Callable[[Model], object]) -> None:
        self.name = name
        self._run = run

    def run(self, graph: Model) -> Model:
        return self._run(graph)  # type: ignore[return-value]


def same_names(graph: Model) -> Model:
    first, second = graph.graph.nodes[:2]
    first.name = second.name = "twin"
    return graph


def nothing(graph: Model) -> Model:
    return graph


def test_passes_run_in_order_on_the_same_graph() -> None:
    graph = onnx_fuse.load(attention())
    seen: list[str] = []
    steps = [
        Step(name, lambda g, name=name: seen.append(name) or g)  # type: ignore[misc]
        for name in ("first", "second")
    ]
    assert onnx_fuse.run_passes(graph, steps) is graph
    assert seen == ["first", "second"]


def test_the_pass_has_a_stable_name_and_returns_the_graph() -> None:
    step = onnx_fuse.FuseAttentionBlock(threshold=None)
    assert isinstance(step, onnx_fuse.Pass)
    assert step.name == "fuse_attention_block"
    graph = onnx_fuse.load(attention())
    assert step.run(graph) is graph
    ops = [node.op for node in graph.graph.nodes]
    assert ops.count("onnx_fuse:FusedAttentionBlock") == 1


def test_whatever_holds_a_model_is_taken_as_one() -> None:
    model = attention()
    result = onnx_fuse.fuse(onnx_fuse.load(model))
    assert onnx_fuse.explain(result).blocks[0].code == onnx_fuse.Code.ALREADY_FUSED
    assert onnx_fuse.fuse(result).model == result.model
    assert onnx_fuse.verify(model, result).passed
    assert onnx_fuse.session(result).get_outputs()[0].name == "output"
    assert onnx_fuse.unfuse(result) == onnx_fuse.unfuse(result.model)


def test_loaded_model_is_not_changed_by_fusing_it() -> None:
    graph = onnx_fuse.load(attention())
    before = dump(graph)
    assert onnx_fuse.fuse(graph).report.num_fused == 1
    assert dump(graph) == before


def test_fusing_and_unfusing_are_passes_like_any_other() -> None:
    graph = onnx_fuse.load(attention())
    onnx_fuse.run_passes(graph, [onnx_fuse.FuseAttentionBlock(), onnx_fuse.Unfuse()])
    assert not any(node.domain for node in graph.graph.nodes)
    assert list(graph.opsets) == [""]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (same_names, "pass 'careless' left an invalid graph: two nodes are named 'twin'"),
        (lambda _: None, "pass 'careless' returned NoneType, not a graph"),
    ],
)
def test_a_pass_that_breaks_the_graph_is_named(run: Callable[[Model], object], words: str) -> None:
    steps = [Step("careful", nothing), Step("careless", run), Step("late", nothing)]
    with pytest.raises(onnx_fuse.PassFailed, match=words):
        onnx_fuse.run_passes(onnx_fuse.load(attention()), steps)


def test_a_graph_that_was_invalid_before_blames_no_pass() -> None:
    graph = onnx_fuse.load(attention())
    same_names(graph)
    with pytest.raises(onnx_fuse.InvalidModel, match="twin"):
        onnx_fuse.run_passes(graph, [Step("careful", nothing)])


def test_no_pass_writes_the_bytes_that_were_read() -> None:
    model: onnx.ModelProto = attention()
    graph = onnx_fuse.run_passes(onnx_fuse.load(model), [])
    assert not graph.is_changed
