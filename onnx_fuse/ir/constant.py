"""Constants that are not read before someone asks: embedded in the message, in external files, or computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_fuse.errors import InvalidModel

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 1 << 20  # bytes that are copied at a time: large enough that the system call is nothing

_PACKED_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}.items()
    if hasattr(onnx.TensorProto, name)
}


def count(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a tensor, in Python integers (numpy's product overflows)."""
    result = 1
    for extent in shape:
        result *= extent
    return result


def raw_size(dtype: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in ONNX's raw form; `dtype` is of onnx.TensorProto, not STRING.

    Raises: InvalidModel for an element type that is unknown or has no raw form.
    """
    if bits := _PACKED_BITS.get(dtype):
        return (count(shape) * bits + 7) // 8
    if dtype == onnx.TensorProto.STRING:
        raise InvalidModel("a tensor of strings has no raw form")
    try:
        return count(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)
    except KeyError:
        raise InvalidModel(f"unknown tensor element type {dtype}") from None


class Stamp(NamedTuple):
    """What tells one state of a file from another one."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class ExternalFile:
    """A file that holds tensors; read by ranges, never as a whole.

    The file must stay as it was when the model was loaded; a changed one is refused rather than misread.
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
                f"external data file {self.path} has changed since the model was loaded: load it again"
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
        tensor: onnx.TensorProto, raw: memoryview | None = None, external: ExternalRange | None = None
    ) -> Constant:
        """Return the constant that `tensor` holds; its content may lie in `raw` or `external` instead."""
        constant = Constant(tensor.data_type, tuple(tensor.dims), tensor.name)
        constant.tensor = tensor
        constant.external = external
        constant._raw = raw
        return constant

    @staticmethod
    def from_array(array: Array) -> Constant:
        """Return a constant that holds `array` itself (not a copy)."""
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return Constant.computed(dtype, array.shape, lambda: array)

    @staticmethod
    def computed(dtype: int, shape: tuple[int, ...], make: Callable[[], Array]) -> Constant:
        """Return a constant that `make` computes each time it is asked for; nothing is kept.

        `make` must always return the same array, of `shape` and of the numpy type that stands for `dtype`.
        """
        constant = Constant(dtype, tuple(int(extent) for extent in shape))
        constant._make = make
        return constant

    @property
    def is_computed(self) -> bool:
        """Whether the content is made by a function on each request."""
        return self._make is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the content in raw form; 0 for strings."""
        if self.dtype == onnx.TensorProto.STRING:
            return 0
        return raw_size(self.dtype, self.shape)

    def numpy(self) -> Array:
        """Return the content, read-only where it is shared; types that numpy lacks are those of ml_dtypes.

        Raises: InvalidModel naming the tensor (and the file) if the content is missing or of another size.
        """
        if self._make is not None:
            return self._made(self._make)
        try:
            if self.external is None and self._raw is None:
                assert self.tensor is not None
                return _read_only(numpy_helper.to_array(self.tensor))
            if self.dtype not in _PACKED_BITS:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(self.dtype)
                return _read_only(np.frombuffer(self.raw(), dtype=dtype).reshape(self.shape))
            whole = onnx.TensorProto(data_type=self.dtype, dims=self.shape, raw_data=bytes(self.raw()))
            return _read_only(numpy_helper.to_array(whole))
        except InvalidModel as error:
            raise InvalidModel(f"tensor '{self.name}': {error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidModel(f"tensor '{self.name}' cannot be read: {error}") from error

    def _made(self, make: Callable[[], Array]) -> Array:
        array = make()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.dtype)
        if array.shape != self.shape or array.dtype != dtype:
            raise ValueError(
                f"computed constant is {array.dtype}{list(array.shape)}, declared {dtype}{list(self.shape)}"
            )
        return array

    def raw(self) -> memoryview:
        """Return all bytes in ONNX's raw form (little-endian); not for strings."""
        if self._raw is not None:
            return self._raw
        if self.external is not None:
            length = self.external.length
            data = bytearray(length)
            at = 0
            for part in self.external.file.chunks(self.external.offset, length):
                data[at : at + len(part)] = part
                at += len(part)
            return memoryview(data)
        return memoryview(raw_bytes(self.numpy(), self.dtype))

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the raw bytes piece by piece; an external tensor is never held whole."""
        if self.external is not None:
            yield from self.external.file.chunks(self.external.offset, self.external.length)
            return
        data = self.raw()
        for at in range(0, len(data), CHUNK):
            yield data[at : at + CHUNK]


def raw_bytes(array: Array, dtype: int) -> memoryview | bytes:
    """Return `array` in ONNX's raw form, without a copy where its memory has that form already."""
    if dtype in _PACKED_BITS:
        return numpy_helper.from_array(array).raw_data
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return memoryview(flat.view(np.uint8))


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def sparse(tensor: onnx.SparseTensorProto) -> Constant:
    """Return the dense constant that a sparse initializer stands for."""
    shape = tuple(tensor.dims)

    def make() -> Array:
        values = numpy_helper.to_array(tensor.values)
        indices = numpy_helper.to_array(tensor.indices)
        dense = np.zeros(shape, dtype=values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense

    constant = Constant.computed(tensor.values.data_type, shape, make)
    constant.name = tensor.values.name
    return constant
