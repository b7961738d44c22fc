"""Change what attention means, and ask whether a fused model still computes what its original does.

    python -m tests.fuzz.meaning [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Each model is one of a folder, or made of several of the tests' steps, with up to three changes that
keep it valid: another operator, attribute, constant or operand, an operator more, less or
elsewhere, a value shown. What is fused must compute
the same, with the kernel and without. A fused model that differs from its original, and a model
that onnxruntime runs and the tool breaks on, is a finding: it is kept in the folder, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import onnx

import onnx_fuse
from tests.fuzz.changes import Change
from tests.fuzz.composed import composed

LARGEST_SEED = 100_000  # bytes of a model of the zoo
SHARE_OF_ZOO = 0.5
# A model that wants more, a changed extent in it for instance, is one whose original does not run.
MEMORY = 6 << 30  # bytes of address space
# A change can make a model so unstable that roundings show in it (scores beside a fill of -1e4, a
# division by what is nearly zero): that many times the allowed difference comes of another meaning.
ANOTHER_MEANING = 1e4
# What verify says of an original that shows nothing.
EMPTY = ("the original does not run", "nothing was compared")


def compare(model: onnx.ModelProto) -> tuple[str, str]:
    """Return what became of a model, and what is wrong.

    "invalid", "declined", "same", "rounded", or, what is a finding, "different" and "broken".
    """
    try:
        onnx.checker.check_model(model)
        result = onnx_fuse.fuse(model, threshold=None)
        fused = result.model
    except (onnx.checker.ValidationError, onnx_fuse.OnnxFuseError):
        return "invalid", ""
    except Exception:
        fault = traceback.format_exc().strip()
        runs = not any(wrong.startswith(EMPTY) for wrong in onnx_fuse.verify(model, model).failures)
        return ("broken", fault) if runs else ("invalid", "")
    if not result.report.num_fused:
        return "declined", ""
    try:
        report = onnx_fuse.verify(model, fused)
    except onnx_fuse.OnnxFuseError:
        return "invalid", ""
    if report.passed:
        return "same", ""
    wrong = report.failures[0]
    if wrong.startswith(EMPTY):
        return "invalid", ""
    if report.worst_ratio <= ANOTHER_MEANING:
        return "rounded", ""
    # What reads memory that nobody wrote differs from itself.
    return ("different", wrong) if onnx_fuse.verify(model, model).passed else ("invalid", "")


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


def fuzz(seconds: float, seed: int, folder: Path, zoo: list[bytes]) -> int:
    """Fuzz, print one line of counts, and return the number of findings."""
    random, outcomes = Random(seed), Counter[str]()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        model, name = make(zoo, random)
        outcome, wrong = compare(model)
        outcomes[outcome] += 1
        if wrong:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{seed}-{outcomes.total()}.onnx"
            onnx.save(model, path)
            (folder / f"{path.stem}.txt").write_text(f"{name}\n{wrong}\n")
            sys.stderr.write(f"finding {path}: {name}\n  {wrong.splitlines()[-1]}\n")
    kinds = ("same", "rounded", "declined", "invalid", "different", "broken")
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in kinds)
    sys.stdout.write(f"{outcomes.total()} models (seed {seed}): {counts}\n")
    return outcomes["different"] + outcomes["broken"]


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.meaning")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same models")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of findings")
    parser.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="folder of models")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    zoo = seeds(arguments.zoo)
    return 1 if fuzz(arguments.seconds, arguments.seed, arguments.keep, zoo) else 0


if __name__ == "__main__":
    sys.exit(main())
