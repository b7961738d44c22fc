"""Gives random numbers of a model a seed, so that it can be compared with another model.

Without one onnxruntime takes a node's number in the graph: a fused model, which has fewer nodes,
then draws other numbers than its original.
"""

from __future__ import annotations

import onnx
from onnx import helper

from onnx_fuse.ir.bodies import bodies
from onnx_fuse.runtime.sessions import Source

_SEEDS: dict[str, float | int] = {
    "Bernoulli": 0.0,
    "Dropout": 0,
    "Multinomial": 0.0,
    "RandomNormal": 0.0,
    "RandomNormalLike": 0.0,
    "RandomUniform": 0.0,
    "RandomUniformLike": 0.0,
}


def seeded(source: Source) -> Source:
    """Return the model with one seed for all nodes that draw numbers and have none.

    A new session then draws the same numbers as another one that does the same runs. It is the same
    source if nothing lacks a seed, or if its external data is too large to be copied.
    """
    if not any(map(_lacks_seed, _nodes(source.proto))):
        return source
    model = source.copied()
    if model is None:
        return source
    for node in filter(_lacks_seed, _nodes(model)):
        node.attribute.append(helper.make_attribute("seed", _SEEDS[node.op_type]))
    return Source(source.name, model, model.SerializeToString())


def draws(model: onnx.ModelProto) -> bool:
    """Return whether a run may draw random numbers."""
    return any(map(_may_draw, _nodes(model)))


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for body in bodies(model) for node in body.node]


def _may_draw(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _SEEDS:
        return False
    return node.op_type != "Dropout" or any(node.input[2:])  # by its training_mode


def _lacks_seed(node: onnx.NodeProto) -> bool:
    return _may_draw(node) and all(attribute.name != "seed" for attribute in node.attribute)
