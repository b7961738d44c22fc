"""The wheel that `make wheel` built works in an empty environment, away from the source tree.

ONNX_FUSE_WHEEL names the wheel. The tests are slow (they install it with its dependencies) and are
run by `make wheel` alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[1] / "models" / "zoo" / "bert-ts-sdpa-dynamic.onnx"
BLOCKS = 2
# onnxruntime's own wheels ask for glibc 2.27 or 2.28: ours must install wherever theirs do.
NEWEST_GLIBC = (2, 28)


@pytest.fixture(scope="module")
def wheel() -> Path:
    name = os.environ.get("ONNX_FUSE_WHEEL")
    if name is None:
        pytest.fail("ONNX_FUSE_WHEEL is not set: run `make wheel`")
    return Path(name).resolve()


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    run(folder, folder / "bin" / "python", "-m", "pip", "install", "--quiet", str(wheel))
    return folder / "bin"


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, with nothing of this environment but the PATH."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done


def test_wheel_serves_every_python_on_manylinux(wheel: Path) -> None:
    assert wheel.name.startswith("onnx_fuse-")
    found = re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)
    assert "-py3-none-manylinux_2_" in wheel.name
    assert min((int(major), int(minor)) for major, minor in found) <= NEWEST_GLIBC


def test_wheel_holds_the_library_and_no_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    native = [
        n for n in names if n.startswith("onnx_fuse/native/") and not n.endswith(("/", ".py"))
    ]
    assert native == ["onnx_fuse/native/libonnx_fuse.so"]
    assert "onnx_fuse/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "models/", "onnx_fuse.libs/"))]


def test_installed_command_fuses_and_verifies(scripts: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["-o", "fused.onnx", "--require", "all", "--json", report]
    run(tmp_path, scripts / "onnx-fuse", "fuse", MODEL, *arguments)
    found = json.loads(report.read_text())
    assert found["fused"] == BLOCKS
    assert found["declined"] == 0
    assert found["verify"]["passed"] is True


def test_installed_library_is_the_one_that_runs(scripts: Path, tmp_path: Path) -> None:
    program = f"""
import onnx_fuse
result = onnx_fuse.fuse({str(MODEL)!r}, fallback=False)
session = onnx_fuse.session(result.model)
print(onnx_fuse.get_library_path())
print(result.report.num_fused)
"""
    done = run(tmp_path, scripts / "python", "-c", program)
    library, fused = done.stdout.split()
    assert Path(library).is_relative_to(scripts.parent)
    assert int(fused) == BLOCKS
