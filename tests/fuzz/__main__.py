"""Fuzz for some time: python -m tests.fuzz [--seconds 60] [--seed 0] [--keep FOLDER].

Each damaged model is given to a worker process that has limited memory and time. An exception that
is no OnnxFuseError, a crash, a hang or exhausted memory is a finding: the first model of each place
is kept in the folder, and the exit code is 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz.mutate import Mutator
from tests.fuzz.options import fuzzing
from tests.fuzz.process import DEAD, Worker

ZOO = Path(__file__).parents[2] / "models" / "zoo"
# Small models of different kinds: a worker does about ten of them in a second.
LARGEST_SEED = 100_000  # bytes
MEMORY = 4 << 30  # bytes of address space; the libraries map about one of the four
DEFECTS = ("defect", DEAD)
PATIENCE = 20.0  # seconds for a model that takes a tenth of one when it is sound


def read_seeds() -> list[bytes]:
    """Return the zoo's smaller models."""
    files = sorted(ZOO.glob("*.onnx"))
    return [file.read_bytes() for file in files if file.stat().st_size <= LARGEST_SEED]


def place_of(detail: str) -> str:
    """Return where a finding comes from: the last place in its traceback, or its whole text."""
    places = [line.strip() for line in detail.splitlines() if line.lstrip().startswith("File ")]
    return places[-1] if places else detail


def keep(folder: Path, number: int, model: bytes, detail: str) -> None:
    """Write a finding and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.onnx").write_bytes(model)
    (folder / f"{number}.txt").write_text(detail)
    error = detail.strip().splitlines()[-1]
    sys.stderr.write(f"finding {folder / str(number)}.onnx: {error}\n  {place_of(detail)}\n")


def fuzz(seconds: float, seed: int, folder: Path) -> int:
    """Fuzz, print one line of counts, and return the number of findings."""
    mutator = Mutator(read_seeds(), Random(seed))
    outcomes: Counter[str] = Counter()
    places: Counter[str] = Counter()
    worker = Worker("tests.fuzz.worker", memory=MEMORY, patience=PATIENCE)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        while time.monotonic() < deadline:
            model = mutator.make()
            path.write_bytes(model)
            answer = worker.ask(path)
            outcomes[answer.outcome] += 1
            if answer.outcome in DEFECTS:
                place = place_of(answer.detail)
                places[place] += 1
                if places[place] == 1:
                    keep(folder, outcomes.total(), model, answer.detail)
    worker.stop()
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("done", "refused", *DEFECTS))
    sys.stdout.write(f"{outcomes.total()} damaged models (seed {seed}): {counts}\n")
    return places.total()


def main() -> int:
    """Parse the command line and fuzz."""
    arguments = fuzzing("tests.fuzz").parse_args()
    return 1 if fuzz(arguments.seconds, arguments.seed, arguments.keep) else 0


if __name__ == "__main__":
    sys.exit(main())
