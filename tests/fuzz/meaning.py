"""Change what attention means, and ask whether a fused model still computes what its original does.

    python -m tests.fuzz.meaning [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Each model is a sound one with one to three changes that keep it valid: another operator, attribute,
constant or operand, an operator more, a value shown. What is fused must compute the same, with the
kernel and without. A fused model that differs from its original, and a model that onnxruntime runs
and the tool breaks on, is a finding: it is kept in the folder, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnx_fuse
from tests.analysis.forms import LEVELS, Form
from tests.analysis.graphs import sample

LARGEST_SEED = 100_000  # bytes of a model of the zoo
SHARE_OF_ZOO = 0.5
# Operators that may stand in each other's place.
FAMILIES = (
    ("Add", "Sub", "Mul", "Div", "Max", "Min"),
    ("Exp", "Tanh", "Sigmoid", "Neg", "Abs", "Sqrt", "Reciprocal", "Erf", "Identity", "Relu"),
    ("ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2"),
    ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"),
    ("And", "Or", "Xor"),
    ("Softmax", "LogSoftmax"),
    ("Cos", "Sin"),
)
INSERTED = ("Neg", "Abs", "Relu", "Tanh", "Exp", "Sigmoid", "Identity", "Softmax")
# A change can make a model so unstable that roundings show in it (scores beside a fill of -1e4, a
# division by what is nearly zero): that many times the allowed difference comes of another meaning.
ANOTHER_MEANING = 1e4
# What verify says of an original that shows nothing.
EMPTY = ("the original does not run", "nothing was compared")
NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, -1e4, 1e-3)


class Change:
    """Changes of one model in place; each method says whether it found something to change."""

    def __init__(self, model: onnx.ModelProto, random: Random) -> None:
        self.model, self.graph, self.random = model, model.graph, random
        self.types = _types(model)

    def any(self) -> str:
        """Make one change and return its name."""
        kinds: list[Callable[[], bool]] = [
            self.operator,
            self.attribute,
            self.operand,
            self.order,
            self.constant,
            self.insertion,
            self.output,
        ]
        while True:
            kind = self.random.choice(kinds)
            if kind():
                return kind.__name__

    def _node(self) -> onnx.NodeProto:
        return self.random.choice(self.graph.node)

    def operator(self) -> bool:
        """Put another operator in a node's place."""
        node = self._node()
        family = next((family for family in FAMILIES if node.op_type in family), ())
        others = [name for name in family if name != node.op_type]
        if not others or node.domain:
            return False
        node.op_type = self.random.choice(others)
        return True

    def attribute(self) -> bool:
        """Change a number of a node's attributes."""
        node = self._node()
        found = [a for a in node.attribute if a.type in (a.INT, a.INTS, a.FLOAT)]
        if not found:
            return False
        attribute = self.random.choice(found)
        if attribute.type == attribute.FLOAT:
            attribute.f *= self.random.choice((2.0, -1.0, 0.5))
        elif attribute.type == attribute.INT:
            attribute.i += self.random.choice((1, -1))
        elif len(attribute.ints) > 1:
            i, j = self.random.sample(range(len(attribute.ints)), 2)
            attribute.ints[i], attribute.ints[j] = attribute.ints[j], attribute.ints[i]
        return True

    def operand(self) -> bool:
        """Let a node read another value of the same type and shape."""
        at = self.random.randrange(len(self.graph.node))
        node = self.graph.node[at]
        if not node.input:
            return False
        place = self.random.randrange(len(node.input))
        wanted = self.types.get(node.input[place])
        known = {value.name for value in (*self.graph.input, *self.graph.initializer)}
        known |= {name for earlier in self.graph.node[:at] for name in earlier.output}
        others = sorted(
            name
            for name in known
            if name != node.input[place] and wanted is not None and self.types.get(name) == wanted
        )
        if not others:
            return False
        node.input[place] = self.random.choice(others)
        return True

    def order(self) -> bool:
        """Let two operands of a node change places."""
        node = self._node()
        if len(node.input) < 2:
            return False
        i, j = self.random.sample(range(len(node.input)), 2)
        node.input[i], node.input[j] = node.input[j], node.input[i]
        return True

    def constant(self) -> bool:
        """Change a number of a constant, or all of them."""
        tensors = [*self.graph.initializer]
        tensors += [a.t for n in self.graph.node for a in n.attribute if a.type == a.TENSOR]
        if not tensors:
            return False
        tensor = self.random.choice(tensors)
        data = numpy_helper.to_array(tensor).copy()
        if not data.size or data.dtype.kind not in "fib":
            return False
        at = self.random.randrange(data.size) if self.random.random() < 0.5 else slice(None)
        flat = data.reshape(-1)
        if data.dtype.kind == "b":
            flat[at] = ~flat[at]
        elif data.dtype.kind == "i":
            flat[at] += self.random.choice((1, -1))
        else:
            flat[at] = self.random.choice((flat[at] * 2, flat[at] + 1, self._number()))
        tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
        return True

    def _number(self) -> float:
        return self.random.choice(NUMBERS)

    def insertion(self) -> bool:
        """Let a float value pass another operator on its way to one reader."""
        at = self.random.randrange(len(self.graph.node))
        reader = self.graph.node[at]
        places = [i for i, name in enumerate(reader.input) if self._is_float(name)]
        if not places:
            return False
        place = self.random.choice(places)
        source, name = reader.input[place], f"inserted_{len(self.graph.node)}"
        if self.random.random() < 0.5:
            made = [helper.make_node(self.random.choice(INSERTED), [source], [name])]
        else:
            number = np.asarray(self._number(), np.float32)
            constant = helper.make_node(
                "Constant", [], [f"{name}_number"], value=numpy_helper.from_array(number)
            )
            operands = [source, f"{name}_number"]
            self.random.shuffle(operands)
            op_type = self.random.choice(FAMILIES[0])
            made = [constant, helper.make_node(op_type, operands, [name])]
        reader.input[place] = name
        for number_of, node in enumerate(made):
            self.graph.node.insert(at + number_of, node)
        return True

    def _is_float(self, name: str) -> bool:
        return self.types.get(name, (0,))[0] == onnx.TensorProto.FLOAT

    def output(self) -> bool:
        """Show a value that was none of the outputs."""
        shown = {value.name for value in self.graph.output}
        names = [name for node in self.graph.node for name in node.output if self._is_float(name)]
        hidden = [name for name in names if name not in shown]
        if not hidden:
            return False
        name = self.random.choice(hidden)
        self.graph.output.append(helper.make_tensor_value_info(name, self.types[name][0], None))
        return True


