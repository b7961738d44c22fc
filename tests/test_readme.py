"""The README's Python example prints what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_example_prints_what_stands_below_it(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", text, re.DOTALL)
    assert match is not None
    program, printed = match.group(1), re.sub(r"^    ", "", match.group(2), flags=re.MULTILINE)
    assert len(program.splitlines()) <= 12
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == printed
