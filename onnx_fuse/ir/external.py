"""External data: which file a tensor may refer to, and where in it the tensor lies."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.bodies import Body, bodies
from onnx_fuse.ir.constant import ExternalFile, ExternalRange, Stamp
from onnx_fuse.ir.element_types import NUMPY_TYPES, raw_size


class ExternalFiles:
    """The external data files of one model: a location is relative to `folder` and must stay in it.

    Where the model's file is a link (download caches are made of links), links may lead to the real
    file's folder too.
    """

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.folder = folder
        self._allowed = [folder.resolve()]
        if model is not None:
            self._allowed.append(model.resolve().parent)
        self._files: dict[str, ExternalFile] = {}

    def all(self) -> list[ExternalFile]:
        """Return the files that tensors were found to refer to, in order of first reference."""
        return list(self._files.values())

    def range_of(self, tensor: onnx.TensorProto) -> ExternalRange | None:
        """Return where the tensor's bytes lie, or None if they are in the message.

        Raises: InvalidModel naming tensor and file.
        """
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            file = self._file(entries.get("location", ""))
            offset = _natural("offset", entries.get("offset", "0"))
            length = _natural("length", entries.get("length", "0"))
            # A type of a later ONNX: its size is what the file says; it's moved and copied, never
            # read.
            needed = length
            if tensor.data_type in NUMPY_TYPES:
                needed = raw_size(tensor.data_type, tuple(tensor.dims))
                length = length if "length" in entries else needed
        except InvalidModel as error:
            raise InvalidModel(f"tensor '{tensor.name}': {error}") from error
        if length != needed:
            raise InvalidModel(
                f"tensor '{tensor.name}' takes {needed} bytes, but its data in '{file.location}'"
                f" is said to be {length}"
            )
        if offset + length > file.stamp.size:
            raise InvalidModel(
                f"external data file {file.path} is too short: tensor '{tensor.name}' ends at byte"
                f" {offset + length}, the file at {file.stamp.size}; fetch or copy it again"
            )
        return ExternalRange(file, offset, length)

    def embed(self, model: onnx.ModelProto) -> None:
        """Put what the message's tensors refer to into the message.

        Raises: InvalidModel naming tensor and file.
        """
        # onnx's own reader refuses links, of which download caches are made.
        for tensor in (tensor for body in bodies(model) for tensor in _tensors(body)):
            place = self.range_of(tensor)
            if place is not None:
                tensor.raw_data = bytes(place.read())
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")

    def _file(self, location: str) -> ExternalFile:
        if location not in self._files:
            path = self._inside(location)
            try:
                status = path.stat()
            except OSError as error:
                raise InvalidModel(
                    f"external data file {path}: {error.strerror}; it belongs beside the model"
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModel(f"external data file {path} is not a regular file")
            self._files[location] = ExternalFile(location, path, Stamp.of(status))
        return self._files[location]

    def _inside(self, location: str) -> Path:
        """Return the path of `location`, which must not leave the folder, by '..' or by a link."""
        if not location or "\0" in location:
            raise InvalidModel("external data without a usable location")
        if PurePosixPath(location).is_absolute():
            raise InvalidModel(f"external data location '{location}' is absolute: refused")
        path = self.folder / location
        leaves = Path(os.path.normpath(location)).parts[0] == os.pardir
        real = Path(os.path.realpath(path))  # a link to itself, too
        if leaves or not any(real.is_relative_to(each) for each in self._allowed):
            raise InvalidModel(
                f"external data location '{location}' leaves the model's folder: refused"
            )
        return path


def attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors in a node's attributes, but for those in nested graphs."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type == onnx.AttributeProto.TENSORS:
            yield from attribute.tensors


def _tensors(body: Body) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a body, but for those in nested graphs."""
    if isinstance(body, onnx.GraphProto):
        yield from body.initializer
    for node in body.node:
        yield from attribute_tensors(node)


def _natural(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidModel(f"external data {key} '{text}' is not a natural number")
    return int(text)
