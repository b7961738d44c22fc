from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_fuse.config import THRESHOLD_VARIABLE
from tests.runtime.models import attention


@pytest.fixture(autouse=True)
def _no_threshold_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THRESHOLD_VARIABLE, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(attention(), str(path))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"
