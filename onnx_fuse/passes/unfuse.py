"""The pass back: each fused node becomes the standard operators of its body.

Each weight in panels becomes a plain matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper

from onnx_fuse.analysis.shapes.fold_rules import Known, folded
from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Model
from onnx_fuse.op import function, schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.check_block import check
from onnx_fuse.op.form import form_of
from onnx_fuse.op.schema import Argument, InvalidBlock


@dataclass(frozen=True)
class Unfuse:
    """Replace the fused operators by standard ONNX and leave no trace of this package."""

    name: ClassVar[str] = "unfuse"

    def run(self, model: Model) -> Model:
        """Rewrite the model in place and return it.

        Raises: InvalidModel if a fused node's operands and attributes don't fit together.
        """
        own = [each for each in model.functions if each.domain == schema.DOMAIN]
        bodies = {each.name: each.raw for each in own}
        for each in own:
            model.remove_function(each.name, each.domain)
        for graph in model.graphs():
            for node in graph.nodes:
                if node.domain == schema.DOMAIN:
                    _Inline(graph, node, bodies).run()
        model.remove_opset(schema.DOMAIN)
        return model


class _Inline:
    """Puts one node's body in its place; what depends on constants only is computed here."""

    def __init__(self, graph: Graph, node: Node, bodies: Mapping[str, memoryview]) -> None:
        self.graph, self.node, self.bodies = graph, node, bodies
        self.opset = graph.model.opset
        self.folded: dict[str, np.ndarray] = {}
        self.values: dict[str, Value | None] = {}

    def run(self) -> None:
        """Replace the node."""
        try:
            body = self._body()
        except InvalidBlock as error:
            raise InvalidModel(f"node '{self.node.name}': {error}") from error
        self.values = dict(zip(body.input, self.node.inputs, strict=True))
        targets = dict(zip(body.output, list(self.node.outputs), strict=True))
        for step in body.node:
            self._step(step, targets)
        self.graph.remove_dead([self.node])

    def _body(self) -> onnx.FunctionProto:
        """Return the function that the node stands for: the model's own if it is there.

        Raises: InvalidBlock.
        """
        names = str(self.node.attr("operands", "")).split(",")
        if len(names) != len(self.node.inputs):
            raise InvalidBlock(f"{len(names)} operands are named, {len(self.node.inputs)} given")
        arguments = {
            name: _argument(value) for name, value in zip(names, self.node.inputs, strict=True)
        }
        attributes = BlockAttributes.from_onnx(self.node.attributes)
        read = schema.operand_names(self.node.attributes)
        check({name: arguments[name] for name in read}, attributes, len(self.node.outputs))
        own = self.bodies.get(self.node.bare_op)
        if own is not None:
            body = onnx.FunctionProto()
            body.ParseFromString(bytes(own))
            if list(body.input) == names and self._fits(body):
                return body
        form = form_of(self.node.bare_op, arguments, attributes, len(self.node.outputs), self.opset)
        return function.body(form, self.opset)

    def _fits(self, body: onnx.FunctionProto) -> bool:
        own = len(body.input), len(body.output)
        return own == (len(self.node.inputs), len(self.node.outputs))

    def _step(self, step: onnx.NodeProto, targets: dict[str, Value | None]) -> None:
        attributes = {item.name: self._setting(item) for item in step.attribute}
        if not any(name in targets for name in step.output) and self._fold(step, attributes):
            return
        inputs = [self._value(name) for name in step.input]
        outputs = [
            targets.get(name) or f"{self.node.name}/{name}" if name else None
            for name in step.output
        ]
        made = self.graph.add_node(
            step.op_type,
            inputs,
            outputs,
            attributes=attributes,
            domain=step.domain,
            name=f"{self.node.name}/{step.op_type}",
            before=self.node,
        )
        self.values.update(zip(step.output, made.outputs, strict=True))

    def _setting(self, attribute: onnx.AttributeProto) -> Any:
        """Return an attribute of a step: a number, a list, a string, or an array."""
        if attribute.ref_attr_name:
            return self.node.attr(attribute.ref_attr_name)
        value = helper.get_attribute_value(attribute)
        is_tensor = isinstance(value, onnx.TensorProto)
        return onnx.numpy_helper.to_array(value) if is_tensor else value

    def _fold(self, step: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
        """Compute a step whose inputs are all constants, as far as it is folded."""
        if step.domain:
            return False
        inputs: list[np.ndarray] = []
        for name in step.input:
            if name in self.folded:
                inputs.append(self.folded[name])
                continue
            value = self.values.get(name)
            if value is None or value.constant is None:
                return False
            inputs.append(value.constant.numpy())
        results = folded(Known(step.op_type, inputs, attributes, self.opset, len(step.output)))
        if len(results) < len(step.output):
            return False
        self.folded.update(zip(step.output, results, strict=True))
        return True

    def _value(self, name: str) -> Value | None:
        if not name:
            return None
        if name not in self.values:
            hint = f"{self.node.name}/{name}"
            self.values[name] = self.graph.add_constant(hint, self.folded[name])
        return self.values[name]


def _argument(value: Value | None) -> Argument:
    """Return what is certain of an operand: the shape of a constant, else the type at most."""
    if value is None:
        return Argument(None, None)
    return Argument(value.dtype, None if value.constant is None else value.constant.shape)
