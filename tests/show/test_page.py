from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_fuse import api
from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.graph import Node
from onnx_fuse.ir.load import load
from onnx_fuse.report import BlockReport, Code, OtherSoftmax, Outside, Report, Step
from onnx_fuse.show.drawing import draw
from onnx_fuse.show.page import render_page
from onnx_fuse.show.surroundings import Surroundings
from tests.runtime.models import attention, parse

BOX = re.compile(
    r'<g class="(\w+)(?: understood)?"><title>(.*?)</title>'
    r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"'
)
EDGE = re.compile(r'd="M[\d.-]+ ([\d.-]+) C[^"]* ([\d.-]+)"/>')


class Tags(HTMLParser):
    """Which tags are open, and which attributes were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.extend(attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a<b>.onnx"
    onnx.save(attention(), str(path))
    return path


def page(model: Path, *blocks: BlockReport) -> str:
    return render_page(model, Report(model=str(model), blocks=blocks))


def test_page_is_well_formed_and_loads_nothing(model: Path) -> None:
    text = render_page(model, api.explain(model))
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    links = [value for name, value in tags.attributes if name in ("src", "href", "srcset")]
    assert all(link is not None and link.startswith("#") for link in links)
    assert "http" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_page_has_both_colour_schemes(model: Path) -> None:
    text = page(model)
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text


def test_blocks_stand_in_order_with_their_outcome(model: Path) -> None:
    fused = BlockReport(name="first", status="fused", node="p")
    declined = BlockReport.decline("second", Code.WEIGHTS_READ, {"value": "w"}, node="s2")
    text = page(model, fused, declined)
    assert text.index('id="block-0" class="fused"') < text.index('id="block-1" class="declined"')
    assert declined.reason is not None
    assert declined.reason.replace("'", "&#x27;") in text
    assert "weights_read" in text


def test_what_stays_outside_of_a_block_is_said(model: Path) -> None:
    outside = (Outside.needed("k", "<k>", "r", "Relu"),)
    text = page(model, BlockReport(name="b", status="fused", node="p", outside=outside))
    assert "k stays outside: the product &#x27;&lt;k&gt;&#x27;" in text


def test_softmaxes_that_are_no_attention_are_named(model: Path) -> None:
    others = (OtherSoftmax.ranked("<a>", "r", "TopK"), OtherSoftmax.ranked("b", "s", "TopK"))
    text = render_page(model, Report(model=str(model), others=others))
    assert "<li>&#x27;&lt;a&gt;&#x27; and 1 more: its weights choose" in text
    assert "Softmaxes that are no attention" not in page(model)


def test_names_are_escaped(model: Path) -> None:
    block = BlockReport(name="<script>alert(1)</script>", status="fused", node="<img>")
    assert "<script" not in page(model, block)
    assert "a&lt;b&gt;.onnx" in page(model, block)


@pytest.mark.parametrize("status", ["fused", "declined"])
def test_node_of_the_block_is_marked(model: Path, status: str) -> None:
    block = (
        BlockReport(name="b", status="fused", node="p")
        if status == "fused"
        else BlockReport.decline("b", Code.GATE, node="p")
    )
    marked = [title for kind, title, *_ in BOX.findall(page(model, block)) if kind == status]
    assert marked == ["Softmax p"]


def test_understood_nodes_are_outlined(model: Path) -> None:
    steps = (Step("softmax", ("p",)), Step("scores", ("s0", "s1")))
    text = page(model, BlockReport.decline("b", Code.GATE, node="p", steps=steps))
    outlined = re.findall(r'<g class="(\w+) understood"><title>(.*?)</title>', text)
    assert sorted(outlined) == [
        ("declined", "Softmax p"),
        ("step", "MatMul s0"),
        ("step", "Mul s1"),
    ]
    assert '<span class="badge declined">scores</span>' in text


def test_block_is_drawn_from_projections_to_projection(model: Path) -> None:
    text = page(model, BlockReport(name="b", status="fused", node="p"))
    steps = {title.split()[1] for kind, title, *_ in BOX.findall(text) if kind != "input"}
    assert {"q0", "k0", "v0", "s0", "p", "c0", "c3"} <= steps
    assert "hidden" not in steps


def test_unknown_node_is_said_and_no_error(model: Path) -> None:
    assert "Nothing to draw" in page(model, BlockReport(name="b", status="fused", node="nowhere"))


def test_model_without_attention_says_so(model: Path) -> None:
    assert "No attention was found" in page(model)


def test_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"x\.onnx"):
        page(tmp_path / "x.onnx")


def test_steps_that_compute_shapes_are_left_out() -> None:
    model = parse(
        """g (float[b,s] x, float[b,s] z) => (float y) {
        n = Shape (z) one = Constant <value_ints = [0]> () m = Gather (n, one)
        r = Reshape (x, m) p = Softmax (r) y = Relu (p) }"""
    )
    around = [node.bare_op for node in Surroundings(load(model)).around("p", "p")]
    assert "Reshape" in around
    assert not {"Shape", "Gather", "Constant"} & set(around)


def test_what_stands_above_where_a_block_stopped_is_drawn() -> None:
    model = parse(
        """g (float[b,s] x, float[b,s] z) => (float y) {
        far = Neg (z) e = Exp (far) d = Abs (e) c = Relu (d) n = Tanh (c) t = Sin (n)
        p = Softmax (x) y = Add (p, t) }"""
    )
    around = [node.bare_op for node in Surroundings(load(model)).around("p", "t")]
    assert around == ["Exp", "Abs", "Relu", "Tanh", "Sin", "Softmax", "Add"]


@st.composite
def graphs(draw_from: st.DrawFn) -> list[Node]:
    nodes = []
    for index in range(draw_from(st.integers(1, 14))):
        known = ["x", *(f"v{i}" for i in range(index))]
        inputs = draw_from(st.lists(st.sampled_from(known), min_size=1, max_size=3))
        nodes.append(onnx.helper.make_node("Sum", inputs, [f"v{index}"]))
    x, last = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in ("x", nodes[-1].output[0])
    )
    graph = onnx.helper.make_graph(nodes, "g", [x], [last])
    return list(load(onnx.helper.make_model(graph)).graph.nodes)


@given(graphs())
def test_every_step_is_drawn_and_no_boxes_touch(nodes: list[Node]) -> None:
    boxes = BOX.findall(draw(nodes, marked=None, status="fused"))
    steps = {title.split()[1] for kind, title, *_ in boxes if kind == "step"}
    assert steps == {node.made[0].name for node in nodes}
    rows: dict[str, list[tuple[float, float]]] = {}
    for _, _, x, y, width, _ in boxes:
        rows.setdefault(y, []).append((float(x), float(x) + float(width)))
    for row in rows.values():
        for (_, end), (start, _) in pairwise(sorted(row)):
            assert start > end


@given(graphs())
def test_every_edge_leads_down(nodes: list[Node]) -> None:
    edges = EDGE.findall(draw(nodes, marked=None, status="fused"))
    assert len(edges) == sum(len(set(node.inputs)) for node in nodes)
    assert all(float(start) < float(end) for start, end in edges)
