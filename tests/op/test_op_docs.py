"""docs/op.md is what the tables say."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from onnx_fuse.op import docs, schema

PAGE = Path(__file__).parents[2] / "docs" / "op.md"


def test_page_is_current() -> None:
    assert PAGE.read_text() == docs.page(), "run: python -m onnx_fuse.op.docs > docs/op.md"


def test_page_has_a_row_for_everything_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", docs.page(), re.MULTILINE)
    tables = (schema.ATTRIBUTES, schema.OPERANDS, schema.OUTPUTS)
    assert rows == ["operands", *(row.name for table in tables for row in table)]


def test_tables_are_whole() -> None:
    """Each row of a Markdown table has as many cells as the row before it."""
    lines = docs.page().splitlines()
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"(?<!\\)\|", line))
