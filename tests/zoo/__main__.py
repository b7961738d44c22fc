"""Check every model of a folder of the zoo's form: python -m tests.zoo FOLDER [--write].

Exits with 1 if a model is broken or differs from its original. Blocks that are declined are not
failures here: the table shows them with their codes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.zoo.check import Outcome, check, describe, names_in
from tests.zoo.options import DOCS, of_a_zoo
from tests.zoo.table import markdown, show, versions

PAGE = DOCS / "zoo.md"


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


def check_all(
    folder: Path, names: list[str], workers: int, advance: Callable[[], None]
) -> list[Outcome]:
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
            advance()
    for name in names:
        if name not in done:
            done[name] = check_alone(folder, name)
            advance()
    return [done[name] for name in names]


def main() -> int:
    """Parse the command line, check, print, write."""
    parser = of_a_zoo("tests.zoo", PAGE)
    parser.add_argument("-o", "--output", type=Path, help="write the page there, as Markdown")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    names = names_in(arguments.folder, arguments.only)
    if not names:
        parser.error(f"{arguments.folder}: no model")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{len(names)} models", total=len(names))
        outcomes = check_all(
            arguments.folder, names, arguments.workers, lambda: progress.advance(task)
        )
    show(outcomes, Console(width=None if sys.stdout.isatty() else 200))
    page = markdown(outcomes, versions())
    for path in [arguments.output] * bool(arguments.output) + [PAGE] * arguments.write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(page)
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
