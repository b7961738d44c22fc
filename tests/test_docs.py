"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("onnx_fuse", "tests", "models", "docs")
SOURCES = [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
SOURCE = re.compile(r"`([\w./-]+\.(?:py|cpp|h|json))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sources_that_a_page_names_are_there(page: Path) -> None:
    named = dict.fromkeys(SOURCE.findall(page.read_text(encoding="utf-8")))
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in SOURCES)] == []
