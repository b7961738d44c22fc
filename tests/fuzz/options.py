"""What all fuzzers are told on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


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
