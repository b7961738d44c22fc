from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.model import Model


def zoo_files() -> list[Path]:
    """The models of the folder ZOO (models/zoo), at most about fifty of them, evenly chosen."""
    files = sorted(
        Path(os.environ.get("ZOO", Path(__file__).parents[2] / "models/zoo")).glob("*.onnx")
    )
    return files[:: len(files) // 50 + 1]


def parse(text: str) -> onnx.ModelProto:
    """Return the model of ONNX's own text form."""
    return onnx.parser.parse_model(text)


def small_model() -> onnx.ModelProto:
    """A small graph with everything that a reader or a writer may lose."""
    model = parse(
        """
        <ir_version: 10, opset_import: ["" : 18, "com.example" : 3]>
        main (float[batch, 4] x) => (float[batch, 4] y)
        <float[4, 4] w, float[4] b = {1, 2, 3, 4}, float[2] unused = {5, 6}>
        {
            product = MatMul(x, w)
            sum = Add(product, b)
            axes = Constant<value_ints: ints = [0]>()
            dead = Unsqueeze(sum, axes)
            y = com.example.Strange<alpha = 0.5>(sum, , product)
        }
        """
    )
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    graph = model.graph
    initializers = {each.name: each for each in graph.initializer}
    del graph.initializer[:]
    graph.initializer.extend(
        [numpy_helper.from_array(weight, "w"), initializers["b"], initializers["unused"]]
    )
    del graph.value_info[:]
    graph.value_info.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4]))
    graph.value_info.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [3]))
    model.doc_string, model.domain, model.model_version = "about the model", "org.example", 7
    helper.set_model_props(model, {"author": "someone"})
    graph.doc_string = "about the graph"
    graph.node[1].doc_string = "about the node"
    graph.node[1].name = "adder"
    graph.node[1].overload = "variant"
    graph.node[1].metadata_props.add(key="origin", value="line 3")
    graph.metadata_props.add(key="graph", value="g")
    graph.input[0].doc_string = "about the input"
    annotation = graph.quantization_annotation.add(tensor_name="product")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    return model


def value(model: Model, name: str) -> Value:
    """Return the input, initializer or result of that name."""
    for graph in model.graphs():
        for each in (*graph.inputs, *graph.initializers):
            if each.name == name:
                return each
        for node in graph.nodes:
            for each in node.outputs:
                if each is not None and each.name == name:
                    return each
    raise KeyError(name)
