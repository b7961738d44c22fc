"""What the machine and the installation are, for `info` and beside every measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from onnx_fuse.errors import LibraryUnavailable

_PACKAGES = ("onnx-fuse", "onnxruntime", "onnx", "onnx-graphsurgeon", "numpy")


def versions() -> dict[str, str]:
    """Return Python's and packages' versions by name; one that isn't installed says so."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> dict[str, str]:
    """Return the model name, the cores that this process may use, the operating system."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(models, name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": name, "cores": str(cores), "system": platform.platform(terse=True)}


def describe() -> dict[str, str]:
    """Return versions, machine, library and the ISA that its kernels use, as words."""
    facts = {**versions(), **processor()}
    try:
        from onnx_fuse.runtime import library

        facts["library"] = library.get_library_path()
        facts["cpu_features"] = " ".join(library.cpu_features())
        facts["isa"] = library.active_isa() or "none: ONNX_FUSE_ISA names none of these"
    except LibraryUnavailable as error:
        facts["library"] = f"unavailable: {error}"
    return facts
