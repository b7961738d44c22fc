"""Imports run one way, as docs/architecture.md says, and a rewrite needs no onnxruntime."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "onnx_fuse"
# What each layer may import besides itself: the lower ones.
BASE = {"config", "errors", "op", "report"}
LAYERS = {
    "ir": BASE,
    "analysis": BASE | {"ir"},
    "passes": BASE | {"ir", "analysis"},
    "runtime": BASE | {"ir"},
    "show": BASE | {"ir", "runtime"},
}
# The parts of analysis, each of which may import those before it, and what all of them may.
PARTS = ("dims", "shapes", "algebra", "scores", "softmax", "operands", "operators", "record")
SHARED = {"declined", "known", "malformed", "search", "splice", "trail"}


def modules(layer: str) -> list[Path]:
    return sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]


def imported(path: Path) -> Iterator[str]:
    """Names of imported modules, also of those that only a call or a type checker imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layers(names: Iterator[str], package: str = "onnx_fuse") -> set[str]:
    """Return which of a package's modules and packages the names belong to."""
    inside = f"{package}."
    return {name.removeprefix(inside).split(".")[0] for name in names if name.startswith(inside)}


def test_each_module_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_lower_ones(layer: str) -> None:
    found = {path.name: layers(imported(path)) - LAYERS[layer] - {layer} for path in modules(layer)}
    assert not {name: above for name, above in found.items() if above}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_analysis_imports_only_lower_ones(part: str) -> None:
    lower = {*SHARED, *PARTS[: PARTS.index(part) + 1]}
    found = {
        path.name: layers(imported(path), "onnx_fuse.analysis") - lower
        for path in modules(f"analysis/{part}")
    }
    assert not {name: above for name, above in found.items() if above}


def test_every_part_of_analysis_has_its_place() -> None:
    assert {path.parent.name for path in (PACKAGE / "analysis").glob("*/*.py")} == {*PARTS}


@pytest.mark.parametrize("layer", sorted(BASE))
def test_the_base_imports_nothing_above_it(layer: str) -> None:
    assert set().union(*(layers(imported(path)) for path in modules(layer))) <= BASE


def test_only_runtime_imports_onnxruntime() -> None:
    importing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "onnxruntime" for name in imported(path))
    }
    assert importing == {"runtime", "api.py"}  # api.py for the type checker alone


def test_model_is_rewritten_without_onnxruntime(tmp_path: Path) -> None:
    source = PACKAGE.parent / "models" / "zoo" / "bert-ts-eager-static.onnx"
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import onnx_fuse\n"
        f"result = onnx_fuse.fuse({str(source)!r})\n"
        "result.save('fused.onnx')\n"
        "onnx_fuse.save(onnx_fuse.load(onnx_fuse.unfuse('fused.onnx')), 'plain.onnx')\n"
        "print(result.report.num_fused)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("2\n", "")
