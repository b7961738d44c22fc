"""Attention graphs of every form, each with the record that its fused node must state.

The record follows from the numbers that the graph was made of, by numpy and independently of the
recogniser: weights, biases, masks and tables in the operator's own layout, and its attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx

from tests.analysis.samples import masks, projections, rotations
from tests.analysis.samples.builder import Array, Builder, Extent
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, OUT, SIZES, WIDE, Form

KV_HEADS = {"mha": 4, "mqa_broadcast": 1}
DYNAMIC = {"static": "", "dynamic": "BSTP", "batch": "B", "seq": "STP"}
CAP, EPSILON = 1.5, 1e-5
OPSET, ROTARY_OPSET = 17, 23


@dataclass
class Record:
    """What a fused node says: operands that broadcast are given at full size."""

    op_type: str = "FusedAttentionBlock"
    attributes: dict[str, int | float | str] = field(default_factory=dict)
    operands: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A graph, inputs for it, and the record of its only block."""

    model: onnx.ModelProto
    feeds: dict[str, Array]
    record: Record


class Writer:
    """Writes one attention; each step is a method, so that a test can put another in its place."""

    def __init__(self, form: Form, seed: int = 0) -> None:
        self.form = form
        self.rng = np.random.default_rng(seed)
        needs_operator = form.rope.startswith("operator") or form.norm == "rms_operator"
        opset = ROTARY_OPSET if needs_operator else OPSET
        self.b = Builder(SIZES, DYNAMIC[form.dims], opset)
        self.kv_heads = KV_HEADS.get(form.heads, 2)
        self.group = NUM_HEADS // self.kv_heads
        self.value_dim = WIDE if form.extra in ("wide_values", "raw_values") else HEAD_DIM
        self.kv_seq = "T" if form.extra == "cross" else "S"
        self.scale = 1.0 / math.sqrt(HEAD_DIM)
        self.record = Record()
        self.operands = self.record.operands

    # What it is made of ---------------------------------------------------------------------------

    def random(self, *shape: int) -> Array:
        """Return normal numbers, float32."""
        return self.rng.standard_normal(shape).astype(np.float32)

    @property
    def score_shape(self) -> tuple[int, int, int, int]:
        """(batch, num_heads, q_seq, kv_seq) of the feeds."""
        return SIZES["B"], NUM_HEADS, SIZES["S"], SIZES[self.kv_seq]

    @property
    def positions(self) -> tuple[str, str]:
        """The symbols of the two position axes of queries, in the graph's order."""
        return ("S", "B") if self.form.order == "seq_first" else ("B", "S")

    def key_positions(self) -> tuple[str, str]:
        """The same of keys and values."""
        return (
            ("T", "B")
            if self.positions[0] == "S" and self.kv_seq == "T"
            else (self.positions if self.kv_seq == "S" else ("B", "T"))
        )

    def sample(self) -> Sample:
        """Write the graph."""
        query, key, value = self.operands_of_product()
        weights = self.weights(self.scores(query, key))
        output = self.output(self.merged(self.product(weights, value)))
        self.record.attributes = self.attributes()
        return Sample(self.b.model(output), self.b.feeds, self.record)

    def attributes(self) -> dict[str, int | float | str]:
        """Return the attributes that the record must have."""
        form = self.form
        norm = form.norm.partition("_")[0]
        return {
            "num_heads": NUM_HEADS,
            "kv_num_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "v_head_dim": self.value_dim,
            "out_size": 0 if form.extra == "no_output" else OUT,
            "scale": (1.0 if form.scale == "folded" else self.scale)
            * (masks.AMOUNT if form.mask == "times_amount" else 1.0),
            "softcap": CAP if form.extra == "softcap" else 0.0,
            "is_causal": 0,
            "interleaved": int(form.rope in rotations.INTERLEAVED),
            "rotary_embedding_dim": rotations.width(form.rope, HEAD_DIM),
            "q_norm": norm,
            "k_norm": norm,
            "q_norm_over_heads": 0,
            "k_norm_over_heads": 0,
            "q_norm_epsilon": 0.0 if norm == "none" else EPSILON,
            "k_norm_epsilon": 0.0 if norm == "none" else EPSILON,
            "zero_nan": int(form.mask in masks.ZERO_NAN),
            "precision": "fp32",
        }

    # Queries, keys and values ---------------------------------------------------------------------

    def operands_of_product(self) -> tuple[str, str, str]:
        """Return queries, keys and values as the products take them."""
        query, key, value = projections.project(self)
        query, key = self.normed(query, "q"), self.normed(key, "k")
        query, key, value = self.heads_first(query), self.heads_first(key), self.heads_first(value)
        query, key = self.rotated(query, "q"), self.rotated(key, "k")
        query, key = self.scaled_query(query), self.scaled_key(key)
        return query, self.repeated(key, HEAD_DIM), self.repeated(value, self.value_dim)

    def source(self, name: str, seq: str, size: int) -> str:
        """Add the input from which something is projected, and note it as an operand."""
        dims = (seq, "B", size) if self.form.order == "seq_first" else ("B", seq, size)
        data = self.random(SIZES["B"], SIZES[seq], size)
        self.operands[name] = data
        turned = np.swapaxes(data, 0, 1) if self.form.order == "seq_first" else data
        return self.b.input(name, np.ascontiguousarray(turned), dims)

    def heads_first(self, value: str) -> str:
        """(batch, seq, heads, depth) -> (batch, heads, seq, depth), where the order has it."""
        has_own_order = self.form.order in ("seq_first", "einsum")
        return value if has_own_order else self.b.transpose(value, 0, 2, 1, 3)

    @property
    def head_axis(self) -> int:
        """The axis of the heads where queries and keys are rotated and repeated."""
        return 2 if self.form.order in ("seq_first", "einsum") else 1

    def layout(self, seq: str, heads: Extent, depth: Extent) -> tuple[Extent, ...]:
        """Return the extents of queries or keys there."""
        match self.form.order:
            case "seq_first":
                return seq, "B", heads, depth
            case "einsum":
                return "B", seq, heads, depth
        return "B", heads, seq, depth

    def normed(self, value: str, name: str) -> str:
        """Normalise over the depth, by the form."""
        kind = self.form.norm
        if kind == "none":
            return value
        b, weight = self.b, 1.0 + self.random(HEAD_DIM) / 4
        heads = NUM_HEADS if name == "q" else self.kv_heads
        self.operands[f"{name}_norm_weight"] = np.broadcast_to(weight, (heads, HEAD_DIM))
        match kind:
            case "rms_operator":
                return b.op("RMSNormalization", value, b.const(weight), axis=-1, epsilon=EPSILON)
            case "layer" | "layer_written":
                bias = self.random(HEAD_DIM)
                self.operands[f"{name}_norm_bias"] = np.broadcast_to(bias, (heads, HEAD_DIM))
                if kind == "layer_written":
                    centred = b.op("Sub", value, b.reduce("ReduceMean", value, -1))
                    unit = b.op("Div", centred, self.root_of_mean_square(centred))
                    return b.op("Add", b.op("Mul", unit, b.const(weight)), b.const(bias))
                inputs = (value, b.const(weight), b.const(bias))
                return b.op("LayerNormalization", *inputs, axis=-1, epsilon=EPSILON)
            case "layer_moments":
                bias = self.random(HEAD_DIM)
                self.operands[f"{name}_norm_bias"] = np.broadcast_to(bias, (heads, HEAD_DIM))
                return b.op(
                    "Add", b.op("Mul", self.by_moments(value), b.const(weight)), b.const(bias)
                )
            case "l2":
                length = b.reduce("ReduceL2", value, -1)
                unit = b.op("Div", value, b.op("Clip", length, b.scalar(EPSILON)))
                return b.op("Mul", unit, b.const(weight))
        inverse = b.op("Reciprocal", self.root_of_mean_square(value))
        if kind == "rms_weighted":
            return b.op("Mul", value, b.op("Mul", inverse, b.const(weight)))
        return b.op("Mul", b.const(weight), b.op("Mul", value, inverse))

    def root_of_mean_square(self, value: str) -> str:
        """Return sqrt(mean(value^2) + epsilon) over the last axis."""
        b = self.b
        square = b.op("Pow", value, b.scalar(2.0))
        mean = b.op("Add", b.reduce("ReduceMean", square, -1), b.scalar(EPSILON))
        return b.op("Sqrt", mean)

    def by_moments(self, value: str) -> str:
        """(x - mean(x)) / sqrt(max(mean(x^2) - mean(x)^2, 0) + epsilon)."""
        b, mean = self.b, self.b.reduce("ReduceMean", value, -1)
        second = b.reduce("ReduceMean", b.op("Mul", value, value), -1)
        variance = b.op("Max", b.op("Sub", second, b.op("Mul", mean, mean)), b.scalar(0.0))
        root = b.op("Sqrt", b.op("Add", variance, b.scalar(EPSILON)))
        return b.op("Div", b.op("Sub", value, mean), root)

    def rotated(self, value: str, name: str) -> str:
        """Rotate by the form."""
        return rotations.rotate(self, value, name)

    def scaled_query(self, value: str) -> str:
        """Scale before the product, where the form has it."""
        match self.form.scale:
            case "on_q":
                return self.b.op("Mul", value, self.b.scalar(self.scale))
            case "roots":
                return self.b.op("Mul", value, self.b.scalar(math.sqrt(self.scale)))
        return value

    def scaled_key(self, value: str) -> str:
        """As `scaled_query`."""
        if self.form.scale == "roots":
            return self.b.op("Div", value, self.b.scalar(1.0 / math.sqrt(self.scale)))
        return value

    def repeated(self, value: str, depth: int) -> str:
        """Give each query head its key or value head, where the form repeats them."""
        heads, b, axis = self.form.heads, self.b, self.head_axis + 1
        if not heads.startswith("gqa"):
            return value
        wide = b.unsqueeze(value, axis)
        match heads:
            case "gqa_expand":
                dims = self.layout(self.kv_seq, self.kv_heads, depth)
                wide = b.op("Expand", wide, b.shape((*dims[:axis], self.group, *dims[axis:])))
            case "gqa_tile":
                times = [self.group if place == axis else 1 for place in range(5)]
                wide = b.op("Tile", wide, b.const(times, np.int64))
            case "gqa_concat":
                wide = b.op("Concat", *[wide] * self.group, axis=axis)
        return b.reshape(wide, *self.layout(self.kv_seq, NUM_HEADS, depth))

    # Scores ---------------------------------------------------------------------------------------

    def scores(self, query: str, key: str) -> str:
        """Return what the softmax takes, (batch, num_heads, q_seq, kv_seq)."""
        scores = self.as_four(self.scored(query, key))
        scores = self.capped(self.scaled_scores(scores))
        scores = masks.masked(self, scores)
        if self.form.scale == "late":
            scores = self.b.op("Mul", scores, self.b.scalar(self.scale))
        return scores

    def scored(self, query: str, key: str) -> str:
        """Multiply queries and keys."""
        b = self.b
        match self.form.order:
            case "einsum":
                return b.op("Einsum", query, key, equation="bsnd,btnd->bnst")
            case "3d":
                query = b.reshape(query, ("B", NUM_HEADS), "S", HEAD_DIM)
                key = b.reshape(key, ("B", NUM_HEADS), self.kv_seq, HEAD_DIM)
                return self.matched(query, b.transpose(key, 0, 2, 1))
            case "seq_first":
                query = b.reshape(query, "S", ("B", NUM_HEADS), HEAD_DIM)
                key = b.reshape(key, self.kv_seq, ("B", NUM_HEADS), HEAD_DIM)
                return self.matched(b.transpose(query, 1, 0, 2), b.transpose(key, 1, 2, 0))
        if self.form.heads == "folded":
            query = b.reshape(query, "B", self.kv_heads, (self.group, "S"), HEAD_DIM)
        if self.form.order == "4d":  # the transposed keys straight from where they were made
            return self.matched(query, b.transpose(key, 0, 1, 3, 2))
        return self.matched(query, b.op("Einsum", key, equation="bntd->bndt"))

    def matched(self, query: str, key: str) -> str:
        """Multiply queries and transposed keys, with the scale if the form has it there."""
        if self.form.scale == "fused":
            options = {"alpha": self.scale, "domain": "com.microsoft"}
            return self.b.op("FusedMatMul", query, key, **options)
        return self.b.op("MatMul", query, key)

    @property
    def is_folded(self) -> bool:
        """Whether heads are folded into the batch or into the rows of the scores."""
        return self.form.order in ("3d", "seq_first") or self.form.heads == "folded"

    def as_four(self, scores: str) -> str:
        """Return the scores as (batch, num_heads, q_seq, kv_seq)."""
        if not self.is_folded:
            return scores
        return self.b.reshape(scores, "B", NUM_HEADS, "S", self.kv_seq)

    def scaled_scores(self, scores: str) -> str:
        """Scale after the product, where the form has it."""
        b = self.b
        match self.form.scale:
            case "mul":
                return b.op("Mul", b.scalar(self.scale), scores)
            case "div":
                return b.op("Div", scores, b.scalar(math.sqrt(HEAD_DIM)))
            case "sqrt_of_shape":
                return b.op("Div", scores, b.op("Sqrt", self.depth_of_shape()))
            case "pow_of_shape":
                return b.op("Mul", scores, b.op("Pow", self.depth_of_shape(), b.scalar(-0.5)))
        return scores

    def depth_of_shape(self) -> str:
        """Return the head size, read off a tensor's shape."""
        b = self.b
        tensor = b.reshape(next(iter(b.feeds)), -1, HEAD_DIM)
        depth = b.op("Gather", b.op("Shape", tensor), b.const(1, np.int64), axis=0)
        return b.op("Cast", depth, to=onnx.TensorProto.FLOAT)

    def capped(self, scores: str) -> str:
        """Softcap, where the form has it."""
        if self.form.extra != "softcap":
            return scores
        b = self.b
        return b.op("Mul", b.op("Tanh", b.op("Div", scores, b.scalar(CAP))), b.scalar(CAP))

    # Weights, values, output ----------------------------------------------------------------------

    def weights(self, scores: str) -> str:
        """Return the softmax of the scores."""
        b = self.b
        match self.form.extra:
            case "written_softmax":
                power = b.op("Exp", b.op("Sub", scores, b.reduce("ReduceMax", scores, -1)))
                return b.op("Div", power, b.reduce("ReduceSum", power, -1))
            case "log_of_sum":
                total = b.reduce("ReduceLogSumExp", scores, -1)
                return b.op("Exp", b.op("Identity", b.op("Sub", scores, total)))
            case "sinks":
                sinks = self.random(NUM_HEADS)
                self.operands["sinks"] = sinks
                column = b.const(sinks.reshape(1, NUM_HEADS, 1, 1))
                wide = b.op("Expand", column, b.shape(("B", NUM_HEADS, "S", 1)))
                joined = b.op("Softmax", b.op("Concat", scores, wide, axis=-1), axis=-1)
                return b.slice(joined, 0, -1, -1)
        weights = b.op("Softmax", scores, axis=-1)
        return masks.guarded(self, weights)

    def product(self, weights: str, value: str) -> str:
        """Multiply weights and values, (batch, num_heads, q_seq, depth) but for the order's own."""
        b, depth = self.b, self.value_dim
        match self.form.order:
            case "einsum":
                return b.op("Einsum", weights, value, equation="bnst,btnd->bsnd")
            case "3d":
                weights = b.reshape(weights, ("B", NUM_HEADS), "S", self.kv_seq)
                value = b.reshape(value, ("B", NUM_HEADS), self.kv_seq, depth)
                return b.reshape(b.op("MatMul", weights, value), "B", NUM_HEADS, "S", depth)
            case "seq_first":
                weights = b.reshape(weights, ("B", NUM_HEADS), "S", self.kv_seq)
                value = b.reshape(value, self.kv_seq, ("B", NUM_HEADS), depth)
                return b.op("MatMul", weights, b.transpose(value, 1, 0, 2))
        if self.form.heads == "folded":
            weights = b.reshape(weights, "B", self.kv_heads, (self.group, "S"), self.kv_seq)
            context = b.op("MatMul", weights, value)
            return b.reshape(context, "B", NUM_HEADS, "S", depth)
        return b.op("MatMul", weights, value)

    def merged(self, context: str) -> str:
        """Return the context with its heads side by side, but not yet one axis."""
        match self.form.order:
            case "einsum":
                return context
            case "seq_first":
                turned = self.b.transpose(context, 1, 0, 2)
                return self.b.reshape(turned, "S", "B", NUM_HEADS, self.value_dim)
        return self.b.transpose(context, 0, 2, 1, 3)

    def output(self, context: str) -> str:
        """Project the merged context (.., .., num_heads, depth)."""
        if self.form.extra == "no_output":
            return self.b.reshape(context, *self.positions, NUM_HEADS * self.value_dim)
        return projections.output(self, context)


def sample(form: Form, seed: int = 0) -> Sample:
    """Return the graph of a form."""
    return Writer(form, seed).sample()
