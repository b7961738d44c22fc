"""Change what attention means, and ask whether a fused model still computes what its original does.

    python -m tests.fuzz.meaning [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Each model is one of a folder, or made of several of the tests' steps, with up to three changes that
keep it valid: another operator, attribute, constant, operand or opset, an operator more, less or
elsewhere, a value shown. What is fused must compute the same, with the kernel and without, also
where an open extent is 0 or 1. A fused model that differs from its original or ends the process,
and a model that onnxruntime runs and the tool breaks on, is a finding: it is kept in the folder,
and the exit code is 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import onnx

from tests.fuzz.changes import Change
from tests.fuzz.composed import composed
from tests.fuzz.options import fuzzing_a_zoo
from tests.fuzz.process import DEAD, Answer, Worker

LARGEST_SEED = 100_000  # bytes of a model of the zoo
SHARE_OF_ZOO = 0.5
# A model that wants more, a changed extent in it for instance, is one whose original does not run.
MEMORY = 6 << 30  # bytes of address space
FINDINGS = ("different", "broken", DEAD)
PATIENCE = 120.0  # seconds for a model that takes one or two


def seeds(folder: Path) -> list[bytes]:
    """Return the folder's smaller models."""
    files = sorted(folder.glob("*.onnx"))
    return [file.read_bytes() for file in files if file.stat().st_size <= LARGEST_SEED]


def make(zoo: list[bytes], random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a changed model, and what it was and what was changed."""
    count = random.choice((1, 1, 2, 3))
    if zoo and random.random() < SHARE_OF_ZOO:
        at = random.randrange(len(zoo))
        model, name = onnx.ModelProto.FromString(zoo[at]), f"zoo model {at}"
    else:
        try:
            model, name = composed(random)
        except (AssertionError, KeyError, ValueError):  # steps that exclude each other
            return make(zoo, random)
        count = random.choice((0, 0, 1, count))
    changes = [Change(model, random).any() for _ in range(count)]
    return model, f"{name}: {', '.join(changes)}"


def judged(model: onnx.ModelProto, worker: Worker, path: Path) -> Answer:
    """Return what became of the model, which is written to `path`."""
    onnx.save(model, path)
    answer = worker.ask(path)
    if answer.outcome != DEAD:
        return answer
    # A changed model may be the end of onnxruntime by itself.
    original = Worker("tests.fuzz.comparison", "original", memory=MEMORY, patience=PATIENCE)
    survives = original.ask(path).outcome != DEAD
    original.stop()
    return answer if survives else Answer("invalid")


def fuzz(seconds: float, seed: int, folder: Path, zoo: list[bytes]) -> int:
    """Fuzz, print one line of counts, and return the number of findings."""
    random, outcomes = Random(seed), Counter[str]()
    worker = Worker("tests.fuzz.comparison", memory=MEMORY, patience=PATIENCE)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < deadline:
            model, name = make(zoo, random)
            answer = judged(model, worker, Path(scratch) / "model.onnx")
            outcomes[answer.outcome] += 1
            if answer.outcome in FINDINGS:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{seed}-{outcomes.total()}.onnx"
                onnx.save(model, path)
                (folder / f"{path.stem}.txt").write_text(f"{name}\n{answer.detail}\n")
                sys.stderr.write(f"finding {path}: {name}\n  {answer.detail.splitlines()[-1]}\n")
    worker.stop()
    kinds = ("same", "rounded", "declined", "invalid", *FINDINGS)
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in kinds)
    sys.stdout.write(f"{outcomes.total()} models (seed {seed}): {counts}\n")
    return sum(outcomes[kind] for kind in FINDINGS)


def main() -> int:
    """Parse the command line and fuzz."""
    arguments = fuzzing_a_zoo("tests.fuzz.meaning").parse_args()
    zoo = seeds(arguments.zoo)
    return 1 if fuzz(arguments.seconds, arguments.seed, arguments.keep, zoo) else 0


if __name__ == "__main__":
    sys.exit(main())
