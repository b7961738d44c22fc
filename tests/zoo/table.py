"""What became of a folder's models, as tables: for a terminal, and as Markdown for the docs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnxruntime
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import onnx_fuse
from onnx_fuse.runtime.library import active_isa
from tests.zoo.check import Outcome

# Columns of the table; every other exporter stands in the last one, by name.
EXPORTERS = ("torchscript", "dynamo")
OTHERS = "others"


@dataclass(frozen=True)
class Row:
    """One architecture: the cell of each exporter, the reasons, the errors."""

    architecture: str
    models: int
    cells: tuple[str, ...]
    declined: str
    error: str
    problems: int


def ratio(outcomes: Sequence[Outcome]) -> str:
    """Return fused / expressible / there; only two numbers where the last two are one."""
    fused, expressible, blocks = (
        sum(getattr(o, name) for o in outcomes) for name in ("fused", "expressible", "blocks")
    )
    numbers = (fused, expressible) if expressible == blocks else (fused, expressible, blocks)
    return " / ".join(map(str, numbers))


def count_codes(codes: Iterable[str]) -> str:
    """Return the codes in the order of their first appearance, with their numbers."""
    return ", ".join(f"{code} x{n}" if n > 1 else code for code, n in Counter(codes).items())


def largest(errors: Iterable[float | None]) -> str:
    """Return the largest error, "" if there is none."""
    known = [error for error in errors if error is not None]
    return f"{max(known):.0e}" if known else ""


def group(
    outcomes: Iterable[Outcome], key: Callable[[Outcome], str]
) -> list[tuple[str, list[Outcome]]]:
    """Return the outcomes of each key, keys in order."""
    return [(name, list(found)) for name, found in groupby(sorted(outcomes, key=key), key=key)]


def row_of(label: str, outcomes: list[Outcome]) -> Row:
    """Return the row of these models."""
    cells = []
    for exporter in EXPORTERS:
        found = [o for o in outcomes if o.exporter == exporter]
        cells.append(ratio(found) if found else "")
    others = group((o for o in outcomes if o.exporter not in EXPORTERS), lambda o: o.exporter)
    cells.append(", ".join(f"{name}: {ratio(found)}" for name, found in others))
    return Row(
        label,
        len(outcomes),
        tuple(cells),
        count_codes(code for outcome in outcomes for code in outcome.codes),
        largest(outcome.error for outcome in outcomes),
        sum(bool(outcome.problem) for outcome in outcomes),
    )


def rows_of(outcomes: list[Outcome]) -> list[Row]:
    """Return one row for each architecture, and the sum."""
    rows = [row_of(name, found) for name, found in group(outcomes, lambda o: o.architecture)]
    return [*rows, row_of("all", outcomes)]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return what the folder comes to, in one line."""
    fused, expressible = (sum(getattr(o, n) for o in outcomes) for n in ("fused", "expressible"))
    blocks = sum(o.blocks for o in outcomes)
    problems = sum(bool(o.problem) for o in outcomes)
    unreadable = sum(bool(o.unreadable) for o in outcomes)
    left_out = f" ({unreadable} of them not run: this onnxruntime doesn't)" if unreadable else ""
    return (
        f"{len(outcomes)} models{left_out} with {blocks} attention blocks: {fused} of the "
        f"{expressible} that the operator can express are fused; "
        f"{problems} models broken or different; "
        f"{sum(o.fuse_seconds for o in outcomes):.0f} s to read and fuse, "
        f"{sum(o.seconds for o in outcomes):.0f} s with all runs"
    )


def faults(outcomes: Iterable[Outcome]) -> list[str]:
    """Return one line for each model that isn't as it should be."""
    lines = [f"{o.name}: {o.problem}" for o in outcomes if o.problem]
    for outcome in outcomes:
        if not outcome.problem and outcome.fused < outcome.expressible:
            reasons = count_codes(outcome.codes) or "no site found"
            lines.append(
                f"{outcome.name}: {outcome.fused} fused of {outcome.expressible}: {reasons}"
            )
        if outcome.fused > outcome.expressible:
            lines.append(
                f"{outcome.name}: {outcome.fused} fused, only {outcome.expressible} expressible"
            )
    return lines


def declines(outcomes: Iterable[Outcome]) -> list[tuple[str, int, str, str]]:
    """Return, of each code, how often it was given, and one model with its sentence."""
    found: dict[str, list[tuple[str, str]]] = {}
    for outcome in outcomes:
        for decline in outcome.declined:
            found.setdefault(decline.code, []).append((outcome.name, decline.reason))
    return [(code, len(cases), *cases[0]) for code, cases in sorted(found.items())]


def versions() -> str:
    """Return what ran, in a sentence's part."""
    return (
        f"onnx-fuse {onnx_fuse.__version__}, kernels for {active_isa()}, "
        f"onnxruntime {onnxruntime.__version__}"
    )


def show(outcomes: list[Outcome], console: Console) -> None:
    """Print the tables for a reader at a terminal."""
    table = Table(caption="fused / expressible (/ there, where that's more)", box=None)
    table.add_column("architecture", no_wrap=True)
    table.add_column("models", justify="right")
    for title in (*EXPORTERS, OTHERS):
        table.add_column(title)
    for title in ("declined", "error"):
        table.add_column(title)
    for one in rows_of(outcomes):
        cells = (one.architecture, str(one.models), *one.cells, one.declined, one.error)
        table.add_row(*map(escape, cells), style="red" if one.problems else None)
    console.print(table)
    reasons = Table("code", "blocks", "for example", "because", box=None)
    for code, count, name, reason in declines(outcomes):
        reasons.add_row(code, str(count), escape(name), escape(reason))
    console.print(reasons)
    for line in faults(outcomes):
        console.print(line, markup=False, soft_wrap=True)
    console.print(summary(outcomes), style="bold", soft_wrap=True)


def markdown(outcomes: list[Outcome], versions: str) -> str:
    """Return the page for the docs."""
    titles = ["architecture", "models", *EXPORTERS, OTHERS, "declined", "largest error"]
    lines = [*_HEAD, f"{summary(outcomes)}. {versions}.", "", *head_row(titles)]
    for one in rows_of(outcomes):
        name = one.architecture if one.architecture != "all" else "**all**"
        lines.append(row(name, str(one.models), *one.cells, one.declined, one.error))
    lines += ["", "## Declined", "", *head_row(["code", "blocks", "for example", "because"])]
    for code, count, name, reason in declines(outcomes):
        lines.append(row(f"`{code}`", str(count), name, reason))
    lines += ["", "## Models whose blocks aren't exactly the expressible ones", ""]
    lines += ['Why such blocks stay as they are: "What is declined" in decisions.md.', ""]
    lines += [f"* {line}" for line in faults(outcomes)] or ["None."]
    return "\n".join(lines) + "\n"


_HEAD = (
    "# Every model of the zoo",
    "",
    "Written by `make zoo ZOO=FOLDER ZOO_ARGS=--write`; don't edit it by hand.",
    "",
    "Each cell counts attention blocks: fused / expressible, and a third number, those in the",
    "model, where some of them have no fused form. Each model ran on the folder's own inputs: the",
    "original in onnxruntime with optimisations off, the fused one with our kernel and in a plain",
    "session without our library, both with all optimisations. The error is the largest difference",
    "of any output in either session, relative to the output's largest value. Allowed are 1e-4, or",
    "what the original's own results differ by between optimisation levels where that is more; in",
    "half precision, what its own roundings add up to.",
    "",
)


def head_row(titles: list[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [row(*titles), row(*("---" for _ in titles))]


def row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
