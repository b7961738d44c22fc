"""The whole chain on a real model: `make demo`, or `python models/demo.py FOLDER`.

Fuses both exports of all-MiniLM-L6-v2 (real weights, dynamic batch and sequence), verifies them,
times them before and after, and ends with sentences whose similarities both models compute. The
fused models stay in FOLDER. Exits with 1 if anything isn't as it should be.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import fetch_weights
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import onnx_fuse
from onnx_fuse.runtime.bench import bench
from onnx_fuse.show.terminal import make_console, print_result, render_bench, render_report

EXPORTS = {"TorchScript": "minilm-ts", "dynamo": "minilm-dynamo"}
BLOCKS = 6
SEQUENCES = (1, 8, 16, 32, 64)
SECONDS = 0.5  # for each point: some hundred runs
SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "A cheetah chases its prey across the plain.",
    "Stock prices fell sharply on Monday.",
)
# The last hidden state may differ by 2e-5 where its rows have length 6; pooled and normalised, the
# cosines of two right models differ by less than that.
SIMILARITY_TOLERANCE = 1e-5

Floats = NDArray[np.float32]


class DemoFailed(Exception):
    """Something isn't as it should be."""


def print_heading(text: str, console: Console) -> None:
    """Print a heading: a rule would be as wide as a pipe's endless line."""
    console.print(f"\n{text}\n{'-' * len(text)}", style="bold")


def fuse_export(exporter: str, folder: Path, console: Console) -> tuple[Path, Path]:
    """Fuse, save, verify and report one export; return the paths of original and fused model."""
    original = fetch_weights.MINILM / f"{EXPORTS[exporter]}.onnx"
    fused = folder / f"{original.stem}.fused.onnx"
    started = time.perf_counter()
    result = onnx_fuse.fuse(original)
    result.save(fused)
    seconds = time.perf_counter() - started
    verified = onnx_fuse.verify(original, fused)
    report = dataclasses.replace(result.report, output=str(fused), verify=verified)
    print_result(render_report(report))
    console.print(f"fused and written in {seconds:.1f} s")
    if report.num_fused != BLOCKS:
        raise DemoFailed(f"{report.num_fused} of {BLOCKS} blocks were fused")
    if not verified.passed:
        raise DemoFailed("the fused model differs from the original")
    return original, fused


def time_export(original: Path, fused: Path) -> None:
    """Time one export before and after, on one thread and, where there are two cores, on two."""
    threads = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
    report = bench(original, fused, seqs=SEQUENCES, threads=threads, seconds=SECONDS)
    print_result(render_bench(report))


def embed(session: ort.InferenceSession, tokenizer: Tokenizer) -> Floats:
    """Return one unit vector for each sentence: (sentences, 384), the mean over its tokens."""
    encodings = tokenizer.encode_batch(list(SENTENCES))
    mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
    feeds = {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    hidden: Floats = session.run(None, feeds)[0]
    weights = mask[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def compare_sentences(original: Path, fused: Path, console: Console) -> None:
    """Print each sentence's similarity to the first one, by both models."""
    tokenizer = Tokenizer.from_file(str(fetch_weights.MINILM / "tokenizer.json"))
    plain = ort.InferenceSession(str(original), providers=["CPUExecutionProvider"])
    before = embed(plain, tokenizer)
    after = embed(onnx_fuse.session(fused), tokenizer)
    table = Table(box=None, pad_edge=False)
    table.add_column(f'similarity to "{SENTENCES[0]}"')
    table.add_column("original", justify="right")
    table.add_column("fused", justify="right")
    similarities = np.stack([before @ before[0], after @ after[0]], axis=1)
    for sentence, (left, right) in zip(SENTENCES[1:], similarities[1:], strict=True):
        table.add_row(sentence, f"{left:.6f}", f"{right:.6f}")
    print_result(table)
    error = float(np.abs(before @ before.T - after @ after.T).max())
    console.print(f"largest difference of any two sentences' similarity: {error:.1e}")
    if error > SIMILARITY_TOLERANCE:
        raise DemoFailed(f"similarities differ by {error:.1e} > {SIMILARITY_TOLERANCE:.0e}")


def run_demo(folder: Path, console: Console) -> None:
    """Run all of it. Raises: DemoFailed, FetchError, OnnxFuseError."""
    fetch_weights.fetch()
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {}
    for exporter in EXPORTS:
        print_heading(f"all-MiniLM-L6-v2 from the {exporter} exporter", console)
        pairs[exporter] = fuse_export(exporter, folder, console)
    for exporter, (original, fused) in pairs.items():
        print_heading(f"{exporter}: time before and after", console)
        time_export(original, fused)
    print_heading("sentences", console)
    compare_sentences(*pairs["TorchScript"], console)


def main() -> int:
    """Run the demo in the folder named on the command line (default build/demo)."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
    try:
        run_demo(folder, make_console())
    except (DemoFailed, fetch_weights.FetchError, onnx_fuse.OnnxFuseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
