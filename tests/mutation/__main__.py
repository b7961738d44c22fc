"""Disable each check in a copy of the package and run the recogniser's tests: one must fail.

python -m tests.mutation [PART OF A NAME ...] [--jobs N]. Exits with 1 if a mutant lives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.mutation.mutant import Mutant, places
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
# The quickest first: a mutant is dead with the first failure.
TESTS = (
    "tests/analysis/test_near_misses.py",
    "tests/analysis/test_in_part.py",
    "tests/analysis/test_some_positions.py",
    "tests/analysis/test_rotations.py",
    "tests/analysis/test_causal_order.py",
    "tests/analysis/test_half_precision.py",
    "tests/analysis/test_whole.py",
    "tests/analysis/test_weight_forms.py",
    "tests/analysis/test_choices.py",
    "tests/analysis/test_edited_scores.py",
    "tests/analysis/test_written_softmax.py",
    "tests/analysis/test_shown_weights.py",
    "tests/analysis/test_block_ends.py",
    "tests/analysis/test_divided_twice.py",
    "tests/analysis/test_pairs.py",
    "tests/analysis/test_score_sums.py",
    "tests/analysis/test_contraction.py",
    "tests/analysis/test_joined_scores.py",
    "tests/analysis/test_reasons.py",
    "tests/analysis/test_no_softmax.py",
    "tests/analysis/test_norms.py",
    "tests/analysis/test_cache.py",
    "tests/passes/test_across_graphs.py",
    "tests/passes/test_fuse_attention_block.py",
    "tests/analysis/test_caches.py",
    "tests/analysis/test_grouped_query.py::test_operator_is_taken_with_its_projections",
    "tests/analysis/test_grouped_query.py::test_only_in_their_order_they_are_one_operand",
    "tests/analysis/test_grouped_query.py::test_operator_is_declined",
    "tests/analysis/test_axes.py",
    "tests/analysis/test_same.py",
    "tests/analysis/test_positions.py",
    "tests/analysis/test_product.py::test_form_gives_the_record_of_what_it_means",
)
COPIED = ("onnx_fuse", "tests", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")
LONGEST_SECONDS = 600


def run_tests(folder: Path) -> tuple[bool, str]:
    """Return whether all tests pass, and the first that doesn't."""
    command = [sys.executable, "-m", "tests.mutation.run"]
    command += ["-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, *TESTS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 0:
        return True, "no test fails"
    return False, failed[0] if failed else done.stdout[-300:]


def survives(mutant: Mutant | None, parent: Path) -> tuple[bool, str]:
    """Return whether the tests pass for a mutant (None: the package as it is), and which fails."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        for entry in COPIED:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(source, folder / entry, ignore=LEFT_OUT)
            else:
                shutil.copy(source, folder)
        if mutant is not None:
            found = places(mutant, folder / "onnx_fuse")
            if len(found) != 1:
                return True, f"the check stands in {len(found)} places"
            found[0].write_text(found[0].read_text().replace(mutant.check, mutant.without))
        return run_tests(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose names contain one of these")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.names or any(n in m.name for n in options.names)]
    alive = 0
    with tempfile.TemporaryDirectory() as parent, ThreadPoolExecutor(options.jobs) as pool:
        passes, first = survives(None, Path(parent))
        if not passes:
            sys.stdout.write(f"the tests fail without any mutant: {first}\n")
            return 1
        results = pool.map(partial(survives, parent=Path(parent)), chosen)
        for mutant, (lives, test) in zip(chosen, results, strict=True):
            alive += lives
            where = test.split("::", 1)[-1].split(" - ")[0]
            sys.stdout.write(f"{'ALIVE' if lives else 'dead '} {mutant.name}: {where}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - alive} of {len(chosen)} mutants are noticed\n")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
