"""Sizes and masks with which a model runs.

Sizes that belong together (a mask as long as past plus sequence) aren't always declared, nor which
of 0 and 1 means masked: several readings are tried, and the first one is kept on which the original
model runs and gives numbers. Dynamic dims get several sizes, 1 x 1 among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.input_content import MASKS
from onnx_fuse.runtime.inputs import Feeds, InputMaker, Sizes

Result = TypeVar("Result")

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
# declares, and lengths of sound, of which a few hundred samples make a frame.
_USUAL = (8, 16, 32, 64, 128, 224, 256, 384, 512, 1024, 2048, 4096)
# Elements of all inputs of a case, if there are smaller ones: those of a volume grow with the cube.
_MOST_ELEMENTS = 1 << 23
# Masks of which every set may have the other sense.
_MOST_MASKS = 4


@dataclass(frozen=True)
class Case:
    """One input of the model; `name` says in words what it is."""

    name: str
    feeds: Feeds


def find_cases(
    maker: InputMaker,
    run: Callable[[Feeds], Result],
    tells: Callable[[Result], bool] = lambda _: True,
) -> Iterator[tuple[Case, Result]]:
    """Yield cases on which `run` succeeds, with its result.

    A static model has one shape: its cases differ by mask and numbers. `run` says by raising that
    sizes don't fit together. If nothing runs, the error of the plainest sizes is raised. A result
    that doesn't tell anything, of which everything is masked or which is empty, is kept only if no
    other is found.
    """
    search = _Search(maker, run, tells)
    if maker.is_dynamic:
        (plainest, mask), *others = _DYNAMIC
        exact = [Sizes(batch, size, 0) for size in (*maker.baked, *_USUAL) for batch in (2, 1)]
        found = search.first((*plainest, *exact), mask, 0) or search.first_baked(mask)
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
        self._apart: Mapping[str, int] | None = None
        self.worked = _STATIC
        self.error: Exception | None = None

    def first(
        self,
        alternatives: Sequence[Sizes],
        mask: str,
        index: int,
        plainest_first: bool = False,
    ) -> tuple[Case, Result] | None:
        """Return the first of these sizes that runs and tells something, else the first that runs.

        `error` keeps what the first failure said.
        """
        least = min(alternatives, key=lambda sizes: (sizes.seq, sizes.batch))
        best: tuple[int, Sizes, tuple[Case, Result]] | None = None
        for sizes in alternatives:
            for position, binding in enumerate(self._bindings(sizes, plainest_first)):
                if self._reading not in (None, position):
                    continue
                is_small = self._maker.elements(binding) <= _MOST_ELEMENTS
                if not is_small and sizes not in (least, self.worked):
                    continue
                try:
                    found = self._of(binding, mask, index)
                except Exception as failed:  # any failure means: not these sizes
                    # Frames would keep the session's memory.
                    self.error = self.error or failed.with_traceback(None)
                else:
                    if self._tells(found[1]):
                        return self._kept(position, sizes, found)
                    best = best or (position, sizes, found)
        return self._kept(*best) if best else None

    def _kept(self, reading: int, sizes: Sizes, found: tuple[Case, Result]) -> tuple[Case, Result]:
        """Return what was found, and remember how."""
        self._reading, self.worked = reading, sizes
        return found

    def first_baked(self, mask: str) -> tuple[Case, Result] | None:
        """Return the first case that runs, each name of a size of its own that the graph holds.

        The names keep these sizes, and only the batch varies from then on.
        """
        for apart in self._maker.baked_apart():
            self._apart = apart
            found = self.first((Sizes(2, 1, 0), Sizes(1, 1, 0)), mask, 0)
            if found is not None:
                return found
        self._apart = None
        return None

    def _bindings(self, sizes: Sizes, plainest_first: bool) -> Iterator[Mapping[str, int]]:
        if self._apart is None:
            yield from self._maker.bindings(sizes, plainest_first)
        else:
            yield self._maker.with_batch(self._apart, sizes.batch)

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
