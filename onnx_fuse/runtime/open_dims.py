"""What the open dims of a model's inputs may mean: by name, by place, by what they meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx

from onnx_fuse.runtime.signature import Input, Use, symbols

_MASK_RANK = 3  # of a mask for each pair of batch and head: (pairs, rows, columns)
# Positions of a window's cache beyond the window itself.
_SPARE_POSITIONS = 2
# A constant of integers that may be a shape: how many it has at most, and how large one is.
_MOST_DIMS = 8
_LARGEST_BAKED = 4096
# Operators at which a constant that was traced at one size meets what has any size.
_BROADCAST = ("Add", "Mul", "Sub", "Where")


def batch_symbols(inputs: Sequence[Input], names: Sequence[str]) -> tuple[str, ...]:
    """Return names that mean the batch: those that say so, else those of leading dims."""
    called = tuple(name for name in names if "batch" in name.lower())
    if called:
        return called
    leading = [given.dims[0] for given in inputs if len(given.dims) > 1]
    found = [dim for dim in leading if isinstance(dim, str) and dim in names]
    inner = {dim for given in inputs for dim in given.dims[1:]}
    return tuple(dim for dim in found if dim not in inner) or tuple(found)


def pair_symbols(inputs: Sequence[Input], batch: Sequence[str]) -> tuple[str, ...]:
    """Return names that may mean batch times heads: each leads one input, which has three axes."""
    leading = Counter(given.dims[0] for given in inputs if given.dims)
    found = [given.dims[0] for given in inputs if len(given.dims) == _MASK_RANK]
    own = [dim for dim in found if dim in batch and leading[dim] == 1]
    return tuple(str(dim) for dim in own if dim != batch[0])


def past_symbols(inputs: Sequence[Input], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return which names may be lengths of a cache: those that say so, or that only caches have.

    Exporters that number their dims still name the inputs.
    """
    said = tuple(filter(_is_past, names))
    others = {n for given in inputs if not _is_past(given.name) for n in _names_of(given)}
    own = {n for given in inputs for n in _names_of(given)} - others
    return tuple(dict.fromkeys((said, tuple(name for name in names if name in own))))


def _names_of(given: Input) -> list[str]:
    return [name for dim in given.dims for name in symbols(dim)]


def _is_past(name: str) -> bool:
    lower = name.lower()
    return ("past" in lower or "cache" in lower) and "encoder" not in lower.replace("decoder", "")


def width_symbols(inputs: Sequence[Input], known: set[str]) -> tuple[str, ...]:
    """Return names of the last dim of caches: no sequence, but the size of a head."""
    last = [given.dims[-1] for given in inputs if given.use is Use.REAL and len(given.dims) >= 4]
    taken = {dim for given in inputs for dim in given.dims[:-1]}
    return tuple(
        dict.fromkeys(d for d in last if isinstance(d, str) and d not in taken and d not in known)
    )


def channels(model: onnx.ModelProto, inputs: Sequence[Input]) -> dict[str, int]:
    """Return open dims of inputs that a constant weight meets at once: channels, features."""
    weights = {t.name: t.dims for t in model.graph.initializer}
    dims = {given.name: [str(dim) for dim in given.dims] for given in inputs if given.dims}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if len(node.input) < 2 or node.input[0] not in dims or node.input[1] not in weights:
            continue
        shape, weight = dims[node.input[0]], weights[node.input[1]]
        if node.op_type == "Conv" and len(shape) > 1:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[shape[1]] = weight[1] * group
        elif node.op_type == "MatMul" and len(weight) == 2:
            found[shape[-1]] = weight[0]
        elif node.op_type == "LayerNormalization":
            found[shape[-1]] = weight[-1]
    return found


def capacities(model: onnx.ModelProto, inputs: Sequence[Input]) -> dict[str, int]:
    """Return open dims of caches that hold a window and a little more."""
    dims = {given.name: [str(dim) for dim in given.dims] for given in inputs if given.dims}
    found: dict[str, int] = {}
    for node in model.graph.node:
        settings = {a.name: a.i for a in node.attribute}
        if settings.get("sliding_window_cache"):
            caches = (dims[name] for name in node.input if len(dims.get(name, ())) == 4)
            window = settings.get("local_window_size", 0)
            found |= {shape[2]: window + _SPARE_POSITIONS for shape in caches}
    return found


def baked_sizes(model: onnx.ModelProto) -> tuple[int, ...]:
    """Return numbers that stand in the graph as extents, the most frequent first.

    An export that declares any size may hold the traced one in its constants, and run with no
    other: among its integers, or as an extent of a mask or a table.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.HasField("t"))
    counts: Counter[int] = Counter()
    for tensor in constants.values():
        small = len(tensor.dims) <= 1 and int(np.prod(tensor.dims)) <= _MOST_DIMS
        is_read = tensor.data_location != onnx.TensorProto.EXTERNAL
        if small and is_read and tensor.data_type == onnx.TensorProto.INT64:
            counts.update(onnx.numpy_helper.to_array(tensor).reshape(-1).tolist())
    meeting = [node for node in model.graph.node if node.op_type in _BROADCAST]
    beside = [name for node in meeting for name in node.input]
    extents = Counter(n for name in beside if name in constants for n in constants[name].dims)
    found = [[n for n, _ in c.most_common() if 1 < n <= _LARGEST_BAKED] for c in (counts, extents)]
    return tuple(dict.fromkeys([*found[0][:12], *found[1][:12]]))
