"""From Model to a ModelProto or to files, which appear as a whole, or the old ones stay."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx

from onnx_fuse.errors import ModelNotWritable, UnsupportedModel
from onnx_fuse.ir.atomic import StagedFile, check_writable, publish
from onnx_fuse.ir.constant import ExternalFile
from onnx_fuse.ir.load import MESSAGE_LIMIT
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.patch import DataLayout, Piece, content, model_pieces, size


def to_proto(model: Model) -> onnx.ModelProto:
    """Return the model as one new message that refers to no file.

    Raises: UnsupportedModel if it would be over 2 GiB; InvalidModel if external data cannot be read
    any more.
    """
    pieces: list[Piece] = model_pieces(model, None) if model.is_changed else [model.data]
    beside = sum(file.stamp.size for file in model.files.all())
    if size(pieces) + beside > MESSAGE_LIMIT:
        raise UnsupportedModel("the model is over 2 GiB as one message: save it to a file instead")
    proto = onnx.ModelProto()
    proto.ParseFromString(b"".join(content(pieces)))
    model.files.embed(proto)
    return proto


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write the model to `path`, which may be the file that it was loaded from.

    An unchanged model is written with the bytes that it had. External data goes to `<name>.data`
    beside a changed one (and a model that became larger than 2 GiB gets such a file), each tensor
    at a multiple of 64 bytes; to `<name>.1.data` where the other is what the model was loaded with,
    and the model stays. An unchanged model keeps its data files, which are copied if it moves to
    another folder. Memory: one tensor at a time.

    Raises: ModelNotWritable; nothing is written then, and old files are as they were. InvalidModel
    if external data cannot be read any more.
    """
    target = _checked_target(Path(path), model)
    files = _unchanged_files(model, target)
    try:
        if files is None:
            _write_patched(model, target)
        else:
            data = [(to, source.chunks(0, source.stamp.size)) for source, to in files]
            _write(data, target, [model.data])
    except OSError as error:
        raise ModelNotWritable(
            f"{target}: {error.strerror or error}; nothing was written"
        ) from error


def _checked_target(path: Path, model: Model) -> Path:
    check_writable(path)
    if path.exists() and not path.is_file():
        raise ModelNotWritable(f"{path}: not a regular file")
    if path.exists() and any(path.samefile(file.path) for file in model.files.all()):
        raise ModelNotWritable(f"{path}: the model's own external data; give another name")
    return path


def _unchanged_files(model: Model, target: Path) -> list[tuple[ExternalFile, Path]] | None:
    """Return which data files to copy where, or None if the message cannot be written as it was.

    A file of another content is never overwritten by a copied one.

    Raises: ModelNotWritable if a link in the target's folder leads a copy out of it.
    """
    if model.is_changed:
        return None
    copies = []
    for file in model.files.all():
        to = target.parent / file.location
        if not to.exists():
            if not to.parent.resolve().is_relative_to(target.parent.resolve()):
                raise ModelNotWritable(f"{to}: leaves the model's folder: refused")
            copies.append((file, to))
        elif not _is_same(file, to):
            return None
    return copies


def _is_same(file: ExternalFile, other: Path) -> bool:
    if other.samefile(file.path):
        return True
    if not other.is_file() or other.stat().st_size != file.stamp.size:
        return False
    with other.open("rb") as stream:
        return all(part == stream.read(len(part)) for part in file.chunks(0, file.stamp.size))


def _write_patched(model: Model, target: Path) -> None:
    path = _data_path(model, target)
    layout = DataLayout(path.name) if model.files.all() else None
    pieces = model_pieces(model, layout)
    if layout is None and size(pieces) > MESSAGE_LIMIT:
        layout = DataLayout(path.name)
        pieces = model_pieces(model, layout)
    if size(pieces) > MESSAGE_LIMIT:
        raise UnsupportedModel(f"{target}: the graph itself is over 2 GiB")
    data = []
    if layout is not None and layout.tensors:
        for file in _same_files(model, path):
            file.pin()  # the model can still be read, and saved again, afterwards
        data.append((path, layout.chunks()))
    _write(data, target, content(pieces))


def _data_path(model: Model, target: Path) -> Path:
    """Return the path of the data file beside `target`, `<name>.data`.

    The file that the model's own data is in gets a number instead, unless the model is replaced,
    too: what was loaded, and maybe renamed before, would be left without its weights.
    """
    is_replaced = (
        model.path is not None and model.path.resolve() == target.parent.resolve() / target.name
    )
    path, number = target.with_name(f"{target.name}.data"), 0
    while not is_replaced and _same_files(model, path):
        number += 1
        path = target.with_name(f"{target.name}.{number}.data")
    return path


def _same_files(model: Model, path: Path) -> list[ExternalFile]:
    """Return which of the model's data files `path` is."""
    if not path.exists():
        return []
    found = (file for file in model.files.all() if file.path.exists())
    return [file for file in found if path.samefile(file.path)]


def _write(
    data: Iterable[tuple[Path, Iterable[bytes | memoryview]]],
    target: Path,
    message: Iterable[bytes | memoryview],
) -> None:
    """Write the data files and the model: all of them, or none."""
    staged: list[StagedFile] = []
    try:
        for path, chunks in [*data, (target, message)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.append(StagedFile(path))
            staged[-1].write(chunks)
        publish(staged)
    finally:
        for file in staged:
            file.discard()
