"""Makes inputs on which a model runs, from its signature alone.

Integers that index a table lie in its range, masks are 0/1 with nothing masked, padding on the
right, on the left, and holes, floats are normal. Which of 0 and 1 means masked isn't declared: the
first reading is kept that leaves numbers. Dynamic dims get several sizes, 1 x 1 among them.
Sizes that belong together (a mask as long as past plus sequence) aren't always declared: several
readings of the names are tried, and the first one is kept on which the original model runs.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.signature import Input, Use, evaluate, read_signature, symbols

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Result = TypeVar("Result")

MASKS = ("none", "right", "left", "holes")


@dataclass(frozen=True)
class Sizes:
    """What dynamic dims are bound to: `batch`, the shortest sequence, what is cached before it."""

    batch: int
    seq: int
    past: int


@dataclass(frozen=True)
class Case:
    """One input of the model; `name` says in words what it is."""

    name: str
    feeds: Feeds


# Sizes of the cases of a dynamic model, with smaller stand-ins for a model whose tables end before.
# The first is the plainest. 1 x 1 is where broadcasting hides errors; 70 rows are more than the
# default threshold; odd sizes leave a rest in every block of a kernel; an empty past is what a
# first step has.
_DYNAMIC: tuple[tuple[tuple[Sizes, ...], str], ...] = (
    ((Sizes(2, 7, 3), Sizes(2, 4, 3)), "none"),
    ((Sizes(1, 1, 4), Sizes(1, 1, 1)), "none"),
    ((Sizes(3, 16, 5), Sizes(3, 9, 2), Sizes(3, 4, 1)), "right"),
    ((Sizes(2, 9, 0), Sizes(2, 9, 1), Sizes(2, 5, 2)), "left"),
    ((Sizes(2, 33, 7), Sizes(2, 13, 3), Sizes(2, 6, 1)), "holes"),
    ((Sizes(1, 70, 2), Sizes(1, 27, 2), Sizes(1, 11, 2)), "none"),
)
_STATIC = Sizes(1, 1, 1)
# Sizes that images and padded sequences have, for a model that takes only one of the sizes that it
# declares.
_USUAL = (8, 16, 32, 64, 128, 224, 256, 384, 512)
# Widths of heads, for a cache whose last dim is open too.
_WIDTHS = (16, 32, 64, 128, 8, 48, 80, 96, 256)
_MASK_RANK = 3  # of a mask for each pair of batch and head: (pairs, rows, columns)
# Of constants that may be the number of heads, the largest that is tried.
_MOST_HEADS = 64
# Positions of a window's cache beyond the window itself.
_SPARE_POSITIONS = 2
# Masks of which every set may have the other sense.
_MOST_MASKS = 4
# A constant of integers that may be a shape: how many it has at most, and how large one is.
_MOST_DIMS = 8
_LARGEST_BAKED = 4096
# Operators at which a constant that was traced at one size meets what has any size.
_BROADCAST = ("Add", "Mul", "Sub", "Where")
# What a binding calls the longest row of a batch.
_LONGEST = "longest row"
# The types of inputs that can be made up.
_NUMPY: dict[int, type[np.generic]] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.INT16: np.int16,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.UINT16: np.uint16,
    onnx.TensorProto.UINT32: np.uint32,
    onnx.TensorProto.UINT64: np.uint64,
    onnx.TensorProto.BOOL: np.bool_,
}


class InputMaker:
    """Makes feeds for one model. The same model and seed give the same feeds."""

    def __init__(self, model: onnx.ModelProto, seed: int = 0) -> None:
        """`model` may be without its external data.

        Raises: UnsupportedModel if an input is no tensor, or of a type that cannot be made up.
        """
        self.inputs = read_signature(model)
        self._seed = seed
        self._known = _channels(model, self.inputs) | _capacities(model, self.inputs)
        self.baked = _baked_sizes(model)
        for given in self.inputs:
            if given.dtype not in _NUMPY:
                kind = onnx.TensorProto.DataType.Name(given.dtype)
                raise UnsupportedModel(f"input '{given.name}' of type {kind} cannot be made up")
        flags = [given for given in self.inputs if given.use is Use.FLAG and given.dims]
        self.masks = tuple(given.name for given in flags if not given.is_position)
        names = [n for given in self.inputs for dim in given.dims for n in symbols(dim)]
        self.symbols = tuple(dict.fromkeys(names))
        self._batch = _batch_symbols(self.inputs, self.symbols)
        self._pairs = _pair_symbols(self.inputs, self._batch)
        self._widths = _width_symbols(self.inputs, {*self._batch, *self._known})
        self._pasts = _past_symbols(self.inputs, self.symbols)

    @property
    def is_dynamic(self) -> bool:
        """Whether any dim of any input is open."""
        return bool(self.symbols)

    @property
    def has_masks(self) -> bool:
        """Whether an input is a mask, so that the mask patterns differ."""
        masks = (Use.FLAG, Use.ADDED_MASK, Use.LENGTH)
        return any(given.use in masks for given in self.inputs)

    def bindings(self, sizes: Sizes, plainest_first: bool = False) -> Iterator[dict[str, int]]:
        """Yield readings of the open dims' names as sizes, none twice.

        The most telling come first (each name has a size of its own), or the plainest.
        """
        readings = (_by_name, _by_group, _all_equal)
        seen: list[dict[str, int]] = []
        found: dict[str, int]
        for width in _WIDTHS if self._widths else (0,):
            for reading in readings[::-1] if plainest_first else readings:
                for derive_total, pasts in product((True, False), self._pasts):
                    found = self._bind(sizes, reading, pasts, derive_total=derive_total)
                    found |= dict.fromkeys(self._widths, width)
                    if found not in seen:
                        seen.append(found)
                        yield from self._with_lengths(found)
        heads = [size for size in self.baked if size <= _MOST_HEADS] if self._pairs else []
        for count in heads:
            for found in seen:
                pairs = dict.fromkeys(self._pairs, sizes.batch * count)
                yield from self._with_lengths(found | pairs)

    def _with_lengths(self, binding: dict[str, int]) -> Iterator[dict[str, int]]:
        """Yield the binding, with each size that the longest row of a batch may have, if any."""
        if not any(given.use is Use.LENGTH for given in self.inputs):
            yield binding
            return
        dims = [dim for given in self.inputs for dim in given.dims[1:]]
        dims.sort(key=lambda dim: isinstance(dim, int))  # a sequence is open, if anything is
        for length in (*(evaluate(dim, binding) for dim in dims), 1):
            yield binding | {_LONGEST: length}

    def make(
        self, binding: Mapping[str, int], mask: str, index: int, turned: Collection[str] = ()
    ) -> Feeds:
        """Return the feeds of one case; `index` varies counts and switches from case to case.

        turned: names of masks in which 1 means masked.

        Raises: KeyError if the binding lacks a name of a dim.
        """
        feeds: Feeds = {}
        for given in self.inputs:
            shape = tuple(max(0, evaluate(dim, binding)) for dim in given.dims)
            key = zlib.crc32(given.name.encode())
            rng = np.random.default_rng((self._seed, key, index))
            longest = binding.get(_LONGEST, 1)
            content = _content(given, shape, mask, index, longest, rng)
            if given.name in turned:
                content = 1 - content
            feeds[given.name] = content.astype(_NUMPY[given.dtype])
        return feeds

    def _bind(
        self,
        sizes: Sizes,
        reading: Callable[[Sequence[str], Sizes], dict[str, int]],
        pasts: Sequence[str],
        *,
        derive_total: bool,
    ) -> dict[str, int]:
        bound = {name: sizes.batch for name in self.symbols if name in self._batch}
        bound |= {name: size for name, size in self._known.items() if name in self.symbols}
        rest = [name for name in self.symbols if name not in bound and name not in self._widths]
        past = [name for name in rest if name in pasts]
        bound |= dict.fromkeys(past, sizes.past)
        rest = [name for name in rest if name not in past]
        masks = self._lengths_of_masks() if past and derive_total else ()
        total = [name for name in rest if "total" in name.lower() or name in masks]
        lengths = reading([name for name in rest if name not in total], sizes)
        bound |= lengths
        bound |= dict.fromkeys(total, sizes.past + next(iter(lengths.values()), self._steps(sizes)))
        return bound

    def _steps(self, sizes: Sizes) -> int:
        """Return the new positions where no sequence is open: the second dim of the indices."""
        for given in self.inputs:
            if len(given.dims) == 2 and given.use is Use.INDEX and isinstance(given.dims[1], int):
                return given.dims[1]
        return sizes.seq

    def _lengths_of_masks(self) -> tuple[str, ...]:
        """Return names that only masks have: as long as past and sequence together, with a past."""
        others = [g for g in self.inputs if g.use not in (Use.FLAG, Use.ADDED_MASK)]
        taken = {n for given in others for dim in given.dims for n in symbols(dim)}
        return tuple(name for name in self.symbols if name not in taken)


def find_cases(
    maker: InputMaker,
    run: Callable[[Feeds], Result],
    tells: Callable[[Result], bool] = lambda _: True,
) -> Iterator[tuple[Case, Result]]:
    """Yield cases on which `run` succeeds, with its result.

    A static model has one shape: its cases differ by mask and numbers. `run` says by raising that
    sizes don't fit together. If nothing runs, the error of the plainest sizes is raised. A result
    that doesn't tell anything, of which everything is masked, is kept only if no other is found.
    """
    search = _Search(maker, run, tells)
    if maker.is_dynamic:
        (plainest, mask), *others = _DYNAMIC
        exact = [Sizes(batch, size, 0) for size in (*maker.baked, *_USUAL) for batch in (2, 1)]
        found = search.first((*plainest, *exact), mask, 0)
        rest = [(alternatives, mask) for alternatives, mask in others]
    else:
        found = search.first((_STATIC,), MASKS[0], 0)
        rest = [((_STATIC,), mask) for mask in (MASKS if maker.has_masks else MASKS[:2])[1:]]
    if found is None:
        raise search.error or UnsupportedModel("the model has no input sizes to try")
    yield found
    for index, (alternatives, mask) in enumerate(rest, start=1):
        found = search.first((*alternatives, search.worked), mask, index)
        if found is not None:
            yield found


def fit(maker: InputMaker, run: Callable[[Feeds], object], sizes: Sizes) -> Case:
    """Return the case of just these sizes, every sequence equally long, nothing masked.

    Raises: what `run` raised for the plainest reading of the names if it runs for none.
    """
    search = _Search(maker, run, lambda _: True)
    found = search.first((sizes,), MASKS[0], 0, plainest_first=True)
    if found is None:
        raise search.error or UnsupportedModel("the model has no input sizes to try")
    return found[0]


class _Search(Generic[Result]):
    """Looks for sizes on which a model runs, and remembers which reading of the names was right."""

    def __init__(
        self,
        maker: InputMaker,
        run: Callable[[Feeds], Result],
        tells: Callable[[Result], bool],
    ) -> None:
        self._maker = maker
        self._run = run
        self._tells = tells
        self._reading: int | None = None
        self._turned: tuple[str, ...] | None = None
        self.worked = _STATIC
        self.error: Exception | None = None

    def first(
        self,
        alternatives: Sequence[Sizes],
        mask: str,
        index: int,
        plainest_first: bool = False,
    ) -> tuple[Case, Result] | None:
        """Return the first of these sizes that runs; `error` keeps what the first failure said."""
        for sizes in alternatives:
            for position, binding in enumerate(self._maker.bindings(sizes, plainest_first)):
                if self._reading not in (None, position):
                    continue
                try:
                    found = self._of(binding, mask, index)
                except Exception as failed:  # any failure means: not these sizes
                    self.error = self.error or failed
                else:
                    self._reading, self.worked = position, sizes
                    return found
        return None

    def _of(self, binding: Mapping[str, int], mask: str, index: int) -> tuple[Case, Result]:
        """Return the case of a binding, of the first reading of the masks that tells something.

        Raises: what the first reading raises.
        """
        name = _describe(binding, mask, self._maker)
        tried: list[tuple[Case, Result]] = []
        for turned in self._readings_of_masks():
            feeds = self._maker.make(binding, mask, index, turned)
            tried.append((Case(name, feeds), self._run(feeds)))
            if self._tells(tried[-1][1]):
                self._turned = turned
                return tried[-1]
        return tried[0]

    def _readings_of_masks(self) -> Iterator[tuple[str, ...]]:
        """Yield sets of masks in which 1 means masked, those of one sense first."""
        if self._turned is not None:
            yield self._turned
            return
        masks = self._maker.masks[:_MOST_MASKS]
        subsets = [found for size in range(len(masks)) for found in combinations(masks, size)]
        yield from (subsets[0], self._maker.masks, *subsets[1:]) if subsets else ((),)


def _describe(binding: Mapping[str, int], mask: str, maker: InputMaker) -> str:
    words = [f"{name}={size}" for name, size in binding.items()]
    if maker.has_masks:
        words.append(f"mask {mask}")
    return ", ".join(words) or "static shape"


def _content(
    given: Input,
    shape: tuple[int, ...],
    mask: str,
    index: int,
    longest: int,
    rng: np.random.Generator,
) -> Array:
    match given.use:
        case Use.REAL:
            return rng.standard_normal(shape)
        case Use.COUNT:
            return np.full(shape, 1 + index % 3)
        case Use.LENGTH:
            return _lengths(shape, mask, longest)
        case Use.INDEX:
            low = max(0, -given.offset)
            high = max(low + 1, (given.extent or 1) - given.offset)
            if given.is_position and shape:
                start = rng.integers(low, max(low + 1, high - shape[-1]), (*shape[:-1], 1))
                ascending: Array = start + np.arange(shape[-1])
                return ascending.clip(max=high - 1)
            return rng.integers(low, high, shape)
        case Use.ADDED_MASK:
            if mask == "none":
                return rng.standard_normal(shape)
            return np.where(_pattern(shape, mask), 0.0, -10000.0)
        case Use.FLAG:
            if given.is_position and shape:
                return np.arange(shape[-1]) + np.zeros(shape, dtype=np.int64)
            if not shape or shape == (1,):
                return np.full(shape, index % 2)
            return _pattern(shape, mask)


def _lengths(shape: tuple[int, ...], mask: str, longest: int) -> Array:
    """Return a row's length for each: the first is the longest, the others as short as a mask's."""
    others = longest if mask == "none" else max(1, longest - 1 - longest // 3)
    return np.where(np.arange(math.prod(shape)) == 0, longest, others).reshape(shape)


def _pattern(shape: tuple[int, ...], mask: str) -> Array:
    """Return a 0/1 mask over the last axis for each row of the first; no row is all 0."""
    if not shape or 0 in shape:
        return np.ones(shape, dtype=bool)
    length = shape[-1]
    column = np.arange(length)
    rows = []
    for row in range(shape[0]):
        kept = max(1, length - 1 - (length // 3) * ((row + 1) % 2) - row % 2)
        match mask:
            case "right":
                rows.append(column < kept)
            case "left":
                rows.append(column >= length - kept)
            case "holes":
                rows.append((column + row) % 3 != 1 if length > 1 else column == 0)
            case _:
                rows.append(np.ones(length, dtype=bool))
    pattern = np.stack(rows).reshape(shape[0], *[1] * (len(shape) - 2), length)
    whole: Array = np.broadcast_to(pattern if len(shape) > 1 else pattern[0], shape)
    return whole


def _batch_symbols(inputs: Sequence[Input], names: Sequence[str]) -> tuple[str, ...]:
    """Return names that mean the batch: those that say so, else those of leading dims."""
    called = tuple(name for name in names if "batch" in name.lower())
    if called:
        return called
    leading = [given.dims[0] for given in inputs if len(given.dims) > 1]
    found = [dim for dim in leading if isinstance(dim, str) and dim in names]
    inner = {dim for given in inputs for dim in given.dims[1:]}
    return tuple(dim for dim in found if dim not in inner) or tuple(found)


def _pair_symbols(inputs: Sequence[Input], batch: Sequence[str]) -> tuple[str, ...]:
    """Return names that may mean batch times heads: each leads one input, which has three axes."""
    leading = Counter(given.dims[0] for given in inputs if given.dims)
    found = [given.dims[0] for given in inputs if len(given.dims) == _MASK_RANK]
    own = [dim for dim in found if dim in batch and leading[dim] == 1]
    return tuple(str(dim) for dim in own if dim != batch[0])


def _past_symbols(inputs: Sequence[Input], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
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


def _by_name(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    """Give each name a size of its own, so that mixing two up shows."""
    return {name: sizes.seq + 2 * position for position, name in enumerate(names)}


_OTHER_SIDE = ("enc", "ctx", "context", "memory", "source", "src", "kv")


def _by_group(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    """Give names that say they belong to the other sequence one size, and the rest another."""

    def is_other(name: str) -> bool:
        return any(word in name.lower() for word in _OTHER_SIDE)

    return {name: sizes.seq + (2 if is_other(name) else 0) for name in names}


def _all_equal(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    return dict.fromkeys(names, sizes.seq)


def _width_symbols(inputs: Sequence[Input], known: set[str]) -> tuple[str, ...]:
    """Return names of the last dim of caches: no sequence, but the size of a head."""
    last = [given.dims[-1] for given in inputs if given.use is Use.REAL and len(given.dims) >= 4]
    taken = {dim for given in inputs for dim in given.dims[:-1]}
    return tuple(
        dict.fromkeys(d for d in last if isinstance(d, str) and d not in taken and d not in known)
    )


def _channels(model: onnx.ModelProto, inputs: Sequence[Input]) -> dict[str, int]:
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


def _capacities(model: onnx.ModelProto, inputs: Sequence[Input]) -> dict[str, int]:
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


def _baked_sizes(model: onnx.ModelProto) -> tuple[int, ...]:
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
