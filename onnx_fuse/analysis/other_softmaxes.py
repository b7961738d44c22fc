"""The softmaxes that are no attention: what their weights go into instead of values."""

from __future__ import annotations

from collections.abc import Collection

from onnx_fuse.analysis.algebra.nodes import followers
from onnx_fuse.analysis.algebra.views import CARRIERS
from onnx_fuse.analysis.record.records import Site
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.report import OtherSoftmax

_RANKS = ("TopK", "ArgMax")


def other_softmaxes(graph: Graph, sites: Collection[Site]) -> list[OtherSoftmax]:
    """Return what becomes of the weights of each Softmax of a graph that is in no attention site.

    Theirs is named that ranks them, if any does; else the first that reads them for their numbers.
    """
    taken = {node for site in sites for node in (site.node, *site.trail.nodes)}
    return [_told(node) for node in graph.nodes if node.op == "Softmax" and node not in taken]


def _told(softmax: Node) -> OtherSoftmax:
    def carried_on(node: Node) -> list[Node]:
        return followers(node) if node is softmax or node.op in CARRIERS else []

    found = [node for node in reachable(softmax, carried_on) if node is not softmax]
    ranking = next((node for node in found if node.op in _RANKS), None)
    if ranking is not None:
        return OtherSoftmax.ranked(softmax.label, ranking.label, ranking.bare_op)
    reader = next((node for node in found if node.op not in CARRIERS), None)
    if reader is not None:
        return OtherSoftmax.read(softmax.label, reader.label, reader.bare_op)
    shown = [value for node in (softmax, *found) for value in node.made if value.is_output]
    if shown:
        return OtherSoftmax.shown(softmax.label, shown[0].name)
    return OtherSoftmax.unread(softmax.label)
