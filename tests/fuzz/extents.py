"""Runs of a fused model with extents that stand at an end: 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from onnx_fuse.runtime.cases import find_cases
from onnx_fuse.runtime.compare import Tally
from onnx_fuse.runtime.inputs import Feeds, InputMaker
from onnx_fuse.runtime.sessions import open_session, open_source, run
from onnx_fuse.runtime.tolerance import relative_error

_NOT_OPTIMISED = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@dataclass(frozen=True)
class Ending:
    """Sizes of the open dims. may_refuse: whether the fused model need not run with them."""

    name: str
    binding: Mapping[str, int]
    may_refuse: bool = False


def endings(names: Sequence[str], usual: Mapping[str, int]) -> Iterator[Ending]:
    """Yield each name as 0 and as 1 beside the others' usual sizes, and all as 1.

    An axis of a name that is 1 broadcasts beside one of another name. Such two names are taken for
    equal, which the operator may then find untrue: it says so, and computes nothing. Nor does a
    Reshape with an extent of 0 that leaves another one open, as onnxruntime's optimiser writes it.
    """
    yield Ending("all extents 1", dict.fromkeys(names, 1))
    for name in names:
        yield Ending(f"{name} = 0", {**usual, name: 0}, may_refuse=True)
        yield Ending(f"{name} = 1", {**usual, name: 1}, may_refuse=len(names) > 1)


def wrong_at_the_ends(model: onnx.ModelProto, fused: onnx.ModelProto, most: float) -> str:
    """Return what is wrong with a fused model's results for extents of 0 and 1; "" if nothing is.

    What the original doesn't run with tells nothing. A difference counts from `most` times the
    allowed one.
    """
    maker = InputMaker(model)
    if not maker.is_dynamic:
        return ""
    sources = open_source(model, "the original"), open_source(fused, "the fused model")
    original, optimised = open_session(sources[0], level=_NOT_OPTIMISED), open_session(sources[0])
    usual = next(find_cases(maker, lambda feeds: run(original, feeds)))[0].feeds
    sizes = _sizes(maker, usual)
    others = {name: open_session(sources[1], kernels=name == "kernel") for name in _RUNS}
    relative = relative_error(model, fused)
    for ending in endings(maker.symbols, sizes):
        try:
            feeds = maker.make(ending.binding, "none", 0)
            runs = [run(session, feeds) for session in (original, optimised)]
        except Exception:  # nor would anyone use it so
            continue
        for where, session in others.items():
            try:
                found = run(session, feeds)
            except Exception as error:
                if ending.may_refuse:
                    continue
                return f"{ending.name} ({where}): does not run: {error}"
            for output, right, other, made in zip(model.graph.output, *runs, found, strict=True):
                tally = Tally(relative)
                sentence = tally.compare(output.name, right, made, [other])
                if sentence and not 0 < tally.worst_ratio <= most:
                    return f"{ending.name} ({where}): output '{output.name}' differs: {sentence}"
    return ""


_RUNS = ("kernel", "plain")


def _sizes(maker: InputMaker, feeds: Feeds) -> dict[str, int]:
    """The sizes of the open dims in these feeds."""
    found: dict[str, Any] = {}
    for given in maker.inputs:
        pairs = zip(given.dims, feeds[given.name].shape, strict=True)
        found |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    return {name: found[name] for name in maker.symbols if name in found}
