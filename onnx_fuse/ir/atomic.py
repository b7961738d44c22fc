"""Files that appear as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnx_fuse.errors import ModelNotWritable

# What one comparison asks of a chunk: a chunk of zeros becomes a hole, as it was one in a sparse
# file.
_ZEROS = bytes(1 << 20)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")


class StagedFile:
    """The future content of `target`, nameless (or hidden) in its folder until `publish`.

    With no name, which most file systems of Linux can do, nothing is left behind even if the
    process is killed.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._name: Path | None = None
        mode = target.stat().st_mode & 0o777 if target.exists() else None
        try:
            self._descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except OSError:
            self._name = _temporary_name(target)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            self._descriptor = os.open(self._name, flags, 0o666)
        try:
            if mode is not None:
                os.fchmod(self._descriptor, mode)
        except BaseException:
            self.discard()
            raise

    def write(self, chunks: Iterable[bytes | memoryview], at: int = 0) -> None:
        """Write the chunks, one after the other, from offset `at` on."""
        for chunk in chunks:
            rest = memoryview(chunk)
            if len(rest) >= 4096 and rest == memoryview(_ZEROS)[: len(rest)]:
                at += len(rest)
                continue
            while rest:
                written = os.pwrite(self._descriptor, rest, at)
                rest, at = rest[written:], at + written
        if at > os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, at)

    def finish(self) -> None:
        """Bring the content to the disk and give it a name."""
        os.fsync(self._descriptor)
        if self._name is None:
            name = _temporary_name(self.target)
            # Any folder: it makes Python call linkat, which follows the link.
            root = os.open("/", os.O_RDONLY)
            try:
                os.link(f"/proc/self/fd/{self._descriptor}", name, src_dir_fd=root)
            finally:
                os.close(root)
            self._name = name

    @property
    def is_published(self) -> bool:
        """Whether the finished file has taken the target's place."""
        return self._name is None or not self._name.exists()

    def replace(self) -> None:
        """Put the finished file in the target's place."""
        assert self._name is not None
        self._name.replace(self.target)
        self._name = None

    def discard(self) -> None:
        """Forget the content, unless it is published."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._name is not None:
            self._name.unlink(missing_ok=True)
            self._name = None


def check_writable(path: Path) -> None:
    """Raise ModelNotWritable if there can be no file at `path`, or none that we may write."""
    if path.is_dir():
        raise ModelNotWritable(f"{path}: a directory; give the path of a file")
    if not path.parent.is_dir():
        raise ModelNotWritable(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ModelNotWritable(f"{path}: no write permission")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; a pipe or a device is written to, and stays what it is."""
    data = text.encode(errors="backslashreplace")  # a path in it may be of other bytes
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    staged = StagedFile(path)
    try:
        staged.write([data])
        publish([staged])
    finally:
        staged.discard()


def publish(files: Sequence[StagedFile]) -> None:
    """Put all files in their places, in the given order; if one fails, put the old ones back."""
    for file in files:
        file.finish()
    backups: list[tuple[Path, Path | None]] = []
    try:
        for file in files[:-1]:
            backups.append((file.target, _set_aside(file.target)))
            file.replace()
        files[-1].replace()
    except BaseException:
        if not files[-1].is_published:
            for target, backup in backups:
                _restore(target, backup)
        raise
    for _, backup in backups:
        if backup is not None:
            backup.unlink(missing_ok=True)
    for folder in dict.fromkeys(file.target.parent for file in files):
        _sync_folder(folder)


def _set_aside(target: Path) -> Path | None:
    """Return a second name of the file, which may lose its own; None if there is no file."""
    if not target.exists():
        return None
    backup = _temporary_name(target)
    try:
        os.link(target, backup)
    except OSError:  # a file system without hard links
        target.rename(backup)
    return backup


def _restore(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    else:
        backup.replace(target)
        backup.unlink(missing_ok=True)  # renaming onto another name of the same file does nothing


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot; the content itself is safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
