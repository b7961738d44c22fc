"""The command line `onnx-fuse`."""

from __future__ import annotations

from onnx_fuse.cli.commands import main

__all__ = ["main"]
