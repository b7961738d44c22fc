"""Says what is wrong with a block's operands and attributes; the kernel makes the same checks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import TensorProto

from onnx_fuse.op import schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.schema import ATTRIBUTES, OPERANDS, Argument, InvalidBlock, Operand


def check(operands: Mapping[str, Argument], attributes: BlockAttributes, outputs: int = 1) -> None:
    """Check a block's operands, attributes and number of outputs against the operator's tables.

    Unknown types, ranks and dims, and dims that are names, are taken to be right.

    Raises: InvalidBlock with a sentence about the first thing that is wrong.
    """
    schema.in_order(operands)
    _check_attributes(attributes)
    _check_presence(operands)
    _check_features(operands, attributes)
    _check_outputs(operands, outputs)
    _check_arguments(operands, attributes)


def _check_outputs(operands: Mapping[str, Argument], count: int) -> None:
    names = [row.name for row in schema.outputs(count)]
    if "past_key" in operands and "present_key" not in names:
        raise InvalidBlock(f"the block has {count} outputs, expected 3 or 4, because of past_key")
    if "seqlens_k" in operands and "attn_weights" in names:
        raise InvalidBlock(f"the block has {count} outputs, expected 3, because of seqlens_k")


def _check_attributes(attributes: BlockAttributes) -> None:
    for row in ATTRIBUTES:
        value = getattr(attributes, row.name)
        if row.choices and value not in row.choices:
            choices = ", ".join(map(str, row.choices))
            raise InvalidBlock(f"attribute {row.name} is {value!r}, none of {choices}")
        if isinstance(value, str):
            continue
        if not math.isfinite(value):
            raise InvalidBlock(f"attribute {row.name} is {value}, not a finite number")
        if value < row.minimum:
            raise InvalidBlock(f"attribute {row.name} is {value}, less than {row.minimum}")
    heads, kv_heads = attributes.num_heads, attributes.kv_num_heads
    if heads % kv_heads:
        raise InvalidBlock(f"num_heads {heads} is no multiple of kv_num_heads {kv_heads}")
    rotated, size = attributes.rotary_embedding_dim, attributes.head_dim
    if rotated % 2:
        raise InvalidBlock(f"attribute rotary_embedding_dim is {rotated}, an odd number")
    if rotated > size:
        raise InvalidBlock(f"rotary_embedding_dim {rotated} is more than head_dim {size}")


def _check_presence(operands: Mapping[str, Argument]) -> None:
    """Check which operands come together."""
    for row in (row for row in OPERANDS if row.name in operands):
        for needed in row.needs:
            if not any(name in operands for name in needed.split("|")):
                raise InvalidBlock(f"operand {row.name} needs {needed.replace('|', ' or ')}")
        for excluded in row.excludes:
            if excluded in operands:
                raise InvalidBlock(f"operands {row.name} and {excluded} exclude each other")
    for part, value in (("q", "query"), ("k", "key"), ("v", "value")):
        if not any(name in operands for name in (value, f"{part}_weight", "qkv", "qkv_weight")):
            raise InvalidBlock(
                f"the block has no {value}: {value}, {part}_weight, qkv or qkv_weight"
            )
    read = {schema.source(part, operands) for part in schema.SOURCES}
    for name in schema.SOURCES["v"]:
        if name in operands and name not in read:
            raise InvalidBlock(f"operand {name} is given, but nothing is projected from it")


def _check_features(operands: Mapping[str, Argument], attributes: BlockAttributes) -> None:
    """Check that each operand agrees with the attribute that switches it on."""
    for part in ("q", "k"):
        kind = attributes.norm(part).kind
        if kind == "none" and f"{part}_norm_weight" in operands:
            raise InvalidBlock(f'operand {part}_norm_weight is given, but {part}_norm is "none"')
        if kind != "layer" and f"{part}_norm_bias" in operands:
            raise InvalidBlock(f'operand {part}_norm_bias goes with "layer", not with "{kind}"')
    rotated = attributes.rotary_embedding_dim
    if bool(rotated) != any(name in operands for name in ("q_cos", "k_cos", "cos_cache")):
        tables = "no tables are" if rotated else "tables are"
        raise InvalidBlock(f"rotary_embedding_dim is {rotated}, but {tables} given")
    if attributes.window_cache and not attributes.window_size:
        raise InvalidBlock("attribute window_cache needs window_size")
    if attributes.window_size and not ("seqlens_k" in operands and attributes.is_causal):
        raise InvalidBlock("attribute window_size needs operand seqlens_k and is_causal = 1")
    if bool(attributes.out_size) != ("out_weight" in operands):
        given = "not given" if attributes.out_size else "given"
        raise InvalidBlock(f"out_size is {attributes.out_size}, but out_weight is {given}")


def _check_arguments(operands: Mapping[str, Argument], attributes: BlockAttributes) -> None:
    """Check types, ranks and dims."""
    dims = _Dims(operands, attributes)
    for row in (row for row in OPERANDS if row.name in operands):
        dtype, shape = operands[row.name]
        if dtype is not None and dtype not in row.types:
            expected = " or ".join(_type_name(kind) for kind in row.types)
            raise InvalidBlock(f"operand {row.name} is {_type_name(dtype)}, expected {expected}")
        if shape is not None:
            dims.check(row, row.shape_in(dtype), shape)


def _type_name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower()


class _Dims:
    """What each name of a dim stands for, and which operand said so."""

    def __init__(self, operands: Mapping[str, Argument], attributes: BlockAttributes) -> None:
        self._known = {name: (size, "attributes") for name, size in attributes.dims().items()}
        sources = {part: schema.source(part, operands) for part in schema.SOURCES}
        self._same = {
            f"{part}_source_size": f"{source}_size" for part, source in sources.items() if source
        }
        if "hidden" in (sources["k"], sources["v"]) or "qkv" in operands:
            self._same["kv_seq"] = "q_seq"
        if "past_key" not in operands:
            self._known["past_seq"] = (0, "attributes")
        self._is_buffered = "seqlens_k" in operands  # then total_seq is in a tensor

    def check(
        self, row: Operand, expected: tuple[str, ...], shape: tuple[int | str | None, ...]
    ) -> None:
        if row.broadcast:
            expected = expected[max(0, len(expected) - len(shape)) :]
        if len(shape) != len(expected):
            text = f"({', '.join(expected)})"
            raise InvalidBlock(f"operand {row.name} has {len(shape)} dims, expected {text}")
        for axis, (dim, name) in enumerate(zip(shape, expected, strict=True)):
            if isinstance(dim, int):
                self._check_dim(row, axis, dim, name)

    def _check_dim(self, row: Operand, axis: int, dim: int, name: str) -> None:
        name, *literal = name.split("|")
        name, half, _ = name.partition(" / 2")
        shown, dim = (f"2 * {dim}", 2 * dim) if half else (str(dim), dim)
        name = self._same.get(name, name)
        if str(dim) in literal:
            return
        if name == "total_seq":
            if self._is_buffered:
                return
            self._join()
        size, sayer = (int(name), "") if name.isdigit() else self._known.get(name, (dim, ""))
        if dim != size:
            reason = f"{name} is {size} by {sayer}" if sayer else f"it must be {size}"
            raise InvalidBlock(f"operand {row.name} has {shown} in dim {axis}, but {reason}")
        self._known.setdefault(name, (dim, row.name))

    def _join(self) -> None:
        """Learn total_seq if past_seq and kv_seq are known."""
        past = self._known.get("past_seq")
        new = self._known.get(self._same.get("kv_seq", "kv_seq"))
        if past and new:
            self._known["total_seq"] = (past[0] + new[0], "past_seq + kv_seq")
