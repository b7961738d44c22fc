"""Powers of scores that meet values, and are no softmax: no sum of theirs alone divides them."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fuse.analysis.ahead import leads_to, leads_to_product
from onnx_fuse.analysis.axes import Space
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.nodes import readers
from onnx_fuse.analysis.records import Site
from onnx_fuse.analysis.scores import ScoreWalk
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.analysis.views import Views
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.report import Code


def stray_powers(graph: Graph, sites: Sequence[Site], shapes: Shapes) -> list[Site]:
    """Return a declined site for each Exp of scores that meets values and is of no other site."""
    understood = {node for site in sites for step in site.trail.steps.values() for node in step}
    views = Views(Space(), shapes)
    return [
        _declined(node)
        for node in graph.nodes
        if node.op == "Exp"
        and node not in understood
        and _meets_values(node, shapes)
        and _is_of_scores(node, views)
        and not any(leads_to(node, site.node) for site in sites)
    ]


def _meets_values(node: Node, shapes: Shapes) -> bool:
    results = [value for value in node.outputs if value is not None]
    return any(leads_to_product(use.node, shapes) for value in results for use in readers(value))


def _is_of_scores(node: Node, views: Views) -> bool:
    exponent = node.inputs[0] if node.inputs else None
    return exponent is not None and ScoreWalk(views, node, Trail()).leads(exponent) == 2


def _declined(node: Node) -> Site:
    trail = Trail()
    trail.enter("softmax")
    trail.add(node)
    what = "scores and values, which no sum of its results alone divides,"
    facts = {"node": node.name, "op": node.bare_op, "what": what}
    return Site(node, None, Declined(Code.UNSUPPORTED_OP, node, **facts), trail)