def _types(model: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Return the element type and shape of what shape inference knows."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        graph = model.graph
    found: dict[str, tuple[object, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
        found[value.name] = (tensor.elem_type, *dims)
    for constant in graph.initializer:
        found[constant.name] = (constant.data_type, *constant.dims)
    return found


def compare(model: onnx.ModelProto) -> tuple[str, str]:
    """Return what became of a model, and what is wrong.

    "invalid", "declined", "same", "rounded", or, what is a finding, "different" and "broken".
    """
    try:
        onnx.checker.check_model(model)
        result = onnx_fuse.fuse(model, threshold=None)
        fused = result.model
    except (onnx.checker.ValidationError, onnx_fuse.OnnxFuseError):
        return "invalid", ""
    except Exception:
        fault = traceback.format_exc().strip()
        runs = not any(wrong.startswith(EMPTY) for wrong in onnx_fuse.verify(model, model).failures)
        return ("broken", fault) if runs else ("invalid", "")
    if not result.report.num_fused:
        return "declined", ""
    try:
        report = onnx_fuse.verify(model, fused)
    except onnx_fuse.OnnxFuseError:
        return "invalid", ""
    if report.passed:
        return "same", ""
    wrong = report.failures[0]
    if wrong.startswith(EMPTY):
        return "invalid", ""
    return ("different", wrong) if report.worst_ratio > ANOTHER_MEANING else ("rounded", "")


def seeds(folder: Path) -> list[bytes]:
    """Return the folder's smaller models."""
    files = sorted(folder.glob("*.onnx"))
    return [file.read_bytes() for file in files if file.stat().st_size <= LARGEST_SEED]


def make(zoo: list[bytes], random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a changed model, and what it was and what was changed."""
    if zoo and random.random() < SHARE_OF_ZOO:
        at = random.randrange(len(zoo))
        model, name = onnx.ModelProto.FromString(zoo[at]), f"zoo model {at}"
    else:
        form = Form(**{factor: random.choice(levels) for factor, levels in LEVELS.items()})
        try:
            model, name = sample(form).model, str(form)
        except (AssertionError, KeyError, ValueError):  # levels that exclude each other
            return make(zoo, random)
    changes = [Change(model, random).any() for _ in range(random.choice((1, 1, 2, 3)))]
    return model, f"{name}: {', '.join(changes)}"


def fuzz(seconds: float, seed: int, folder: Path, zoo: list[bytes]) -> int:
    """Fuzz, print one line of counts, and return the number of findings."""
    random, outcomes = Random(seed), Counter[str]()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        model, name = make(zoo, random)
        outcome, wrong = compare(model)
        outcomes[outcome] += 1
        if wrong:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{seed}-{outcomes.total()}.onnx"
            onnx.save(model, path)
            (folder / f"{path.stem}.txt").write_text(f"{name}\n{wrong}\n")
            sys.stderr.write(f"finding {path}: {name}\n  {wrong.splitlines()[-1]}\n")
    kinds = ("same", "rounded", "declined", "invalid", "different", "broken")
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in kinds)
    sys.stdout.write(f"{outcomes.total()} changed models (seed {seed}): {counts}\n")
    return outcomes["different"] + outcomes["broken"]


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.meaning")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same models")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of findings")
    parser.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="folder of models")
    arguments = parser.parse_args()
    zoo = seeds(arguments.zoo)
    return 1 if fuzz(arguments.seconds, arguments.seed, arguments.keep, zoo) else 0


if __name__ == "__main__":
    sys.exit(main())
