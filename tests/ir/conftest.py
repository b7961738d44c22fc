from __future__ import annotations

import onnx
import pytest

from tests.ir.samples import small_model


@pytest.fixture
def small() -> onnx.ModelProto:
    return small_model()
