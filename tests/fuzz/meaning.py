"""Change what attention means, and ask whether a fused model still computes what its original does.

    python -m tests.fuzz.meaning [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Each model is one of a folder, made of several of the tests' steps, or the call of an attention
operator, with up to three changes that keep it valid: another operator, attribute, constant,
operand or opset, an operator more, less or elsewhere, a value shown. What is fused must compute the
same, with the kernel and without, also where an open extent is 0 or 1. A fused model that differs
from its original or ends the process, and a model that onnxruntime runs and the tool breaks on, is
a finding: it is kept in the folder, and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import onnx

from tests.fuzz.calls import called
from tests.fuzz.changes import Change
from tests.fuzz.composed import composed
from tests.fuzz.loop import fuzz, fuzzing_a_zoo, small_models
from tests.fuzz.process import DEAD, Answer, Worker

SHARE_OF_ZOO = 0.5
SHARE_OF_CALLS = 0.3  # among the others
# A model that wants more, a changed extent in it for instance, is one whose original does not run.
MEMORY = 6 << 30  # bytes of address space
PATIENCE = 120.0  # seconds for a model that takes one or two


def make(zoo: list[Path], random: Random) -> tuple[onnx.ModelProto, str]:
    """Return a changed model, and what it was and what was changed."""
    count = random.choice((1, 1, 2, 3))
    if zoo and random.random() < SHARE_OF_ZOO:
        path = random.choice(zoo)
        model, name = onnx.load(path), path.stem
    else:
        made = called if random.random() < SHARE_OF_CALLS else composed
        try:
            model, name = made(random)
        except (AssertionError, KeyError, ValueError):  # steps that exclude each other
            return make(zoo, random)
        count = random.choice((0, 0, 1, count))
    changes = [Change(model, random).any() for _ in range(count)]
    return model, f"{name}: {', '.join(changes)}"


def judged(zoo: list[Path], random: Random, worker: Worker, path: Path) -> Answer:
    """Write a changed model to `path`, and return what became of it."""
    model, name = make(zoo, random)
    onnx.save(model, path)
    answer = worker.ask(path)
    if answer.outcome == DEAD:
        # A changed model may be the end of onnxruntime by itself.
        original = Worker("tests.fuzz.comparison", "original", memory=MEMORY, patience=PATIENCE)
        survives = original.ask(path).outcome != DEAD
        original.stop()
        if not survives:
            return Answer("invalid")
    return Answer(answer.outcome, f"{name}\n{answer.detail}")


def main() -> int:
    """Parse the command line and fuzz."""
    options = fuzzing_a_zoo("tests.fuzz.meaning").parse_args()
    zoo, random = small_models(options.zoo), Random(options.seed)
    worker = Worker("tests.fuzz.comparison", memory=MEMORY, patience=PATIENCE)
    sound = ("same", "rounded", "declined", "invalid")
    try:
        return fuzz(
            options,
            "changed models",
            lambda path: judged(zoo, random, worker, path),
            sound,
            ("different", "broken", DEAD),
        )
    finally:
        worker.stop()


if __name__ == "__main__":
    sys.exit(main())
