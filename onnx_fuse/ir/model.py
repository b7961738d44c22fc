"""A whole model: the main graph, its functions, its imports, and the message that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.external import ExternalFiles
from onnx_fuse.ir.graph import Graph
from onnx_fuse.ir.names import Names, domain_of, op_of

# The first IR version in which an initializer need not be a graph input as well, with functions.
_IR_FREE_INITIALIZERS = 4
_IR_FUNCTIONS = 8


class Function:
    """A model-local function: an operator whose body is a graph.

    opsets: the imports that the function states ("" is ai.onnx). Attributes of the body's nodes may
    be AttributeRef. The body, `graph`, is empty at first.
    """

    def __init__(
        self, model: Model, proto: onnx.FunctionProto, raw: memoryview, *, is_new: bool = False
    ) -> None:
        self.name = proto.name
        self.domain = domain_of(proto.domain)
        self.op = op_of(self.domain, self.name)
        self.overload = getattr(proto, "overload", "")
        self.opsets = opset_versions(proto.opset_import)
        self.raw = raw  # the FunctionProto's bytes
        self.is_new = is_new  # not from the file
        self.changed = False
        self.graph = Graph(model)
        self.graph.function = self

    def __repr__(self) -> str:
        return f"Function({self.domain}:{self.name})"


def opset_versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Return {domain: version}."""
    return {domain_of(item.domain): item.version for item in imports}


class Model:
    """A model; what isn't changed keeps its bytes.

    data: the ModelProto's bytes. shell: the message without graph and functions, which are empty at
    first. folder: where external data is. path: the file it came from, or None.
    """

    def __init__(
        self, data: memoryview, shell: onnx.ModelProto, folder: Path, path: Path | None
    ) -> None:
        self.data = data
        self.path = path
        self.files = ExternalFiles(folder, path)
        self.value_names = Names()
        self.node_names = Names()
        self.changed = False  # opsets, functions or the IR version
        self.ir_version = self._file_ir_version = shell.ir_version
        self.opsets = opset_versions(shell.opset_import)
        self.graph = Graph(self)
        self.functions: list[Function] = []

    def __repr__(self) -> str:
        return f"Model({self.path}, {len(self.graph.nodes)} nodes)"

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; runtimes take it for functions as well."""
        return self.opsets.get("", 1)

    @property
    def initializers_are_inputs(self) -> bool:
        """Whether the file is so old that initializers are listed as inputs too, yet constant."""
        return self._file_ir_version < _IR_FREE_INITIALIZERS

    @property
    def inputs_are_dropped(self) -> bool:
        """Whether the written model lists initializers as inputs no more, where the file does.

        In the version that it gets they would be mere defaults of inputs.
        """
        return self.initializers_are_inputs and self.is_changed

    @property
    def written_ir_version(self) -> int:
        """The IR version to write: the file's, unless what was added needs a later one."""
        least = _IR_FREE_INITIALIZERS if self.inputs_are_dropped else 0
        return max(self.ir_version, least)

    @property
    def is_changed(self) -> bool:
        """Whether anything differs from the file."""
        return self.changed or any(graph.changed for graph in self.roots())

    def roots(self) -> Iterator[Graph]:
        """Yield the main graph, then each function's."""
        yield self.graph
        for function in self.functions:
            yield function.graph

    def graphs(self) -> Iterator[Graph]:
        """Yield the main graph and its nested ones, then each function's."""
        for graph in self.roots():
            yield from graph.walk()

    def tensor(self, proto: onnx.TensorProto, raw: memoryview | None = None) -> Constant:
        """Return the constant that a TensorProto of this model holds.

        Raises: InvalidModel if it refers to external data that is missing, too short or outside of
        the model's folder.
        """
        return Constant.from_tensor(proto, raw, self.files.range_of(proto))

    def add_opset(self, domain: str, version: int) -> None:
        """Import a domain, unless it is imported already."""
        if domain not in self.opsets:
            self.opsets[domain] = version
            self.changed = True

    def remove_opset(self, domain: str) -> None:
        """Drop the import of a domain, in the model and in its functions."""
        owners: list[Model | Function] = [self, *self.functions]
        for owner in owners:
            if owner.opsets.pop(domain, None) is not None:
                owner.changed = self.changed = True

    def add_function(self, function: Function) -> None:
        """Add a function before the others, which may call it; the IR version becomes at least 8.

        Raises: ValueError if one of this name is there.
        """
        if any(
            (each.name, each.domain) == (function.name, function.domain) for each in self.functions
        ):
            raise ValueError(f"there is a function {function.op} already")
        added = sum(each.is_new for each in self.functions)
        self.functions.insert(added, function)
        self.ir_version = max(self.ir_version, _IR_FUNCTIONS)
        self.changed = True

    def remove_function(self, name: str, domain: str) -> None:
        """Remove a function.

        Raises: KeyError if there is none of this name.
        """
        for function in self.functions:
            if (function.name, function.domain) == (name, domain):
                self.functions.remove(function)
                self.changed = True
                return
        raise KeyError(f"{domain}:{name}")
