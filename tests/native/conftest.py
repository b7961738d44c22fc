"""Takes another build of the library where one is named: `make sanitize`, `make emulate` do it."""

from __future__ import annotations

import os
from pathlib import Path

from onnx_fuse.runtime import library

# Before the tests are collected: they ask the library which instruction sets it has.
if os.environ.get("ONNX_FUSE_TESTED_LIBRARY"):
    library._PATH = Path(os.environ["ONNX_FUSE_TESTED_LIBRARY"])
