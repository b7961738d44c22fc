"""The library as a file, and what it says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from onnx_fuse.errors import LibraryUnavailable
from onnx_fuse.op import schema
from onnx_fuse.runtime import library
from tests.native import blocks
from tests.op import cases


def _symbols(text: bytes) -> set[str]:
    """Return the names that `nm -D --defined-only` lists."""
    return {line.split()[-1] for line in text.decode().splitlines()}


def test_one_symbol_is_exported() -> None:
    path = library.get_library_path()
    text = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True)
    assert _symbols(text.stdout) == {"RegisterCustomOps"}


def test_onnxruntime_is_not_linked() -> None:
    path = library.get_library_path()
    text = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True)
    assert "onnxruntime" not in text.stdout
    assert "NODELETE" in text.stdout


def test_every_name_of_the_operators_is_registered() -> None:
    block = blocks.make()
    for base in schema.OP_TYPES:
        for index in range(schema.BODIES):
            model = cases.model(block, 17, with_function=False)
            model.graph.node[0].op_type = schema.op_type(base, index)
            found = library.session(model).run(None, cases.feeds(block.operands))
            blocks.assert_right(found, block)


def test_registering_again_does_nothing() -> None:
    """Two parts of a program share options, or a session is made twice with them."""
    block = blocks.make()
    model = cases.model(block, 17, with_function=False)
    options = onnxruntime.SessionOptions()
    library.register(options)
    library.register(options)
    options.register_custom_ops_library(library.get_library_path())
    for _ in range(2):
        found = library.session(model, options).run(None, cases.feeds(block.operands))
        blocks.assert_right(found, block)


def test_active_isa_is_the_first_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNX_FUSE_ISA", raising=False)
    assert library.active_isa() == library.cpu_features()[0]
    assert library.cpu_features()[-1] == "portable"


@pytest.mark.parametrize("name", blocks.ISAS)
def test_environment_forces_an_isa(name: str) -> None:
    with blocks.isa(name):
        assert library.active_isa() == name


def test_unknown_isa_is_none() -> None:
    with blocks.isa("none such"):
        assert library.active_isa() == ""


def test_missing_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "libonnx_fuse.so")
    with pytest.raises(LibraryUnavailable, match="install a wheel"):
        library.get_library_path()
    (tmp_path / "CMakeLists.txt").touch()
    with pytest.raises(LibraryUnavailable, match=r"make build.*from any other folder"):
        library.get_library_path()


def test_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "libonnx_fuse.so"
    path.write_text("no library")
    monkeypatch.setattr(library, "_PATH", path)
    with pytest.raises(LibraryUnavailable, match=r"does not load .*libonnx_fuse\.so"):
        library.register(onnxruntime.SessionOptions())


def test_what_is_no_session_options_is_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="SessionOptions, not with a NoneType"):
        library.register(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seq", "told"), [(5, [1, 5, 32]), ("seq", [])])
def test_shapes_are_told_if_they_are_numbers(seq: int | str, told: list[int]) -> None:
    """What onnxruntime makes of the rest of a model depends on them. It calls an unknown one []."""
    model = cases.model(blocks.make(batch=1, q_seq=5, hidden=32), 17, with_function=False)
    if isinstance(seq, str):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = seq
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    assert [output.shape for output in library.session(model).get_outputs()] == [told]


def test_library_outlives_its_sessions() -> None:
    """onnxruntime unloads a library with its last session; ours must bear that, again and again."""
    code = (
        "import numpy, sys\n"
        "from tests.native import blocks\n"
        "block = blocks.make()\n"
        "for _ in range(5): blocks.run(block)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=dict(os.environ))


def test_no_heap_grows_over_calls() -> None:
    block = blocks.make(q_seq=64, hidden=128, heads=(4, 4), dims=(32, 32))
    session = blocks.session(block)
    feeds = cases.feeds(block.operands)
    for _ in range(50):
        session.run(None, feeds)
    before = _resident()
    for _ in range(2000):
        session.run(None, feeds)
    # A call's scratch is about 200 KiB: leaking it would be 400 MiB.
    assert _resident() - before < 4 * 1024 * 1024


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_weights_are_read_where_they_are() -> None:
    """A session holds the weights once: the kernel keeps no packed copy."""
    block = blocks.make(hidden=1024, heads=(16, 16), dims=(64, 64), out=1024)
    weights = sum(a.nbytes for a in block.operands.values())
    model = cases.model(block, 17, with_function=False)
    model_bytes = model.SerializeToString()
    del model
    before = _resident()
    options = onnxruntime.SessionOptions()
    library.register(options)
    session = onnxruntime.InferenceSession(model_bytes, options)
    session.run(None, cases.feeds(block.operands))
    assert np.isfinite(weights)
    assert _resident() - before < 1.9 * weights
