from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import onnx
import pytest

from onnx_fuse.errors import InvalidModel, ModelNotWritable
from onnx_fuse.ir import atomic
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import save
from tests.ir.test_ir_save import change, make_external


@pytest.fixture(params=["unnamed", "named"])
def temporary_kind(request, monkeypatch):
    """Both kinds of staged files: with a hidden name where the file system needs one."""
    if request.param == "named":
        real = os.open

        def refuse(path, flags, *rest, **named):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(95, "Operation not supported")
            return real(path, flags, *rest, **named)

        monkeypatch.setattr(atomic.os, "open", refuse)


@pytest.fixture
def saved(small, tmp_path):
    """A model with external data that is written over itself, and the bytes of its files."""
    path = make_external(small, tmp_path / "in", "model.onnx.data")
    model = load(path)
    change(model)
    return model, path, contents(path.parent)


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def failing(error):
    """Return a constant that fails when it is evaluated."""

    def make():
        raise error

    return Constant.computed(1, (64, 64), make)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")]
)
def test_a_failure_while_writing_leaves_everything_as_it_was(
    error, small, tmp_path, temporary_kind
):
    path = make_external(small, tmp_path / "in", "model.onnx.data")
    before = contents(path.parent)
    model = load(path)
    model.graph.add_initializer("late", failing(error))
    expected = ModelNotWritable if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        save(model, path)
    assert contents(path.parent) == before
    if expected is ModelNotWritable:
        assert str(caught.value) == f"{path}: No space left on device; nothing was written"


@pytest.mark.parametrize("step", range(6))
def test_a_failure_at_any_step_of_publishing_leaves_old_files_or_all_new_ones(
    step, saved, monkeypatch, temporary_kind
):
    """Two names, a backup, the data's and the model's replacement: each may be what fails."""
    model, path, before = saved
    count = []

    def interrupted(real):
        def call(*arguments, **named):
            count.append(1)
            if len(count) == step + 1:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(atomic.os, "link", interrupted(os.link))
    monkeypatch.setattr(atomic.Path, "replace", interrupted(atomic.Path.replace))
    try:
        save(model, path)
    except KeyboardInterrupt:
        assert contents(path.parent) == before
    else:
        assert set(contents(path.parent)) == set(before)
        assert len(count) <= step


def test_a_new_data_file_goes_when_the_model_cannot_take_its_place(small, tmp_path, monkeypatch):
    model = load(make_external(small, tmp_path / "in"))
    change(model)
    real = atomic.Path.replace

    def refuse(self, target):
        if target.suffix == ".onnx":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(atomic.Path, "replace", refuse)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelNotWritable, match="Input/output error"):
        save(model, tmp_path / "out" / "m.onnx")
    assert contents(tmp_path / "out") == {}


FULL_DISK_SCRIPT = """
import resource, sys
from onnx_fuse.errors import ModelNotWritable
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import save
import numpy as np

source, target = sys.argv[1:]
model = load(source)
model.graph.add_initializer("big", np.ones(1 << 20, np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    save(model, target)
except ModelNotWritable as error:
    print(error, end="")
"""


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_gets_full_is_reported_and_nothing_is_left(external, small, tmp_path):
    """A limit of the file size stands for the full disk: the write fails half way."""
    folder = tmp_path / "in"
    path = make_external(small, folder)
    if not external:
        onnx.save(onnx.load(path), path)
    before = contents(folder)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK_SCRIPT, str(path), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{path}: File too large; nothing was written"
    assert contents(folder) == before


# SIGINT is ignored in what a script runs in the background, and so in all that it starts.
KILLED_SCRIPT = """
import signal, sys, time
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import save

signal.signal(signal.SIGINT, signal.default_int_handler)
model = load(sys.argv[1])

def slow():
    print("writing", flush=True)
    time.sleep(60)

model.graph.add_initializer("late", Constant.computed(1, (1 << 10,), slow))
save(model, sys.argv[1])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_writer_leaves_the_old_file(number, small, tmp_path):
    path = make_external(small, tmp_path / "in")
    before = contents(path.parent)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_SCRIPT, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
    assert contents(path.parent) == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder, "a directory"),
        (lambda folder: folder / "absent" / "m.onnx", "there is no folder"),
        (lambda folder: os.mkfifo(folder / "pipe") or folder / "pipe", "not a regular file"),
    ],
)
def test_a_place_that_cannot_hold_a_model_is_named(make, words, small, tmp_path):
    path = make(tmp_path)
    with pytest.raises(ModelNotWritable, match=words) as caught:
        save(load(small), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_models_own_data_is_no_target(small, tmp_path):
    path = make_external(small, tmp_path / "in")
    with pytest.raises(ModelNotWritable, match="own external data"):
        save(load(path), tmp_path / "in" / "w.bin")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(small, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(ModelNotWritable, match="no write permission"):
        save(load(small), tmp_path / "closed" / "m.onnx")


def test_new_files_have_the_usual_mode_and_replaced_ones_keep_theirs(
    small, tmp_path, temporary_kind
):
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    save(load(small), tmp_path / "new.onnx")
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == usual
    (tmp_path / "new.onnx").chmod(0o640)
    save(load(small), tmp_path / "new.onnx")
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640


def test_data_that_vanished_since_loading_is_an_invalid_model(small, tmp_path):
    path = make_external(small, tmp_path / "in")
    model = load(path)
    change(model)
    (tmp_path / "in" / "w.bin").unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidModel, match=r"w\.bin"):
        save(model, tmp_path / "out" / "m.onnx")
    assert contents(tmp_path / "out") == {}
