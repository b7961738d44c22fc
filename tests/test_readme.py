"""What the README shows is what is printed, and its figures are those of the pages it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
COMMANDS = re.findall(r"^    \$ onnx-fuse (.*)\n((?:(?:    .*)?\n)+)", README, re.MULTILINE)
# What a run measures depends on the processor: the error, and the noise that it may have.
ERROR = re.compile(r"largest error \S+ \(allowed \S+\)")


def shown(lines: str) -> str:
    """Lines of the README without their indentation and the empty ones around them."""
    return re.sub(r"^    ", "", lines, flags=re.MULTILINE).strip("\n") + "\n"


def printed(folder: Path, *words: str) -> str:
    """What the interpreter prints, run with these words beside the sample models."""
    (folder / "models").symlink_to(ROOT / "models")
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_python_example_prints_what_stands_below_it(tmp_path: Path) -> None:
    match = re.search(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", README, re.DOTALL)
    assert match is not None
    program, below = match.groups()
    assert len(program.splitlines()) <= 12
    assert printed(tmp_path, "-c", program) == shown(below)


@pytest.mark.parametrize(("command", "below"), COMMANDS, ids=[c.split()[0] for c, _ in COMMANDS])
def test_command_prints_what_stands_below_it(command: str, below: str, tmp_path: Path) -> None:
    lines = printed(tmp_path, "-m", "onnx_fuse", *command.split())
    assert ERROR.sub("", lines) == ERROR.sub("", shown(below))


def test_commands_are_found() -> None:
    assert [command.split()[0] for command, _ in COMMANDS] == ["fuse", "explain"]


def test_figures_of_blocks_are_those_of_the_benchmarks() -> None:
    lines = re.findall(r"^\| rows .*$", README, re.MULTILINE)
    assert len(lines) == 4
    assert set(lines) <= set((DOCS / "benchmarks" / "README.md").read_text().splitlines())


def test_figures_with_avx2_are_those_of_its_page() -> None:
    page = (DOCS / "benchmarks" / "avx2" / "README.md").read_text()
    line = r"^\| rows {} 64 \| fp32 against onnxruntime's best \| ([\d.]+) "
    medians = [re.findall(line.format(sign), page, re.MULTILINE) for sign in ("<=", ">")]
    (small,), (large,) = medians
    assert f"the medians in fp32 are {small} and {large}:" in README


def test_figures_of_minilm_are_those_of_the_benchmarks() -> None:
    rows = json.loads((DOCS / "benchmarks" / "minilm-ts.json").read_text())["rows"]
    medians = [{name: peer["us"]["median"] for name, peer in row["peers"].items()} for row in rows]
    ratios = [us["onnxruntime"] / us["onnx-fuse fp32"] for us in medians]
    assert f"runs {min(ratios):.2f} to {max(ratios):.2f} times as fast" in README


def test_figures_of_the_zoo_are_those_of_its_page() -> None:
    page = (DOCS / "zoo.md").read_text()
    found = re.search(r"^\d+ models with .*? models broken or different", page, re.MULTILINE)
    assert found is not None
    assert found.group() in " ".join(README.split())
    first_table = page.split("\n| --- |", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    architectures = [line for line in first_table if not line.startswith("| **all**")]
    assert f"[{len(architectures)} architectures]" in README


def test_median_of_small_models_is_that_of_their_page() -> None:
    page = (DOCS / "times.md").read_text()
    found = re.search(r"^\| all \| with the kernels \| ([\d.]+) \|", page, re.MULTILINE)
    assert found is not None
    assert f"run [{found[1]} times](docs/times.md) as fast" in README
    slower = re.search(r"^\| all \| with the kernels \|.*\| (\d+) of (\d+) \|$", page, re.MULTILINE)
    assert slower is not None
    models = int(slower[2])
    assert f"{models - int(slower[1])} of {models} small models" in README


def test_figures_of_precision_are_those_of_its_page() -> None:
    page = (DOCS / "precision.md").read_text()
    found = re.search(
        r"^\| \*\*all\*\* \| (\d+) .* \| (0\.\d{4})\d* \| \S+ \|$", page, re.MULTILINE
    )
    assert found is not None
    models, cosine = found.groups()
    assert re.search(rf"on {models}\s+models: cosine similarities of at least {cosine}", README)
