"""`python -m onnx_fuse`: the command line."""

from __future__ import annotations

from onnx_fuse.cli import main

main()
