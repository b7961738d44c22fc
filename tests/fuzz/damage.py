"""Damage models, and ask whether the tool refuses them.

    python -m tests.fuzz.damage [--seconds 60] [--seed 0] [--keep FOLDER]

Each damaged model is given to a worker process that has limited memory and time. An exception that
is no OnnxFuseError, a crash, a hang or exhausted memory is a finding: the first model of each place
is kept in the folder, and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from tests.fuzz.loop import fuzz, fuzzing, small_models
from tests.fuzz.mutate import Mutator
from tests.fuzz.process import DEAD, Answer, Worker

ZOO = Path(__file__).parents[2] / "models" / "zoo"
MEMORY = 4 << 30  # bytes of address space; the libraries map about one of the four
PATIENCE = 20.0  # seconds for a model that takes a tenth of one when it is sound


def main() -> int:
    """Parse the command line and fuzz."""
    options = fuzzing("tests.fuzz.damage").parse_args()
    mutator = Mutator([path.read_bytes() for path in small_models(ZOO)], Random(options.seed))
    worker = Worker("tests.fuzz.worker", memory=MEMORY, patience=PATIENCE)

    def judged(path: Path) -> Answer:
        path.write_bytes(mutator.make())
        return worker.ask(path)

    try:
        return fuzz(options, "damaged models", judged, ("done", "refused"), ("defect", DEAD))
    finally:
        worker.stop()


if __name__ == "__main__":
    sys.exit(main())
