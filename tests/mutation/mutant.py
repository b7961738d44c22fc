"""A text of the sources that disables a check."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDERS = ("analysis", "passes")  # of the package


class Mutant(NamedTuple):
    """A check: its text, which occurs once in all of FOLDERS, and the text without it."""

    name: str
    check: str
    without: str


def places(mutant: Mutant, package: Path) -> list[Path]:
    """Return the file of the check, once for each time that it stands there."""
    files = [path for folder in FOLDERS for path in sorted((package / folder).rglob("*.py"))]
    return [path for path in files for _ in range(path.read_text().count(mutant.check))]
