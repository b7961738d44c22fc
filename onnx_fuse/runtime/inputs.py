"""Makes inputs on which a model runs, from its signature alone.

Which sizes belong together (a mask as long as past plus sequence) isn't always declared:
`InputMaker` offers several readings of the open dims' names, and makes feeds for each of them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.input_content import TYPES, Array, content
from onnx_fuse.runtime.open_dims import (
    baked_sizes,
    batch_symbols,
    capacities,
    channels,
    pair_symbols,
    past_symbols,
    width_symbols,
)
from onnx_fuse.runtime.signature import Use, evaluate, read_signature, symbols

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Sizes:
    """What dynamic dims are bound to: `batch`, the shortest sequence, what is cached before it."""

    batch: int
    seq: int
    past: int


# Widths of heads, for a cache whose last dim is open too.
_WIDTHS = (16, 32, 64, 128, 8, 48, 80, 96, 256)
# Of constants that may be the number of heads, the largest that is tried.
_MOST_HEADS = 64
# What a binding calls the longest row of a batch.
_LONGEST = "longest row"
# Words in names of the sequence that is attended to, where it is another one.
_OTHER_SIDE = ("enc", "ctx", "context", "memory", "source", "src", "kv")
# Bindings of names that are tried if each has another size.
_MOST_APART = 150


class InputMaker:
    """Makes feeds for one model. The same model and seed give the same feeds."""

    def __init__(self, model: onnx.ModelProto, seed: int = 0) -> None:
        """`model` may be without its external data.

        Raises: UnsupportedModel if an input is no tensor, or of a type that cannot be made up.
        """
        self.inputs = read_signature(model)
        self._seed = seed
        self._known = channels(model, self.inputs) | capacities(model, self.inputs)
        self.baked = baked_sizes(model)
        for given in self.inputs:
            if given.dtype not in TYPES:
                kind = onnx.TensorProto.DataType.Name(given.dtype)
                raise UnsupportedModel(f"input '{given.name}' of type {kind} cannot be made up")
        flags = [given for given in self.inputs if given.use is Use.FLAG and given.dims]
        self.masks = tuple(given.name for given in flags if not given.is_position)
        names = [n for given in self.inputs for dim in given.dims for n in symbols(dim)]
        self.symbols = tuple(dict.fromkeys(names))
        self._batch = batch_symbols(self.inputs, self.symbols)
        self._pairs = pair_symbols(self.inputs, self._batch)
        self._widths = width_symbols(self.inputs, {*self._batch, *self._known})
        self._pasts = past_symbols(self.inputs, self.symbols)

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

    def baked_apart(self) -> Iterator[dict[str, int]]:
        """Yield sizes that the graph holds for the names but the batch's, for each its own.

        One name alone has them all in other readings.
        """
        names = [name for name in self.symbols if name not in self._batch]
        if len(names) > 1:
            some = self.baked[: int(_MOST_APART ** (1 / len(names)))]
            yield from (
                dict(zip(names, each, strict=True)) for each in product(some, repeat=len(names))
            )

    def with_batch(self, binding: Mapping[str, int], batch: int) -> dict[str, int]:
        """Return the binding, and of every name that means the batch this size."""
        return {**dict.fromkeys(self._batch, batch), **binding}

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
            made = content(given, shape, mask, index, longest, rng)
            if given.name in turned:
                made = 1 - made
            feeds[given.name] = made.astype(TYPES[given.dtype])
        return feeds

    def elements(self, binding: Mapping[str, int]) -> int:
        """Return how many elements the inputs of a case have, all together."""
        shapes = ([evaluate(dim, binding) for dim in given.dims] for given in self.inputs)
        return sum(math.prod(shape) for shape in shapes)

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


def _by_name(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    """Give each name a size of its own, so that mixing two up shows."""
    return {name: sizes.seq + 2 * position for position, name in enumerate(names)}


def _by_group(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    """Give names that say they belong to the other sequence one size, and the rest another."""

    def is_other(name: str) -> bool:
        return any(word in name.lower() for word in _OTHER_SIDE)

    return {name: sizes.seq + (2 if is_other(name) else 0) for name in names}


def _all_equal(names: Sequence[str], sizes: Sizes) -> dict[str, int]:
    return dict.fromkeys(names, sizes.seq)
