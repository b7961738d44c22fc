"""Run pytest on the package of the current folder, be another one installed as editable.

python -m tests.mutation.run [ARGUMENTS OF PYTEST]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def main() -> int:
    # An editable package is found by a finder of its own, before any path.
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
    import onnx_fuse

    here = Path.cwd()
    if not Path(onnx_fuse.__file__).is_relative_to(here):
        sys.exit(f"ERROR {onnx_fuse.__file__} is not the package in {here}")
    return pytest.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
