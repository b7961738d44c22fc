"""What weighs values by their scores and is no softmax."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fuse.analysis.algebra.nodes import followers
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.origins import is_projected
from onnx_fuse.analysis.record.records import Site
from onnx_fuse.analysis.scores.chain import Chain
from onnx_fuse.analysis.scores.leads import Lead
from onnx_fuse.analysis.scores.scores import ScoreWalk
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.analysis.softmax.ahead import leads_to, leads_to_product
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.report import Code

# What makes weights of scores one by one, or no weights at all. Where it is applied to something
# else it is an activation or a gate.
_WEIGHERS = frozenset(
    {"Elu", "Gelu", "HardSigmoid", "LogSoftmax", "Relu", "Selu", "Sigmoid", "Softplus"}
)


def stray_weights(graph: Graph, sites: Sequence[Site], shapes: Shapes) -> list[Site]:
    """Return a declined site for each node of no other site that makes weights of scores.

    These are powers, which no sum of theirs alone divides, and activations. What meets a tensor of
    its own shape, element by element, weighs no values: it is a measure of the scores, as an
    entropy is.
    """
    understood = {node for site in sites for node in site.trail.nodes}
    return [
        _declined(node)
        for node in graph.nodes
        if (node.op == "Exp" or node.op in _WEIGHERS)
        and node not in understood
        and any(leads_to_product(reader, shapes, in_place=False) for reader in followers(node))
        and _is_of_scores(node, shapes)
        and not any(leads_to(node, site.node) for site in sites)
    ]


def _is_of_scores(node: Node, shapes: Shapes) -> bool:
    """Return whether a product of two computed tensors leads to a node's input.

    An activation is only taken for an attention's if these are a query and a key: projections.
    """
    views, source = Views(Space(), shapes), node.input(0)
    walk = ScoreWalk(views, node, Trail())
    if source is None or walk.leads(source) is not Lead.PRODUCT:
        return False
    if node.op == "Exp":
        return True
    ref = views.ref(source, "x")
    if ref is None or not ref.index:
        return False
    try:
        scores = walk.scores(ref, ref.index[-1], Chain())
    except Declined:
        return False
    return is_projected(views, scores.query) and is_projected(views, scores.key)


def _declined(node: Node) -> Site:
    trail = Trail()
    trail.enter("softmax")
    trail.add(node)
    if node.op in _WEIGHERS:
        return Site(node, None, Declined(Code.NO_SOFTMAX, node), trail)
    what = "scores and values, which no sum of its results alone divides,"
    return Site(node, None, Declined(Code.UNSUPPORTED_OP, node, what=what), trail)
