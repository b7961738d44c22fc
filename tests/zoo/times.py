"""What fusing does to the time of a zoo's models: python -m tests.zoo.times FOLDER [--write].

Each model runs on the folder's first inputs, on one thread: the original and the fused model, with
the kernels and in a plain session, take turns in one process.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_fuse
from onnx_fuse.runtime.sessions import open_source
from onnx_fuse.runtime.timing import clocked, interleave, open_timed_session
from tests.zoo.check import describe, names_in, read_cases
from tests.zoo.options import DOCS, of_a_zoo
from tests.zoo.table import head_row, row, versions

PAGE = DOCS / "times.md"
LEAST = 10  # models that the page names


@dataclass(frozen=True)
class Times:
    """One model's medians, in microseconds, and the original's over each of the others."""

    name: str
    exporter: str
    fused: int
    original_us: float
    kernel: float
    plain: float


def measure(folder: Path, name: str, seconds: float) -> Times | None:
    """Time the model; None if nothing of it is fused."""
    path = folder / f"{name}.onnx"
    result = onnx_fuse.fuse(path, threshold=None)
    if not result.report.num_fused:
        return None
    feeds = read_cases(folder / f"{name}.npz")[0]
    sources = {"original": (path, False), "kernel": (result.model, True)}
    sources["plain"] = (result.model, False)
    sessions = {
        key: open_timed_session(open_source(source, name), kernels=kernels, threads=1)
        for key, (source, kernels) in sources.items()
    }
    runs = {key: clocked(lambda s=s: s.run(None, feeds)) for key, s in sessions.items()}
    turns = interleave(runs, seconds)
    original = turns["original"]
    ratios = [original.over(turns[key]).median for key in ("kernel", "plain")]
    exporter = describe(folder, name).exporter
    return Times(name, exporter, result.report.num_fused, original.us.median, *ratios)


def markdown(times: Sequence[Times]) -> str:
    """Return the page for the docs."""
    lines = [*_HEAD, f"{len(times)} models with fused blocks. {versions()}.", ""]
    lines += head_row(["models", "session", "median", "worst", "below 1"])
    groups = {"all": [*times]}
    for one in times:
        groups.setdefault(one.exporter, []).append(one)
    for name, members in groups.items():
        lines.append(_summary(name, "with the kernels", [one.kernel for one in members]))
        lines.append(_summary(name, "plain", [one.plain for one in members]))
    lines += ["", f"The {LEAST} that gain least with the kernels:", ""]
    lines += head_row(["model", "blocks", "original us", "with the kernels", "plain"])
    lines += _least(times)
    return "\n".join([*lines, ""])


def _summary(name: str, session: str, ratios: Sequence[float]) -> str:
    below = f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"
    return row(name, session, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", below)


def _least(times: Sequence[Times]) -> Iterator[str]:
    for one in sorted(times, key=lambda one: one.kernel)[:LEAST]:
        ratios = (f"{ratio:.2f}" for ratio in (one.kernel, one.plain))
        yield row(one.name, str(one.fused), f"{one.original_us:.0f}", *ratios)


_HEAD = (
    "# What fusing does to the time of small models",
    "",
    "Written by `make times ZOO=FOLDER ZOO_ARGS=--write`; don't edit it by hand.",
    "",
    "How many times as fast as the original, by onnxruntime with all optimisations, a fused model",
    "runs: one thread, the folder's first inputs, medians of turns in one process. The models have",
    "one to three blocks of small sizes and other parts that stay as they are; what counts in them",
    "is how many operators there are. [Blocks of real sizes](benchmarks/README.md) are elsewhere.",
    "",
)


def main() -> int:
    """Parse the command line, measure, write."""
    parser = of_a_zoo("tests.zoo.times", PAGE)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each model")
    arguments = parser.parse_args()
    names = names_in(arguments.folder, arguments.only)
    found = [measure(arguments.folder, name, arguments.seconds) for name in names]
    page = markdown([times for times in found if times])
    if arguments.write:
        PAGE.write_text(page)
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
