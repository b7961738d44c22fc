"""What all fuzzers share: the command line, and the loop that makes, judges and keeps models."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.process import Answer

# Bytes of a folder's models that are changed: a worker does about ten of these in a second.
LARGEST_SEED = 100_000


def fuzzing(program: str) -> argparse.ArgumentParser:
    """Return a parser of --seconds, --seed and --keep."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same models")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of findings")
    return parser


def fuzzing_a_zoo(program: str) -> argparse.ArgumentParser:
    """Return the same with --zoo."""
    parser = fuzzing(program)
    parser.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="folder of models")
    return parser


def small_models(folder: Path) -> list[Path]:
    """Return the folder's smaller models."""
    return [f for f in sorted(folder.glob("*.onnx")) if f.stat().st_size <= LARGEST_SEED]


def fuzz(
    options: argparse.Namespace,
    what: str,
    judged: Callable[[Path], Answer],
    sound: Sequence[str],
    findings: Sequence[str],
) -> int:
    """Judge models until the time is over, print one line of counts, and return the exit code.

    `judged` writes a model to the path that it gets, and says what became of it: one of the `sound`
    outcomes, or of the `findings`. Of these the first of each place is kept, and the code is 1.
    """
    outcomes: Counter[str] = Counter()
    places: set[str] = set()
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        while time.monotonic() < deadline:
            answer = judged(path)
            outcomes[answer.outcome] += 1
            place = _place_of(answer.detail)
            if answer.outcome in findings and place not in places:
                places.add(place)
                name = f"{what.replace(' ', '-')}-{options.seed}-{outcomes.total()}.onnx"
                _keep(options.keep / name, path.read_bytes(), answer.detail)
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in (*sound, *findings))
    sys.stdout.write(f"{outcomes.total()} {what} (seed {options.seed}): {counts}\n")
    return 1 if places else 0


def _place_of(detail: str) -> str:
    """Return where a finding comes from: the last place in its traceback, or its whole text."""
    places = [line.strip() for line in detail.splitlines() if line.lstrip().startswith("File ")]
    return places[-1] if places else detail


def _keep(path: Path, model: bytes, detail: str) -> None:
    """Write a finding and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    path.with_suffix(".txt").write_text(f"{detail}\n")
    words = (detail.strip().splitlines() or [""])[-1]
    sys.stderr.write(f"finding {path}: {words}\n  {_place_of(detail)}\n")
