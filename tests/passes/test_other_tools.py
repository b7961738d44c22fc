"""What other tools make of a fused model: README says which of them come before, which after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.conftest import ZOO

NAME = "bert-ts-eager-static"


class Cases(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """The zoo's inputs of a model, one case at a time."""

    def __init__(self, path: Path) -> None:
        arrays = np.load(path.with_suffix(".npz"))
        cases = sorted({key.split("/")[0] for key in arrays.files})
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{case}/")}
            for case in cases
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _by_range(source: Path, target: Path) -> None:
    quantize_static(source, target, Cases(Path(ZOO[NAME])))


@pytest.mark.parametrize("quantize", [quantize_dynamic, _by_range])
def test_quantizers_leave_blocks_as_they_are(
    quantize: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    fused, quantized = tmp_path / "fused.onnx", tmp_path / "quantized.onnx"
    onnx_fuse.fuse(ZOO[NAME], threshold=None).save(fused)
    quantize(fused, quantized)
    model = onnx.load(quantized)
    weights = [node.input[1:] for node in fused_nodes(model)]
    assert weights == [node.input[1:] for node in fused_nodes(onnx.load(fused))]
    assert any("Quantize" in node.op_type for node in model.graph.node)
    assert onnx_fuse.verify(onnx_fuse.unfuse(quantized), quantized).passed
