"""Check every model of a zoo folder and write the table: python -m tests.zoo FOLDER [-o FILE.md].

Exits with 1 if a model is broken or differs from its original. Blocks that are declined are not
failures here: the table shows them with their codes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.zoo.check import Outcome, check, describe


def check_alone(folder: Path, name: str) -> Outcome:
    """Check in a process of its own: a crash is that model's problem only."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(check, folder, name).result()
        except BrokenProcessPool:
            outcome = describe(folder, name)
            outcome.problem = "the process crashed"
            return outcome


def check_all(folder: Path, names: list[str], workers: int) -> list[Outcome]:
    """Check the models in parallel; after a crash, check the unfinished ones one by one."""
    context = multiprocessing.get_context("spawn")
    done: dict[str, Outcome] = {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {name: pool.submit(check, folder, name) for name in names}
        for name, future in futures.items():
            try:
                done[name] = future.result()
            except BrokenProcessPool:
                break
    return [done.get(name) or check_alone(folder, name) for name in names]


def row(label: str, outcomes: list[Outcome]) -> str:
    """Return one row of the table for these models."""
    codes = Counter(code for outcome in outcomes for code in outcome.codes)
    problems = sum(bool(outcome.problem) for outcome in outcomes)
    errors = [
        error
        for outcome in outcomes
        for error in (outcome.kernel_error, outcome.plain_error)
        if error is not None
    ]
    cells = [
        label,
        str(len(outcomes)),
        f"{sum(o.fused for o in outcomes)} / {sum(o.blocks for o in outcomes)}",
        str(sum(o.expressible for o in outcomes)),
        f"{max(errors):.0e}" if errors else "",
        str(problems or ""),
        ", ".join(f"{code} x{count}" if count > 1 else code for code, count in codes.items()),
    ]
    return f"| {' | '.join(cells)} |"


def render(outcomes: list[Outcome]) -> str:
    """Return the table as Markdown: one row for each architecture and exporter, and the sums."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.architecture, outcome.exporter), []).append(outcome)
    titles = ["architecture, exporter", "models", "fused / blocks", "expressible"]
    titles += ["largest error", "problems", "declined"]
    lines = [
        f"| {' | '.join(titles)} |",
        f"| {' | '.join('---' for _ in titles)} |",
        *(row(", ".join(key), groups[key]) for key in sorted(groups)),
        row("**all**", outcomes),
    ]
    return "\n".join(lines) + "\n"


def render_faults(outcomes: list[Outcome]) -> list[str]:
    """Return one line for each model that isn't as it should be."""
    lines = [f"{o.name}: {o.problem}" for o in outcomes if o.problem]
    missed = [o for o in outcomes if not o.problem and not o.is_complete]
    lines += [
        f"{o.name}: fused {o.fused} of {o.expressible}: {', '.join(o.codes) or 'no site'}"
        for o in missed
    ]
    surplus = [o for o in outcomes if o.fused > o.blocks]
    lines += [f"{o.name}: fused {o.fused}, has only {o.blocks} blocks" for o in surplus]
    return lines


def main() -> int:
    """Parse the command line, check, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description="Check a zoo folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    names = sorted(f.stem for f in arguments.folder.glob("*.onnx") if arguments.only in f.stem)
    if not names:
        parser.error(f"{arguments.folder}: no model")
    outcomes = check_all(arguments.folder, names, arguments.workers)
    table = render(outcomes)
    if arguments.output:
        arguments.output.write_text(table)
    faults = render_faults(outcomes)
    sys.stdout.write("\n".join([table, *faults, ""]))
    problems = sum(bool(o.problem) for o in outcomes)
    complete = sum(o.is_complete for o in outcomes)
    fused, expressible = sum(o.fused for o in outcomes), sum(o.expressible for o in outcomes)
    seconds = sum(o.seconds for o in outcomes)
    sys.stdout.write(
        f"{len(outcomes)} models: {complete} complete, {problems} broken or different, "
        f"{fused} blocks fused of {expressible} expressible, {seconds:.0f} s of work\n"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
