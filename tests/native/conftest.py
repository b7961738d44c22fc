"""Takes another build of the library where one is named: `make sanitize` names its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnx_fuse.runtime import library


@pytest.fixture(autouse=True, scope="session")
def _tested_library() -> None:
    path = os.environ.get("ONNX_FUSE_TESTED_LIBRARY")
    if path:
        library._PATH = Path(path)
