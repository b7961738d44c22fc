"""Writes attention as one operator, with its caches and masks, and what its record must say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.analysis.samples import projections
from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer

BATCH, ROWS, PAST = SIZES["B"], SIZES["S"], SIZES["P"]
WIDTH = NUM_HEADS * HEAD_DIM
MICROSOFT = "com.microsoft"
# Where an operator takes its mask, its past, and (the others) numbers to add.
_SLOTS = {"packed": (3, 4, 5), "multi_head": (4, 6, 5), "standard": (3, 4, 3)}


@dataclass
class Call:
    """One attention operator: how it is given its inputs, and its attributes.

    cache: "none", "past" (given and shown), "unseen" (given, and nobody reads what it becomes) or
    "shown" (not given, but keys and values are shown like one).
    """

    operator: str  # "standard", "standard_flat", "multi_head", "packed"
    cache: str = "none"
    dims: str = "dynamic"
    opset: int = 23
    attributes: dict[str, Any] = field(default_factory=dict)
    mask: Array | None = None
    mask_dims: tuple[int | str, ...] = ()
    lengths: Array | None = None  # nonpad_kv_seqlen

    @property
    def columns(self) -> int:
        """Extent of the scores' columns."""
        return ROWS + (PAST if self.cache in ("past", "unseen") else 0)


def written(call: Call) -> Sample:
    """Return the graph of one operator, and its record but for what the mask does to it."""
    w = Writer(Form(dims=call.dims))
    name_extents(w, C=call.columns)
    if call.mask is not None:
        name_extents(w, N=len(call.mask))
    w.b.opset = call.opset if call.operator.startswith("standard") else 17
    inputs = _given(w, call)
    kind = call.operator.removesuffix("_flat")
    mask_slot, past_slot, _ = _SLOTS[kind]
    if call.mask is not None:
        inputs[mask_slot] = w.b.input("mask", call.mask, call.mask_dims)
    if call.lengths is not None:
        inputs[6] = w.b.input("lengths", call.lengths, ("B",))
    shown = _add_cache(w, call, inputs, past_slot)
    outputs = _call(w, call, inputs, shown)
    made = outputs[0]
    if call.operator == "standard":
        made = w.merged(made)
    else:
        made = w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM)
    result = w.output(made)
    w.record.attributes = w.attributes() | {
        "zero_nan": 2 * (kind == "standard"),
        "is_causal": int(any(call.attributes.get(n) for n in ("is_causal", "unidirectional"))),
    }
    model = w.b.model(result)
    kept = outputs[1:] if call.cache in ("past", "shown") else []
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in kept
    )
    return Sample(model, w.b.feeds, w.record)


def name_extents(w: Writer, **extents: int) -> None:
    """Add symbols, which the model doesn't know if it knows no others."""
    w.b.sizes = w.b.sizes | extents
    w.b.dynamic |= extents.keys() if w.form.dims == "dynamic" else frozenset()


def _given(w: Writer, call: Call) -> list[str]:
    """Return the operator's inputs: queries, keys and values, or what they are projected from."""
    slots = [""] * 8
    if call.operator == "packed":
        hidden = w.source("hidden", "S", HIDDEN)
        weight, bias = w.random(HIDDEN, 3 * WIDTH) / np.float32(4), w.random(3 * WIDTH)
        w.operands["qkv_weight"], w.operands["qkv_bias"] = weight, bias
        slots[:3] = [hidden, w.b.const(weight), w.b.const(bias)]
        return slots
    parts = projections.project(w)
    if call.operator == "standard":
        slots[:3] = [w.b.transpose(part, 0, 2, 1, 3) for part in parts]
    else:
        slots[:3] = [w.b.reshape(part, "B", "S", WIDTH) for part in parts]
    return slots


def _add_cache(w: Writer, call: Call, inputs: list[str], slot: int) -> int:
    """Add the cache's inputs; return how many outputs show it."""
    is_stacked = call.operator == "packed"
    if call.cache == "none":
        return 0
    length = 0 if call.cache == "shown" else PAST
    caches = [w.random(BATCH, NUM_HEADS, length, HEAD_DIM) for _ in "kv"]
    w.operands["past_key"], w.operands["past_value"] = caches
    dims = ("B", NUM_HEADS, "P", HEAD_DIM)
    if call.cache == "shown":
        pass
    elif is_stacked:
        inputs[slot] = w.b.input("past", np.stack(caches), (2, *dims))
    else:
        inputs[slot : slot + 2] = [
            w.b.input(name, data, dims)
            for name, data in zip(("past_key", "past_value"), caches, strict=True)
        ]
    return 1 if is_stacked else 2


def _call(w: Writer, call: Call, inputs: list[str], shown: int) -> list[str]:
    attributes = dict(call.attributes)
    match call.operator:
        case "packed":
            attributes |= {"num_heads": NUM_HEADS, "domain": MICROSOFT}
            op_type = "Attention"
        case "multi_head":
            attributes |= {"num_heads": NUM_HEADS, "domain": MICROSOFT}
            op_type = "MultiHeadAttention"
        case "standard_flat":
            attributes |= {"q_num_heads": NUM_HEADS, "kv_num_heads": NUM_HEADS}
            op_type = "Attention"
        case _:
            op_type = "Attention"
    while not inputs[-1]:
        inputs = inputs[:-1]
    return w.b.ops(op_type, *inputs, count=1 + shown, **attributes)
