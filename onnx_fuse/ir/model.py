"""A whole model: the main graph, its functions, its imports, and the message that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from onnx_fuse.ir.build import build_function, build_graph
from onnx_fuse.ir.check import check_graph
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.external import ExternalFiles
from onnx_fuse.ir.graph import Graph
from onnx_fuse.ir.names import Names, domain_of, op_of
from onnx_fuse.ir.wire import DecodeError, Field, checked_fields

# The first IR version whose models import opsets, in which an initializer need not be a graph input
# as well, with functions.
_IR_OPSETS = 3
_IR_FREE_INITIALIZERS = 4
_IR_FUNCTIONS = 8


class Function:
    """A model-local function: an operator whose body is a graph.

    opsets: the imports that the function states ("" is ai.onnx). Attributes of the body's nodes may
    be AttributeRef.
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
        build_function(self.graph, raw)

    def __repr__(self) -> str:
        return f"Function({self.domain}:{self.name})"


def opset_versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Return {domain: version}."""
    return {domain_of(item.domain): item.version for item in imports}


class Model:
    """A model, as read from a ModelProto's bytes (`data`); what isn't changed keeps its bytes.

    folder: where external data is. path: the file it came from, or None.

    Raises: DecodeError if `data` is no complete ModelProto; InvalidModel if the model is not valid.
    """

    def __init__(self, data: memoryview, folder: Path, path: Path | None = None) -> None:
        self.data = data
        self.path = path
        self.files = ExternalFiles(folder, path)
        self.value_names = Names()
        self.node_names = Names()
        self.changed = False  # opsets, functions or the IR version
        fields: dict[int, list[Field]] = {}
        for field in checked_fields(data, onnx.ModelProto):
            fields.setdefault(field.number, []).append(field)
        shell = onnx.ModelProto()
        for number, group in fields.items():
            if number not in _LARGE:
                for field in group:
                    shell.MergeFromString(bytes(field.raw))
        self.ir_version = self._file_ir_version = shell.ir_version
        self.opsets = opset_versions(shell.opset_import)
        graphs = fields.get(onnx.ModelProto.GRAPH_FIELD_NUMBER, [])
        if len(graphs) != 1 or not (self.opsets or self.ir_version < _IR_OPSETS):
            raise DecodeError("no graph" if not graphs else "no opset_import")
        self.graph = Graph(self)
        build_graph(self.graph, graphs[0].payload)
        self.functions = [
            Function(self, onnx.FunctionProto.FromString(bytes(field.payload)), field.payload)
            for field in fields.get(onnx.ModelProto.FUNCTIONS_FIELD_NUMBER, ())
        ]

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
        return self.changed or any(graph.changed for graph in self._roots())

    def _roots(self) -> Iterator[Graph]:
        yield self.graph
        for function in self.functions:
            yield function.graph

    def graphs(self) -> Iterator[Graph]:
        """Yield the main graph and its nested ones, then each function's."""
        for graph in self._roots():
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

    def add_function(self, proto: onnx.FunctionProto) -> Function:
        """Add a function before the others, which may call it; the IR version becomes at least 8.

        Raises: ValueError if one of this name is there.
        """
        if any((each.name, each.domain) == (proto.name, proto.domain) for each in self.functions):
            raise ValueError(f"there is a function {proto.domain}:{proto.name} already")
        raw = memoryview(proto.SerializeToString(deterministic=True))
        function = Function(self, proto, raw, is_new=True)
        added = sum(each.is_new for each in self.functions)
        self.functions.insert(added, function)
        self.ir_version = max(self.ir_version, _IR_FUNCTIONS)
        self.changed = True
        return function

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

    def check(self) -> None:
        """Raise InvalidModel, naming node and value, unless every graph is valid.

        Valid is: each name is defined once; each input is defined before it is read; outputs are
        defined; node names are unique within a graph.
        """
        for graph in self._roots():
            check_graph(graph)


_LARGE = (onnx.ModelProto.GRAPH_FIELD_NUMBER, onnx.ModelProto.FUNCTIONS_FIELD_NUMBER)
