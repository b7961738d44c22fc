"""Constants that are read only when someone asks: embedded, in external files, or computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.element_types import (
    ELEMENT_TYPES,
    Array,
    from_fields,
    from_raw,
    numpy_type,
    raw_size,
    to_raw,
)

CHUNK = 1 << 20  # bytes that are copied at a time: large enough that the system call is nothing


class Stamp(NamedTuple):
    """What tells one state of a file from another one."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """Return the stamp that a stat call tells."""
        return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class ExternalFile:
    """A file that holds tensors; read by ranges, never as a whole.

    The file must stay as it was when the model was loaded; a changed one is refused rather than
    misread.
    """

    __slots__ = ("_descriptor", "location", "path", "stamp")

    def __init__(self, location: str, path: Path, stamp: Stamp) -> None:
        self.location = location
        self.path = path
        self.stamp = stamp
        self._descriptor: int | None = None

    def pin(self) -> None:
        """Keep the file open, so that it can still be read after another one has taken its name."""
        if self._descriptor is None:
            self._descriptor = self._open()

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidModel(f"external data file {self.path}: {error.strerror}") from error
        if Stamp.of(os.fstat(descriptor)) != self.stamp:
            os.close(descriptor)
            raise InvalidModel(
                f"external data file {self.path} has changed since it was loaded: load it again"
            )
        return descriptor

    def chunks(self, offset: int, length: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Yield the bytes [offset, offset + length) in pieces of at most `chunk` bytes.

        Raises: InvalidModel if the file is gone, has changed, or cannot be read.
        """
        descriptor = self._descriptor
        opened = None
        if descriptor is None:
            descriptor = opened = self._open()
        try:
            while length:
                part = os.pread(descriptor, min(length, chunk), offset)
                if not part:
                    raise InvalidModel(f"external data file {self.path} is too short")
                yield part
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise InvalidModel(f"external data file {self.path}: {error.strerror}") from error
        finally:
            if opened is not None:
                os.close(opened)


class ExternalRange(NamedTuple):
    """Where a tensor's raw bytes lie."""

    file: ExternalFile
    offset: int
    length: int

    def read(self) -> memoryview:
        """Return the bytes. Raises: InvalidModel as `ExternalFile.chunks` does."""
        data = bytearray(self.length)
        at = 0
        for part in self.file.chunks(self.offset, self.length):
            data[at : at + len(part)] = part
            at += len(part)
        return memoryview(data)


class Constant:
    """A tensor whose content is known, but read only on request.

    dtype: of onnx.TensorProto. shape: integers. name: of the tensor, for messages only.
    """

    __slots__ = ("_make", "_raw", "dtype", "external", "name", "shape", "tensor")

    def __init__(self, dtype: int, shape: tuple[int, ...], name: str = "") -> None:
        self.dtype = dtype
        self.shape = shape
        self.name = name
        self.tensor: onnx.TensorProto | None = None  # all but a large raw_data
        self.external: ExternalRange | None = None
        self._raw: memoryview | None = None
        self._make: Callable[[], Array] | None = None

    @staticmethod
    def from_tensor(
        tensor: onnx.TensorProto,
        raw: memoryview | None = None,
        external: ExternalRange | None = None,
    ) -> Constant:
        """Return the constant that `tensor` holds.

        Its content may lie in `raw` or `external` instead.
        """
        constant = Constant(tensor.data_type, tuple(tensor.dims), tensor.name)
        constant.tensor = tensor
        constant.external = external
        constant._raw = raw
        return constant

    @staticmethod
    def from_array(array: Array) -> Constant:
        """Return a constant that holds `array` itself (not a copy)."""
        if array.dtype not in ELEMENT_TYPES:
            raise ValueError(f"ONNX has no element type for numpy's {array.dtype}")
        return Constant.computed(ELEMENT_TYPES[array.dtype], array.shape, lambda: array)

    @staticmethod
    def computed(dtype: int, shape: tuple[int, ...], make: Callable[[], Array]) -> Constant:
        """Return a constant that `make` computes each time it is asked for; nothing is kept.

        `make` must always return the same array, of `shape` and of the numpy type that stands for
        `dtype`.
        """
        constant = Constant(dtype, tuple(int(extent) for extent in shape))
        constant._make = make
        return constant

    @property
    def nbytes(self) -> int:
        """Bytes of the content in raw form; 0 for strings."""
        if self.external is not None:
            return self.external.length
        if self.dtype == onnx.TensorProto.STRING:
            return 0
        return raw_size(self.dtype, self.shape)

    def numpy(self) -> Array:
        """Return the content, read-only; types that numpy lacks are those of ml_dtypes.

        Raises: InvalidModel naming the tensor (and the file) if the content is missing or of
        another size.
        """
        if self._make is not None:
            return self._made(self._make)
        try:
            if self.external is not None or self._raw is not None:
                array = from_raw(self.raw(), self.dtype, self.shape)
            else:
                array = from_fields(self._tensor())
        except (InvalidModel, ValueError) as error:
            raise InvalidModel(f"tensor '{self.name}': {error}") from error
        array.flags.writeable = False
        return array

    def _tensor(self) -> onnx.TensorProto:
        if self.tensor is None:
            raise InvalidModel("no content")
        return self.tensor

    def _made(self, make: Callable[[], Array]) -> Array:
        array = make()
        dtype = numpy_type(self.dtype)
        if array.shape != self.shape or array.dtype != dtype:
            raise ValueError(
                f"computed constant is {array.dtype}{list(array.shape)},"
                f" declared {dtype}{list(self.shape)}"
            )
        return array

    def raw(self) -> memoryview:
        """Return all bytes in ONNX's raw form (little-endian); not for strings."""
        if self._raw is not None:
            return self._raw
        if self.external is not None:
            return self.external.read()
        return to_raw(self.numpy(), self.dtype)

    def to_tensor(self, name: str = "") -> onnx.TensorProto:
        """Return a new tensor that holds the content itself."""
        tensor = onnx.TensorProto(name=name, data_type=self.dtype, dims=self.shape)
        if self.dtype == onnx.TensorProto.STRING:
            tensor.string_data.extend(
                item.encode() if isinstance(item, str) else item for item in self.numpy().flat
            )
        else:
            tensor.raw_data = bytes(self.raw())
        return tensor

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the raw bytes piece by piece; an external tensor is never held whole."""
        if self.external is not None:
            yield from self.external.file.chunks(self.external.offset, self.external.length)
            return
        data = self.raw()
        for at in range(0, len(data), CHUNK):
            yield data[at : at + CHUNK]


def sparse(tensor: onnx.SparseTensorProto) -> Constant:
    """Return the dense constant that a sparse initializer stands for."""
    shape = tuple(tensor.dims)

    def make() -> Array:
        values, indices = from_fields(tensor.values), from_fields(tensor.indices)
        dense = np.zeros(shape, dtype=values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense

    constant = Constant.computed(tensor.values.data_type, shape, make)
    constant.name = tensor.values.name
    return constant
