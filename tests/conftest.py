"""Leaves out what an older onnxruntime can't read: the tests run on 1.17 to the newest."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnxruntime
import pytest

from tests.sessions import plain_session

ZOO = {path.stem: path for path in (Path(__file__).parents[1] / "models" / "zoo").glob("*.onnx")}
# From this version on all of the zoo loads, and a model that doesn't is a failure.
READS_ALL_SINCE = (1, 24)
# What onnxruntime computes wrongly before, by a part of the model's name. Some float16 graphs
# differ at each run: 1.17 gives infinity for one that the file's own exporter and newer versions
# agree on. Attention of opset 23 gives NaN for a row that is masked as a whole, later ones zeros.
WRONG_BEFORE = {
    "-fp16": "float16 is not right in this onnxruntime",
    "gpt2-dynamo-sdpa-dynamic-op23": "Attention is not right in this onnxruntime",
}


@cache
def is_readable(name: str) -> bool:
    """Return whether this onnxruntime loads the zoo's model as it is, optimisations off."""
    try:
        plain_session(ZOO[name])
    except Exception:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test whose parameter is the name or the file of a model that can't be read."""
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version >= READS_ALL_SINCE:
        return
    reason = f"onnxruntime {onnxruntime.__version__} does not load the original model"
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        values = [v for v in item.callspec.params.values() if isinstance(v, str | Path)]
        names = [Path(value).name.removesuffix(".onnx") for value in values]
        if any(name in ZOO and not is_readable(name) for name in names):
            item.add_marker(pytest.mark.skip(reason=reason))
        for part, fault in WRONG_BEFORE.items():
            if any(name in ZOO and part in name for name in names):
                item.add_marker(pytest.mark.skip(reason=fault))
