"""What all that looks at a zoo's folder is told on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def of_a_zoo(program: str, page: Path) -> argparse.ArgumentParser:
    """Return a parser of the folder, --only, and --write, which writes the page."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--write", action="store_true", help=f"write docs/{page.name}")
    return parser
