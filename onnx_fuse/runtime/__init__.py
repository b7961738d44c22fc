"""All that imports onnxruntime: the library of kernels, sessions, verification, benchmarks."""

from __future__ import annotations
