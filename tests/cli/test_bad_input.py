"""What a user can get wrong: one line that names the culprit, exit code 1 or 2, no partial output.

In the order of the promises: files that are no models, places that cannot be written, graphs that
are not valid, external data, and what is no error.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_fuse.config import THRESHOLD_VARIABLE
from tests.cli.program import failed, run
from tests.runtime.models import attention, parse

PROGRAM = (sys.executable, "-m", "onnx_fuse")
ROOT = Path(__file__).parents[2]


def write(message: onnx.ModelProto | onnx.TensorProto) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(message.SerializeToString())


def truncated(path: Path) -> None:
    path.write_bytes(attention().SerializeToString()[:-100])


def cyclic() -> onnx.ModelProto:
    loop = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    steps = (("Add", ["b", "x"], ["a"]), ("Relu", ["a"], ["b"]))
    loop.graph.node.extend(onnx.helper.make_node(*step) for step in steps)
    return loop


def same_node_names() -> onnx.ModelProto:
    twins = parse("g (float[2] x) => (float[2] y) { a = Relu (x) y = Relu (a) }")
    for node in twins.graph.node:
        node.name = "twin"
    return twins


def external(path: Path) -> Path:
    """Write the model with its weights beside it, and return their file."""
    data = path.with_name("weights.bin")
    onnx.save(
        attention(), str(path), save_as_external_data=True, location=data.name, size_threshold=0
    )
    return data


def located(location: str) -> Callable[[Path], None]:
    """A model whose external data lies elsewhere."""

    def make(path: Path) -> None:
        data = external(path)
        shutil.copy(data, path.parent.parent / "outside.bin")
        message = onnx.load(str(path), load_external_data=False)
        for tensor in message.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = location
        path.write_bytes(message.SerializeToString())

    return make


def linked_outside(path: Path) -> None:
    data = external(path)
    outside = path.parent.parent / "outside.bin"
    data.rename(outside)
    data.symlink_to(outside)


def linked_to_itself(path: Path) -> None:
    data = external(path)
    data.unlink()
    data.symlink_to(data.name)


def with_short_data(path: Path) -> None:
    os.truncate(external(path), 64)


# How to make the file, and what the message names besides it.
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, "not a complete one"),
    "text": (lambda path: path.write_text("not a model", encoding="utf-8"), "not an ONNX model"),
    "another message": (write(onnx.TensorProto(name="t", data_type=1, dims=[3])), "not an ONNX"),
    "a folder": (lambda path: path.mkdir(), "a directory"),
    "a cycle": (write(cyclic()), "cycle"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic"),
    "a missing initializer": (
        write(parse("g (float[2] x) => (float[2] y) { y = Add (x, absent) }")),
        "'absent'",
    ),
    "a value made twice": (
        write(parse("g (float[2] x) => (float[2] y) { y = Relu (x) y = Abs (x) }")),
        "'y' is defined twice",
    ),
    "two nodes of one name": (write(same_node_names()), "'twin'"),
    "missing external data": (lambda path: external(path).unlink(), "weights.bin"),
    "onnxruntime's own format": (
        lambda path: path.write_bytes(b"\x1c\0\0\0ORTM" + bytes(32)),
        "(.ort); give the .onnx file",
    ),
    "short external data": (with_short_data, "weights.bin is too short"),
    "external data above": (located("../outside.bin"), "leaves the model's folder"),
    "external data at a root": (located("/outside.bin"), "'/outside.bin' is absolute"),
    "external data by a link": (linked_outside, "leaves the model's folder"),
    "external data by a link to itself": (linked_to_itself, "weights.bin: Too many levels"),
}


@pytest.fixture
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "bad.onnx"
    request.param(path)
    return path


bad_files = pytest.mark.parametrize(
    ("bad", "words"), BAD_FILES.values(), ids=BAD_FILES, indirect=["bad"]
)


@bad_files
@pytest.mark.parametrize("command", ["fuse", "unfuse"])
def test_bad_file_is_one_line_and_no_output(bad: Path, words: str, command: str, out: Path) -> None:
    before = sorted(bad.parent.iterdir())
    failed(run(command, bad, "-o", out), 1, str(bad), words)
    assert not out.exists()
    assert sorted(bad.parent.iterdir()) == before


@bad_files
def test_bad_file_is_one_line_without_an_output(bad: Path, words: str, model: Path) -> None:
    failed(run("fuse", bad, "--dry-run"), 1, str(bad), words)
    failed(run("explain", bad), 1, str(bad), words)
    failed(run("bench", bad, "--seq", 1, "--threads", 1), 1, str(bad), words)


@bad_files
def test_verify_of_a_bad_file_is_one_line(bad: Path, words: str, model: Path) -> None:
    failed(run("verify", model, bad), 1, str(bad), words)
    failed(run("verify", bad, model), 1, str(bad), words)


# --- places -----------------------------------------------------------------------------------


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(attention().SerializeToString())
        (folder / "model.onnx").chmod(0o444)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o755], ids=["closed folder", "read-only file"])
@pytest.mark.parametrize("command", [("fuse", "--no-verify"), ("unfuse",)], ids=lambda c: c[0])
def test_no_write_permission(command: tuple[str, ...], mode: int, open_folder: Path) -> None:
    source = open_folder / "model.onnx"
    target = source if mode == 0o755 else open_folder / "out.onnx"
    before = source.read_bytes()
    assert run(*command, source, "-o", "/dev/null").exit_code == 1  # all modules are loaded now
    open_folder.chmod(mode)
    with unprivileged():
        result = run(*command, source, "-o", target)
    failed(result, 1, str(target), "no write permission")
    assert list(open_folder.iterdir()) == [source]
    assert source.read_bytes() == before


def test_no_permission_to_read(open_folder: Path) -> None:
    (open_folder / "model.onnx").chmod(0)
    open_folder.chmod(0o755)
    with unprivileged():
        failed(run("explain", open_folder / "model.onnx"), 1, "model.onnx", "Permission denied")


SMALL_DISK = """
mount -t tmpfs -o size=64k none "$0" || exit 99
echo old > "$0/out.onnx"
"$@"
echo "code $?" >&2
ls -A "$0"
cat "$0/out.onnx"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="nothing to mount a file system with")
@pytest.mark.parametrize("command", ["fuse", "unfuse"])
def test_disk_full(command: str, tmp_path: Path) -> None:
    """A file system of 64 KiB, in a name space of its own, with an old file."""
    disk, source = tmp_path / "disk", tmp_path / "model.onnx"
    disk.mkdir()
    big = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }", unused=np.ones(1 << 15))
    source.write_bytes(big.SerializeToString())
    target = disk / "out.onnx"
    spaces = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "-m"]
    words = [*PROGRAM, command, str(source), "-o", str(target)]
    done = subprocess.run(
        [*spaces, "sh", "-c", SMALL_DISK, str(disk), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    if "code " not in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    message = f"onnx-fuse: {target}: No space left on device; nothing was written"
    assert done.stderr.splitlines() == [message, "code 1"]
    assert done.stdout.splitlines() == ["out.onnx", "old"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_verifying(number: signal.Signals, tmp_path: Path) -> None:
    """The old file is intact, and no scratch folder stays."""
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    external(source)
    target.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    script = (
        "import signal, time\n"
        "from onnx_fuse.cli import commands\n"
        # Ignored in what a script runs in the background, or nohup, and in what that runs.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "def compare(*_, **__):\n"
        "    print('verifying', flush=True)\n"
        "    time.sleep(60)\n"
        "commands.compare = compare\n"
        f"commands.main(['fuse', {str(source)!r}, '-o', {str(target)!r}])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"verifying\n"
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


def test_external_data_that_would_leave_the_outputs_folder(tmp_path: Path) -> None:
    """An unchanged model keeps the places of its data files, unless a link leads them elsewhere."""
    source = tmp_path / "in" / "plain.onnx"
    (source.parent / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "data").symlink_to(tmp_path / "elsewhere")
    plain = parse("g (float[2] x) => (float[2] y) { y = Add (x, w) }", w=np.ones(2, np.float32))
    onnx.save(
        plain, str(source), save_as_external_data=True, location="data/w.bin", size_threshold=0
    )
    failed(run("fuse", source, "-o", tmp_path / "to" / "out.onnx"), 1, "leaves the model's folder")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["data"]


# --- what is no error -------------------------------------------------------------------------


def test_unknown_operator_is_left_alone(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "model.onnx"
    odd = attention()
    odd.graph.node[-1].output[0] = "before"
    odd.graph.node.append(
        onnx.helper.make_node("Strange", ["before"], ["output"], domain="org.example", power=2.0)
    )
    odd.opset_import.add(domain="org.example", version=3)
    path.write_bytes(odd.SerializeToString())
    result = run("fuse", path, "-o", out)
    assert result.exit_code == 0, result.output
    assert "1 of 1 block fused" in result.stdout
    written = onnx.load(str(out))
    assert written.graph.node[-1] == odd.graph.node[-1]
    assert ("org.example", 3) in [(o.domain, o.version) for o in written.opset_import]


def test_newer_opset_than_known_is_said_and_left_as_it_was(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "model.onnx"
    newer = attention()
    newer.opset_import[0].version = 99
    path.write_bytes(newer.SerializeToString())
    result = run("fuse", path, "-o", out)
    assert result.exit_code == 0, result.output
    assert "new_opset" in result.stdout
    assert "opset 99 is newer than" in result.stdout
    assert out.read_bytes() == path.read_bytes()
    assert run("fuse", path, "-o", out, "--require", "all").exit_code == 3


def _give_other_heads(attributes: dict[str, onnx.AttributeProto]) -> None:
    attributes["num_heads"].i = 3


def _exchange_operands(attributes: dict[str, onnx.AttributeProto]) -> None:
    first, second, *others = attributes["operands"].s.split(b",")
    attributes["operands"].s = b",".join([second, first, *others])


@pytest.mark.parametrize("tamper", [_give_other_heads, _exchange_operands])
def test_fused_model_that_was_tampered_with_fails_with_a_sentence(
    tamper: Callable[[dict[str, onnx.AttributeProto]], None],
    model: Path,
    out: Path,
    tmp_path: Path,
) -> None:
    assert run("fuse", model, "-o", out).exit_code == 0
    message = onnx.load(str(out))
    node = next(node for node in message.graph.node if node.domain == "onnx_fuse")
    tamper({attribute.name: attribute for attribute in node.attribute})
    out.write_bytes(message.SerializeToString())
    result = run("verify", model, out)
    assert result.exit_code == 4
    assert f"node '{node.name}'" in result.stdout
    failed(run("unfuse", out, "-o", tmp_path / "plain.onnx"), 1, f"node '{node.name}'")
    assert not (tmp_path / "plain.onnx").exists()


NO_STREAMS = {
    "model to stdout": ("fuse", "MODEL", "-o", "-"),
    "standard model to stdout": ("unfuse", "MODEL", "-o", "-"),
    "page to stdout": ("explain", "MODEL", "--html", "-"),
    "model from stdin": ("explain", "-"),
    "fused model from stdin": ("verify", "MODEL", "-"),
}


@pytest.mark.parametrize("words", NO_STREAMS.values(), ids=NO_STREAMS)
def test_only_json_goes_to_a_stream(
    words: tuple[str, ...], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    failed(run(*(model if word == "MODEL" else word for word in words)), 2, "only --json goes to")
    assert list(model.parent.iterdir()) == [model]


def test_path_that_onnxruntime_cannot_open_is_named(tmp_path: Path, out: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.onnx")
    path.write_bytes(attention().SerializeToString())
    failed(run("fuse", path, "-o", out), 1, r"caf\udce9.onnx", "isn't UTF-8; rename it")
    assert not out.exists()
    page = tmp_path / "page.html"
    result = run("explain", path, "--html", page)
    assert result.exit_code == 0, result.output
    assert r"caf\udce9.onnx" in page.read_text(encoding="utf-8")


def test_model_that_cannot_be_compared_has_a_way_out(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "model.onnx"
    odd = attention()
    pieces = onnx.helper.make_tensor_sequence_value_info("pieces", onnx.TensorProto.FLOAT, None)
    odd.graph.input.append(pieces)
    path.write_bytes(odd.SerializeToString())
    result = run("fuse", path, "-o", out)
    assert result.exit_code == 4
    assert "input 'pieces' is no tensor (sequence type)" in result.stdout
    assert "nothing written (--no-verify writes it unchecked)" in result.stderr
    assert run("fuse", path, "-o", out, "--no-verify").exit_code == 0


@pytest.mark.parametrize("command", ["fuse", "explain"])
def test_threshold_of_the_environment_that_is_no_number(
    command: str, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(THRESHOLD_VARIABLE, "abc")
    words = (command, model, "-o", out) if command == "fuse" else (command, model)
    failed(run(*words), 2, f"{THRESHOLD_VARIABLE}='abc'")
    assert not out.exists()
